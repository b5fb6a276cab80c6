// Softmax, step 3: a warp a row, reduced by shuffles.
//
// Idea: 32 threads share a row; a block of 256 has 8 rows. The lanes of a warp exchange registers without memory and
//     without a barrier: after 5 exchanges with the lane whose number differs in one bit, all have the result.
// Memory: 3 reads and 1 write of 4 bytes an element, in whole lines; the second and third read come from L1.
// Faster: no barriers. A warp that waits for memory holds up nobody, and the others of its multiprocessor fill the
//     time. Rows of many thousands of elements want a block after all: 32 threads alone would be too few of them.
template <typename Op> __device__ float butterfly(float value) {
    for (int bit = 16; bit > 0; bit /= 2) value = Op::of(value, __shfl_xor_sync(FULL_WARP, value, bit));
    return value;
}

__global__ void softmax(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * 8LL + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    float m = -INFINITY_F;
    for (i64 i = lane; i < columns; i += WARP) m = maximum(m, x[i]);
    m = butterfly<Max>(m);
    float s = 0.0f;
    for (i64 i = lane; i < columns; i += WARP) s += expf(x[i] - m);
    s = butterfly<Sum>(s);
    for (i64 i = lane; i < columns; i += WARP) y[i] = expf(x[i] - m) / s;
}
