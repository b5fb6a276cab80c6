// Random draws: Philox4x32-10 (Salmon et al., SC 2011). The stream and the formulas are those of kernels/random.py,
// bit for bit: the intrinsics __fmul_rn, __fadd_rn and __fsqrt_rn keep the compiler from fusing.
//
// All kernels: any n, grid-stride over counters; a thread turns one counter into 4 words and writes the 2, 4 or 8
// adjoining elements made of them, in one store where `out` is aligned. Nothing is read but dropout's x. Bound by
// the stores (float: 4 bytes an element; about 30 integer instructions an element are hidden behind them).
//
// Where `place` is not null, the seed is place[0] and place[1] is added to the offset: a captured graph is launched
// with the same arguments every time, and finds there where its draws are to begin.

// N adjoining elements, one or two stores of at most 16 bytes.
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Group {
    T at[N];
};

template <typename G> __device__ __forceinline__ bool fits(const void* p) {
    return reinterpret_cast<u64>(p) % alignof(G) == 0;
}

// out[N c + k] = group(c, words of counter offset + c).at[k] for all elements below n.
template <int N, typename T, typename F>
__device__ __forceinline__ void fill(T* __restrict__ out, i64 n, u64 seed, u64 offset, const u64* place, F group) {
    if (place != nullptr) {
        seed = place[0];
        offset += place[1];
    }
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    const bool vector = fits<Group<T, N>>(out);
    for (i64 c = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; c * N < n; c += step) {
        const Group<T, N> y = group(c, philox(offset + static_cast<u64>(c), seed));
        if (vector && c * N + N <= n) {
            reinterpret_cast<Group<T, N>*>(out)[c] = y;
        } else {
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (c * N + k < n) out[c * N + k] = y.at[k];
        }
    }
}

// out (n): low + span u, u = (word >> 8) / 2^24, at most `below`. 4 elements a thread; float arithmetic.
template <typename T>
__global__ void uniform_fill(T* __restrict__ out, float span, float low, float below, i64 n, u64 seed, u64 offset,
                             const u64* place) {
    fill<4>(out, n, seed, offset, place, [=](i64, const Words& w) {
        Group<T, 4> y;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float u = __fmul_rn(static_cast<float>(w.at[k] >> 8), 5.9604644775390625e-8f);
            const float v = __fadd_rn(__fmul_rn(u, span), low);
            y.at[k] = from_float<T>(v < below ? v : below);
        }
        return y;
    });
}

__device__ __forceinline__ float step_of(float a, float x, float b) { return __fadd_rn(__fmul_rn(a, x), b); }

// sqrt(-2 ln u), u = (word + 1/2) / 2^32 = 2^e (1 + f).
__device__ __forceinline__ float radius(u32 word) {
    const float u = step_of(__uint2float_rn(word), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
    const int split = __float_as_int(u) - 0x3F3504F3;
    const float e = static_cast<float>(split >> 23);
    const float f = __fadd_rn(__int_as_float((split & 0x7FFFFF) + 0x3F3504F3), -1.0f);
    float q = -0.08101559f;
    q = step_of(q, f, 0.12712307f);
    q = step_of(q, f, -0.12972239f);
    q = step_of(q, f, 0.14202175f);
    q = step_of(q, f, -0.16642247f);
    q = step_of(q, f, 0.20001468f);
    q = step_of(q, f, -0.250003f);
    q = step_of(q, f, 0.33333328f);
    const float tail = __fadd_rn(f, __fmul_rn(__fmul_rn(f, f), __fadd_rn(__fmul_rn(f, q), -0.5f)));
    return __fsqrt_rn(__fmul_rn(step_of(e, 0.69314718f, tail), -2.0f));
}

// Cosine and sine: the top two bits are the quadrant, the rest an angle below pi / 4.
__device__ __forceinline__ void circle(u32 word, float& x, float& y) {
    const u32 quadrant = word >> 30;
    const int signed_angle = static_cast<int>(word & 0x3FFFFFFFu) - (1 << 29);
    const float t = __fmul_rn(static_cast<float>(signed_angle), 1.4629180793e-9f);
    const float s = __fmul_rn(t, t);
    const float p = step_of(step_of(-0.0001958795f, s, 0.008332749f), s, -0.16666664f);
    const float sine = __fadd_rn(t, __fmul_rn(t, __fmul_rn(s, p)));
    float q = step_of(step_of(2.4463838e-05f, s, -0.001388759f), s, 0.04166665f);
    q = step_of(q, s, -0.5f);
    const float cosine = step_of(s, q, 1.0f);
    const bool turned = quadrant & 1;
    x = turned ? sine : cosine;
    y = turned ? cosine : sine;
    x = (quadrant + 1) & 2 ? -x : x;
    y = quadrant & 2 ? -y : y;
}

// out (n): mean + std z, z by Box and Muller from two words each. 4 elements a thread; float arithmetic.
template <typename T>
__global__ void normal_fill(T* __restrict__ out, float mean, float std, i64 n, u64 seed, u64 offset, const u64* place) {
    fill<4>(out, n, seed, offset, place, [=](i64, const Words& w) {
        Group<T, 4> y;
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            float cosine, sine;
            circle(w.at[k + 1], cosine, sine);
            const float r = radius(w.at[k]);
            y.at[k] = from_float<T>(step_of(__fmul_rn(r, cosine), std, mean));
            y.at[k + 1] = from_float<T>(step_of(__fmul_rn(r, sine), std, mean));
        }
        return y;
    });
}

