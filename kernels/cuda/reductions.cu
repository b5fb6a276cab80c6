// Reductions of (outer, n, inner) over n: rows where inner is 1, columns otherwise. Accumulation and results are float.
//
// Long reductions are cut into parts (their number depends on the shape alone), which a second launch of the same kernel
// reduces in order: no atomics, the same bits every time. Each element is read once; bound by memory.

enum Reduction { SUM = 0, SQUARES = 1, LARGEST = 2, SMALLEST = 3 };

__device__ __forceinline__ float start_of(int op) {
    return op == LARGEST ? -INFINITY_F : op == SMALLEST ? INFINITY_F : 0.0f;
}
// Take one more element in; `op` is the same for all threads, so the branch costs nothing beside the load.
__device__ __forceinline__ float take(int op, float total, float v) {
    if (op == SUM) return total + v;
    if (op == SQUARES) return total + v * v;
    return op == LARGEST ? maximum(total, v) : minimum(total, v);
}
// Merge two partial results: squares have become sums.
__device__ __forceinline__ float merge(int op, float a, float b) { return take(op == SQUARES ? SUM : op, a, b); }

__device__ __forceinline__ float warp_merge(int op, float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = merge(op, x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// out (rows, parts) = `scale` * reduction of `chunk` elements each of x (rows, n). A block of 256 owns one part of one
// row; where n is at most 1024 (`warps` 1) a warp owns a row, a block 8 rows. 16-byte loads where n, chunk and x allow.
template <typename T>
__global__ void reduce_rows(const T* __restrict__ x, float* __restrict__ out, i64 rows, i64 n, i64 parts, i64 chunk,
                            int op, float scale, int warps) {
    __shared__ float scratch[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 item = warps == 1 ? blockIdx.x * static_cast<i64>(blockDim.x / WARP) + warp : blockIdx.x;
    const int rank = warps == 1 ? lane : threadIdx.x, width = warps == 1 ? WARP : blockDim.x;
    if (item >= rows * parts) return;
    const i64 row = item / parts, part = item - row * parts;
    const i64 first = part * chunk, last = min(n, first + chunk);
    constexpr int size = Pack<T>::size;
    float total = start_of(op);
    if (n % size == 0 && chunk % size == 0 && aligned(x)) {
        const Pack<T>* packs = reinterpret_cast<const Pack<T>*>(x + row * n);
        for (i64 p = first / size + rank; p < last / size; p += width) {
            const Pack<T> v = packs[p];
#pragma unroll
            for (int k = 0; k < size; ++k) total = take(op, total, to_float(v.at[k]));
        }
    } else {
        for (i64 i = first + rank; i < last; i += width) total = take(op, total, to_float(x[row * n + i]));
    }
    total = warp_merge(op, total);
    if (warps > 1) {
        if (lane == 0) scratch[warp] = total;
        __syncthreads();
        total = warp_merge(op, lane < warps ? scratch[lane] : start_of(op));
    }
    if (rank == 0) out[item] = total * scale;
}

// out (outer, parts, inner) = `scale` * reduction of `chunk` elements each of x (outer, n, inner).
// A block of 8 warps owns 32 neighbouring columns of one part; warp w takes rows w, w + 8, ..., warp 0 merges in order.
template <typename T>
__global__ void reduce_columns(const T* __restrict__ x, float* __restrict__ out, i64 n, i64 inner, i64 parts,
                               i64 chunk, int op, float scale) {
    __shared__ float scratch[8][WARP];
    const i64 stripes = (inner + WARP - 1) / WARP;
    const i64 item = blockIdx.x / stripes;  // outer * parts + part
    const i64 o = item / parts, part = item - o * parts;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 column = (blockIdx.x - item * stripes) * WARP + lane;
    const i64 last = min(n, (part + 1) * chunk);
    float total = start_of(op);
    if (column < inner)
        for (i64 i = part * chunk + warp; i < last; i += 8)
            total = take(op, total, to_float(x[(o * n + i) * inner + column]));
    scratch[warp][lane] = total;
    __syncthreads();
    if (warp == 0 && column < inner) {
        for (int w = 1; w < 8; ++w) total = merge(op, total, scratch[w][lane]);
        out[item * inner + column] = total * scale;
    }
}

// out (rows) = sum of (x - mean)^2 over each row of x (rows, n) / divisor. A block owns a row and reads it twice, the second
// time from cache where it fits.
template <typename T>
__global__ void variance_rows(const T* __restrict__ x, float* __restrict__ out, i64 n, float divisor) {
    __shared__ float scratch[WARP];
    x += blockIdx.x * n;
    float s = 0.0f;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) s += to_float(x[i]);
    const float m = block_reduce<Sum>(s, scratch) / static_cast<float>(n);
    float q = 0.0f;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) q += (to_float(x[i]) - m) * (to_float(x[i]) - m);
    q = block_reduce<Sum>(q, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = q / divisor;
}

// A candidate for argmax: larger wins, NaN is largest, the smaller position among equals.
struct Candidate {
    float value;
    i64 position;
};
__device__ __forceinline__ bool better(const Candidate& a, const Candidate& b) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan != b_nan) return a_nan;
    if (a.value == b.value || a_nan) return a.position < b.position;
    return a.value > b.value;
}

