// Max and average pooling over windows of up to three axes, their gradients, and unpooling. Images are planes
// (N C, D, H, W) or columns (N, D, H, W, C), C-contiguous. Arithmetic is float.
//
// A thread owns one element of what is written, or 16 bytes of channels of columns where C allows: it reads its window, or
// for a gradient the windows over it, in order. No atomics on floats: the same bits every time. Overlapping windows are
// read from cache. Bound by memory: each array once.

// The windows along one axis: sliding, or adaptive with stride 0 (kernels/windows.py has the same as tables).
struct Axis {
    int out, in, kernel, stride, pad, step;

    __device__ __forceinline__ int begin(int o) const { return o * stride - pad; }
    __device__ __forceinline__ int start(int o) const {
        if (stride == 0) return static_cast<int>(static_cast<i64>(o) * in / out);
        const int b = begin(o);
        return b < 0 ? b + (step - 1 - b) / step * step : b;
    }
    __device__ __forceinline__ int stop(int o) const {
        if (stride == 0) return static_cast<int>(((o + 1ll) * in + out - 1) / out);
        return min(begin(o) + (kernel - 1) * step + 1, in);
    }
    // Windows first ... last - 1 reach over element i.
    __device__ __forceinline__ int first(int i) const {
        if (stride == 0) return static_cast<int>(static_cast<i64>(i) * out / in);
        const int beyond = i + pad - (kernel - 1) * step - 1;
        return beyond < 0 ? 0 : min(beyond / stride + 1, out);
    }
    __device__ __forceinline__ int last(int i) const {
        if (stride == 0) return static_cast<int>(((i + 1ll) * out + in - 1) / in);
        return min((i + pad) / stride + 1, out);
    }
    // Elements that a window's average divides by, those of the padding among them or not.
    __device__ __forceinline__ int count(int o, bool padded) const {
        return padded && stride ? min(begin(o) + kernel, in + pad) - begin(o) : stop(o) - start(o);
    }
};

#define AXIS(a) int a##_out, int a##_in, int a##_kernel, int a##_stride, int a##_pad, int a##_step
#define AXES AXIS(d), AXIS(h), AXIS(w)
#define MAKE_AXIS(a) const Axis a = {a##_out, a##_in, a##_kernel, a##_stride, a##_pad, a##_step}
#define MAKE_AXES MAKE_AXIS(d); MAKE_AXIS(h); MAKE_AXIS(w)

// y and places (int32, in the flattened D, H, W) of the largest element of each window; the first of equals, the last NaN.
template <typename T>
__global__ void max_pool(const T* __restrict__ x, T* __restrict__ y, int* __restrict__ places, i64 n, i64 C, int columns,
                         AXES) {
    MAKE_AXES;
    const i64 in = static_cast<i64>(d.in) * h.in * w.in, out = static_cast<i64>(d.out) * h.out * w.out;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, out, columns, small);
            const int o = static_cast<int>(place.position), hw = h.out * w.out;
            const int od = o / hw, oh = (o - od * hw) / w.out, ow = o % w.out;
            float best[V];
            int where[V];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                best[v] = -INFINITY_F;
                where[v] = (d.start(od) * h.in + h.start(oh)) * w.in + w.start(ow);
            }
            for (int i = d.start(od); i < d.stop(od); i += d.step)
                for (int j = h.start(oh); j < h.stop(oh); j += h.step)
                    for (int k = w.start(ow); k < w.stop(ow); k += w.step) {
                        const int at = (i * h.in + j) * w.in + k;
                        const auto values =
                            *reinterpret_cast<const Channels<T, V>*>(x + place.of(at, C, in, columns));
#pragma unroll
                        for (int v = 0; v < V; ++v) {
                            const float value = to_float(values.at[v]);
                            if (value > best[v] || value != value) {
                                best[v] = value;
                                where[v] = at;
                            }
                        }
                    }
            const i64 to = place.of(place.position, C, out, columns);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                y[to + v] = from_float<T>(best[v]);
                places[to + v] = where[v];
            }
        },
        n, C, columns, x);
}

// dx of max_pool: an element sums the dy of the windows that took it. Reads dy and places once for each window over it.
template <typename T>
__global__ void max_pool_grad(const T* __restrict__ dy, const int* __restrict__ places, T* __restrict__ dx, i64 n, i64 C,
                              int columns, AXES) {
    MAKE_AXES;
    const i64 in = static_cast<i64>(d.in) * h.in * w.in, out = static_cast<i64>(d.out) * h.out * w.out;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, in, columns, small);
            const int e = static_cast<int>(place.position), hw = h.in * w.in;
            const int i = e / hw, j = (e - i * hw) / w.in, k = e % w.in;
            float sum[V] = {};
            for (int od = d.first(i); od < d.last(i); ++od)
                for (int oh = h.first(j); oh < h.last(j); ++oh)
                    for (int ow = w.first(k); ow < w.last(k); ++ow) {
                        const i64 from = place.of((static_cast<i64>(od) * h.out + oh) * w.out + ow, C, out, columns);
#pragma unroll
                        for (int v = 0; v < V; ++v)
                            if (places[from + v] == e) sum[v] += to_float(dy[from + v]);
                    }
            Channels<T, V> result;
