// Scaled dot-product attention and its gradient, a tile of 64 queries by 64 keys at a time (FlashAttention, Dao et al.
// 2022). What is computed, and what a query sees, stands in kernels/attention.py.
//
// q (B, H, T, D), k (B, G, S, D), v (B, G, S, E) with free strides but the last, which is 1; out and all gradients are
// contiguous as (B, T, H, E or D) and (B, S, G, D or E); lse and delta (B, H, T) float. D and E are at most 16 W, W = 4
// or 8. A block has 256 threads, 16 rows ty of 16 columns tx, and owns: 64 queries of a head (forward, attention_dq),
// 64 keys of a head of keys and all queries that see them (attention_dkv), or a tile of a mask and all scores that it
// was added to (attention_dmask), so that no sum needs atomics. A thread has queries ty + 16 i, keys tx + 16 j
// and columns tx + 16 j. Tiles are float in shared memory, turned (column, row) with rows of 65, so that neither their
// loads nor their use meet in a bank. All arithmetic is float on the plain cores: no tensor cores, so bound by
// arithmetic, 4 T S D multiply-adds a head forward and 10 backward. Device memory sees q, k, v once a tile: T / 64 times
// for k and v, never the (T, S) scores.

#define TILE 64
#define ROW 65

// What a query sees, and where the kernels find it.
#define PATTERN_PARAMETERS                                                                                            \
    const bool *__restrict__ mask, const T *__restrict__ bias, const i64 *__restrict__ lengths,                       \
        const float *__restrict__ slopes, i64 mask_b, i64 mask_h, i64 mask_t, i64 mask_s, i64 H, i64 G, i64 length,   \
        i64 keys, i64 D, i64 E, i64 start, i64 window, int causal, float scale, int drop, float kept, u64 seed,       \
        u64 offset, const u64 *place
#define PATTERN                                                                                                       \
    Pattern<T> {                                                                                                      \
        mask, bias, lengths, slopes, mask_b, mask_h, mask_t, mask_s, H, G, length, keys, D, start, window, causal,    \
            scale, drop, kept, place ? place[0] : seed, place ? offset + place[1] : offset                            \
    }

template <typename T> struct Pattern {
    const bool* mask;
    const T* bias;
    const i64* lengths;
    const float* slopes;
    i64 mask_b, mask_h, mask_t, mask_s, H, G, T_, S, D, start, window;
    int causal;
    float scale;
    int drop;
    float kept;
    u64 seed, offset;

    __device__ __forceinline__ i64 seen_keys(i64 b) const { return lengths ? min(S, lengths[b]) : S; }

    // The score of query t and key s out of their product; -inf where it is not seen.
    __device__ __forceinline__ float score(float product, i64 b, i64 h, i64 t, i64 s, i64 last) const {
        const i64 ahead = s - (t + start), far = ahead < 0 ? -ahead : ahead;
        if (t >= T_ || s >= last || (causal && ahead > 0) || (window && far >= window)) return -INFINITY_F;
        const i64 i = b * mask_b + h * mask_h + t * mask_t + s * mask_s;
        if (mask && !mask[i]) return -INFINITY_F;
        float x = product * scale;
        if (slopes) x -= slopes[h] * static_cast<float>(far);
        if (bias) {
            const float more = to_float(bias[i]);
            if (more == -INFINITY_F) return more;
            x += more;
        }
        return x;
    }

    // What dropout multiplies the weight of query t and key s by.
    __device__ __forceinline__ float keep(i64 b, i64 h, i64 t, i64 s) const {
        const u64 i = static_cast<u64>(((b * H + h) * T_ + t) * ((S + 7) / 8 * 8) + s);
        const Words words = philox(offset + i / 8, seed);
        const u32 low = i & 2 ? words.at[1] : words.at[0], high = i & 2 ? words.at[3] : words.at[2];
        const u32 word = i & 4 ? high : low;  // an index would put the words into memory
        return static_cast<int>(i % 2 ? word >> 16 : word & 0xFFFFu) >= drop ? kept : 0.0f;
    }

    // The keys that queries from t0 on may see begin in this tile, and end before.
    __device__ __forceinline__ i64 first_key(i64 t0) const {
        const i64 low = window ? t0 + start - window + 1 : 0;
        return low > 0 ? low / TILE * TILE : 0;
    }
    __device__ __forceinline__ i64 last_key(i64 t0, i64 last) const {
        const i64 at = min(t0 + TILE, T_) - 1 + start;
        if (causal) last = min(last, at + 1);
        return window ? min(last, at + window) : last;
    }
    // Can no query of the tile from t0 see a key of the tile from s0?
    __device__ __forceinline__ bool apart(i64 t0, i64 s0) const {
        const i64 low = t0 + start, high = min(t0 + TILE, T_) - 1 + start;
        if (causal && s0 > high) return true;
        return window && (s0 + TILE - 1 <= low - window || s0 - high >= window);
    }
};

