// Softmax, step 1: a thread a row.
//
// Idea: the loop of the CPU, once for each row, as many rows at a time as the GPU has threads. A block is 256 threads.
// Memory: 3 reads and 1 write of 4 bytes an element are asked for. The 32 threads of a warp read 32 different rows at
//     a time: 32 sectors of 32 bytes for 4 bytes of each. The other 28 are used later, if the sector is still in L1 by
//     then; 256 rows at 128 bytes a line are 32 KB a block, and many blocks share an L1.
// Slow: scattered reads, and with fewer rows than the GPU can hold threads (some 200,000) most of it is idle.
__global__ void softmax(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    float m = -INFINITY_F;
    for (i64 i = 0; i < columns; ++i) m = maximum(m, x[i]);
    float s = 0.0f;
    for (i64 i = 0; i < columns; ++i) s += expf(x[i] - m);
    for (i64 i = 0; i < columns; ++i) y[i] = expf(x[i] - m) / s;
}
