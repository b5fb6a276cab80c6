// Batch norm and group norm, and their gradients. x is (N, C, L) in planes (C-contiguous) or (rows, C) in columns
// (channels-last images, plain features); weight and bias (C) or null; statistics are float. All arithmetic is float.
//
// Statistics are taken in two stages, the number of parts depending on the shape alone: each block reduces one part with
// two passes (its second read comes from L2), then a thread a channel merges the parts in order (Chan, Golub, LeVeque
// 1979). No atomics: the same bits every time. Everything here is bound by memory.

// Mean and sum of squared deviations of a block's values; f(visit) calls visit(value) for each value of this thread.
template <typename F>
__device__ __forceinline__ void block_moments(F f, float count, float* scratch, float& mean, float& deviation) {
    float s = 0.0f;
    f([&](float v) { s += v; });
    mean = block_reduce<Sum>(s, scratch) / count;
    float q = 0.0f;
    f([&](float v) { q += (v - mean) * (v - mean); });
    deviation = block_reduce<Sum>(q, scratch);
}

// partials (parts, 2, C): mean and sum of squared deviations of the planes part * chunk ... of every channel.
// A block owns one channel of one part; L * chunk elements, contiguous per plane. Reads x once (and once from cache).
template <typename T>
__global__ void batch_moments_planes(const T* __restrict__ x, float* __restrict__ partials, i64 N, i64 C, i64 L,
                                     i64 chunk) {
    __shared__ float scratch[WARP];
    const i64 part = blockIdx.x / C, c = blockIdx.x - part * C;
    const i64 first = part * chunk, last = min(N, first + chunk);
    const i64 count = (last - first) * L;
    float mean, deviation;
    block_moments(
        [&](auto visit) {
            for (i64 n = first; n < last; ++n) {
                const T* plane = x + (n * C + c) * L;
                for (i64 i = threadIdx.x; i < L; i += blockDim.x) visit(to_float(plane[i]));
            }
        },
        static_cast<float>(count), scratch, mean, deviation);
    if (threadIdx.x == 0) {
        partials[(2 * part) * C + c] = mean;
        partials[(2 * part + 1) * C + c] = deviation;
    }
}

// Sum over the 8 warps of a block, lane by lane, in the order of the warps; all threads get their lane's sum.
__device__ __forceinline__ float lane_sum(float x, float (*scratch)[WARP]) {
    const int lane = threadIdx.x % WARP;
    __syncthreads();
    scratch[threadIdx.x / WARP][lane] = x;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; ++w) total += scratch[w][lane];
    return total;
}

// The same for columns: partials (parts, 2, C) of the rows part * chunk ... A block of 8 warps owns 32 columns of one part,
// so each row is read in segments of 32 elements.
template <typename T>
__global__ void batch_moments_columns(const T* __restrict__ x, float* __restrict__ partials, i64 rows, i64 C,
                                      i64 chunk) {
    __shared__ float scratch[8][WARP];
    const i64 stripes = (C + WARP - 1) / WARP;
    const i64 part = blockIdx.x / stripes;
    const i64 c = (blockIdx.x - part * stripes) * WARP + threadIdx.x % WARP;
    const i64 first = part * chunk, last = min(rows, first + chunk);
    float s = 0.0f, q = 0.0f;
    if (c < C)
        for (i64 r = first + threadIdx.x / WARP; r < last; r += 8) s += to_float(x[r * C + c]);
    const float mean = lane_sum(s, scratch) / static_cast<float>(last - first);
    if (c < C) {
        for (i64 r = first + threadIdx.x / WARP; r < last; r += 8) {
            const float d = to_float(x[r * C + c]) - mean;
            q += d * d;
        }
    }
    q = lane_sum(q, scratch);
    if (threadIdx.x < WARP && c < C) {
        partials[(2 * part) * C + c] = mean;
        partials[(2 * part + 1) * C + c] = q;
    }
}

