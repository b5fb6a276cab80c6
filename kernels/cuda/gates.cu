// GLU and SwiGLU: kernels/gates.py.
//
// A row of x and dx is a half a, then a half b of L elements each; y and dy have L columns. All are dense. Threads
// stride over the elements of y, 16 bytes at a time where L and the pointers allow it, else one by one. Arithmetic is
// float. Bound by memory: 3 elements moved forward, 5 backward for each element of y.

struct Glu {
    static __device__ __forceinline__ float of(float a, float b) { return a * sigmoid(b); }
    static __device__ __forceinline__ void grad(float dy, float a, float b, float& da, float& db) {
        const float e = expf(-fabsf(b)), s = 1.0f / (1.0f + e);
        da = dy * (b < 0.0f ? e * s : s);
        db = dy * a * (e * s * s);
    }
};

struct SwiGlu {
    // The gate times a; 0 where the gate has vanished, also for a = -inf.
    static __device__ __forceinline__ float times(float a, float gate) { return gate == 0.0f ? 0.0f : a * gate; }
    static __device__ __forceinline__ float of(float a, float b) { return times(a, sigmoid(a)) * b; }
    static __device__ __forceinline__ void grad(float dy, float a, float b, float& da, float& db) {
        const float e = expf(-fabsf(a)), s = 1.0f / (1.0f + e);
        const float gate = a < 0.0f ? e * s : s;
        da = dy * (gate + times(a, e * s * s)) * b;
        db = dy * times(a, gate);
    }
};

template <typename Gate, typename T>
__device__ __forceinline__ void gate_forward(const T* __restrict__ x, T* __restrict__ y, i64 rows, i64 L) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    constexpr int size = Pack<T>::size;
    if (L % size == 0 && aligned(x, y)) {
        const Pack<T>* xs = reinterpret_cast<const Pack<T>*>(x);
        const i64 packs = L / size;
        for (i64 p = start; p < rows * packs; p += step) {
            const i64 at = p + p / packs * packs;  // a row of x is two rows of y long
            const Pack<T> a = xs[at], b = xs[at + packs];
            Pack<T> out;
#pragma unroll
            for (int k = 0; k < size; ++k) out.at[k] = from_float<T>(Gate::of(to_float(a.at[k]), to_float(b.at[k])));
            reinterpret_cast<Pack<T>*>(y)[p] = out;
        }
        return;
    }
    for (i64 i = start; i < rows * L; i += step) {
        const i64 at = i + i / L * L;
        y[i] = from_float<T>(Gate::of(to_float(x[at]), to_float(x[at + L])));
    }
}

template <typename Gate, typename T>
__device__ __forceinline__ void gate_backward(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx,
                                              i64 rows, i64 L) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    constexpr int size = Pack<T>::size;
    if (L % size == 0 && aligned(dy, x, dx)) {
        const Pack<T>* xs = reinterpret_cast<const Pack<T>*>(x);
        Pack<T>* dxs = reinterpret_cast<Pack<T>*>(dx);
        const i64 packs = L / size;
        for (i64 p = start; p < rows * packs; p += step) {
            const i64 at = p + p / packs * packs;
            const Pack<T> g = reinterpret_cast<const Pack<T>*>(dy)[p], a = xs[at], b = xs[at + packs];
            Pack<T> da, db;
#pragma unroll
            for (int k = 0; k < size; ++k) {
                float u, v;
                Gate::grad(to_float(g.at[k]), to_float(a.at[k]), to_float(b.at[k]), u, v);
                da.at[k] = from_float<T>(u);
                db.at[k] = from_float<T>(v);
            }
            dxs[at] = da;
            dxs[at + packs] = db;
        }
        return;
    }
    for (i64 i = start; i < rows * L; i += step) {
        const i64 at = i + i / L * L;
        float u, v;
        Gate::grad(to_float(dy[i]), to_float(x[at]), to_float(x[at + L]), u, v);
        dx[at] = from_float<T>(u);
        dx[at + L] = from_float<T>(v);
    }
}

// x (rows, 2 L) -> y (rows, L): y = a sigmoid(b).
template <typename T> __global__ void glu_forward(const T* x, T* y, i64 rows, i64 L) {
    gate_forward<Glu>(x, y, rows, L);
}

// dy (rows, L), x (rows, 2 L) -> dx (rows, 2 L).
template <typename T> __global__ void glu_backward(const T* dy, const T* x, T* dx, i64 rows, i64 L) {
    gate_backward<Glu>(dy, x, dx, rows, L);
}

// x (rows, 2 L) -> y (rows, L): y = silu(a) b.
template <typename T> __global__ void swiglu_forward(const T* x, T* y, i64 rows, i64 L) {
    gate_forward<SwiGlu>(x, y, rows, L);
}

// dy (rows, L), x (rows, 2 L) -> dx (rows, 2 L).
template <typename T> __global__ void swiglu_backward(const T* dy, const T* x, T* dx, i64 rows, i64 L) {
    gate_backward<SwiGlu>(dy, x, dx, rows, L);
}
