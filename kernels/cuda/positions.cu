// Rotary positions. x and y (B, T, H, 2 half), cosine and sine (T, half) float.
// A thread owns a pair of columns at a time, grid-stride: one read and one write of an element, bound by memory.
template <typename T>
__global__ void rotate(const T* __restrict__ x, const float* __restrict__ cosine, const float* __restrict__ sine,
                       T* __restrict__ y, i64 pairs, i64 H, i64 length, i64 half, int interleaved, float sign) {
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 p = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; p < pairs; p += step) {
        const i64 row = p / half, d = p - row * half;
        const i64 first = row * 2 * half + (interleaved ? 2 * d : d);
        const i64 second = first + (interleaved ? 1 : half);
        const i64 angle = row / H % length * half + d;
        const float a = to_float(x[first]), b = to_float(x[second]);
        const float c = cosine[angle], s = sine[angle] * sign;
        y[first] = from_float<T>(a * c - b * s);
        y[second] = from_float<T>(b * c + a * s);
    }
}