// mean (C) and biased var (C) of `total` elements a channel from partials (parts, 2, C), each of `count` elements (the last
// of what is left). A thread owns a channel. Not a template over T in substance: the parameter keeps the list uniform.
template <typename T>
__global__ void batch_merge(const float* __restrict__ partials, float* __restrict__ mean, float* __restrict__ var,
                            i64 parts, i64 C, i64 count, i64 total) {
    const i64 c = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (c >= C) return;
    float m = 0.0f, q = 0.0f, seen = 0.0f;
    for (i64 part = 0; part < parts; ++part) {
        const float here = static_cast<float>(min(count, total - part * count));
        const float d = partials[(2 * part) * C + c] - m;
        const float share = here / (seen + here);
        m += fabsf(m) < INFINITY_F ? d * share : partials[(2 * part) * C + c];  // inf stays, where inf - inf is NaN
        q += partials[(2 * part + 1) * C + c] + d * d * (seen * share);
        seen += here;
    }
    mean[c] = m;
    var[c] = q / static_cast<float>(total);
}

// The channel of element i: (i / inner) % C with 32-bit division where it suffices (64-bit costs as much as the memory).
__device__ __forceinline__ i64 channel_of(i64 i, i64 inner, i64 C, bool small) {
    if (small) return (static_cast<u32>(i) / static_cast<u32>(inner)) % static_cast<u32>(C);
    return (i / inner) % C;
}

// y = (x - mean) / sqrt(var + eps) * weight + bias for n elements, plus `residual` where that is not null, and then, with
// `relu`, 0 where it is negative; inner = L for planes, 1 for columns. Grid-stride, 16 bytes at a time where a pack lies in
// one plane (or within one row of columns). One read, or two, and one write.
template <typename T>
__global__ void batch_affine(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                             const float* __restrict__ mean, const float* __restrict__ var, float eps,
                             const T* __restrict__ residual, int relu, T* __restrict__ y, i64 n, i64 inner, i64 C) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    constexpr int size = Pack<T>::size;
    const bool small = n < (1ll << 31);
    const auto value = [&](float v, float more, i64 c) {
        v = (v - mean[c]) * (1.0f / sqrtf(var[c] + eps));
        if (weight) v *= to_float(weight[c]);
        if (bias) v += to_float(bias[c]);
        if (residual) v += more;
        return from_float<T>(relu ? maximum(v, 0.0f) : v);
    };
    if (aligned(x, y, residual) && (inner == 1 ? C : inner) % size == 0) {
        for (i64 p = start; p < n / size; p += step) {
            const Pack<T> v = reinterpret_cast<const Pack<T>*>(x)[p];
            Pack<T> more = v, out;
            if (residual) more = reinterpret_cast<const Pack<T>*>(residual)[p];
            const i64 c = channel_of(p * size, inner, C, small);
#pragma unroll
            for (int k = 0; k < size; ++k)
                out.at[k] = value(to_float(v.at[k]), to_float(more.at[k]), inner == 1 ? c + k : c);
            reinterpret_cast<Pack<T>*>(y)[p] = out;
        }
        return;
    }
    for (i64 i = start; i < n; i += step)
        y[i] = value(to_float(x[i]), residual ? to_float(residual[i]) : 0.0f, channel_of(i, inner, C, small));
}

// dy[i], or behind a rectifier whose output was y (not null): dy where y is positive, else 0, which is written to g.
template <typename T>
__device__ __forceinline__ float rectified(const T* dy, const T* y, T* g, i64 i) {
    if (y == nullptr) return to_float(dy[i]);
    const T d = to_float(y[i]) > 0.0f ? dy[i] : from_float<T>(0.0f);
    g[i] = d;
    return to_float(d);
}

// partials (parts, 2, C): sums of dy n and of dy (rectified by y) over the planes of a part, n = (x - mean) / sqrt(var +
// eps). A block owns one channel of one part. Reads dy and x once, and with y also that, and writes g.
template <typename T>
__global__ void batch_dy_sums_planes(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y,
                                     T* __restrict__ g, const float* __restrict__ mean, const float* __restrict__ var,
                                     float eps, float* __restrict__ partials, i64 N, i64 C, i64 L, i64 chunk) {
    __shared__ float scratch[WARP];
    const i64 part = blockIdx.x / C, c = blockIdx.x - part * C;
    const float m = mean[c], r = 1.0f / sqrtf(var[c] + eps);
    float s0 = 0.0f, s1 = 0.0f;
    for (i64 n = part * chunk; n < min(N, (part + 1) * chunk); ++n) {
        const i64 base = (n * C + c) * L;
        for (i64 i = threadIdx.x; i < L; i += blockDim.x) {
            const float d = rectified(dy, y, g, base + i);
            s0 += d;
            s1 += d * ((to_float(x[base + i]) - m) * r);
        }
    }
    s0 = block_reduce<Sum>(s0, scratch);
    s1 = block_reduce<Sum>(s1, scratch);
    if (threadIdx.x == 0) {
        partials[(2 * part) * C + c] = s1;
        partials[(2 * part + 1) * C + c] = s0;
    }
}