// out (rows) = position of the largest sign * x in each row of x (rows, n). A block owns a row; one read.
template <typename T>
__global__ void argmax_rows(const T* __restrict__ x, i64* __restrict__ out, i64 n, float sign) {
    __shared__ Candidate scratch[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x += blockIdx.x * n;
    Candidate best = {-INFINITY_F, n};
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        const Candidate here = {sign * to_float(x[i]), i};
        if (better(here, best)) best = here;
    }
    const auto reduce = [&]() {
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            const Candidate other = {__shfl_xor_sync(FULL_WARP, best.value, offset),
                                     __shfl_xor_sync(FULL_WARP, best.position, offset)};
            if (better(other, best)) best = other;
        }
    };
    reduce();
    if (lane == 0) scratch[warp] = best;
    __syncthreads();
    if (warp == 0) {
        best = {-INFINITY_F, n};
        if (lane < static_cast<int>(blockDim.x / WARP)) best = scratch[lane];
        reduce();
        if (lane == 0) out[blockIdx.x] = best.position;
    }
}

// out (outer, inner) likewise over the middle axis of x (outer, n, inner). A thread owns a column; coalesced, one read.
template <typename T>
__global__ void argmax_columns(const T* __restrict__ x, i64* __restrict__ out, i64 outer, i64 n, i64 inner,
                               float sign) {
    const i64 item = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (item >= outer * inner) return;
    const i64 o = item / inner, column = item - o * inner;
    Candidate best = {-INFINITY_F, n};
    for (i64 i = 0; i < n; ++i) {
        const Candidate here = {sign * to_float(x[(o * n + i) * inner + column]), i};
        if (better(here, best)) best = here;
    }
    out[item] = best.position;
}

// out = running sum along each row of x (rows, n), from the end if `reverse`. A block owns a row and scans it in tiles of
// blockDim.x elements: shuffles within a warp, then over the warps, then a carry. One read, one write.
template <typename T>
__global__ void cumsum_rows(const T* __restrict__ x, T* __restrict__ out, i64 n, int reverse) {
    __shared__ float scratch[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x += blockIdx.x * n;
    out += blockIdx.x * n;
    float carry = 0.0f;
    for (i64 tile = 0; tile < n; tile += blockDim.x) {
        const i64 i = tile + threadIdx.x, at = reverse ? n - 1 - i : i;
        float v = i < n ? to_float(x[at]) : 0.0f;
#pragma unroll
        for (int offset = 1; offset < WARP; offset *= 2) {
            const float left = __shfl_up_sync(FULL_WARP, v, offset);
            if (lane >= offset) v += left;
        }
        if (lane == WARP - 1) scratch[warp] = v;
        __syncthreads();
        float before = carry, tile_sum = 0.0f;
        for (int w = 0; w < warps; ++w) {
            if (w < warp) before += scratch[w];
            tile_sum += scratch[w];
        }
        if (i < n) out[at] = from_float<T>(before + v);
        carry += tile_sum;
        __syncthreads();
    }
}

// out likewise along the middle axis of x (outer, n, inner). A thread owns a column; coalesced.
template <typename T>
__global__ void cumsum_columns(const T* __restrict__ x, T* __restrict__ out, i64 outer, i64 n, i64 inner,
                               int reverse) {
    const i64 item = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (item >= outer * inner) return;
    const i64 o = item / inner, column = item - o * inner;
    float total = 0.0f;
    for (i64 i = 0; i < n; ++i) {
        const i64 at = (o * n + (reverse ? n - 1 - i : i)) * inner + column;
        total += to_float(x[at]);
        out[at] = from_float<T>(total);
    }
}
