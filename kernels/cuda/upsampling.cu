// Samples of images: the nearest pixel, or linear between those around; and gradients. Images are planes (N C, D, H, W) or
// columns (N, D, H, W, C), C-contiguous. Arithmetic is float.
//
// A thread owns one element of what is written, or 16 bytes of channels of columns where C allows. A gradient is gathered:
// a pixel sums over the samples around it, in order, without atomics. Bound by memory: each array once, for neighbours are
// read from cache.

// The samples along one axis (kernels/upsampling.py has the same as tables).
struct Line {
    int samples, size, corners;
    float scale;

    __device__ __forceinline__ float at(int o) const {
        return corners ? o * scale : fmaxf((o + 0.5f) * scale - 0.5f, 0.0f);
    }
    __device__ __forceinline__ int nearest(int o) const { return min(static_cast<int>(floorf(o * scale)), size - 1); }
    __device__ __forceinline__ int low(int o) const { return min(static_cast<int>(at(o)), size - 1); }
    __device__ __forceinline__ int high(int o) const { return min(low(o) + 1, size - 1); }
    // The weight of `high`.
    __device__ __forceinline__ float weight(int o) const { return fminf(at(o), size - 1.0f) - low(o); }
    // What sample o takes of pixel i.
    __device__ __forceinline__ float share(int o, int i) const {
        const float w = weight(o);
        return (low(o) == i ? 1.0f - w : 0.0f) + (high(o) == i ? w : 0.0f);
    }
    // The first sample whose pixel(o) is at least i; pixel is ascending.
    template <typename F> __device__ __forceinline__ int first(int i, F pixel) const {
        int o = scale > 0.0f ? min(max(static_cast<int>(i / scale), 0), samples) : (i > 0 ? samples : 0);
        while (o > 0 && pixel(o - 1) >= i) --o;
        while (o < samples && pixel(o) < i) ++o;
        return o;
    }
};

#define LINE(a) int a##_samples, int a##_size, int a##_corners, float a##_scale
#define LINES LINE(d), LINE(h), LINE(w)
#define MAKE_LINE(a) const Line a = {a##_samples, a##_size, a##_corners, a##_scale}
#define MAKE_LINES MAKE_LINE(d); MAKE_LINE(h); MAKE_LINE(w)

template <typename T, int V> __device__ __forceinline__ void add_pixel(const T* x, float weight, float* sum) {
    const auto values = *reinterpret_cast<const Channels<T, V>*>(x);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += to_float(values.at[v]) * weight;
}

template <typename T, int V> __device__ __forceinline__ void put(T* y, const float* sum) {
    Channels<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.at[v] = from_float<T>(sum[v]);
    *reinterpret_cast<Channels<T, V>*>(y) = result;
}

template <typename T>
__global__ void upsample_nearest(const T* __restrict__ x, T* __restrict__ y, i64 n, i64 C, int columns, LINES) {
    MAKE_LINES;
    const i64 in = static_cast<i64>(d.size) * h.size * w.size;
    const i64 out = static_cast<i64>(d.samples) * h.samples * w.samples;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, out, columns, small);
            const int o = static_cast<int>(place.position), hw = h.samples * w.samples;
            const i64 i = d.nearest(o / hw), j = h.nearest(o % hw / w.samples), k = w.nearest(o % w.samples);
            *reinterpret_cast<Channels<T, V>*>(y + place.of(o, C, out, columns)) =
                *reinterpret_cast<const Channels<T, V>*>(x + place.of((i * h.size + j) * w.size + k, C, in, columns));
        },
        n, C, columns, x, y);
}

