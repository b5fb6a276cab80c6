// Transpose, step 1: a thread an element.
//
// Idea: blocks of 32 x 8 threads; each moves one element. Neighbouring threads have neighbouring columns of x.
// Memory: 1 read and 1 write of 4 bytes an element are needed. The reads of a warp are neighbours, 128 bytes in one
//     line; its writes are 32 rows of y: 32 sectors of 32 bytes for 4 bytes of each. L2 can put the parts of a
//     sector together where they come soon enough; else it is read, changed and written for each.
// Slow: up to eight times the traffic on one side, and 32 transactions for an instruction that could do with 4.
__global__ void transpose(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 r = blockIdx.y * 8LL + threadIdx.y, i = blockIdx.x * 32LL + threadIdx.x;
    if (r < rows && i < columns) y[i * rows + r] = x[r * columns + i];
}