#pragma unroll
            for (int v = 0; v < V; ++v) result.at[v] = from_float<T>(sum[v]);
            *reinterpret_cast<Channels<T, V>*>(dx + place.of(e, C, in, columns)) = result;
        },
        n, C, columns, dx);
}

// y = the sum of each window over its count, or over `divisor` if that is not 0.
template <typename T>
__global__ void avg_pool(const T* __restrict__ x, T* __restrict__ y, i64 n, i64 C, int columns, AXES, int padded,
                         float divisor) {
    MAKE_AXES;
    const i64 in = static_cast<i64>(d.in) * h.in * w.in, out = static_cast<i64>(d.out) * h.out * w.out;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, out, columns, small);
            const int o = static_cast<int>(place.position), hw = h.out * w.out;
            const int od = o / hw, oh = (o - od * hw) / w.out, ow = o % w.out;
            float sum[V] = {};
            for (int i = d.start(od); i < d.stop(od); ++i)
                for (int j = h.start(oh); j < h.stop(oh); ++j)
                    for (int k = w.start(ow); k < w.stop(ow); ++k) {
                        const i64 at = (static_cast<i64>(i) * h.in + j) * w.in + k;
                        const auto values =
                            *reinterpret_cast<const Channels<T, V>*>(x + place.of(at, C, in, columns));
#pragma unroll
                        for (int v = 0; v < V; ++v) sum[v] += to_float(values.at[v]);
                    }
            const float count = static_cast<float>(d.count(od, padded)) * static_cast<float>(h.count(oh, padded)) *
                                static_cast<float>(w.count(ow, padded));
            const float share = 1.0f / (divisor != 0.0f ? divisor : count);
            Channels<T, V> result;
#pragma unroll
            for (int v = 0; v < V; ++v) result.at[v] = from_float<T>(sum[v] * share);
            *reinterpret_cast<Channels<T, V>*>(y + place.of(place.position, C, out, columns)) = result;
        },
        n, C, columns, x, y);
}

// dx of avg_pool: an element sums the shares of the windows that hold it.
template <typename T>
__global__ void avg_pool_grad(const T* __restrict__ dy, T* __restrict__ dx, i64 n, i64 C, int columns, AXES, int padded,
                              float divisor) {
    MAKE_AXES;
    const i64 in = static_cast<i64>(d.in) * h.in * w.in, out = static_cast<i64>(d.out) * h.out * w.out;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, in, columns, small);
            const int e = static_cast<int>(place.position), hw = h.in * w.in;
            const int i = e / hw, j = (e - i * hw) / w.in, k = e % w.in;
            float sum[V] = {};
            for (int od = d.first(i); od < d.last(i); ++od)
                for (int oh = h.first(j); oh < h.last(j); ++oh)
                    for (int ow = w.first(k); ow < w.last(k); ++ow) {
                        const i64 at = (static_cast<i64>(od) * h.out + oh) * w.out + ow;
                        const float count = static_cast<float>(d.count(od, padded)) *
                                            static_cast<float>(h.count(oh, padded)) *
                                            static_cast<float>(w.count(ow, padded));
                        const float share = 1.0f / (divisor != 0.0f ? divisor : count);
                        const auto values =
                            *reinterpret_cast<const Channels<T, V>*>(dy + place.of(at, C, out, columns));
#pragma unroll
                        for (int v = 0; v < V; ++v) sum[v] += to_float(values.at[v]) * share;
                    }
            Channels<T, V> result;
#pragma unroll
            for (int v = 0; v < V; ++v) result.at[v] = from_float<T>(sum[v]);
            *reinterpret_cast<Channels<T, V>*>(dx + place.of(e, C, in, columns)) = result;
        },
        n, C, columns, dy, dx);
}

// Unpooling, first step: owners (planes, length), -1 before, gets the last element of x (planes, each) with each place.
// A maximum of integers: it does not depend on who comes first.
template <typename Index>
__global__ void unpool_owners(const Index* __restrict__ places, int* __restrict__ owners, i64 n, i64 each, i64 length) {
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 q = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; q < n; q += step) {
        const i64 plane = q / each, place = places[q];
        if (place >= 0 && place < length) atomicMax(owners + plane * length + place, static_cast<int>(q - plane * each));
    }
}

// Second step: y (planes, length) = the element of x that owns it, or 0.
template <typename T>
__global__ void max_unpool(const T* __restrict__ x, const int* __restrict__ owners, T* __restrict__ y, i64 n, i64 each,
                           i64 length) {
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 q = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; q < n; q += step)
        y[q] = owners[q] < 0 ? from_float<T>(0.0f) : x[q / length * each + owners[q]];
}

// dx (planes, each) = dy (planes, length) at each place; 0 for one outside.
template <typename T>
__global__ void max_unpool_grad(const T* __restrict__ dy, const i64* __restrict__ places, T* __restrict__ dx, i64 n,
                                i64 each, i64 length) {
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 q = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; q < n; q += step) {
        const i64 place = places[q];
        dx[q] = place >= 0 && place < length ? dy[q / each * length + place] : from_float<T>(0.0f);
    }
}
