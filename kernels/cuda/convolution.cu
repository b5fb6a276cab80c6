// Convolution over up to three spatial axes. Images are columns: x (N, D, H, W, C), y (N, OD, OH, OW, O), C-contiguous.
// Arithmetic is float. Dense convolutions are products: `unfold` writes, for each place of the result, what its kernel
// meets there as a row, and cuBLASLt multiplies the rows with the weights. Depthwise ones have kernels of their own.

// One axis: place o of y reads place o * stride - before + tap * dilation of x.
struct Axis {
    int x, y, kernel, stride, before, dilation;

    // What `tap` of place o of y reads of x; -1 outside.
    __device__ __forceinline__ int read(int o, int tap) const {
        const int i = o * stride - before + tap * dilation;
        return i >= 0 && i < x ? i : -1;
    }
    // The place of y that reads place i of x through `tap`; -1 if there is none.
    __device__ __forceinline__ int reader(int i, int tap) const {
        const int far = i + before - tap * dilation;
        return far >= 0 && far % stride == 0 && far / stride < y ? far / stride : -1;
    }
};

#define AXIS(a) int a##_x, int a##_y, int a##_kernel, int a##_stride, int a##_before, int a##_dilation
#define AXES AXIS(d), AXIS(h), AXIS(w)
#define MAKE_AXIS(a) const Axis a = {a##_x, a##_y, a##_kernel, a##_stride, a##_before, a##_dilation}
#define MAKE_AXES \
    MAKE_AXIS(d); \
    MAKE_AXIS(h); \
    MAKE_AXIS(w)

// An index as a position: q = ((n D + d) H + h) W + w.
struct Position {
    i64 n;
    int d, h, w;

    __device__ __forceinline__ Position(i64 q, int D, int H, int W) {
        w = static_cast<int>(q % W);
        q /= W;
        h = static_cast<int>(q % H);
        q /= H;
        d = static_cast<int>(q % D);
        n = q / D;
    }
};

// Rows first ... first + count - 1 of the unfolded image: rows (count, groups, taps, C / groups), V channels a thread.
// Forward: a row is a place of y, image is x. Backward: a row is a place of x, image is y with its own C.
template <bool backward, int V, typename T>
__device__ __forceinline__ void unfold_channels(const T* __restrict__ image, T* __restrict__ rows, i64 first, i64 count,
                                                int C, int groups, Axis d, Axis h, Axis w) {
    typedef Channels<T, V> Some;
    const int packs = C / groups / V, taps = d.kernel * h.kernel * w.kernel;
    const i64 total = count * groups * taps * packs;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 q = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; q < total; q += step) {
        i64 rest = q / packs;
        const int c = static_cast<int>(q - rest * packs);
        const Position tap(rest % taps, d.kernel, h.kernel, w.kernel);
        rest /= taps;
        const i64 row = rest / groups;
        const int group = static_cast<int>(rest - row * groups);
        const Position at = backward ? Position(first + row, d.x, h.x, w.x) : Position(first + row, d.y, h.y, w.y);
        const int z = backward ? d.reader(at.d, tap.d) : d.read(at.d, tap.d);
        const int y = backward ? h.reader(at.h, tap.h) : h.read(at.h, tap.h);
        const int x = backward ? w.reader(at.w, tap.w) : w.read(at.w, tap.w);
        Some value;
        if (z >= 0 && y >= 0 && x >= 0) {
            const int D = backward ? d.y : d.x, H = backward ? h.y : h.x, W = backward ? w.y : w.x;
            const i64 pixel = ((at.n * D + z) * H + y) * W + x;
            value = *reinterpret_cast<const Some*>(image + pixel * C + group * (C / groups) + c * V);
        } else {
#pragma unroll
            for (int k = 0; k < V; ++k) value.at[k] = from_float<T>(0.0f);
        }
        reinterpret_cast<Some*>(rows)[q] = value;
    }
}

template <bool backward, typename T>
__device__ __forceinline__ void unfold_rows(const T* image, T* rows, i64 first, i64 count, int C, int groups, Axis d,
                                            Axis h, Axis w) {
    constexpr int V = Pack<T>::size;
    if (C / groups % V == 0 && aligned(image, rows)) {
        unfold_channels<backward, V>(image, rows, first, count, C, groups, d, h, w);
    } else {
        unfold_channels<backward, 1>(image, rows, first, count, C, groups, d, h, w);
    }
}

