// RNN, LSTM and GRU through time: kernels/recurrent.py, lstm.py, gru.py. All arrays are dense float; lengths (B) are
// 64-bit or null (every row has all steps). A row is live at step t below its length; beyond it, what is written is 0
// and states stay.
//
// Two ways through a sequence. Step by step: a product of cuBLASLt, then `step` over all units (forward), or
// `step_grad`, the product, `arrive` (back): 3 to 8 reads and writes of 4 bytes a unit and gate, bound by memory and by
// launches. Or, where at least half of the recurrent weights fit into shared memory, `sweep` and `sweep_grad`: a block
// takes ROWS rows of the batch through all steps, since rows do not see each other, with the weights on chip; nothing is
// launched and no grid waits between steps.

// --- cells: one hidden unit of one live row ---------------------------------------------------------------------------
//
// `g` points to the unit's first gate, the next gate is H further; p[k * P] is what the state adds to gate k. `c` is the
// cell (LSTM), `saved` what the gradient needs beside gates and outputs, `aux` per-unit parameters or null.
// of() turns the gates' inputs in g into gates and returns the new output. grad() takes the gradient of the output and
// returns what of it goes straight back to the state before; `before` is that state (the cell, for LSTM), `dc` the
// gradient of the cell. d are gradients before the gates' functions, the first of them those that meet W_hh.

struct Rnn {
    static constexpr int gates = 1, products = 1, grads = 1;
    static __device__ __forceinline__ float of(float* g, i64, const float* p, i64, float, float*, float*, const float*,
                                               int relu) {
        const float a = g[0] + p[0];
        return relu ? (a < 0.0f ? 0.0f : a) : tanhf(a);
    }
    // g: the output.
    static __device__ __forceinline__ float grad(float dh, const float* g, i64, float, const float*, const float*,
                                                 int relu, float* d, float*) {
        const float y = g[0];
        d[0] = relu ? (y > 0.0f ? dh : 0.0f) : dh * (1.0f - y * y);
        return 0.0f;
    }
};

struct Lstm {  // gates i, f, g, o; saved: the cell; aux: peepholes of i, f, o
    static constexpr int gates = 4, products = 4, grads = 4;
    static __device__ __forceinline__ float of(float* g, i64 H, const float* p, i64 P, float, float* c, float* saved,
                                               const float* aux, int) {
        float i = g[0] + p[0], f = g[H] + p[P], o = g[3 * H] + p[3 * P];
        if (aux) {
            i += aux[0] * *c;
            f += aux[H] * *c;
        }
        i = sigmoid(i);
        f = sigmoid(f);
        const float u = tanhf(g[2 * H] + p[2 * P]), cell = f * *c + i * u;
        o = sigmoid(aux ? o + aux[2 * H] * cell : o);
        g[0] = i;
        g[H] = f;
        g[2 * H] = u;
        g[3 * H] = o;
        *saved = *c = cell;
        return o * tanhf(cell);
    }
    static __device__ __forceinline__ float grad(float dh, const float* g, i64 H, float before, const float* saved,
                                                 const float* aux, int, float* d, float* dc) {
        const float i = g[0], f = g[H], u = g[2 * H], o = g[3 * H], s = tanhf(*saved);
        const float d_o = dh * s * (o * (1.0f - o));
        float dcell = *dc + dh * o * (1.0f - s * s);
        if (aux) dcell += d_o * aux[2 * H];
        const float di = dcell * u * (i * (1.0f - i)), df = dcell * before * (f * (1.0f - f));
        d[0] = di;
        d[H] = df;
        d[2 * H] = dcell * i * (1.0f - u * u);
        d[3 * H] = d_o;
        *dc = aux ? dcell * f + di * aux[0] + df * aux[H] : dcell * f;
        return 0.0f;
    }
};

