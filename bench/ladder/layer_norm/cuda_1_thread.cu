// Layer norm, step 1: a thread a row.
//
// Idea: the loop of the CPU, once for each row, as many rows at a time as the GPU has threads. A block is 256 threads.
//     The variance is the mean of (x - mean)^2, in a pass of its own: E[x^2] - E[x]^2 would cancel.
// Memory: 3 reads and 1 write of 4 bytes an element are asked for (weight and bias stay in caches). The 32 threads of a
//     warp read 32 different rows at a time: 32 sectors of 32 bytes for 4 bytes of each. The other 28 are used later,
//     if the sector is still in L1 by then.
// Slow: scattered reads, and with fewer rows than the GPU can hold threads (some 200,000) most of it is idle.
#define EPS 1e-5f

__global__ void layer_norm(const float* __restrict__ x, const float* __restrict__ weight,
                           const float* __restrict__ bias, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    float s = 0.0f;
    for (i64 i = 0; i < columns; ++i) s += x[i];
    const float mean = s / static_cast<float>(columns);
    float q = 0.0f;
    for (i64 i = 0; i < columns; ++i) q += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / sqrtf(q / static_cast<float>(columns) + EPS);
    for (i64 i = 0; i < columns; ++i) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}