// tile[c ROW + r] = x[(r0 + r) step + c], 0 beyond the rows and columns.
template <typename T>
__device__ __forceinline__ void load_tile(float* tile, const T* __restrict__ x, i64 step, i64 r0, i64 rows, int width,
                                          i64 D) {
    const int r = threadIdx.x % TILE;
    const T* from = x + (r0 + r) * step;
    for (int c = threadIdx.x / TILE; c < width; c += 256 / TILE)
        tile[c * ROW + r] = r0 + r < rows && c < D ? to_float(from[c]) : 0.0f;
}

// s[i][j] = the product of rows ty + 16 i of a and tx + 16 j of b.
__device__ __forceinline__ void multiply(float (&s)[4][4], const float* a, const float* b, int width, int tx, int ty) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] = 0.0f;
#pragma unroll 4
    for (int c = 0; c < width; ++c) {
        float x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = a[c * ROW + ty + 16 * i];
#pragma unroll
        for (int j = 0; j < 4; ++j) y[j] = b[c * ROW + tx + 16 * j];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) s[i][j] += x[i] * y[j];
    }
}

// sum[i][j] += over k, w[k along + (ty + 16 i) across] x[(tx + 16 j) ROW + k].
template <int W>
__device__ __forceinline__ void accumulate(float (&sum)[4][W], const float* w, int along, int across, const float* x,
                                           int tx, int ty) {
#pragma unroll 4
    for (int k = 0; k < TILE; ++k) {
        float a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = w[k * along + (ty + 16 * i) * across];
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const float b = x[(tx + 16 * j) * ROW + k];
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i][j] += a[i] * b;
        }
    }
}

// Over the 16 threads of a row.
template <typename Op> __device__ __forceinline__ float row_reduce(float x) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) x = Op::of(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

template <int W> __device__ __forceinline__ void clear(float (&sum)[4][W]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < W; ++j) sum[i][j] = 0.0f;
}

// out[(r0 + row) step + column] = sum, row ty + 16 i, column tx + 16 j.
template <typename T, int W>
__device__ __forceinline__ void write(T* __restrict__ out, i64 step, i64 r0, i64 rows, i64 D, const float (&sum)[4][W],
                                      int tx, int ty) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const i64 r = r0 + ty + 16 * i;
#pragma unroll
        for (int j = 0; j < W; ++j)
            if (r < rows && tx + 16 * j < D) out[r * step + tx + 16 * j] = from_float<T>(sum[i][j]);
    }
}

template <typename T, int W>
__global__ void __launch_bounds__(256, 1)
    attention_forward(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ out,
                      float* __restrict__ lse, i64 q_b, i64 q_h, i64 q_t, i64 k_b, i64 k_g, i64 k_s, i64 v_b, i64 v_g,
                      i64 v_s, PATTERN_PARAMETERS) {
    SHARED_MEMORY(float, shared);
    float *qs = shared, *ks = qs + 16 * W * ROW, *ps = ks + 16 * W * ROW;
    const Pattern<T> see = PATTERN;
    const i64 tiles = (length + TILE - 1) / TILE;
    const i64 t0 = blockIdx.x % tiles * TILE, h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    q += b * q_b + h * q_h;
    k += b * k_b + g * k_g;
    v += b * v_b + g * v_g;
    load_tile(qs, q, q_t, t0, length, 16 * W, D);
    float sum[4][W], m[4], l[4], s[4][4];
    clear(sum);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        m[i] = -INFINITY_F;
        l[i] = 0.0f;
    }
    const i64 last = see.seen_keys(b), stop = see.last_key(t0, last);
    for (i64 s0 = see.first_key(t0); s0 < stop; s0 += TILE) {
        __syncthreads();
        load_tile(ks, k, k_s, s0, keys, 16 * W, D);
        __syncthreads();
        multiply(s, qs, ks, 16 * W, tx, ty);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const i64 t = t0 + ty + 16 * i;
            float top = m[i], total = 0.0f;
            float* own = ps + (ty + 16 * i) * ROW + tx;
#pragma unroll
            for (int j = 0; j < 4; ++j) own[16 * j] = s[i][j];
#pragma unroll 1
            for (int j = 0; j < 64; j += 16) {  // through memory, not unrolled: 16 copies take long to compile
                own[j] = see.score(own[j], b, h, t, s0 + tx + j, last);
                top = maximum(top, own[j]);
            }
            top = row_reduce<Max>(top);
            const float safe = top == -INFINITY_F ? 0.0f : top, factor = expf(m[i] - safe);
#pragma unroll 1
            for (int j = 0; j < 64; j += 16) {
                float weight = expf(own[j] - safe);
                total += weight;
                if (drop >= 0) {
                    const float keep = see.keep(b, h, t, s0 + tx + j);
                    weight = keep == 0.0f ? 0.0f : weight * keep;
                }
                own[j] = weight;
            }
            l[i] = l[i] * factor + row_reduce<Sum>(total);
            m[i] = top;
#pragma unroll
            for (int j = 0; j < W; ++j) sum[i][j] *= factor;
        }
        __syncthreads();
        load_tile(ks, v, v_s, s0, keys, 16 * W, E);
        __syncthreads();
        accumulate<W>(sum, ps, 1, ROW, ks, tx, ty);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const i64 t = t0 + ty + 16 * i;
        const float share = l[i] == 0.0f ? 0.0f : 1.0f / l[i];
