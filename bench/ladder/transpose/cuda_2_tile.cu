// Transpose, step 2: a tile in shared memory.
//
// Idea: a block of 32 x 32 threads copies a tile row by row into shared memory and writes it to y column by column:
//     the exchange of rows and columns happens on the chip, where no lines have to be fetched.
// Memory: 1 read and 1 write of 4 bytes an element; both are neighbours for the threads of a warp, in whole lines.
// Faster: full lines on both sides. But shared memory has 32 banks, each of which serves one address at a time, and
//     bank = address % 32: the 32 elements of a tile's column are all in the same. The read takes 32 turns.
__global__ void transpose(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    __shared__ float tile[32][32];
    const i64 r0 = blockIdx.y * 32LL, i0 = blockIdx.x * 32LL;
    const int a = threadIdx.y, b = threadIdx.x;
    if (r0 + a < rows && i0 + b < columns) tile[a][b] = x[(r0 + a) * columns + i0 + b];
    __syncthreads();
    if (r0 + b < rows && i0 + a < columns) y[(i0 + a) * rows + r0 + b] = tile[b][a];
}
