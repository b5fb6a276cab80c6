// Layer norm and RMS norm of rows, and their gradients. x, y, dy, dx are (rows, D), C-contiguous; weight and bias (D)
// or null; mean and rstd (rows) are float. All arithmetic is float.
//
// A row belongs to a warp (8 rows a block of 256; D <= 1024) or to a block. It is read from memory once; the second and
// third pass over it are served by L1/L2. Loads and stores are 16 bytes wide where D and the pointers allow. Bound by
// memory: forward moves 2, backward 3 elements per element of x, and the weight gradients 2 more.

template <int K> struct Width {
    static constexpr int value = K;
};

// Who owns a row.
struct WarpTeam {
    __device__ __forceinline__ int rank() const { return threadIdx.x % WARP; }
    __device__ __forceinline__ int size() const { return WARP; }
    __device__ __forceinline__ float sum(float x) const { return warp_reduce<Sum>(x); }
};
struct BlockTeam {
    float* scratch;
    __device__ __forceinline__ int rank() const { return threadIdx.x; }
    __device__ __forceinline__ int size() const { return blockDim.x; }
    __device__ __forceinline__ float sum(float x) const { return block_reduce<Sum>(x, scratch); }
};

template <typename T, int K> struct alignas(sizeof(T) * K) Few {
    T at[K];
};
template <typename T, int K> __device__ __forceinline__ Few<T, K> load(const T* p) {
    return *reinterpret_cast<const Few<T, K>*>(p);
}
template <typename T, int K> __device__ __forceinline__ void store(T* p, const Few<T, K>& v) {
    *reinterpret_cast<Few<T, K>*>(p) = v;
}

// f(i, Width<K>) over a thread's share of a row: K elements from i on, K a whole pack or 1.
template <typename T, typename Team, typename F>
__device__ __forceinline__ void each(const Team& team, i64 D, bool packed, F f) {
    constexpr int size = Pack<T>::size;
    if (packed) {
        for (i64 i = static_cast<i64>(team.rank()) * size; i < D; i += static_cast<i64>(team.size()) * size)
            f(i, Width<size>());
    } else {
        for (i64 i = team.rank(); i < D; i += team.size()) f(i, Width<1>());
    }
}

// K elements of x, or of x + residual in float, where there is one.
template <typename T, int K> struct Terms {
    float at[K];
    __device__ __forceinline__ Terms(const T* x, const T* residual, i64 i) {
        const Few<T, K> v = load<T, K>(x + i);
#pragma unroll
        for (int k = 0; k < K; ++k) at[k] = to_float(v.at[k]);
        if (!residual) return;
        const Few<T, K> w = load<T, K>(residual + i);
#pragma unroll
        for (int k = 0; k < K; ++k) at[k] += to_float(w.at[k]);
    }
};

// One row of the forward: with `centred` layer norm, else RMS norm (mean 0). With a `residual` of x + residual, which is
// written to `total` too.
template <typename T, typename Team>
__device__ __forceinline__ void normalise(const Team& team, i64 row, const T* __restrict__ x,
                                          const T* __restrict__ residual, const T* __restrict__ weight,
                                          const T* __restrict__ bias, float eps, T* __restrict__ total,
                                          T* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, i64 D,
                                          int centred) {
    const bool packed = D % Pack<T>::size == 0 && aligned(x, y) && aligned(weight, bias) && aligned(residual, total);
    x += row * D;
    y += row * D;
    if (residual) {
        residual += row * D;
        total += row * D;
    }
    float m = 0.0f;
    if (centred) {
        float s = 0.0f;
        each<T>(team, D, packed, [&](i64 i, auto width) {
            constexpr int K = decltype(width)::value;
            const Terms<T, K> v(x, residual, i);
#pragma unroll
            for (int k = 0; k < K; ++k) s += v.at[k];
        });
        m = team.sum(s) / static_cast<float>(D);
    }
    float q = 0.0f;  // second pass: E[x^2] - E[x]^2 cancels
    each<T>(team, D, packed, [&](i64 i, auto width) {
        constexpr int K = decltype(width)::value;
        const Terms<T, K> v(x, residual, i);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const float d = v.at[k] - m;
            q += d * d;
        }
    });
    const float r = 1.0f / sqrtf(team.sum(q) / static_cast<float>(D) + eps);
    each<T>(team, D, packed, [&](i64 i, auto width) {
        constexpr int K = decltype(width)::value;
        const Terms<T, K> v(x, residual, i);
        Few<T, K> w, b, out, sum;
        if (weight) w = load<T, K>(weight + i);
        if (bias) b = load<T, K>(bias + i);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            sum.at[k] = from_float<T>(v.at[k]);
            float n = (v.at[k] - m) * r;
            if (weight) n *= to_float(w.at[k]);
            if (bias) n += to_float(b.at[k]);
            out.at[k] = from_float<T>(n);
        }
        store<T, K>(y + i, out);
        if (residual) store<T, K>(total + i, sum);
    });
    if (team.rank() == 0) {
        if (centred) mean[row] = m;
        rstd[row] = r;
    }
}

// A warp a row.
template <typename T>
__global__ void layer_norm_warp(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                                const T* __restrict__ bias, float eps, T* __restrict__ total, T* __restrict__ y,
                                float* __restrict__ mean, float* __restrict__ rstd, i64 rows, i64 D, int centred) {
    const i64 row = blockIdx.x * static_cast<i64>(blockDim.x / WARP) + threadIdx.x / WARP;
    if (row < rows) normalise<T>(WarpTeam(), row, x, residual, weight, bias, eps, total, y, mean, rstd, D, centred);
}

