// Put as text before every CUDA source of this folder (CuPy's compile cache does not see included headers).
//
// Conventions: element types are float, __half and __nv_bfloat16; arithmetic and accumulation are float. Sizes and
// offsets are 64-bit. No inline PTX outside this file. Dynamic shared memory only through SHARED_MEMORY.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef SHARED_MEMORY
#define SHARED_MEMORY(type, name) \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    type* name = reinterpret_cast<type*>(shared_bytes)
#endif

#define WARP 32
#define FULL_WARP 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)
#define NAN_F __int_as_float(0x7fffffff)

typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;

// --- element types ----------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> struct FromFloat;
template <> struct FromFloat<float> {
    static __device__ __forceinline__ float of(float x) { return x; }
};
template <> struct FromFloat<__half> {
    static __device__ __forceinline__ __half of(float x) { return __float2half_rn(x); }
};
template <> struct FromFloat<__nv_bfloat16> {
    static __device__ __forceinline__ __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};
template <typename T> __device__ __forceinline__ T from_float(float x) { return FromFloat<T>::of(x); }

// 16 bytes of elements: one load or store instruction.
template <typename T> struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T at[size];
};

__device__ __forceinline__ bool aligned(const void* p) { return (reinterpret_cast<u64>(p) & 15) == 0; }
template <typename P, typename... Rest>
__device__ __forceinline__ bool aligned(const void* p, const P* q, const Rest*... rest) {
    return aligned(p) && aligned(q, rest...);
}

// --- formulas ---------------------------------------------------------------------------------------

// NaN in, NaN out (fmaxf would drop it).
__device__ __forceinline__ float maximum(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float minimum(float a, float b) { return a < b || a != a ? a : b; }
__device__ __forceinline__ float sign(float x) { return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x); }
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));  // never overflows
    const float s = 1.0f / (1.0f + e);
    return x < 0.0f ? e * s : s;
}

// --- elementwise ------------------------------------------------------------------------------------

// out[i] = f(in[i]...), grid-stride, 16 bytes at a time where every pointer is aligned, then a scalar tail.
template <typename F, typename T, typename... In>
__device__ __forceinline__ void map_elements(F f, i64 n, T* __restrict__ out, const In* __restrict__... in) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    i64 done = 0;
    if (aligned(out, in...)) {
        constexpr int size = Pack<T>::size;
        const i64 packs = n / size;
        for (i64 p = start; p < packs; p += step) {
            Pack<T> y;
            [&](const Pack<In>... x) {
#pragma unroll
                for (int k = 0; k < size; ++k) y.at[k] = from_float<T>(f(to_float(x.at[k])...));
            }(reinterpret_cast<const Pack<In>*>(in)[p]...);
            reinterpret_cast<Pack<T>*>(out)[p] = y;
        }
        done = packs * size;
    }
    for (i64 i = done + start; i < n; i += step) out[i] = from_float<T>(f(to_float(in[i])...));
}

// --- random numbers ---------------------------------------------------------------------------------

// Philox4x32-10 (Salmon et al., SC 2011): the four words of a counter, as in kernels/random.py.
struct Words {
    u32 at[4];
};

__device__ __forceinline__ Words philox(u64 counter, u64 seed) {
    u32 c0 = static_cast<u32>(counter), c1 = static_cast<u32>(counter >> 32), c2 = 0, c3 = 0;
    u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 low0 = 0xD2511F53u * c0, high0 = __umulhi(0xD2511F53u, c0);
        const u32 low1 = 0xCD9E8D57u * c2, high1 = __umulhi(0xCD9E8D57u, c2);
        c0 = high1 ^ c1 ^ k0;
        c2 = high0 ^ c3 ^ k1;
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// --- reductions -------------------------------------------------------------------------------------

struct Sum {
    static __device__ __forceinline__ float identity() { return 0.0f; }
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ float identity() { return -INFINITY_F; }
    static __device__ __forceinline__ float of(float a, float b) { return maximum(a, b); }
};

// All 32 lanes get the result; butterfly order, the same bits every time.
template <typename Op> __device__ __forceinline__ float warp_reduce(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = Op::of(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// All threads of the block get the result. blockDim.x is a multiple of 32, at most 1024; `scratch` holds 32 floats.
// Begins and ends with a barrier, so that the same scratch can be used again at once.
template <typename Op> __device__ __forceinline__ float block_reduce(float x, float* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_reduce<Op>(x);
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_reduce<Op>(lane < warps ? scratch[lane] : Op::identity());
}

// --- images -----------------------------------------------------------------------------------------

// Planes (N C, length) or columns (N, length, C), C-contiguous; V channels of columns are one load or store.
template <typename T, int V> struct alignas(sizeof(T) * V) Channels {
    T at[V];
};

__device__ __forceinline__ i64 quotient(i64 a, i64 b, bool small) {
    return small ? static_cast<i64>(static_cast<u32>(a) / static_cast<u32>(b)) : a / b;
}

// Which V elements a thread owns in images of `length` elements a channel, and where others of their channel are.
template <int V> struct Place {
    i64 image, channel, position;

    // The q-th group of V elements of images of `length`.
    __device__ __forceinline__ Place(i64 q, i64 C, i64 length, bool columns, bool small) {
        if (columns) {
            const i64 pixel = quotient(q, C / V, small);
            channel = (q - pixel * (C / V)) * V;
            image = quotient(pixel, length, small);
            position = pixel - image * length;
        } else {
            image = quotient(q, length, small);  // the plane
            position = q - image * length;
            channel = 0;
        }
    }
    __device__ __forceinline__ i64 of(i64 at, i64 C, i64 length, bool columns) const {
        return columns ? (image * length + at) * C + channel : image * length + at;
    }
};

// body(V as a type) for each thread's share of `n` elements: V channels at once where columns allow it.
template <typename T, typename F, typename... P>
__device__ __forceinline__ void by_channels(F body, i64 n, i64 C, bool columns, const P*... pointers) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    constexpr int size = Pack<T>::size;
    if (columns && C % size == 0 && aligned(pointers...)) {
        for (i64 q = start; q < n / size; q += step) body(Channels<T, size>(), q);
    } else {
        for (i64 q = start; q < n; q += step) body(Channels<T, 1>(), q);
    }
}
