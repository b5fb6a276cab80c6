// Transpose, step 3: no two lanes in one bank.
//
// Idea: step 2 with rows of 33 floats in the tile, of which the last is never used. Element (b, a) is now at
//     33 b + a, in bank (b + a) % 32: 32 different ones along a row, and along a column.
// Memory: 1 read and 1 write of 4 bytes an element, in whole lines; 128 bytes more of shared memory.
// Faster: the column is read in one turn in place of 32. One character makes the difference.
__global__ void transpose(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    __shared__ float tile[32][33];
    const i64 r0 = blockIdx.y * 32LL, i0 = blockIdx.x * 32LL;
    const int a = threadIdx.y, b = threadIdx.x;
    if (r0 + a < rows && i0 + b < columns) tile[a][b] = x[(r0 + a) * columns + i0 + b];
    __syncthreads();
    if (r0 + b < rows && i0 + a < columns) y[(i0 + a) * rows + r0 + b] = tile[b][a];
}