struct Gru {  // gates r, z, n, the reset after the product; saved: W_n h + b_n; aux: b_n. d: of W_n h + b_n, r, z, n
    static constexpr int gates = 3, products = 3, grads = 4;
    static __device__ __forceinline__ float of(float* g, i64 H, const float* p, i64 P, float h, float*, float* saved,
                                               const float* aux, int) {
        const float r = sigmoid(g[0] + p[0]), z = sigmoid(g[H] + p[P]), u = p[2 * P] + aux[0];
        const float n = tanhf(g[2 * H] + r * u);
        g[0] = r;
        g[H] = z;
        g[2 * H] = n;
        *saved = u;
        return (1.0f - z) * n + z * h;
    }
    static __device__ __forceinline__ float grad(float dh, const float* g, i64 H, float before, const float* saved,
                                                 const float*, int, float* d, float*) {
        const float r = g[0], z = g[H], n = g[2 * H], dn = dh * (1.0f - z) * (1.0f - n * n);
        d[0] = dn * r;
        d[H] = dn * *saved * (r * (1.0f - r));
        d[2 * H] = dh * (before - n) * (z * (1.0f - z));
        d[3 * H] = dn;
        return dh * z;
    }
};

__device__ __forceinline__ bool is_live(const i64* lengths, i64 row, i64 t) { return !lengths || t < lengths[row]; }

// Does the row begin at step t?
__device__ __forceinline__ bool is_first(const i64* lengths, i64 row, i64 t, i64 T, int reverse) {
    return t == (reverse ? (lengths ? lengths[row] : T) - 1 : 0);
}

// --- step by step -----------------------------------------------------------------------------------------------------

// One step of all units. g (B, gates H), product (B, gates H), saved and y (B, H) of this step; states h, c (B, H) are
// updated. h and y null: the output goes to `out` (B, H) alone, for a projection.
template <typename Cell>
__global__ void step(float* g, const float* __restrict__ product, const float* __restrict__ aux,
                     const i64* __restrict__ lengths, float* saved, float* c, float* h, float* y, float* out, i64 B,
                     i64 H, i64 t, int kind) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    for (i64 k = start; k < B * H; k += gridDim.x * static_cast<i64>(blockDim.x)) {
        const i64 row = k / H, j = k % H;
        float* gate = g + row * Cell::gates * H + j;
        float value = 0.0f;
        if (is_live(lengths, row, t)) {
            value = Cell::of(gate, H, product + row * Cell::products * H + j, H, h ? h[k] : 0.0f, c ? c + k : nullptr,
                             saved ? saved + k : nullptr, aux ? aux + j : nullptr, kind);
            if (h) h[k] = value;
        } else {
            for (int n = 0; n < Cell::gates; ++n) gate[n * H] = 0.0f;
            if (saved) saved[k] = 0.0f;
        }
        if (y) y[k] = value;
        if (out) out[k] = value;
    }
}

// The gradient of one step before the product: d (B, grads H), and in `back` what goes straight to the state before.
// dy and dh (B, H) are added up; dh may be null. `earlier` (B, H) holds the states before this step, `first` those
// before the first one.
template <typename Cell>
__global__ void step_grad(const float* __restrict__ dy, const float* __restrict__ dh, const float* __restrict__ g,
                          const float* __restrict__ earlier, const float* __restrict__ first,
                          const float* __restrict__ saved, const float* __restrict__ aux,
                          const i64* __restrict__ lengths, float* d, float* dc, float* back, i64 B, i64 H, i64 T, i64 t,
                          int reverse, int kind) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    for (i64 k = start; k < B * H; k += gridDim.x * static_cast<i64>(blockDim.x)) {
        const i64 row = k / H, j = k % H;
        float* grad = d + row * Cell::grads * H + j;
        float straight = 0.0f;
        if (is_live(lengths, row, t)) {
            const float before = first ? (is_first(lengths, row, t, T, reverse) ? first : earlier)[k] : 0.0f;
            straight = Cell::grad(dh ? dy[k] + dh[k] : dy[k], g + row * Cell::gates * H + j, H, before,
                                  saved ? saved + k : nullptr, aux ? aux + j : nullptr, kind, grad,
                                  dc ? dc + k : nullptr);
        } else {
            for (int n = 0; n < Cell::grads; ++n) grad[n * H] = 0.0f;
        }
        if (back) back[k] = straight;
    }
}