template <typename T>
__global__ void upsample_nearest_grad(const T* __restrict__ dy, T* __restrict__ dx, i64 n, i64 C, int columns, LINES) {
    MAKE_LINES;
    const i64 in = static_cast<i64>(d.size) * h.size * w.size;
    const i64 out = static_cast<i64>(d.samples) * h.samples * w.samples;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, in, columns, small);
            const int e = static_cast<int>(place.position), hw = h.size * w.size;
            const int i = e / hw, j = e % hw / w.size, k = e % w.size;
            const auto of = [](const Line& line) { return [&line](int o) { return line.nearest(o); }; };
            const int d1 = d.first(i + 1, of(d)), h0 = h.first(j, of(h)), h1 = h.first(j + 1, of(h));
            const int w0 = w.first(k, of(w)), w1 = w.first(k + 1, of(w));
            float sum[V] = {};
            for (i64 a = d.first(i, of(d)); a < d1; ++a)
                for (int b = h0; b < h1; ++b)
                    for (int c = w0; c < w1; ++c)
                        add_pixel<T, V>(dy + place.of((a * h.samples + b) * w.samples + c, C, out, columns), 1.0f, sum);
            put<T, V>(dx + place.of(e, C, in, columns), sum);
        },
        n, C, columns, dy, dx);
}

template <typename T>
__global__ void upsample_linear(const T* __restrict__ x, T* __restrict__ y, i64 n, i64 C, int columns, LINES) {
    MAKE_LINES;
    const i64 in = static_cast<i64>(d.size) * h.size * w.size;
    const i64 out = static_cast<i64>(d.samples) * h.samples * w.samples;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, out, columns, small);
            const int o = static_cast<int>(place.position), hw = h.samples * w.samples;
            const int od = o / hw, oh = o % hw / w.samples, ow = o % w.samples;
            const float wd = d.weight(od), wh = h.weight(oh), ww = w.weight(ow);
            float sum[V] = {};
            // a pixel of weight 0 is left out: 0 * inf is NaN
            for (int corner = 0; corner < 8; ++corner) {
                const float weight = (corner & 4 ? wd : 1.0f - wd) * (corner & 2 ? wh : 1.0f - wh) *
                                     (corner & 1 ? ww : 1.0f - ww);
                if (weight == 0.0f) continue;
                const i64 i = corner & 4 ? d.high(od) : d.low(od), j = corner & 2 ? h.high(oh) : h.low(oh);
                const int k = corner & 1 ? w.high(ow) : w.low(ow);
                add_pixel<T, V>(x + place.of((i * h.size + j) * w.size + k, C, in, columns), weight, sum);
            }
            put<T, V>(y + place.of(o, C, out, columns), sum);
        },
        n, C, columns, x, y);
}

template <typename T>
__global__ void upsample_linear_grad(const T* __restrict__ dy, T* __restrict__ dx, i64 n, i64 C, int columns, LINES) {
    MAKE_LINES;
    const i64 in = static_cast<i64>(d.size) * h.size * w.size;
    const i64 out = static_cast<i64>(d.samples) * h.samples * w.samples;
    const bool small = n < (1ll << 31);
    by_channels<T>(
        [&](auto kind, i64 q) {
            constexpr int V = sizeof(kind) / sizeof(T);
            const Place<V> place(q, C, in, columns, small);
            const int e = static_cast<int>(place.position), hw = h.size * w.size;
            const int i = e / hw, j = e % hw / w.size, k = e % w.size;
            // samples whose upper pixel is at least this one, up to those whose lower pixel is beyond it
            const auto high = [](const Line& line) { return [&line](int o) { return line.high(o); }; };
            const auto low = [](const Line& line) { return [&line](int o) { return line.low(o); }; };
            const int d1 = d.first(i + 1, low(d)), h0 = h.first(j, high(h)), h1 = h.first(j + 1, low(h));
            const int w0 = w.first(k, high(w)), w1 = w.first(k + 1, low(w));
            float sum[V] = {};
            for (i64 a = d.first(i, high(d)); a < d1; ++a)
                for (int b = h0; b < h1; ++b)
                    for (int c = w0; c < w1; ++c) {
                        const float weight = d.share(static_cast<int>(a), i) * h.share(b, j) * w.share(c, k);
                        if (weight != 0.0f)
                            add_pixel<T, V>(dy + place.of((a * h.samples + b) * w.samples + c, C, out, columns), weight,
                                            sum);
                    }
            put<T, V>(dx + place.of(e, C, in, columns), sum);
        },
        n, C, columns, dy, dx);
}
