// Dynamic loss scaling; the formulas are those of kernels/loss_scaling.py. state (3): scale, good steps, found.

// g (n) /= state[0]; state[2] = 1 where g then is not finite. Grid-stride, 16 bytes a thread where g is aligned, then
// one element at a time. Reads and writes each element once (8 bytes): bound by memory. Threads that find something
// all store the same value, so that no atomics are needed.
template <typename T> __global__ void unscale(T* g, float* state, i64 n) {
    constexpr int size = Pack<T>::size;
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    const float factor = 1.0f / state[0];
    bool bad = false;
    const auto unscaled = [&](T x) {
        const float y = to_float(x) * factor;
        bad |= !(fabsf(y) < INFINITY_F);  // true of NaN too
        return from_float<T>(y);
    };
    i64 done = 0;
    if (aligned(g)) {
        const i64 packs = n / size;
        for (i64 i = start; i < packs; i += step) {
            Pack<T> x = reinterpret_cast<const Pack<T>*>(g)[i];
#pragma unroll
            for (int k = 0; k < size; ++k) x.at[k] = unscaled(x.at[k]);
            reinterpret_cast<Pack<T>*>(g)[i] = x;
        }
        done = packs * size;
    }
    for (i64 i = done + start; i < n; i += step) g[i] = unscaled(g[i]);
    if (bad) state[2] = 1.0f;
}

// One thread: the scale for the next step.
template <typename T>
__global__ void update_scale(T* state, float growth_factor, float backoff_factor, float growth_interval,
                             float min_scale) {
    const T scale = state[0], larger = scale * growth_factor;
    const bool found = state[2] != 0.0f;
    const T good = found ? 0.0f : state[1] + 1.0f;
    const bool full = good >= growth_interval;
    if (found) {
        state[0] = maximum(scale * backoff_factor, min_scale);
    } else if (full && fabsf(larger) < INFINITY_F) {
        state[0] = larger;
    }
    state[1] = full ? 0.0f : good;
    state[2] = 0.0f;
}
