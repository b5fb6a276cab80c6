// Is every number finite? The formula is that of kernels/finite.py.

// x (n); found[0] = 1 where x holds a NaN or an infinity, else it stays. Grid-stride, 16 bytes a thread where x is
// aligned, then one element at a time. Reads each element once: bound by memory. Threads that find something all store
// the same value, so that no atomics are needed.
template <typename T> __global__ void mark_nonfinite(const T* x, int* found, i64 n) {
    constexpr int size = Pack<T>::size;
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    bool bad = false;
    const auto look = [&](T value) { bad |= !(fabsf(to_float(value)) < INFINITY_F); };  // true of NaN too
    i64 done = 0;
    if (aligned(x)) {
        const i64 packs = n / size;
        for (i64 i = start; i < packs; i += step) {
            const Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[i];
#pragma unroll
            for (int k = 0; k < size; ++k) look(pack.at[k]);
        }
        done = packs * size;
    }
    for (i64 i = done + start; i < n; i += step) look(x[i]);
    if (bad) found[0] = 1;
}