// x (N, D, H, W, C) -> rows (count, groups, taps, C / groups) of places `first` ... of y, zeros outside of x.
// Grid-stride over 16 bytes of channels, or single ones. Writes count * taps * C elements, reads them mostly from L2;
// bound by memory.
template <typename T>
__global__ void unfold(const T* __restrict__ x, T* __restrict__ rows, i64 first, i64 count, int C, int groups, AXES) {
    MAKE_AXES;
    unfold_rows<false>(x, rows, first, count, C, groups, d, h, w);
}

// y (N, OD, OH, OW, C) -> rows (count, groups, taps, C / groups) of places `first` ... of x: what reads each through each
// tap, zeros where nothing does. Otherwise as `unfold`.
template <typename T>
__global__ void unfold_backward(const T* __restrict__ y, T* __restrict__ rows, i64 first, i64 count, int C, int groups,
                                AXES) {
    MAKE_AXES;
    unfold_rows<true>(y, rows, first, count, C, groups, d, h, w);
}

// sums (rows, O), float, which may be y itself -> y = sums + bias (O), with `relu` max(0, that), rounded once; a null bias
// adds nothing. Grid-stride over n elements. Moves each in and out once; bound by memory.
template <typename T>
__global__ void add_bias(const float* sums, const T* __restrict__ bias, T* y, i64 n, i64 O, int relu) {
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; i < n; i += step) {
        const float value = sums[i] + (bias ? to_float(bias[i % O]) : 0.0f);
        y[i] = from_float<T>(relu ? maximum(value, 0.0f) : value);
    }
}

// --- depthwise: output channel o reads input channel o / times -------------------------------------

template <int V, typename T>
__device__ __forceinline__ void depthwise_channels(const T* __restrict__ x, const T* __restrict__ weight,
                                                   const T* __restrict__ bias, T* __restrict__ y, i64 pixels, int C,
                                                   int times, int relu, Axis d, Axis h, Axis w) {
    typedef Channels<T, V> Some;
    const int O = C * times, packs = O / V;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 q = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; q < pixels * packs; q += step) {
        const i64 pixel = q / packs;
        const int o = static_cast<int>(q - pixel * packs) * V, c = o / times;
        const Position at(pixel, d.y, h.y, w.y);
        float sum[V];
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] = bias ? to_float(bias[o + k]) : 0.0f;
        for (int td = 0, tap = 0; td < d.kernel; ++td) {
            const int zd = d.read(at.d, td);
            for (int th = 0; th < h.kernel; ++th) {
                const int zh = h.read(at.h, th);
                for (int tw = 0; tw < w.kernel; ++tw, ++tap) {
                    const int zw = w.read(at.w, tw);
                    if (zd < 0 || zh < 0 || zw < 0) continue;
                    const i64 source = ((at.n * d.x + zd) * h.x + zh) * w.x + zw;
                    const Some value = *reinterpret_cast<const Some*>(x + source * C + c);
                    const Some factor = *reinterpret_cast<const Some*>(weight + static_cast<i64>(tap) * O + o);
#pragma unroll
                    for (int k = 0; k < V; ++k) sum[k] += to_float(value.at[k]) * to_float(factor.at[k]);
                }
            }
        }
        Some result;
#pragma unroll
        for (int k = 0; k < V; ++k) result.at[k] = from_float<T>(relu ? maximum(sum[k], 0.0f) : sum[k]);
        reinterpret_cast<Some*>(y)[q] = result;
    }
}

// x (N, D, H, W, C), weight (taps, C times), bias (C times) or null -> y (pixels, C times), pixels = N OD OH OW.
// A thread owns 16 bytes of channels of a pixel (one channel where times > 1). The taps of neighbours meet in L1 and L2,
// so that x is read and y written once; bound by memory.
template <typename T>
__global__ void depthwise(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                          T* __restrict__ y, i64 pixels, int C, int times, int relu, AXES) {
    MAKE_AXES;
    constexpr int V = Pack<T>::size;
    if (times == 1 && C % V == 0 && aligned(x, weight, y)) {
        depthwise_channels<V>(x, weight, bias, y, pixels, C, times, relu, d, h, w);
    } else {
        depthwise_channels<1>(x, weight, bias, y, pixels, C, times, relu, d, h, w);
    }
}

