// Softmax, log-softmax and log-sum-exp over rows (contiguous) or columns (strided) with their gradients.
//
// Rows: x is (rows, columns), C-contiguous. Up to 1024 columns a warp owns a row and a block of 256 has 8 of them; longer
// rows have a block of 256 (up to 8192 columns) or 1024. Where the base pointers are aligned and columns is a multiple of
// the 16-byte pack, rows up to 8192 stay in registers (8 or 32 floats a thread), so that memory sees each element once in
// and once out: bound by memory. Other rows are read twice, the second time from L1 or L2: first a running
// maximum and sum, then the result. All arithmetic is float.
//
// Columns: x is (outer, n, inner), reduced over n. A thread owns one column, neighbouring threads neighbouring
// columns, so every load is coalesced; the column is read twice, the second time from L2 where it fits. Bound by memory.
//
// `mask` (bool, like x) may be null. Left-out elements come out as 0 (softmax) or -inf (log-softmax).

namespace {

// Who owns a row: a warp, or a whole block (blockDim.x threads, 32 floats of scratch).
struct WarpOwner {
    __device__ int rank() const { return threadIdx.x % WARP; }
    __device__ int width() const { return WARP; }
    template <typename Op> __device__ float reduce(float x) const { return warp_reduce<Op>(x); }
};
struct BlockOwner {
    float* scratch;
    __device__ int rank() const { return threadIdx.x; }
    __device__ int width() const { return blockDim.x; }
    template <typename Op> __device__ float reduce(float x) const { return block_reduce<Op>(x, scratch); }
};

// The part of a row that one thread holds in registers: N elements, `beyond` past the row's end and where masked out.
template <typename T, int N> struct Held {
    static constexpr int size = Pack<T>::size;
    float at[N];

    // f(k, i) for each pack: its first element's place in `at` and in the row
    template <typename F> __device__ __forceinline__ static void each(int rank, int width, int columns, F f) {
#pragma unroll
        for (int k = 0; k < N; k += size) {
            const int first = (k / size * width + rank) * size;
            if (first < columns) f(k, first);
        }
    }
    __device__ __forceinline__ void load(const T* x, const bool* mask, int rank, int width, int columns,
                                         float beyond) {
#pragma unroll
        for (int k = 0; k < N; ++k) at[k] = beyond;
        each(rank, width, columns, [&](int k, int first) {
            const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(x + first);
#pragma unroll
            for (int j = 0; j < size; ++j)
                at[k + j] = !mask || mask[first + j] ? to_float(pack.at[j]) : beyond;
        });
    }
    // y[i] = f(k, i) for each element
    template <typename F>
    __device__ __forceinline__ static void store(T* y, int rank, int width, int columns, F f) {
        each(rank, width, columns, [&](int k, int first) {
            Pack<T> pack;
#pragma unroll
            for (int j = 0; j < size; ++j) pack.at[j] = from_float<T>(f(k + j, first + j));
            *reinterpret_cast<Pack<T>*>(y + first) = pack;
        });
    }
};

// Maximum m and sum s of e^(x - m), built up element by element. A NaN leaves m alone and makes s NaN.
struct Running {
    float m = -INFINITY_F, s = 0.0f;
    __device__ __forceinline__ void add(float v) {
        if (v > m) {
            s = s * expf(m - v) + 1.0f;
            m = v;
        } else {
            s += v == m ? 1.0f : expf(v - m);  // inf - inf would be NaN
        }
    }
    // Over all threads of `owner`.
    template <typename Owner> __device__ __forceinline__ void combine(const Owner& owner) {
        const float all = owner.template reduce<Max>(m);
        s = owner.template reduce<Sum>(m == all ? s : s * expf(m - all));
        m = all;
    }
};

// The results: of an element and its row's maximum and sum, or of these two alone.
struct Softmax {
    static constexpr bool one_per_row = false;
    static __device__ __forceinline__ float of(float x, float m, float s) { return expf(x - m) / s; }
    static __device__ __forceinline__ float left_out() { return 0.0f; }
};
struct LogSoftmax {
    static constexpr bool one_per_row = false;
    static __device__ __forceinline__ float of(float x, float m, float s) { return (x - m) - logf(s); }
    static __device__ __forceinline__ float left_out() { return -INFINITY_F; }
};
struct LogSumExp {
    static constexpr bool one_per_row = true;
    static __device__ __forceinline__ float of(float, float m, float s) {
        return s != s ? s : (fabsf(m) < INFINITY_F ? m + logf(s) : m);
    }
};

template <typename F, int N, typename T, typename Owner>
__device__ void held_row(const Owner owner, const T* x, const bool* mask, T* y, int columns) {
    const int rank = owner.rank(), width = owner.width();
    Held<T, N> held;
    held.load(x, mask, rank, width, columns, -INFINITY_F);
    float m = -INFINITY_F;
#pragma unroll
    for (int k = 0; k < N; ++k) m = maximum(m, held.at[k]);
    m = owner.template reduce<Max>(m);  // NaN if there is one
    const float shift = fabsf(m) < INFINITY_F ? m : 0.0f;
    float s = 0.0f;
#pragma unroll
    for (int k = 0; k < N; ++k) s += expf(held.at[k] - shift);
    s = owner.template reduce<Sum>(s);
    if constexpr (F::one_per_row) {
        if (rank == 0) *y = from_float<T>(F::of(0.0f, m, m != m ? m : s));
    } else {
        s = m == INFINITY_F || m != m ? NAN_F : s;
        Held<T, N>::store(y, rank, width, columns, [&](int k, int i) {
            return mask && !mask[i] ? F::left_out() : F::of(held.at[k], m, s);
        });
    }
}

template <typename F, typename T, typename Owner>
__device__ void streamed_row(const Owner owner, const T* x, const bool* mask, T* y, i64 columns, bool vector) {
    constexpr int size = Pack<T>::size;
    const i64 packs = vector ? columns / size : 0;
    Running run;
    for (i64 p = owner.rank(); p < packs; p += owner.width()) {
        const Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[p];
#pragma unroll
        for (int j = 0; j < size; ++j)
            if (!mask || mask[p * size + j]) run.add(to_float(pack.at[j]));
    }
    for (i64 i = packs * size + owner.rank(); i < columns; i += owner.width())
        if (!mask || mask[i]) run.add(to_float(x[i]));
    run.combine(owner);
    if constexpr (F::one_per_row) {
        if (owner.rank() == 0) *y = from_float<T>(F::of(0.0f, run.m, run.s));
    } else {
        const float s = run.m == INFINITY_F ? NAN_F : run.s;
        for (i64 p = owner.rank(); p < packs; p += owner.width()) {
            Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[p];
#pragma unroll
            for (int j = 0; j < size; ++j) {
                const bool in = !mask || mask[p * size + j];
                pack.at[j] = from_float<T>(in ? F::of(to_float(pack.at[j]), run.m, s) : F::left_out());
            }
            reinterpret_cast<Pack<T>*>(y)[p] = pack;
        }
        for (i64 i = packs * size + owner.rank(); i < columns; i += owner.width())
            y[i] = from_float<T>(!mask || mask[i] ? F::of(to_float(x[i]), run.m, s) : F::left_out());
    }
}

template <typename F, typename T>
__device__ void forward_rows(const T* x, const bool* mask, T* y, i64 rows, i64 columns) {
    __shared__ float scratch[WARP];
    const bool vector = columns % Pack<T>::size == 0 && aligned(x) && (F::one_per_row || aligned(y));
    const bool warps = columns <= 1024;
    const i64 row = warps ? blockIdx.x * 8LL + threadIdx.x / WARP : blockIdx.x;
    if (row >= rows) return;
    x += row * columns;
    if (mask) mask += row * columns;
    y += F::one_per_row ? row : row * columns;
    const int n = static_cast<int>(columns);
    const WarpOwner warp;
    const BlockOwner block{scratch};
    if (warps) {
        if (!vector) streamed_row<F>(warp, x, mask, y, columns, false);
        else if (columns <= 256) held_row<F, 8>(warp, x, mask, y, n);
        else held_row<F, 32>(warp, x, mask, y, n);
    } else {
        if (!vector || columns > 8192) streamed_row<F>(block, x, mask, y, columns, vector);
        else held_row<F, 32>(block, x, mask, y, n);
    }
}

template <typename F, typename T>
__device__ void forward_columns(const T* x, const bool* mask, T* y, i64 outer, i64 n, i64 inner) {
    const i64 column = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (column >= outer * inner) return;
    const i64 base = column / inner * n * inner + column % inner;
    Running run;
    for (i64 j = 0; j < n; ++j) {
        const i64 i = base + j * inner;
        if (!mask || mask[i]) run.add(to_float(x[i]));
    }
    if constexpr (F::one_per_row) {
        y[column] = from_float<T>(F::of(0.0f, run.m, run.s));
    } else {
        const float s = run.m == INFINITY_F ? NAN_F : run.s;
        for (i64 j = 0; j < n; ++j) {
            const i64 i = base + j * inner;
            y[i] = from_float<T>(!mask || mask[i] ? F::of(to_float(x[i]), run.m, s) : F::left_out());
        }
    }
}

// Gradients from the output y: dx = g(dy, y) given the row's sum of h(dy, y).
struct SoftmaxGrad {
    static __device__ __forceinline__ float term(float dy, float y) { return dy * y; }
    static __device__ __forceinline__ float of(float dy, float y, float s) { return (dy - s) * y; }
};
struct LogSoftmaxGrad {
    static __device__ __forceinline__ float term(float dy, float y) { return y == -INFINITY_F ? 0.0f : dy; }
    static __device__ __forceinline__ float of(float dy, float y, float s) { return term(dy, y) - expf(y) * s; }
};

template <typename F, int N, typename T, typename Owner>
__device__ void held_grad(const Owner owner, const T* dy, const T* y, T* dx, int columns) {
    const int rank = owner.rank(), width = owner.width();
    Held<T, N> g, h;
    g.load(dy, nullptr, rank, width, columns, 0.0f);
    h.load(y, nullptr, rank, width, columns, 0.0f);  // past the end dy = 0: both terms are 0
    float s = 0.0f;
#pragma unroll
    for (int k = 0; k < N; ++k) s += F::term(g.at[k], h.at[k]);
    s = owner.template reduce<Sum>(s);
    Held<T, N>::store(dx, rank, width, columns, [&](int k, int) { return F::of(g.at[k], h.at[k], s); });
}

template <typename F, typename T, typename Owner>
__device__ void streamed_grad(const Owner owner, const T* dy, const T* y, T* dx, i64 columns) {
    float s = 0.0f;
    for (i64 i = owner.rank(); i < columns; i += owner.width()) s += F::term(to_float(dy[i]), to_float(y[i]));
    s = owner.template reduce<Sum>(s);
    for (i64 i = owner.rank(); i < columns; i += owner.width())
        dx[i] = from_float<T>(F::of(to_float(dy[i]), to_float(y[i]), s));
}

template <typename F, typename T>
__device__ void grad_rows(const T* dy, const T* y, T* dx, i64 rows, i64 columns) {
    __shared__ float scratch[WARP];
    const bool vector = columns % Pack<T>::size == 0 && aligned(dy, y, dx);
    const bool warps = columns <= 1024;
    const i64 row = warps ? blockIdx.x * 8LL + threadIdx.x / WARP : blockIdx.x;
    if (row >= rows) return;
    dy += row * columns;
    y += row * columns;
    dx += row * columns;
    const int n = static_cast<int>(columns);
    const WarpOwner warp;
    const BlockOwner block{scratch};
    if (warps) {
        if (!vector) streamed_grad<F>(warp, dy, y, dx, columns);
        else if (columns <= 256) held_grad<F, 8>(warp, dy, y, dx, n);
        else held_grad<F, 32>(warp, dy, y, dx, n);
    } else {
        if (!vector || columns > 8192) streamed_grad<F>(block, dy, y, dx, columns);
        else held_grad<F, 32>(block, dy, y, dx, n);
    }
}

template <typename F, typename T>
__device__ void grad_columns(const T* dy, const T* y, T* dx, i64 outer, i64 n, i64 inner) {
    const i64 column = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (column >= outer * inner) return;
    const i64 base = column / inner * n * inner + column % inner;
    float s = 0.0f;
    for (i64 j = 0; j < n; ++j) s += F::term(to_float(dy[base + j * inner]), to_float(y[base + j * inner]));
    for (i64 j = 0; j < n; ++j) {
        const i64 i = base + j * inner;
        dx[i] = from_float<T>(F::of(to_float(dy[i]), to_float(y[i]), s));
    }
}

}  // namespace

