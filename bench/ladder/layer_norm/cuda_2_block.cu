// Layer norm, step 2: a block a row, summed in shared memory.
//
// Idea: 256 threads share a row, neighbouring threads read neighbouring elements. Their sums are added up as a tree in
//     shared memory: 128 threads add one of the other 128 to theirs, then 64, 32, ...
// Memory: 3 reads and 1 write of 4 bytes an element, in whole lines: the 32 floats of a warp are 128 bytes. The second
//     and third read come from L1 or L2, where the row was a moment ago.
// Faster: each sector that is fetched is used whole and at once, and every row keeps 256 threads busy. But each
//     of the two trees takes 10 barriers, at which the block waits for its last warp.
#define EPS 1e-5f

__device__ float tree_sum(float value, float* scratch) {
    const unsigned t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] += scratch[t + half];
        __syncthreads();
    }
    const float result = scratch[0];
    __syncthreads();  // before the next tree overwrites it
    return result;
}

__global__ void layer_norm(const float* __restrict__ x, const float* __restrict__ weight,
                           const float* __restrict__ bias, float* __restrict__ y, i64 rows, i64 columns) {
    __shared__ float scratch[256];
    x += blockIdx.x * columns;
    y += blockIdx.x * columns;
    float s = 0.0f;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) s += x[i];
    const float mean = tree_sum(s, scratch) / static_cast<float>(columns);
    float q = 0.0f;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) q += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / sqrtf(tree_sum(q, scratch) / static_cast<float>(columns) + EPS);
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}