template <int V, typename T>
__device__ __forceinline__ void depthwise_gradient(const T* __restrict__ dy, const T* __restrict__ weight,
                                                   T* __restrict__ dx, i64 pixels, int C, int times, Axis d, Axis h,
                                                   Axis w) {
    typedef Channels<T, V> Some;
    const int O = C * times, packs = C / V;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 q = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; q < pixels * packs; q += step) {
        const i64 pixel = q / packs;
        const int c = static_cast<int>(q - pixel * packs) * V;
        const Position at(pixel, d.x, h.x, w.x);
        float sum[V] = {};
        for (int td = 0, tap = 0; td < d.kernel; ++td) {
            const int zd = d.reader(at.d, td);
            for (int th = 0; th < h.kernel; ++th) {
                const int zh = h.reader(at.h, th);
                for (int tw = 0; tw < w.kernel; ++tw, ++tap) {
                    const int zw = w.reader(at.w, tw);
                    if (zd < 0 || zh < 0 || zw < 0) continue;
                    const i64 reader = ((at.n * d.y + zd) * h.y + zh) * w.y + zw;
                    for (int t = 0; t < times; ++t) {
                        const i64 o = static_cast<i64>(c) * times + t;
                        const Some value = *reinterpret_cast<const Some*>(dy + reader * O + o);
                        const Some factor = *reinterpret_cast<const Some*>(weight + static_cast<i64>(tap) * O + o);
#pragma unroll
                        for (int k = 0; k < V; ++k) sum[k] += to_float(value.at[k]) * to_float(factor.at[k]);
                    }
                }
            }
        }
        Some result;
#pragma unroll
        for (int k = 0; k < V; ++k) result.at[k] = from_float<T>(sum[k]);
        reinterpret_cast<Some*>(dx)[q] = result;
    }
}

// dy (N, OD, OH, OW, C times), weight (taps, C times) -> dx (pixels, C), pixels = N D H W. As `depthwise`: each element
// of dx adds up what read it, in the order of the taps; no atomics.
template <typename T>
__global__ void depthwise_input_grad(const T* __restrict__ dy, const T* __restrict__ weight, T* __restrict__ dx,
                                     i64 pixels, int C, int times, AXES) {
    MAKE_AXES;
    constexpr int V = Pack<T>::size;
    if (times == 1 && C % V == 0 && aligned(dy, weight, dx)) {
        depthwise_gradient<V>(dy, weight, dx, pixels, C, times, d, h, w);
    } else {
        depthwise_gradient<1>(dy, weight, dx, pixels, C, times, d, h, w);
    }
}

// dy (pixels, C times), x (N, D, H, W, C) -> partials (parts, taps, C times), float: dweight of a part of the pixels.
// A block of 8 warps owns a part, a tap and 32 channels: warp w adds pixels w, w + 8, ... of the part, warp 0 adds the 8
// sums in order; no atomics. Reads dy and x once for each tap, mostly from L2; bound by memory.
template <typename T>
__global__ void depthwise_weight_grad(const T* __restrict__ dy, const T* __restrict__ x, float* __restrict__ partials,
                                      i64 pixels, i64 chunk, int C, int times, AXES) {
    MAKE_AXES;
    __shared__ float sums[8][WARP];
    const int O = C * times, stripes = (O + WARP - 1) / WARP, taps = d.kernel * h.kernel * w.kernel;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    i64 rest = blockIdx.x;
    const int o = static_cast<int>(rest % stripes) * WARP + lane;
    rest /= stripes;
    const int number = static_cast<int>(rest % taps);
    const i64 part = rest / taps;
    const Position tap(number, d.kernel, h.kernel, w.kernel);
    const i64 end = min((part + 1) * chunk, pixels);
    float sum = 0.0f;
    if (o < O) {
        for (i64 pixel = part * chunk + warp; pixel < end; pixel += 8) {
            const Position at(pixel, d.y, h.y, w.y);
            const int zd = d.read(at.d, tap.d), zh = h.read(at.h, tap.h), zw = w.read(at.w, tap.w);
            if (zd < 0 || zh < 0 || zw < 0) continue;
            const i64 source = ((at.n * d.x + zd) * h.x + zh) * w.x + zw;
            sum += to_float(dy[pixel * O + o]) * to_float(x[source * C + o / times]);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && o < O) {
        for (int k = 1; k < 8; ++k) sum += sums[k][lane];
        partials[(part * taps + number) * O + o] = sum;
    }
}