// state = a + b for rows that are live at t (b may be null), and `masked`, unless null, the same or 0. (B, P) each.
template <typename T>
__global__ void arrive(const T* __restrict__ a, const T* __restrict__ b, const i64* __restrict__ lengths, T* state,
                       T* masked, i64 B, i64 P, i64 t) {
    const i64 start = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
    for (i64 k = start; k < B * P; k += gridDim.x * static_cast<i64>(blockDim.x)) {
        const bool live = is_live(lengths, k / P, t);
        const T value = b ? a[k] + b[k] : a[k];
        if (live && state) state[k] = value;
        if (masked) masked[k] = live ? value : T(0);
    }
}

// --- persistent -------------------------------------------------------------------------------------------------------

#define ROWS 4
#define THREADS 512

// Blocks of ROWS rows, all steps. g (T, B, gates H), saved and y (T, B, H), h and c (B, H) in and out; weights
// (H, products H) is W_hh transposed, of which `held` lines stay in shared memory. saved and c may be null.
template <typename Cell>
__global__ void __launch_bounds__(THREADS) sweep(float* g, const float* __restrict__ weights, const float* __restrict__ aux,
                      const i64* __restrict__ lengths, float* saved, float* c, float* h, float* y, i64 T, i64 B, i64 H,
                      i64 held, int reverse, int kind) {
    SHARED_MEMORY(float, shared);
    const i64 N = Cell::products * H, first = blockIdx.x * static_cast<i64>(ROWS);
    const int threads = blockDim.x, thread = threadIdx.x;
    float* const lines = shared;               // (held, N)
    float* const states = lines + held * N;    // (H, ROWS)
    float* const cells = states + ROWS * H;    // (ROWS, H)
    float* const product = cells + ROWS * H;   // (ROWS, N)
    for (i64 k = thread; k < held * N; k += threads) lines[k] = weights[k];
    for (i64 k = thread; k < ROWS * H; k += threads) {
        const i64 row = first + k / H, j = k % H;
        states[j * ROWS + k / H] = row < B ? h[row * H + j] : 0.0f;
        cells[k] = c && row < B ? c[row * H + j] : 0.0f;
    }
    __syncthreads();
    for (i64 number = 0; number < T; ++number) {
        const i64 t = reverse ? T - 1 - number : number;
        for (i64 n = thread; n < N; n += threads) {
            float sum[ROWS] = {};
            for (i64 k = 0; k < H; ++k) {
                const float w = k < held ? lines[k * N + n] : weights[k * N + n];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) sum[r] += w * states[k * ROWS + r];
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) product[r * N + n] = sum[r];
        }
        __syncthreads();
        for (i64 k = thread; k < ROWS * H; k += threads) {
            const i64 r = k / H, row = first + r, j = k % H;
            if (row >= B) continue;
            const i64 unit = (t * B + row) * H + j;
            float* gate = g + (t * B + row) * Cell::gates * H + j;
            float value = 0.0f;
            if (is_live(lengths, row, t)) {
                float& state = states[j * ROWS + r];
                value = Cell::of(gate, H, product + r * N + j, H, state, cells + k, saved ? saved + unit : nullptr,
                                 aux ? aux + j : nullptr, kind);
                state = value;
            } else {
                for (int n = 0; n < Cell::gates; ++n) gate[n * H] = 0.0f;
                if (saved) saved[unit] = 0.0f;
            }
            y[unit] = value;
        }
        __syncthreads();
    }
    for (i64 k = thread; k < ROWS * H; k += threads) {
        const i64 row = first + k / H, j = k % H;
        if (row >= B) continue;
        h[row * H + j] = states[j * ROWS + k / H];
        if (c) c[row * H + j] = cells[k];
    }
}

