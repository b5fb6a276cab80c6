// PReLU: kernels/prelu.py. Arithmetic and accumulation are float.
//
// Element i of a dense x belongs to channel i / inner % channels: inner is the size of a plane in channels-first
// layout, 1 in channels-last.

// x, out (n), w (channels). Threads stride over the elements: 1 read and 1 write each. Bound by memory.
template <typename T>
__global__ void prelu_forward(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ out, i64 n,
                              i64 channels, i64 inner) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    for (i64 i = start; i < n; i += step) {
        const float v = to_float(x[i]);
        out[i] = from_float<T>(v > 0.0f ? v : to_float(w[i / inner % channels]) * v);
    }
}

// dy, x, dx (n), w (channels), sums (blocks, channels). A block owns every `blocks`-th chunk of one channel's `each`
// elements and writes one partial sum of dweight; the caller adds them in a fixed order (no atomics). 2 reads and 1 write
// an element. Bound by memory; in channels-last layout neighbouring blocks share cache lines.
template <typename T>
__global__ void prelu_backward(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ w,
                               T* __restrict__ dx, float* __restrict__ sums, i64 each, i64 channels, i64 inner,
                               i64 blocks) {
    __shared__ float scratch[WARP];
    const i64 c = blockIdx.x % channels, block = blockIdx.x / channels;
    const float slope = to_float(w[c]);
    float total = 0.0f;
    for (i64 k = block * blockDim.x + threadIdx.x; k < each; k += blocks * blockDim.x) {
        const i64 i = (k / inner * channels + c) * inner + k % inner;
        const float v = to_float(x[i]), g = to_float(dy[i]);
        dx[i] = from_float<T>(v > 0.0f ? g : slope * g);
        total += v > 0.0f ? 0.0f : g * v;
    }
    total = block_reduce<Sum>(total, scratch);
    if (threadIdx.x == 0) sums[block * channels + c] = total;
}