// y (rows, columns) = softmax of each row of x. Reads and writes each element once (2 sizeof(T) bytes an element).
template <typename T>
__global__ void softmax_rows(const T* __restrict__ x, const bool* __restrict__ mask, T* __restrict__ y, i64 rows,
                             i64 columns) {
    forward_rows<Softmax, T>(x, mask, y, rows, columns);
}
template <typename T>
__global__ void softmax_columns(const T* __restrict__ x, const bool* __restrict__ mask, T* __restrict__ y, i64 outer,
                                i64 n, i64 inner) {
    forward_columns<Softmax, T>(x, mask, y, outer, n, inner);
}

// y (rows, columns) = log-softmax of each row of x. The same traffic.
template <typename T>
__global__ void log_softmax_rows(const T* __restrict__ x, const bool* __restrict__ mask, T* __restrict__ y, i64 rows,
                                 i64 columns) {
    forward_rows<LogSoftmax, T>(x, mask, y, rows, columns);
}
template <typename T>
__global__ void log_softmax_columns(const T* __restrict__ x, const bool* __restrict__ mask, T* __restrict__ y,
                                    i64 outer, i64 n, i64 inner) {
    forward_columns<LogSoftmax, T>(x, mask, y, outer, n, inner);
}

// y (rows,) = log-sum-exp of each row of x. Reads each element once (sizeof(T) bytes an element).
template <typename T>
__global__ void logsumexp_rows(const T* __restrict__ x, const bool* __restrict__ mask, T* __restrict__ y, i64 rows,
                               i64 columns) {
    forward_rows<LogSumExp, T>(x, mask, y, rows, columns);
}
template <typename T>
__global__ void logsumexp_columns(const T* __restrict__ x, const bool* __restrict__ mask, T* __restrict__ y,
                                  i64 outer, i64 n, i64 inner) {
    forward_columns<LogSumExp, T>(x, mask, y, outer, n, inner);
}

