// Cross-entropy with its gradient in one pass over each row, its chain rule, and the negative log-likelihood.
//
// A row of up to 1024 classes belongs to a warp (8 rows a block of 256), a longer one to a block of 256 or 1024. The
// row is read twice: a running maximum and sum, then loss and gradient; the second read comes from L1 or L2 up to some
// 50 thousand classes. Arithmetic and losses are float. Bound by memory: one read and one write of each logit.

namespace {

struct WarpRow {
    __device__ int rank() const { return threadIdx.x % WARP; }
    __device__ int width() const { return WARP; }
    template <typename Op> __device__ float reduce(float x) const { return warp_reduce<Op>(x); }
};
struct BlockRow {
    float* scratch;
    __device__ int rank() const { return threadIdx.x; }
    __device__ int width() const { return blockDim.x; }
    template <typename Op> __device__ float reduce(float x) const { return block_reduce<Op>(x, scratch); }
};

// f(x, i) for a row's elements, 16 bytes of them at a time where `vector`.
template <typename T, typename Owner, typename F>
__device__ __forceinline__ void each(const Owner& owner, const T* x, i64 columns, bool vector, F f) {
    constexpr int size = Pack<T>::size;
    const i64 packs = vector ? columns / size : 0;
    for (i64 p = owner.rank(); p < packs; p += owner.width()) {
        const Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[p];
#pragma unroll
        for (int j = 0; j < size; ++j) f(to_float(pack.at[j]), p * size + j);
    }
    for (i64 i = packs * size + owner.rank(); i < columns; i += owner.width()) f(to_float(x[i]), i);
}

// y[i] = f(x[i], i) for a row's elements.
template <typename T, typename Owner, typename F>
__device__ __forceinline__ void map_row(const Owner& owner, const T* x, T* y, i64 columns, bool vector, F f) {
    constexpr int size = Pack<T>::size;
    const i64 packs = vector ? columns / size : 0;
    for (i64 p = owner.rank(); p < packs; p += owner.width()) {
        Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[p];
#pragma unroll
        for (int j = 0; j < size; ++j) pack.at[j] = from_float<T>(f(to_float(pack.at[j]), p * size + j));
        reinterpret_cast<Pack<T>*>(y)[p] = pack;
    }
    for (i64 i = packs * size + owner.rank(); i < columns; i += owner.width()) y[i] = from_float<T>(f(to_float(x[i]), i));
}

template <typename T, typename Owner>
__device__ void cross_entropy_row(const Owner owner, const T* x, const i64* targets, const float* p, const float* weight,
                                  float* loss, T* dx, i64 ignore_index, float smoothing, i64 row, i64 columns,
                                  bool vector) {
    const i64 t = targets ? targets[row] : -1;
    if (targets && (t == ignore_index || t < 0 || t >= columns)) {  // the same for every thread of the row
        const float fill = t == ignore_index ? 0.0f : NAN_F;
        if (owner.rank() == 0) *loss = fill;
        if (dx) map_row(owner, x, dx, columns, vector, [&](float, i64) { return fill; });
        return;
    }
    const float spread = smoothing / static_cast<float>(columns), kept = 1.0f - smoothing;
    // q: how much of class i the loss counts
    const auto q = [&](i64 i) {
        if (p) return (p[i] * kept + spread) * (weight ? weight[i] : 1.0f);
        const float hit = i == t ? kept : 0.0f;
        if (smoothing == 0.0f && i != t) return 0.0f;
        return (hit + spread) * (weight ? weight[i] : 1.0f);
    };
    float m = -INFINITY_F, s = 0.0f, total = 0.0f;
    each(owner, x, columns, vector, [&](float v, i64 i) {
        total += q(i);
        if (v > m) {
            s = s * expf(m - v) + 1.0f;
            m = v;
        } else if (v != -INFINITY_F) {  // NaN, and +inf after +inf, make s NaN
            s += expf(v - m);
        }
    });
    const float all = owner.template reduce<Max>(m);
    s = owner.template reduce<Sum>(m == -INFINITY_F ? s : s * expf(m - all));
    m = all;
    total = owner.template reduce<Sum>(total);
    const float log_s = logf(s);
    float sum = 0.0f;
    const auto term = [&](float v, float w) { return w == 0.0f ? 0.0f : w * (log_s - (v - m)); };
    if (dx) {
        map_row(owner, x, dx, columns, vector, [&](float v, i64 i) {
            const float w = q(i);
            sum += term(v, w);
            return expf(v - m) / s * total - w;
        });
    } else {
        each(owner, x, columns, vector, [&](float v, i64 i) { sum += term(v, q(i)); });
    }
    sum = owner.template reduce<Sum>(sum);
    if (owner.rank() == 0) *loss = sum;
}

}  // namespace

