// Layer norm, step 5: the row held in registers.
//
// Idea: a lane loads its 32 elements of a row of up to 1024 once, 4 at a time, and keeps them for all three passes. All
//     loops over them have a fixed length and are unrolled, or the array would lie in local memory: a register has no
//     index. Longer rows, or rows that are no multiple of 4 long, are read three times.
// Memory: 1 read and 1 write of 4 bytes an element: as few as can be, from any cache.
// Faster: 8 loads of 16 bytes a lane are under way together before the first is used. Whether that gains anything over
//     step 4, whose second and third read hit L1, depends on who else needs L1. The price is registers: fewer
//     warps fit on a multiprocessor.
#define EPS 1e-5f
#define HELD 32

__device__ void held_row(const float* __restrict__ x, const float* __restrict__ weight,
                         const float* __restrict__ bias, float* __restrict__ y, int columns, int lane) {
    float at[HELD];
    float s = 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; k += 4) {
        const int i = k * WARP + lane * 4;
        Pack<float> v = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (i < columns) v = *reinterpret_cast<const Pack<float>*>(x + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) at[k + j] = v.at[j];
    }
#pragma unroll
    for (int k = 0; k < HELD; ++k) s += at[k];
    const float mean = warp_reduce<Sum>(s) / static_cast<float>(columns);
    float q = 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        const int i = k / 4 * 4 * WARP + lane * 4;
        const float d = i < columns ? at[k] - mean : 0.0f;
        q += d * d;
    }
    const float rstd = 1.0f / sqrtf(warp_reduce<Sum>(q) / static_cast<float>(columns) + EPS);
#pragma unroll
    for (int k = 0; k < HELD; k += 4) {
        const int i = k * WARP + lane * 4;
        if (i < columns) {
            const Pack<float> w = *reinterpret_cast<const Pack<float>*>(weight + i);
            const Pack<float> b = *reinterpret_cast<const Pack<float>*>(bias + i);
            Pack<float> out;
#pragma unroll
            for (int j = 0; j < 4; ++j) out.at[j] = (at[k + j] - mean) * rstd * w.at[j] + b.at[j];
            *reinterpret_cast<Pack<float>*>(y + i) = out;
        }
    }
}

__device__ void any_row(const float* __restrict__ x, const float* __restrict__ weight,
                        const float* __restrict__ bias, float* __restrict__ y, i64 columns, int lane) {
    float s = 0.0f, q = 0.0f;
    for (i64 i = lane; i < columns; i += WARP) s += x[i];
    const float mean = warp_reduce<Sum>(s) / static_cast<float>(columns);
    for (i64 i = lane; i < columns; i += WARP) q += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / sqrtf(warp_reduce<Sum>(q) / static_cast<float>(columns) + EPS);
    for (i64 i = lane; i < columns; i += WARP) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}

__global__ void layer_norm(const float* __restrict__ x, const float* __restrict__ weight,
                           const float* __restrict__ bias, float* __restrict__ y, i64 rows, i64 columns) {
    const i64 row = blockIdx.x * 8LL + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += row * columns;
    y += row * columns;
    if (columns % 4 == 0 && columns <= HELD * WARP && aligned(x, weight, bias, y))
        held_row(x, weight, bias, y, static_cast<int>(columns), lane);
    else any_row(x, weight, bias, y, columns, lane);
}