// The same for columns; a block of 8 warps owns 32 columns of one part.
template <typename T>
__global__ void batch_dy_sums_columns(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y,
                                      T* __restrict__ g, const float* __restrict__ mean, const float* __restrict__ var,
                                      float eps, float* __restrict__ partials, i64 rows, i64 C, i64 chunk) {
    __shared__ float scratch[8][WARP];
    const i64 stripes = (C + WARP - 1) / WARP;
    const i64 part = blockIdx.x / stripes;
    const i64 c = (blockIdx.x - part * stripes) * WARP + threadIdx.x % WARP;
    const i64 last = min(rows, (part + 1) * chunk);
    float s0 = 0.0f, s1 = 0.0f;
    if (c < C) {
        const float m = mean[c], r = 1.0f / sqrtf(var[c] + eps);
        for (i64 row = part * chunk + threadIdx.x / WARP; row < last; row += 8) {
            const float d = rectified(dy, y, g, row * C + c);
            s0 += d;
            s1 += d * ((to_float(x[row * C + c]) - m) * r);
        }
    }
    s0 = lane_sum(s0, scratch);
    s1 = lane_sum(s1, scratch);
    if (threadIdx.x < WARP && c < C) {
        partials[(2 * part) * C + c] = s1;
        partials[(2 * part + 1) * C + c] = s0;
    }
}

// sums (columns) float and out (columns) T = sum of partials (parts, columns) in their order. A thread owns a column.
template <typename T>
__global__ void channel_sums(const float* __restrict__ partials, float* __restrict__ sums, T* __restrict__ out,
                             i64 parts, i64 columns) {
    const i64 column = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    if (column >= columns) return;
    float total = 0.0f;
    for (i64 part = 0; part < parts; ++part) total += partials[part * columns + column];
    sums[column] = total;
    out[column] = from_float<T>(total);
}

// dx = weight rstd (dy - sums[1] / count - n sums[0] / count), or weight rstd dy in inference (count 0).
// Grid-stride, 16 bytes at a time as in batch_affine. Two reads (one in inference), one write.
template <typename T>
__global__ void batch_grad(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                           const float* __restrict__ mean, const float* __restrict__ var, float eps,
                           const float* __restrict__ sums, T* __restrict__ dx, i64 n, i64 inner, i64 C, i64 count) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
    constexpr int size = Pack<T>::size;
    const bool small = n < (1ll << 31);
    const float share = count ? 1.0f / static_cast<float>(count) : 0.0f;
    const auto value = [&](float d, float v, i64 c) {
        const float r = 1.0f / sqrtf(var[c] + eps);
        if (count) d = d - sums[C + c] * share - (v - mean[c]) * r * (sums[c] * share);
        if (weight) d *= to_float(weight[c]);
        return from_float<T>(d * r);
    };
    if (aligned(dy, x, dx) && (inner == 1 ? C : inner) % size == 0) {
        for (i64 p = start; p < n / size; p += step) {
            const Pack<T> d = reinterpret_cast<const Pack<T>*>(dy)[p];
            Pack<T> v = d, out;
            if (count) v = reinterpret_cast<const Pack<T>*>(x)[p];
            const i64 c = channel_of(p * size, inner, C, small);
#pragma unroll
            for (int k = 0; k < size; ++k)
                out.at[k] = value(to_float(d.at[k]), to_float(v.at[k]), inner == 1 ? c + k : c);
            reinterpret_cast<Pack<T>*>(dx)[p] = out;
        }
        return;
    }
    for (i64 i = start; i < n; i += step)
        dx[i] = value(to_float(dy[i]), to_float(x[i]), channel_of(i, inner, C, small));
}