#pragma unroll
        for (int j = 0; j < W; ++j) sum[i][j] *= share;
        if (t < length && tx == 0) lse[(b * H + h) * length + t] = (m[i] == -INFINITY_F ? 0.0f : m[i]) + logf(l[i]);
    }
    write<T, W>(out + b * length * H * E + h * E, H * E, t0, length, E, sum, tx, ty);
}

// Weights ps of a tile and the gradients ds of its scores, times `factor`, (query, key) with rows of 65, out of the
// products p and slope; of 4 queries the lse and delta.
template <typename T>
__device__ __forceinline__ void slopes_of(float* ps, float* ds, const float (&p)[4][4], const float (&slopes)[4][4],
                                          const Pattern<T>& see, const float (&lse)[4], const float (&delta)[4], i64 b,
                                          i64 h, i64 t0, i64 s0, i64 last, float factor, int tx, int ty) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int own = (ty + 16 * i) * ROW + tx;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            ps[own + 16 * j] = p[i][j];
            ds[own + 16 * j] = slopes[i][j];
        }
#pragma unroll 1
        for (int j = 0; j < 64; j += 16) {  // as in attention_forward
            const i64 t = t0 + ty + 16 * i, s = s0 + tx + j;
            const float x = see.score(ps[own + j], b, h, t, s, last);
            const bool none = x == -INFINITY_F || lse[i] == -INFINITY_F;
            const float weight = none ? 0.0f : expf(x - lse[i]);
            float kept = weight, slope = ds[own + j];
            if (see.drop >= 0) {
                const float keep = see.keep(b, h, t, s);
                kept = keep == 0.0f ? 0.0f : weight * keep;
                slope = keep == 0.0f ? 0.0f : slope * keep;
            }
            ps[own + j] = kept;
            ds[own + j] = none ? 0.0f : weight * (slope - delta[i]) * factor;
        }
    }
}

// Numbers of queries ty + 16 i, and what stands for them beyond the last.
__device__ __forceinline__ void load_rows(float (&to)[4], const float* __restrict__ from, i64 t0, i64 length, float beyond,
                                          int ty) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const i64 t = t0 + ty + 16 * i;
        to[i] = t < length ? from[t] : beyond;
    }
}