// A block a row.
template <typename T>
__global__ void layer_norm_block(const T* __restrict__ x, const T* __restrict__ residual,
                                 const T* __restrict__ weight, const T* __restrict__ bias, float eps,
                                 T* __restrict__ total, T* __restrict__ y, float* __restrict__ mean,
                                 float* __restrict__ rstd, i64 rows, i64 D, int centred) {
    __shared__ float scratch[WARP];
    normalise<T>(BlockTeam{scratch}, blockIdx.x, x, residual, weight, bias, eps, total, y, mean, rstd, D, centred);
}

// One row of dx = rstd (g - mean(g) - n mean(g n)), g = dy weight, n = (x - mean) rstd; mean(g) and mean are 0 for RMS norm.
// `more`, if there is one, is added: the gradient that a sum has besides that of its norm.
template <typename T, typename Team>
__device__ __forceinline__ void normalise_grad(const Team& team, i64 row, const T* __restrict__ dy,
                                               const T* __restrict__ x, const T* __restrict__ weight,
                                               const float* __restrict__ mean, const float* __restrict__ rstd,
                                               const T* __restrict__ more, T* __restrict__ dx, i64 D, int centred) {
    const bool packed = D % Pack<T>::size == 0 && aligned(dy, x, dx, weight, more);
    if (more) more += row * D;
    dy += row * D;
    x += row * D;
    dx += row * D;
    const float m = centred ? mean[row] : 0.0f, r = rstd[row];
    float s0 = 0.0f, s1 = 0.0f;
    each<T>(team, D, packed, [&](i64 i, auto width) {
        constexpr int K = decltype(width)::value;
        const Few<T, K> d = load<T, K>(dy + i), v = load<T, K>(x + i);
        Few<T, K> w;
        if (weight) w = load<T, K>(weight + i);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const float g = weight ? to_float(d.at[k]) * to_float(w.at[k]) : to_float(d.at[k]);
            s0 += g;
            s1 += g * ((to_float(v.at[k]) - m) * r);
        }
    });
    const float a = centred ? team.sum(s0) / static_cast<float>(D) : 0.0f;
    const float b = team.sum(s1) / static_cast<float>(D);
    each<T>(team, D, packed, [&](i64 i, auto width) {
        constexpr int K = decltype(width)::value;
        const Few<T, K> d = load<T, K>(dy + i), v = load<T, K>(x + i);
        Few<T, K> w, a_more, out;
        if (weight) w = load<T, K>(weight + i);
        if (more) a_more = load<T, K>(more + i);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const float g = weight ? to_float(d.at[k]) * to_float(w.at[k]) : to_float(d.at[k]);
            const float d = r * (g - a - (to_float(v.at[k]) - m) * r * b);
            out.at[k] = from_float<T>(more ? d + to_float(a_more.at[k]) : d);
        }
        store<T, K>(dx + i, out);
    });
}

// A warp a row.
template <typename T>
__global__ void layer_norm_grad_warp(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                                     const float* __restrict__ mean, const float* __restrict__ rstd,
                                     const T* __restrict__ more, T* __restrict__ dx, i64 rows, i64 D, int centred) {
    const i64 row = blockIdx.x * static_cast<i64>(blockDim.x / WARP) + threadIdx.x / WARP;
    if (row < rows) normalise_grad<T>(WarpTeam(), row, dy, x, weight, mean, rstd, more, dx, D, centred);
}

// A block a row.
template <typename T>
__global__ void layer_norm_grad_block(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                                      const float* __restrict__ mean, const float* __restrict__ rstd,
                                      const T* __restrict__ more, T* __restrict__ dx, i64 rows, i64 D, int centred) {
    __shared__ float scratch[WARP];
    normalise_grad<T>(BlockTeam{scratch}, blockIdx.x, dy, x, weight, mean, rstd, more, dx, D, centred);
}

// Weight gradients, first stage. partials (parts, 2, D) float: sums of dy n and of dy over `chunk` rows each.
// A block of 32 columns by 8 warps owns 32 columns of one part; warp w adds rows w, w + 8, ... of it, warp 0 adds the 8
// sums in order. Reads x and dy once.
template <typename T>
__global__ void row_norm_partials(const T* __restrict__ dy, const T* __restrict__ x, const float* __restrict__ mean,
                                  const float* __restrict__ rstd, float* __restrict__ partials, i64 rows, i64 D,
                                  i64 chunk, int centred) {
    __shared__ float shared_w[8][WARP], shared_b[8][WARP];
    const i64 stripes = (D + WARP - 1) / WARP;
    const i64 part = blockIdx.x / stripes;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 column = (blockIdx.x - part * stripes) * WARP + lane;
    const i64 stop = min(rows, (part + 1) * chunk);
    float w = 0.0f, b = 0.0f;
    if (column < D) {
        for (i64 row = part * chunk + warp; row < stop; row += 8) {
            const float d = to_float(dy[row * D + column]);
            const float m = centred ? mean[row] : 0.0f;
            w += d * ((to_float(x[row * D + column]) - m) * rstd[row]);
            b += d;
        }
    }
    shared_w[warp][lane] = w;
    shared_b[warp][lane] = b;
    __syncthreads();
    if (warp == 0 && column < D) {
        for (int k = 1; k < 8; ++k) {
            w += shared_w[k][lane];
            b += shared_b[k][lane];
        }
        partials[(2 * part) * D + column] = w;
        partials[(2 * part + 1) * D + column] = b;
    }
}

// Second stage: out (columns) = sum of partials (parts, columns) in their order. A thread owns a column.
template <typename T>
__global__ void finish_partials(const float* __restrict__ partials, T* __restrict__ out, i64 parts, i64 columns) {
    const i64 column = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (column >= columns) return;
    float total = 0.0f;
    for (i64 part = 0; part < parts; ++part) total += partials[part * columns + column];
    out[column] = from_float<T>(total);
}
