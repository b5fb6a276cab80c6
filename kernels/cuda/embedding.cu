// Embedding: rows of a table by index, and their gradient as sorted segments.

// weight (V, D), indices (n), out (n, D): out[i] = weight[indices[i]], NaN where the index is outside 0 <= i < V; with
// `positions` (length, D), which may be null, plus row i % length of these.
// Grid-stride over packs of 16 bytes where D and the pointers allow, else over elements.
// Moves n * D elements in and out and n * 8 bytes of indices; bound by memory. No arithmetic.
template <typename T>
__global__ void embedding_gather(const T* __restrict__ weight, const i64* __restrict__ indices,
                                 const T* __restrict__ positions, T* __restrict__ out, i64 n, i64 V, i64 D,
                                 i64 length) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    constexpr int size = Pack<T>::size;
    const T nan = from_float<T>(NAN_F);
    if (D % size == 0 && aligned(weight, out, positions)) {
        const i64 packs = D / size;
        for (i64 p = start; p < n * packs; p += step) {
            const i64 i = p / packs, j = p - i * packs;
            const i64 k = indices[i];
            Pack<T> value;
            if (k >= 0 && k < V) {
                value = reinterpret_cast<const Pack<T>*>(weight)[k * packs + j];
            } else {
#pragma unroll
                for (int e = 0; e < size; ++e) value.at[e] = nan;
            }
            if (positions) {
                const Pack<T> more = reinterpret_cast<const Pack<T>*>(positions)[i % length * packs + j];
#pragma unroll
                for (int e = 0; e < size; ++e)
                    value.at[e] = from_float<T>(to_float(value.at[e]) + to_float(more.at[e]));
            }
            reinterpret_cast<Pack<T>*>(out)[p] = value;
        }
        return;
    }
    for (i64 p = start; p < n * D; p += step) {
        const i64 i = p / D, j = p - i * D;
        const i64 k = indices[i];
        const T value = k >= 0 && k < V ? weight[k * D + j] : nan;
        out[p] = positions ? from_float<T>(to_float(value) + to_float(positions[i % length * D + j])) : value;
    }
}

// indices (n) -> sorted (n), ascending and stable, and order (n), where they came from: a sort for steps that are
// captured into a CUDA graph, where CuPy's cannot run. A thread counts the elements that come before its own; a block
// of 256 reads all n through shared memory, 256 at a time. n^2 comparisons: 20 us for 8,192 positions is the aim, and
// 16 times that for 4 times as many; any n.
template <typename T>
__global__ void embedding_order(const T* __restrict__ indices, T* __restrict__ sorted, i64* __restrict__ order, i64 n) {
    __shared__ T tile[256];
    const i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const T key = i < n ? indices[i] : 0;
    i64 rank = 0;
    for (i64 start = 0; start < n; start += 256) {
        __syncthreads();
        if (start + threadIdx.x < n) tile[threadIdx.x] = indices[start + threadIdx.x];
        __syncthreads();
        const int count = n - start < 256 ? static_cast<int>(n - start) : 256;
        for (int k = 0; k < count; ++k) rank += tile[k] < key || (tile[k] == key && start + k < i);
    }
    if (i < n) {
        sorted[rank] = key;
        order[rank] = i;
    }
}

// First position of the ascending `sorted` (n) whose value is not below `key`.
__device__ __forceinline__ i64 lower_bound(const i64* __restrict__ sorted, i64 n, i64 key) {
    i64 low = 0;
    while (n > 0) {
        const i64 half = n / 2;
        if (sorted[low + half] < key) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

// dy (n, D), sorted (n) = indices in ascending order, order (n) = where they came from, out (rows, D).
// A block of 8 warps owns 32 columns of one row of out: it finds the row's segment by binary search, warp w adds the
// segment's elements w, w + 8, ... in float, and warp 0 adds the 8 sums in order: deterministic, no atomics.
// Indices outside 0 <= i < rows are in nobody's segment; row `skip` is 0.
// Reads dy once and writes out once; bound by memory (one segment that holds most of the positions: by latency).
template <typename T>
__global__ void embedding_sum(const T* __restrict__ dy, const i64* __restrict__ sorted, const i64* __restrict__ order,
                              T* __restrict__ out, i64 n, i64 rows, i64 D, i64 skip) {
    __shared__ float partial[8][WARP];
    const i64 stripes = (D + WARP - 1) / WARP;
    const i64 row = blockIdx.x / stripes;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 column = (blockIdx.x - row * stripes) * WARP + lane;
    float total = 0.0f;
    if (row != skip && column < D) {
        const i64 first = lower_bound(sorted, n, row), last = first + lower_bound(sorted + first, n - first, row + 1);
        for (i64 i = first + warp; i < last; i += 8) total += to_float(dy[order[i] * D + column]);
    }
    partial[warp][lane] = total;
    __syncthreads();
    if (warp == 0 && column < D) {
        for (int w = 1; w < 8; ++w) total += partial[w][lane];
        out[row * D + column] = from_float<T>(total);
    }
}
