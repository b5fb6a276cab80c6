// Softmax, step 5: the row held in registers, 16 bytes a load.
//
// Idea: a lane loads its 32 elements of a row of up to 1024 once, 4 at a time, and keeps them. All loops over them have
//     a fixed length and are unrolled, or the array would lie in local memory: a register has no index.
// Memory: 1 read and 1 write of 4 bytes an element: as few as can be.
// Faster: each element comes once, a quarter of the instructions load it, and 8 loads a lane are under way together
//     before the first is used: that is how many bytes it takes to keep the memory busy. Three passes over registers
//     cost nothing, so that the plain formula is back. Rows that are longer, or no multiple of 4, take another way.
#define HELD 32

__device__ void held_row(const float* __restrict__ x, float* __restrict__ y, int columns, int lane) {
    float at[HELD];
    float m = -INFINITY_F;
#pragma unroll
    for (int k = 0; k < HELD; k += 4) {
        const int i = k * WARP + lane * 4;
        Pack<float> pack = {{-INFINITY_F, -INFINITY_F, -INFINITY_F, -INFINITY_F}};  // e^-inf = 0: not in the sum
        if (i < columns) pack = *reinterpret_cast<const Pack<float>*>(x + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) at[k + j] = pack.at[j];
    }
#pragma unroll
    for (int k = 0; k < HELD; ++k) m = maximum(m, at[k]);
    m = warp_reduce<Max>(m);
    float s = 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        at[k] = expf(at[k] - m);
        s += at[k];
    }
    const float scale = 1.0f / warp_reduce<Sum>(s);
#pragma unroll
    for (int k = 0; k < HELD; k += 4) {
        const int i = k * WARP + lane * 4;
        Pack<float> pack;
#pragma unroll
        for (int j = 0; j < 4; ++j) pack.at[j] = at[k + j] * scale;
        if (i < columns) *reinterpret_cast<Pack<float>*>(y + i) = pack;
    }
}

__device__ void any_row(const float* __restrict__ x, float* __restrict__ y, i64 columns, int lane) {
    float m = -INFINITY_F, s = 0.0f;
    for (i64 i = lane; i < columns; i += WARP) m = maximum(m, x[i]);
    m = warp_reduce<Max>(m);
    for (i64 i = lane; i < columns; i += WARP) s += expf(x[i] - m);
    s = warp_reduce<Sum>(s);
    for (i64 i = lane; i < columns; i += WARP) y[i] = expf(x[i] - m) / s;
}

__global__ void softmax(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * 8LL + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    if (columns % 4 == 0 && columns <= HELD * WARP && aligned(x, y)) held_row(x, y, static_cast<int>(columns), lane);
    else any_row(x, y, columns, lane);
}