// y (N, C, L), mean and rstd (N, G): a block owns one group of one sample, size * L contiguous elements (size = C / G).
// Three passes, the last two from cache where it fits. One read and one write from memory.
template <typename T>
__global__ void group_norm_block(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                 float eps, T* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd,
                                 i64 groups, i64 size, i64 L) {
    __shared__ float scratch[WARP];
    const i64 count = size * L, base = blockIdx.x * count;
    const i64 channel = (blockIdx.x % groups) * size;
    float m, q;
    block_moments(
        [&](auto visit) {
            for (i64 i = threadIdx.x; i < count; i += blockDim.x) visit(to_float(x[base + i]));
        },
        static_cast<float>(count), scratch, m, q);
    const float r = 1.0f / sqrtf(q / static_cast<float>(count) + eps);
    for (i64 k = 0; k < size; ++k) {
        const float w = weight ? to_float(weight[channel + k]) : 1.0f, b = bias ? to_float(bias[channel + k]) : 0.0f;
        const i64 plane = base + k * L;
        for (i64 i = threadIdx.x; i < L; i += blockDim.x)
            y[plane + i] = from_float<T>((to_float(x[plane + i]) - m) * r * w + b);
    }
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        rstd[blockIdx.x] = r;
    }
}

// partials (N, 2, C): sums of dy n and of dy over each plane. A warp owns a plane, a block 8. Reads dy and x once.
template <typename T>
__global__ void group_dy_sums(const T* __restrict__ dy, const T* __restrict__ x, const float* __restrict__ mean,
                              const float* __restrict__ rstd, float* __restrict__ partials, i64 N, i64 C, i64 groups,
                              i64 L) {
    const i64 plane = blockIdx.x * static_cast<i64>(blockDim.x / WARP) + threadIdx.x / WARP;
    if (plane >= N * C) return;
    const i64 n = plane / C, c = plane - n * C, g = n * groups + c / (C / groups);
    const float m = mean[g], r = rstd[g];
    float s0 = 0.0f, s1 = 0.0f;
    for (i64 i = threadIdx.x % WARP; i < L; i += WARP) {
        const float d = to_float(dy[plane * L + i]);
        s0 += d;
        s1 += d * ((to_float(x[plane * L + i]) - m) * r);
    }
    s0 = warp_reduce<Sum>(s0);
    s1 = warp_reduce<Sum>(s1);
    if (threadIdx.x % WARP == 0) {
        partials[(2 * n) * C + c] = s1;
        partials[(2 * n + 1) * C + c] = s0;
    }
}

// dx = rstd (dy w - mean(dy w) - n mean(dy w n)) from the plane sums above. A block owns one group of one sample.
template <typename T>
__global__ void group_norm_grad_block(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                                      const float* __restrict__ mean, const float* __restrict__ rstd,
                                      const float* __restrict__ partials, T* __restrict__ dx, i64 groups, i64 size,
                                      i64 L) {
    __shared__ float scratch[WARP];
    const i64 C = groups * size, n = blockIdx.x / groups, channel = (blockIdx.x - n * groups) * size;
    const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
    float a = 0.0f, b = 0.0f;
    for (i64 k = threadIdx.x; k < size; k += blockDim.x) {
        const float w = weight ? to_float(weight[channel + k]) : 1.0f;
        b += w * partials[(2 * n) * C + channel + k];
        a += w * partials[(2 * n + 1) * C + channel + k];
    }
    const float count = static_cast<float>(size * L);
    a = block_reduce<Sum>(a, scratch) / count;
    b = block_reduce<Sum>(b, scratch) / count;
    for (i64 k = 0; k < size; ++k) {
        const float w = weight ? to_float(weight[channel + k]) : 1.0f;
        const i64 plane = (n * C + channel + k) * L;
        for (i64 i = threadIdx.x; i < L; i += blockDim.x)
            dx[plane + i] = from_float<T>(
                r * (to_float(dy[plane + i]) * w - a - (to_float(x[plane + i]) - m) * r * b));
    }
}
