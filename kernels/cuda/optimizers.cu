// Whole-model optimizer steps over flat buffers (n); the formulas are those of kernels/optimizers.py.
//
// All kernels: grid-stride, 16 bytes a thread and buffer where all are aligned, then one element at a time; any n.
// State and parameters have one type T, arithmetic is float. Each buffer is read once, each but g written once:
// bound by memory (AdamW in float: 28 bytes an element). The gradient is multiplied by *scale_at where that is not
// null (a value that only the device knows), else by scale. Where `live` is not null, the numbers after it are read
// from there, in their order: a captured graph is launched with the same arguments every time. Where *held is not 0
// (held itself is not null) nothing is written: a step that is not to be, which only the device knows yet.

// f works on one element of each of the K buffers, e[0 .. K-1]; those whose bit is set in WRITTEN are stored.
template <typename T, int K, u32 WRITTEN, typename F>
__device__ __forceinline__ void update(const int* held, i64 n, T* const (&buffer)[K], F f) {
    if (held != nullptr && *held != 0) return;
    constexpr int size = Pack<T>::size;
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    bool vector = true;
#pragma unroll
    for (int j = 0; j < K; ++j) vector = vector && aligned(buffer[j]);
    i64 done = 0;
    if (vector) {
        const i64 packs = n / size;
        for (i64 i = start; i < packs; i += step) {
            Pack<T> x[K];
#pragma unroll
            for (int j = 0; j < K; ++j) x[j] = reinterpret_cast<const Pack<T>*>(buffer[j])[i];
#pragma unroll
            for (int k = 0; k < size; ++k) {
                float e[K];
#pragma unroll
                for (int j = 0; j < K; ++j) e[j] = to_float(x[j].at[k]);
                f(e);
#pragma unroll
                for (int j = 0; j < K; ++j) x[j].at[k] = from_float<T>(e[j]);
            }
#pragma unroll
            for (int j = 0; j < K; ++j)
                if (WRITTEN >> j & 1) reinterpret_cast<Pack<T>*>(buffer[j])[i] = x[j];
        }
        done = packs * size;
    }
    for (i64 i = done + start; i < n; i += step) {
        float e[K];
#pragma unroll
        for (int j = 0; j < K; ++j) e[j] = to_float(buffer[j][i]);
        f(e);
#pragma unroll
        for (int j = 0; j < K; ++j)
            if (WRITTEN >> j & 1) buffer[j][i] = from_float<T>(e[j]);
    }
}

__device__ __forceinline__ float factor(const float* scale_at, float scale) {
    return scale_at != nullptr ? *scale_at : scale;
}

// Replaces numbers by those of `live`, if there are any.
template <typename... Numbers> __device__ __forceinline__ void read(const float* live, Numbers&... number) {
    if (live == nullptr) return;
    int i = 0;
    ((number = live[i++]), ...);
}

// The gradient, scaled, with coupled weight decay.
__device__ __forceinline__ float gradient(float g, float p, float scale, float coupled) {
    const float d = g * scale;
    return coupled != 0.0f ? d + coupled * p : d;
}

// p, g, buf (n); buf is null without momentum. Reads 2-3 and writes 1-2 buffers.
template <typename T>
__global__ void sgd(T* p, T* g, T* buf, const float* scale_at, float scale, const float* live, float coupled,
                    float shrink, float lr, float momentum, float keep, float take, int nesterov, const int* held,
                    i64 n) {
    read(live, coupled, shrink, lr, momentum, keep, take);
    const float s = factor(scale_at, scale);
    if (buf == nullptr) {
        update<T, 2, 1>(held, n, {p, g},
                        [=](float* e) { e[0] = e[0] * shrink - lr * gradient(e[1], e[0], s, coupled); });
        return;
    }
    update<T, 3, 5>(held, n, {p, g, buf}, [=](float* e) {
        const float d = gradient(e[1], e[0], s, coupled);
        e[2] = keep != 0.0f ? take * d + keep * e[2] : take * d;
        e[0] = e[0] * shrink - lr * (nesterov ? d + momentum * e[2] : e[2]);
    });
}