// dx (rows, columns) of softmax and log-softmax from dy and the output y: two reads and a write of each element.
template <typename T>
__global__ void softmax_grad_rows(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, i64 rows,
                                  i64 columns) {
    grad_rows<SoftmaxGrad, T>(dy, y, dx, rows, columns);
}
template <typename T>
__global__ void softmax_grad_columns(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, i64 outer,
                                     i64 n, i64 inner) {
    grad_columns<SoftmaxGrad, T>(dy, y, dx, outer, n, inner);
}
template <typename T>
__global__ void log_softmax_grad_rows(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, i64 rows,
                                      i64 columns) {
    grad_rows<LogSoftmaxGrad, T>(dy, y, dx, rows, columns);
}
template <typename T>
__global__ void log_softmax_grad_columns(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                                         i64 outer, i64 n, i64 inner) {
    grad_columns<LogSoftmaxGrad, T>(dy, y, dx, outer, n, inner);
}

// dx = dy e^(x - y), one dy and one y a row; a warp owns a row, 8 rows a block. One read and one write of each element.
template <typename T>
__global__ void logsumexp_grad_rows(const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x,
                                    const bool* __restrict__ mask, T* __restrict__ dx, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * 8LL + threadIdx.x / WARP;
    if (row >= rows) return;
    const float g = to_float(dy[row]), shift = to_float(y[row]);
    x += row * columns;
    dx += row * columns;
    if (mask) mask += row * columns;
    const int lane = threadIdx.x % WARP;
    constexpr int size = Pack<T>::size;
    const i64 packs = columns % size == 0 && aligned(x, dx) ? columns / size : 0;
    for (i64 p = lane; p < packs; p += WARP) {
        Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[p];
#pragma unroll
        for (int j = 0; j < size; ++j) {
            const bool in = !mask || mask[p * size + j];
            pack.at[j] = from_float<T>(in ? g * expf(to_float(pack.at[j]) - shift) : 0.0f);
        }
        reinterpret_cast<Pack<T>*>(dx)[p] = pack;
    }
    for (i64 i = packs * size + lane; i < columns; i += WARP)
        dx[i] = from_float<T>(!mask || mask[i] ? g * expf(to_float(x[i]) - shift) : 0.0f);
}