// out (n): 1 where word < threshold (at most 2^32), else 0. 4 elements a thread.
template <typename T>
__global__ void bernoulli_fill(T* __restrict__ out, u64 threshold, i64 n, u64 seed, u64 offset, const u64* place) {
    fill<4>(out, n, seed, offset, place, [=](i64, const Words& w) {
        Group<T, 4> y;
#pragma unroll
        for (int k = 0; k < 4; ++k) y.at[k] = from_float<T>(w.at[k] < threshold ? 1.0f : 0.0f);
        return y;
    });
}

__device__ __forceinline__ u64 long_word(const Words& w, int k) {
    return static_cast<u64>(w.at[2 * k + 1]) << 32 | w.at[2 * k];
}

// out (n), int64: low + (64-bit word * span >> 64). 2 elements a thread.
template <typename T>
__global__ void randint_fill(T* __restrict__ out, u64 span, i64 low, i64 n, u64 seed, u64 offset, const u64* place) {
    fill<2>(out, n, seed, offset, place, [=](i64, const Words& w) {
        Group<T, 2> y;
#pragma unroll
        for (int k = 0; k < 2; ++k)
            y.at[k] = static_cast<T>(static_cast<i64>(__umul64hi(long_word(w, k), span)) + low);
        return y;
    });
}

// out (n), uint64: the 64-bit words themselves, the sort keys of a permutation. 2 elements a thread.
template <typename T> __global__ void key_fill(T* __restrict__ out, i64 n, u64 seed, u64 offset, const u64* place) {
    fill<2>(out, n, seed, offset, place, [=](i64, const Words& w) {
        Group<T, 2> y;
#pragma unroll
        for (int k = 0; k < 2; ++k) y.at[k] = static_cast<T>(long_word(w, k));
        return y;
    });
}

// out, x (n): x * scale where the element's half-word >= drop (at most 65536), else 0. 8 elements a thread; reads and
// writes each element once: bound by memory.
template <typename T>
__global__ void dropout_apply(T* __restrict__ out, const T* __restrict__ x, int drop, float scale, i64 n, u64 seed,
                              u64 offset, const u64* place) {
    const bool vector = fits<Group<T, 8>>(x);
    fill<8>(out, n, seed, offset, place, [=](i64 c, const Words& w) {
        Group<T, 8> y;
        if (vector && c * 8 + 8 <= n) {
            y = reinterpret_cast<const Group<T, 8>*>(x)[c];
        } else {
#pragma unroll
            for (int k = 0; k < 8; ++k)
                if (c * 8 + k < n) y.at[k] = x[c * 8 + k];
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const int half = (w.at[k / 2] >> (16 * (k % 2))) & 0xFFFF;
            y.at[k] = from_float<T>(half >= drop ? to_float(y.at[k]) * scale : 0.0f);
        }
        return y;
    });
}