// dq, and delta = the sums of dout out over the columns, which attention_dkv reads.
template <typename T, int W>
__global__ void __launch_bounds__(256, 1)
    attention_dq(const T* __restrict__ dout, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                 const T* __restrict__ out, const float* __restrict__ lse, float* __restrict__ delta,
                 T* __restrict__ dq, i64 q_b, i64 q_h, i64 q_t, i64 k_b, i64 k_g, i64 k_s, i64 v_b, i64 v_g, i64 v_s,
                 PATTERN_PARAMETERS) {
    SHARED_MEMORY(float, shared);
    constexpr int size = 16 * W * ROW;
    float *qs = shared, *gs = qs + size, *ks = gs + size, *vs = ks + size, *ps = vs + size, *ds = ps + TILE * ROW;
    const Pattern<T> see = PATTERN;
    const i64 tiles = (length + TILE - 1) / TILE;
    const i64 t0 = blockIdx.x % tiles * TILE, h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    k += b * k_b + g * k_g;
    v += b * v_b + g * v_g;
    const i64 place_of_head = b * length * H * E + h * E, row = (b * H + h) * length;
    load_tile(qs, q + b * q_b + h * q_h, q_t, t0, length, 16 * W, D);
    load_tile(gs, dout + place_of_head, H * E, t0, length, 16 * W, E);
    load_tile(ks, out + place_of_head, H * E, t0, length, 16 * W, E);
    __syncthreads();
    float sum[4][W], p[4][4], slope[4][4], top[4], mean[4];
    clear(sum);
    load_rows(top, lse + row, t0, length, INFINITY_F, ty);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        mean[i] = 0.0f;
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const int c = (tx + 16 * j) * ROW + ty + 16 * i;
            mean[i] += gs[c] * ks[c];
        }
        mean[i] = row_reduce<Sum>(mean[i]);
        if (tx == 0 && t0 + ty + 16 * i < length) delta[row + t0 + ty + 16 * i] = mean[i];
    }
    const i64 last = see.seen_keys(b), stop = see.last_key(t0, last);
    for (i64 s0 = see.first_key(t0); s0 < stop; s0 += TILE) {
        __syncthreads();
        load_tile(ks, k, k_s, s0, keys, 16 * W, D);
        load_tile(vs, v, v_s, s0, keys, 16 * W, E);
        __syncthreads();
        multiply(p, qs, ks, 16 * W, tx, ty);
        multiply(slope, gs, vs, 16 * W, tx, ty);
        slopes_of(ps, ds, p, slope, see, top, mean, b, h, t0, s0, last, scale, tx, ty);
        __syncthreads();
        accumulate<W>(sum, ds, 1, ROW, ks, tx, ty);
    }
    write<T, W>(dq + b * length * H * D + h * D, H * D, t0, length, D, sum, tx, ty);
}

// dk and dv, heads of queries one after another.
template <typename T, int W>
__global__ void __launch_bounds__(256, 1)
    attention_dkv(const T* __restrict__ dout, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                  const float* __restrict__ lse, const float* __restrict__ delta, T* __restrict__ dk,
                  T* __restrict__ dv, i64 q_b, i64 q_h, i64 q_t, i64 k_b, i64 k_g, i64 k_s, i64 v_b, i64 v_g, i64 v_s,
                  PATTERN_PARAMETERS) {
    SHARED_MEMORY(float, shared);
    constexpr int size = 16 * W * ROW;
    float *qs = shared, *gs = qs + size, *ks = gs + size, *vs = ks + size, *ps = vs + size, *ds = ps + TILE * ROW;
    const Pattern<T> see = PATTERN;
    const i64 tiles = (keys + TILE - 1) / TILE;
    const i64 s0 = blockIdx.x % tiles * TILE, g = blockIdx.x / tiles % G, b = blockIdx.x / tiles / G;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    load_tile(ks, k + b * k_b + g * k_g, k_s, s0, keys, 16 * W, D);
    load_tile(vs, v + b * v_b + g * v_g, v_s, s0, keys, 16 * W, E);
    float to_k[4][W], to_v[4][W], p[4][4], slope[4][4], top[4], mean[4];
    clear(to_k);
    clear(to_v);
    const i64 last = see.seen_keys(b);
    for (i64 h = g * (H / G); h < (g + 1) * (H / G); ++h) {
        const i64 row = (b * H + h) * length;
        for (i64 t0 = 0; t0 < length; t0 += TILE) {
            if (s0 >= last || see.apart(t0, s0)) continue;
            __syncthreads();
            load_tile(qs, q + b * q_b + h * q_h, q_t, t0, length, 16 * W, D);
            load_tile(gs, dout + b * length * H * E + h * E, H * E, t0, length, 16 * W, E);
            load_rows(top, lse + row, t0, length, INFINITY_F, ty);
            load_rows(mean, delta + row, t0, length, 0.0f, ty);
            __syncthreads();
            multiply(p, qs, ks, 16 * W, tx, ty);
            multiply(slope, gs, vs, 16 * W, tx, ty);
            slopes_of(ps, ds, p, slope, see, top, mean, b, h, t0, s0, last, scale, tx, ty);
            __syncthreads();
            accumulate<W>(to_v, ps, ROW, 1, gs, tx, ty);
            accumulate<W>(to_k, ds, ROW, 1, qs, tx, ty);
        }
    }
    write<T, W>(dk + b * keys * G * D + g * D, G * D, s0, keys, D, to_k, tx, ty);
    write<T, W>(dv + b * keys * G * E + g * E, G * E, s0, keys, E, to_v, tx, ty);
}

