// Layer norm, step 3: a warp a row, summed by shuffles.
//
// Idea: 32 threads share a row; a block of 256 has 8 rows. The lanes of a warp exchange registers without memory and
//     without a barrier: after 5 exchanges with the lane whose number differs in one bit, all have the sum.
// Memory: 3 reads and 1 write of 4 bytes an element, in whole lines; the second and third read come from L1.
// Faster: no barriers. A warp that waits for memory holds up nobody, and the others of its multiprocessor fill the
//     time. Rows of many thousands of elements want a block after all: 32 threads alone would be too few of them.
#define EPS 1e-5f

__device__ float butterfly_sum(float value) {
    for (int bit = 16; bit > 0; bit /= 2) value += __shfl_xor_sync(FULL_WARP, value, bit);
    return value;
}

__global__ void layer_norm(const float* __restrict__ x, const float* __restrict__ weight,
                           const float* __restrict__ bias, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * 8LL + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    float s = 0.0f;
    for (i64 i = lane; i < columns; i += WARP) s += x[i];
    const float mean = butterfly_sum(s) / static_cast<float>(columns);
    float q = 0.0f;
    for (i64 i = lane; i < columns; i += WARP) q += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / sqrtf(butterfly_sum(q) / static_cast<float>(columns) + EPS);
    for (i64 i = lane; i < columns; i += WARP) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}