// losses (rows,) and dlogits (rows, columns; may be null) of logits (rows, columns). One of targets (rows,) and
// probabilities (rows, columns) is null; weight (columns,) may be. A target outside [0, columns): NaN for its row.
template <typename T>
__global__ void cross_entropy_rows(const T* __restrict__ logits, const i64* __restrict__ targets,
                                   const float* __restrict__ probabilities, const float* __restrict__ weight,
                                   float* __restrict__ losses, T* __restrict__ dlogits, i64 ignore_index,
                                   float smoothing, i64 rows, i64 columns) {
    __shared__ float scratch[WARP];
    const bool warps = columns <= 1024;
    const i64 row = warps ? blockIdx.x * 8LL + threadIdx.x / WARP : blockIdx.x;
    if (row >= rows) return;
    const bool vector = columns % Pack<T>::size == 0 && aligned(logits) && aligned(dlogits);
    const T* x = logits + row * columns;
    const float* p = probabilities ? probabilities + row * columns : nullptr;
    T* dx = dlogits ? dlogits + row * columns : nullptr;
    if (warps)
        cross_entropy_row(WarpRow(), x, targets, p, weight, losses + row, dx, ignore_index, smoothing, row, columns,
                          vector);
    else
        cross_entropy_row(BlockRow{scratch}, x, targets, p, weight, losses + row, dx, ignore_index, smoothing, row,
                          columns, vector);
}

// out = dlogits * dy, one dy a row; a warp owns a row, 8 rows a block. One read and one write of each element.
template <typename T>
__global__ void cross_entropy_grad_rows(const float* __restrict__ dy, const T* __restrict__ dlogits,
                                        T* __restrict__ out, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * 8LL + threadIdx.x / WARP;
    if (row >= rows) return;
    const float g = dy[row];
    const bool vector = columns % Pack<T>::size == 0 && aligned(dlogits, out);
    map_row(WarpRow(), dlogits + row * columns, out + row * columns, columns, vector,
            [&](float v, i64) { return v * g; });
}

// losses (rows,) = -weight[t] * log_probs[r, t]: a thread owns a row and reads one element of it. Bound by latency.
template <typename T>
__global__ void nll_rows(const T* __restrict__ log_probs, const i64* __restrict__ targets,
                         const float* __restrict__ weight, T* __restrict__ losses, i64 ignore_index, i64 rows,
                         i64 columns) {
    const i64 row = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (row >= rows) return;
    const i64 t = targets[row];
    float loss = 0.0f;
    if (t != ignore_index) {
        if (t < 0 || t >= columns) {
            loss = NAN_F;
        } else {
            const float w = weight ? weight[t] : 1.0f;
            loss = w == 0.0f ? 0.0f : -w * to_float(log_probs[row * columns + t]);
        }
    }
    losses[row] = from_float<T>(loss);
}

// dx (rows, columns) = -weight[t] * dy at the target, 0 elsewhere: a thread owns an element. Bound by the writes.
template <typename T>
__global__ void nll_grad_rows(const T* __restrict__ dy, const i64* __restrict__ targets,
                              const float* __restrict__ weight, T* __restrict__ dx, i64 ignore_index, i64 rows,
                              i64 columns) {
    const i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (i >= rows * columns) return;
    const i64 row = i / columns, t = targets[row];
    const bool inside = t >= 0 && t < columns, ignored = t == ignore_index;
    const i64 place = inside ? t : 0;  // where a target out of range leaves its NaN
    float g = 0.0f;
    if (!ignored && i - row * columns == place) {
        const float w = weight && inside ? weight[t] : 1.0f;
        g = !inside ? NAN_F : (w == 0.0f ? 0.0f : -w * to_float(dy[row]));
    }
    dx[i] = from_float<T>(g);
}