// The gradient of a mask that was added, contiguous in its own sizes, of which each is the whole or 1: 64 by 64 of it,
// or a column, row or number, and the scores' gradients that fall on them, added up in order. delta is attention_dq's.
template <typename T, int W>
__global__ void __launch_bounds__(256, 1)
    attention_dmask(const T* __restrict__ dout, const T* __restrict__ q, const T* __restrict__ k,
                    const T* __restrict__ v, const float* __restrict__ lse, const float* __restrict__ delta,
                    T* __restrict__ dmask, i64 B, i64 own_b, i64 own_h, i64 own_t, i64 own_s, i64 q_b, i64 q_h, i64 q_t,
                    i64 k_b, i64 k_g, i64 k_s, i64 v_b, i64 v_g, i64 v_s, PATTERN_PARAMETERS) {
    SHARED_MEMORY(float, shared);
    constexpr int size = 16 * W * ROW;
    float *qs = shared, *gs = qs + size, *ks = gs + size, *vs = ks + size, *ps = vs + size, *ds = ps + TILE * ROW;
    const Pattern<T> see = PATTERN;
    const i64 across = (own_s + TILE - 1) / TILE, down = (own_t + TILE - 1) / TILE;
    const i64 s_tile = blockIdx.x % across * TILE, t_tile = blockIdx.x / across % down * TILE;
    const i64 image = blockIdx.x / across / down, b_first = image / own_h, h_first = image % own_h;
    const i64 b_end = own_b == 1 ? B : b_first + 1, h_end = own_h == 1 ? H : h_first + 1;
    const i64 t_end = own_t == 1 ? length : t_tile + 1, s_end = own_s == 1 ? keys : s_tile + 1;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, own = ty * ROW + tx;
    float sum[4][4], p[4][4], slope[4][4], top[4], mean[4];
    clear(sum);
    for (i64 b = b_first; b < b_end; ++b) {
        const i64 last = see.seen_keys(b);
        for (i64 h = h_first; h < h_end; ++h) {
            const i64 g = h / (H / G), row = (b * H + h) * length;
            for (i64 t0 = t_tile; t0 < t_end; t0 += TILE) {
                for (i64 s0 = s_tile; s0 < s_end; s0 += TILE) {
                    if (s0 >= last || see.apart(t0, s0)) continue;
                    __syncthreads();
                    load_tile(qs, q + b * q_b + h * q_h, q_t, t0, length, 16 * W, D);
                    load_tile(gs, dout + b * length * H * E + h * E, H * E, t0, length, 16 * W, E);
                    load_tile(ks, k + b * k_b + g * k_g, k_s, s0, keys, 16 * W, D);
                    load_tile(vs, v + b * v_b + g * v_g, v_s, s0, keys, 16 * W, E);
                    load_rows(top, lse + row, t0, length, INFINITY_F, ty);
                    load_rows(mean, delta + row, t0, length, 0.0f, ty);
                    __syncthreads();
                    multiply(p, qs, ks, 16 * W, tx, ty);
                    multiply(slope, gs, vs, 16 * W, tx, ty);
                    slopes_of(ps, ds, p, slope, see, top, mean, b, h, t0, s0, last, 1.0f, tx, ty);
#pragma unroll
                    for (int i = 0; i < 4; ++i)  // a thread reads what it has written itself
#pragma unroll
                        for (int j = 0; j < 4; ++j) sum[i][j] += ds[own + 16 * i * ROW + 16 * j];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) ds[own + 16 * i * ROW + 16 * j] = sum[i][j];
    __syncthreads();
    dmask += image * own_t * own_s;
    // rows of a mask with one row, or columns of one with one column, are added up
    const int rows = own_t == 1 ? 1 : TILE, columns = own_s == 1 ? 1 : TILE;
    for (int e = threadIdx.x; e < rows * columns; e += 256) {
        const int r = e / columns, c = e % columns;
        if (t_tile + r >= own_t || s_tile + c >= own_s) continue;
        float total = 0.0f;
        for (int i = r; i < (own_t == 1 ? TILE : r + 1); ++i)
            for (int j = c; j < (own_s == 1 ? TILE : c + 1); ++j) total += ds[i * ROW + j];
        dmask[(t_tile + r) * own_s + s_tile + c] = from_float<T>(total);
    }
}
