// Softmax, step 2: a block a row, reduced in shared memory.
//
// Idea: 256 threads share a row, neighbouring threads read neighbouring elements. What each has found is reduced as a
//     tree in shared memory: 128 threads add one of the other 128 to theirs, then 64, 32, ...
// Memory: 3 reads and 1 write of 4 bytes an element, in whole lines: the 32 floats of a warp are 128 bytes. The second
//     and third read come from L1 or L2, where the row was a moment ago.
// Faster: each sector that is fetched is used whole and at once, and every row keeps 256 threads busy. But each
//     of the two trees takes 10 barriers, at which the block waits for its last warp.
template <typename Op> __device__ float tree(float value, float* scratch) {
    const unsigned t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] = Op::of(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    const float result = scratch[0];
    __syncthreads();  // before the next tree overwrites it
    return result;
}

__global__ void softmax(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    __shared__ float scratch[256];
    x += blockIdx.x * columns;
    y += blockIdx.x * columns;
    float m = -INFINITY_F;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) m = maximum(m, x[i]);
    m = tree<Max>(m, scratch);
    float s = 0.0f;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) s += expf(x[i] - m);
    s = tree<Sum>(s, scratch);
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) y[i] = expf(x[i] - m) / s;
}