// p, g, m, v, vmax (n); vmax is null without AMSGrad. Reads 4-5 and writes 3-4 buffers.
template <typename T>
__global__ void adam(T* p, T* g, T* m, T* v, T* vmax, const float* scale_at, float scale, const float* live,
                     float coupled, float shrink, float step_size, float correction, float take1, float keep2,
                     float take2, float eps, const int* held, i64 n) {
    read(live, coupled, shrink, step_size, correction, take1, keep2, take2, eps);
    const float s = factor(scale_at, scale);
    const auto moments = [=](float* e) {
        const float d = gradient(e[1], e[0], s, coupled);
        e[2] += take1 * (d - e[2]);
        e[3] = keep2 * e[3] + take2 * (d * d);
    };
    const auto move = [=](float* e, float square) {
        e[0] = e[0] * shrink - step_size * (e[2] / (sqrtf(square) * correction + eps));
    };
    if (vmax == nullptr) {
        update<T, 4, 13>(held, n, {p, g, m, v}, [=](float* e) {
            moments(e);
            move(e, e[3]);
        });
        return;
    }
    update<T, 5, 29>(held, n, {p, g, m, v, vmax}, [=](float* e) {
        moments(e);
        e[4] = maximum(e[4], e[3]);
        move(e, e[4]);
    });
}

// p, g, v, buf, mean_g (n); buf is null without momentum, mean_g unless centered. Reads 3-5 and writes 2-4 buffers.
template <typename T>
__global__ void rmsprop(T* p, T* g, T* v, T* buf, T* mean_g, const float* scale_at, float scale, const float* live,
                        float lr, float keep, float take, float eps, float weight_decay, float momentum,
                        const int* held, i64 n) {
    read(live, lr, keep, take, eps, weight_decay, momentum);
    const float s = factor(scale_at, scale);
    // e: p, g, v; the gradient over the root, from the mean square and, if there is one, the mean
    const auto direction = [=](float* e, float* mean) {
        const float d = gradient(e[1], e[0], s, weight_decay);
        e[2] = keep * e[2] + take * (d * d);
        float square = e[2];
        if (mean != nullptr) {
            *mean += take * (d - *mean);
            square -= *mean * *mean;
            square = square < 0.0f ? 0.0f : square;  // NaN stays
        }
        return d / (sqrtf(square) + eps);
    };
    if (buf == nullptr && mean_g == nullptr) {
        update<T, 3, 5>(held, n, {p, g, v}, [=](float* e) { e[0] -= lr * direction(e, nullptr); });
    } else if (mean_g == nullptr) {
        update<T, 4, 13>(held, n, {p, g, v, buf}, [=](float* e) {
            e[3] = momentum * e[3] + direction(e, nullptr);
            e[0] -= lr * e[3];
        });
    } else if (buf == nullptr) {
        update<T, 4, 13>(held, n, {p, g, v, mean_g}, [=](float* e) { e[0] -= lr * direction(e, e + 3); });
    } else {
        update<T, 5, 29>(held, n, {p, g, v, buf, mean_g}, [=](float* e) {
            e[3] = momentum * e[3] + direction(e, e + 4);
            e[0] -= lr * e[3];
        });
    }
}

// p, g, v (n). Reads 3 and writes 2 buffers.
template <typename T>
__global__ void adagrad(T* p, T* g, T* v, const float* scale_at, float scale, const float* live, float rate, float eps,
                        float weight_decay, const int* held, i64 n) {
    read(live, rate, eps, weight_decay);
    const float s = factor(scale_at, scale);
    update<T, 3, 5>(held, n, {p, g, v}, [=](float* e) {
        const float d = gradient(e[1], e[0], s, weight_decay);
        e[2] += d * d;
        e[0] -= rate * (d / (sqrtf(e[2]) + eps));
    });
}

// x (n) *= scale. Reads and writes each element once.
template <typename T> __global__ void scale_elements(T* x, const float* scale_at, float scale, const int* held, i64 n) {
    const float s = factor(scale_at, scale);
    update<T, 1, 1>(held, n, {x}, [=](float* e) { e[0] *= s; });
}

// a (n) += weight (b - a). Reads 2 and writes 1 buffer.
template <typename T>
__global__ void lerp_elements(T* a, T* b, const float* weight_at, float weight, const int* held, i64 n) {
    read(weight_at, weight);
    update<T, 2, 1>(held, n, {a, b}, [=](float* e) { e[0] += weight * (e[1] - e[0]); });
}
