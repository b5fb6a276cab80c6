// Transpose, step 4: four elements a thread.
//
// Idea: the same tile of 32 x 32 with a block of 32 x 8 threads, each of which moves 4 elements.
// Memory: 1 read and 1 write of 4 bytes an element, in whole lines.
// Faster: 4 loads of a thread are under way at a time, while in step 3 each waits for its only one; the indices are
//     computed once for four elements; and 8 blocks fit where 2 of 1024 threads did, so that while one waits at its
//     barrier others load.
__global__ void transpose(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    __shared__ float tile[32][33];
    const i64 r0 = blockIdx.y * 32LL, i0 = blockIdx.x * 32LL;
    const int b = threadIdx.x;
#pragma unroll
    for (int k = 0; k < 32; k += 8) {
        const int a = threadIdx.y + k;
        if (r0 + a < rows && i0 + b < columns) tile[a][b] = x[(r0 + a) * columns + i0 + b];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 32; k += 8) {
        const int a = threadIdx.y + k;
        if (r0 + b < rows && i0 + a < columns) y[(i0 + a) * rows + r0 + b] = tile[b][a];
    }
}
