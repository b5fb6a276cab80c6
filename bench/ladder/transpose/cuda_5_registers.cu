// Transpose, step 5: 4 x 4 in registers, 16 bytes a load and a store.
//
// Idea: a thread loads 4 packs of 4 neighbours from 4 rows of x, exchanges rows and columns by naming its 16 registers
//     the other way round, which costs no instruction, and stores 4 packs to 4 rows of y. A block of 256 threads has a
//     tile of 64 x 64; in a warp 8 threads lie along a row of y and 4 along a row of x.
// Memory: 1 read and 1 write of 4 bytes an element: 64 bytes together where it reads, 128 where it writes. Sectors have
//     32, so all are used whole.
// Faster: no shared memory, no barrier, a quarter of the instructions and 64 bytes a thread under way. Where rows or
//     columns are no multiple of 4, single floats are moved.
__global__ void transpose(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const i64 r = blockIdx.y * 64LL + 4 * (warp % 2 * 8 + lane % 8);
    const i64 i = blockIdx.x * 64LL + 4 * (warp / 2 * 4 + lane / 8);
    if (r >= rows || i >= columns) return;
    if (rows % 4 == 0 && columns % 4 == 0 && aligned(x, y)) {
        Pack<float> in[4], out[4];
#pragma unroll
        for (int a = 0; a < 4; ++a) in[a] = *reinterpret_cast<const Pack<float>*>(x + (r + a) * columns + i);
#pragma unroll
        for (int a = 0; a < 4; ++a) {
#pragma unroll
            for (int b = 0; b < 4; ++b) out[b].at[a] = in[a].at[b];
        }
#pragma unroll
        for (int b = 0; b < 4; ++b) *reinterpret_cast<Pack<float>*>(y + (i + b) * rows + r) = out[b];
    } else {
        const int high = static_cast<int>(min(4LL, rows - r)), wide = static_cast<int>(min(4LL, columns - i));
        for (int b = 0; b < wide; ++b)
            for (int a = 0; a < high; ++a) y[(i + b) * rows + r + a] = x[(r + a) * columns + i + b];
    }
}