// The way back, blocks of ROWS rows. dy, saved, states (T, B, H), g (T, B, gates H), d (T, B, grads H); dh and dc (B, H)
// in and out. `weights` (products H, H) is W_hh with its lines in the order of d; of them `held` stay in shared memory.
// Threads come in Cell::products parts of H: each adds up one gate's share of the product.
template <typename Cell>
__global__ void __launch_bounds__(THREADS) sweep_grad(const float* __restrict__ dy, const float* __restrict__ g, const float* __restrict__ weights,
                           const float* __restrict__ aux, const i64* __restrict__ lengths,
                           const float* __restrict__ saved, const float* __restrict__ states,
                           const float* __restrict__ before_first, float* d, float* dh, float* dc, i64 T, i64 B, i64 H,
                           i64 held, int reverse, int kind) {
    SHARED_MEMORY(float, shared);
    const i64 N = Cell::products * H, first = blockIdx.x * static_cast<i64>(ROWS);
    const int threads = blockDim.x, thread = threadIdx.x;
    float* const lines = shared;              // (held, H)
    float* const back = lines + held * H;     // (ROWS, H): the gradient of the state
    float* const dcells = back + ROWS * H;    // (ROWS, H)
    float* const grads = dcells + ROWS * H;   // (N, ROWS)
    float* const shares = grads + ROWS * N;   // (products, ROWS, H)
    for (i64 k = thread; k < held * H; k += threads) lines[k] = weights[k];
    for (i64 k = thread; k < ROWS * H; k += threads) {
        const i64 row = first + k / H, j = k % H;
        back[k] = row < B ? dh[row * H + j] : 0.0f;
        dcells[k] = dc && row < B ? dc[row * H + j] : 0.0f;
    }
    // no barrier: what a thread has set here, only it reads before the next one
    for (i64 number = 0; number < T; ++number) {
        const i64 t = reverse ? number : T - 1 - number;
        for (i64 k = thread; k < ROWS * H; k += threads) {
            const i64 r = k / H, row = first + r, j = k % H;
            const i64 unit = (t * B + row) * H + j;
            float* grad = d + (t * B + row) * Cell::grads * H + j;
            if (row < B && is_live(lengths, row, t)) {
                float before = 0.0f;
                if (before_first)
                    before = is_first(lengths, row, t, T, reverse) ? before_first[row * H + j]
                                                                   : states[unit + (reverse ? B * H : -B * H)];
                // what goes straight back; the product is added below
                back[k] = Cell::grad(dy[unit] + back[k], g + (t * B + row) * Cell::gates * H + j, H, before,
                                     saved ? saved + unit : nullptr, aux ? aux + j : nullptr, kind, grad, dcells + k);
                for (int n = 0; n < Cell::products; ++n) grads[(n * H + j) * ROWS + r] = grad[n * H];
            } else {
                for (int n = 0; n < Cell::grads && row < B; ++n) grad[n * H] = 0.0f;
                for (int n = 0; n < Cell::products; ++n) grads[(n * H + j) * ROWS + r] = 0.0f;
            }
        }
        __syncthreads();
        for (i64 k = thread; k < N; k += threads) {
            const i64 part = k / H, j = k % H;
            float sum[ROWS] = {};
            for (i64 n = part * H; n < (part + 1) * H; ++n) {
                const float w = n < held ? lines[n * H + j] : weights[n * H + j];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) sum[r] += w * grads[n * ROWS + r];
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) shares[(part * ROWS + r) * H + j] = sum[r];
        }
        __syncthreads();
        for (i64 k = thread; k < ROWS * H; k += threads) {
            const i64 row = first + k / H;
            if (row >= B || !is_live(lengths, row, t)) continue;
            float total = back[k];
            for (int n = 0; n < Cell::products; ++n) total += shares[n * ROWS * H + k];
            back[k] = total;
        }
    }
    for (i64 k = thread; k < ROWS * H; k += threads) {
        const i64 row = first + k / H, j = k % H;
        if (row >= B) continue;
        dh[row * H + j] = back[k];
        if (dc) dc[row * H + j] = dcells[k];
    }
}
