"""Loops of kernels/recurrent.py, lstm.py and gru.py: all steps of a layer in one launch.

Rows of the batch do not see each other, so each thread takes some of them through the whole
sequence: no thread waits for another within a layer. What is cut are groups of R rows, which
depend on the shape alone.

The product of each step, state times weights, reads the weights packed once per call: panels of
16 C columns, line by line. OpenBLAS would pack them at every step, which for 16 rows takes as long
as the product. A tile of R x C registers of sums takes C loads and R broadcasts for R C
multiply-adds.

A row is live at step t if t is below its length. Beyond, outputs and what is kept for the gradient
are 0 and states stay.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np

from kernels.cpu.engine import define, jit, loop, numbers
from kernels.cpu.lanes import LANES, each, load, prefetch, store, whole
from kernels.cpu.vectormath import sigmoid, tanh

ZERO = np.float32(0)
ONE = np.float32(1)


def _tile_shape() -> tuple[int, int]:
    """Rows and registers of 16 columns of a tile: as many sums as leave registers to multiply.

    With AVX-512 a core computes 255-270 GFLOP/s in 4 x 4, 8 x 2 and 8 x 3 (more of both spills);
    4 x 4 leaves no part of a panel empty where the units are a multiple of 64.
    """
    return (4, 4) if llvm.get_host_cpu_features().get("avx512f") else (3, 2)


R, C = _tile_shape()
WIDTH = C * LANES

#: Lines of a panel that are multiplied at a time: 128 KiB, so that all groups of rows but the first
#: find them in the L2 cache.
DEPTH = 512


def groups(rows: int) -> np.ndarray:
    """What is cut over threads."""
    return numbers(-(-rows // R))


# Packed weights -----------------------------------------------------------------------------------


@loop("lines")
def _pack_rows(lines, weight, packed):
    """packed[j, k WIDTH + i] = weight[k, j WIDTH + i], 0 beyond the last column, for k in lines."""
    N = weight.shape[1]
    for n in range(lines.shape[0]):
        k = lines[n]
        row = weight[k]
        for p in range(packed.shape[0]):
            first = p * WIDTH
            count, out = min(WIDTH, N - first), packed[p, k * WIDTH : (k + 1) * WIDTH]
            for i in range(0, WIDTH, LANES):
                store(out, i, LANES, load(row, first + i, max(0, min(LANES, count - i))))


@loop("panels", "packed")
def _pack_columns(panels, weight, packed):
    """packed[j, k WIDTH + i] = weight[j WIDTH + i, k], 0 beyond the last row."""
    N, K = weight.shape
    for p in range(panels.shape[0]):
        first = panels[p] * WIDTH
        count = min(WIDTH, N - first)
        out = packed[p]
        for k in range(0, K, LANES):  # of each row a cache line at a time
            last = min(k + LANES, K)
            for i in range(count):
                for m in range(k, last):
                    out[m * WIDTH + i] = weight[first + i, m]
            for i in range(count, WIDTH):
                for m in range(k, last):
                    out[m * WIDTH + i] = ZERO


def pack(weight: np.ndarray, transposed: bool) -> np.ndarray:
    """The panels of `weight` (K, N), or of its transpose if that is (N, K)."""
    weight = np.ascontiguousarray(weight)
    N, K = weight.shape if transposed else weight.shape[::-1]
    packed = np.empty((-(-N // WIDTH), K * WIDTH), np.float32)
    if transposed:
        _pack_columns(numbers(packed.shape[0]), weight, packed, work=weight.size)
    else:
        _pack_rows(numbers(K), weight, packed, work=weight.size)
    return packed


# The product of a step ----------------------------------------------------------------------------


def _tile(rows: int) -> Any:
    """A compiled function: out[r:r+rows, j:j+WIDTH] += a[r:r+rows, shift+k0:shift+k1] times lines
    k0 to k1 of a panel; columns from `last` on are left out.
    """
    down, across = range(rows), range(C)
    lines = [f"def tile_{rows}(a, r, shift, k0, k1, panel, out, j, last):"]
    lines += [f"    a{i} = a[r + {i}]" for i in down]
    lines += [f"    s{i}_{c} = each(ZERO)" for i in down for c in across]
    # what the sums are added to comes from L3: it arrives while they are made
    lines += [f"    prefetch(out[r + {i}], j + {c * LANES})" for i in down for c in across]
    lines += ["    for k in range(k0, k1):"]
    lines += [f"        w{c} = load(panel, k * {WIDTH} + {c * LANES}, {LANES})" for c in across]
    for i in down:
        lines += [f"        x = each(a{i}[shift + k])"]
        lines += [f"        s{i}_{c} += x * w{c}" for c in across]
    for c in across:
        at = f"j + {c * LANES}"
        lines += [f"    count = max(0, min({LANES}, last - ({at})))"]
        lines += [
            f"    store(out[r + {i}], {at}, count, load(out[r + {i}], {at}, count) + s{i}_{c})"
            for i in down
        ]
    source = "\n".join(lines) + "\n"
    names = {"each": each, "load": load, "store": store, "prefetch": prefetch, "ZERO": ZERO}
    return jit(define(f"tile_{rows}", source, **names))


_whole, _single = _tile(R), _tile(1)


@jit
def product(a, shift, packed, out, first, last, top, bottom):
    """out[top:bottom, first:last] += a[top:bottom, shift:...] times the packed weights."""
    K = packed.shape[1] // WIDTH
    full = top + (bottom - top) // R * R
    for k in range(0, K, DEPTH):
        end = min(k + DEPTH, K)
        for p in range(packed.shape[0]):
            panel, j = packed[p], first + p * WIDTH
            for r in range(top, full, R):
                _whole(a, r, shift, k, end, panel, out, j, last)
            for r in range(full, bottom):
                _single(a, r, shift, k, end, panel, out, j, last)


# Rows ---------------------------------------------------------------------------------------------


@jit
def _rows(groups, rows):
    """First and last + 1 of the rows of some groups."""
    count = groups.shape[0]
    return (groups[0] * R, min(rows, (groups[count - 1] + 1) * R)) if count else (0, 0)


@jit
def _fill(row):
    for i in range(row.shape[0]):
        row[i] = ZERO


@jit
def _copy(source, row):
    for i in range(row.shape[0]):
        row[i] = source[i]


@jit
def _add(a, b, row):
    for i in range(row.shape[0]):
        row[i] = a[i] + b[i]


@jit
def _step(number, steps, reverse):
    """The number-th step in the order of the layer's direction."""
    return steps - 1 - number if reverse else number


@jit
def _is_first(t, length, reverse):
    """Does a row begin at step t, from its initial state?"""
    return t == (length - 1 if reverse else 0)


@jit
def _keep_live(t, lengths, new, state, top, bottom):
    """state = new for the rows that are live at step t."""
    for r in range(top, bottom):
        if t < lengths[r]:
            _copy(new[r], state[r])


# Plain RNN ----------------------------------------------------------------------------------------


@jit
def _tanh_row(row):
    for i in range(row.shape[0]):
        row[i] = tanh(row[i])


@jit
def _relu_row(row):
    for i in range(row.shape[0]):
        row[i] = ZERO if row[i] < ZERO else row[i]


@loop("groups")
def rnn(groups, packed, lengths, reverse, relu, y, hn):
    """y: what comes from the input, then the output; hn: the initial state, then the last."""
    T, B, H = y.shape
    top, bottom = _rows(groups, B)
    for number in range(T):
        t = _step(number, T, reverse)
        product(hn, 0, packed, y[t], 0, H, top, bottom)
        for r in range(top, bottom):
            row = y[t, r]
            if t < lengths[r]:
                if relu:
                    _relu_row(row)
                else:
                    _tanh_row(row)
                _copy(row, hn[r])
            else:
                _fill(row)


@jit
def _rnn_grad_row(dy, dh, y, relu, dpre):
    for i in range(y.shape[0]):
        d = dy[i] + dh[i]
        if relu:
            dpre[i] = d if y[i] > ZERO else ZERO
        else:
            dpre[i] = d * (ONE - y[i] * y[i])


@loop("groups")
def rnn_grad(groups, dy, packed, lengths, reverse, relu, y, dpre, dh, back):
    """dh: the gradient of the last state, then of the first; back (B, H): scratch."""
    T, B, H = y.shape
    top, bottom = _rows(groups, B)
    for number in range(T):
        t = _step(number, T, not reverse)
        for r in range(top, bottom):
            if t < lengths[r]:
                _rnn_grad_row(dy[t, r], dh[r], y[t, r], relu, dpre[t, r])
            else:
                _fill(dpre[t, r])
            _fill(back[r])
        product(dpre[t], 0, packed, back, 0, H, top, bottom)
        _keep_live(t, lengths, back, dh, top, bottom)


# LSTM ---------------------------------------------------------------------------------------------


@jit
def _lstm_row(i, f, g, o, c, new, m):
    """The cell of Hochreiter and Schmidhuber with a forget gate; m = o tanh(c)."""
    for k in range(c.shape[0]):
        i[k] = sigmoid(i[k])
        f[k] = sigmoid(f[k])
        g[k] = tanh(g[k])
        o[k] = sigmoid(o[k])
        c[k] = f[k] * c[k] + i[k] * g[k]
        new[k] = c[k]
        m[k] = o[k] * tanh(c[k])


@jit
def _lstm_peephole_row(i, f, g, o, c, peephole, new, m):
    """The same with gates that see the cell (Gers and Schmidhuber 2000)."""
    pi, pf, po = peephole[0], peephole[1], peephole[2]
    for k in range(c.shape[0]):
        i[k] = sigmoid(i[k] + pi[k] * c[k])
        f[k] = sigmoid(f[k] + pf[k] * c[k])
        g[k] = tanh(g[k])
        c[k] = f[k] * c[k] + i[k] * g[k]
        new[k] = c[k]
        o[k] = sigmoid(o[k] + po[k] * c[k])
        m[k] = o[k] * tanh(c[k])


@loop("groups")
def lstm(groups, packed, packed_hr, peephole, lengths, reverse, gates, cells, y, hn, cn, m):
    """gates: what comes from the input, then the gates; hn, cn: the initial states, then the last.

    packed_hr and peephole are empty for a layer without them; m (B, H): scratch.
    """
    (T, B, H), P = cells.shape, y.shape[2]
    projects, peeps = packed_hr.shape[0] > 0, peephole.shape[0] > 0
    top, bottom = _rows(groups, B)
    for number in range(T):
        t = _step(number, T, reverse)
        product(hn, 0, packed, gates[t], 0, 4 * H, top, bottom)
        for r in range(top, bottom):
            row, out = gates[t, r], y[t, r]
            if t < lengths[r]:
                i, f, g, o = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
                if peeps:
                    _lstm_peephole_row(i, f, g, o, cn[r], peephole, cells[t, r], m[r])
                else:
                    _lstm_row(i, f, g, o, cn[r], cells[t, r], m[r])
            else:
                _fill(row)
                _fill(cells[t, r])
                _fill(m[r])
            if projects:
                _fill(out)
            else:
                _copy(m[r], out)
        if projects:
            product(m, 0, packed_hr, y[t], 0, P, top, bottom)
        for r in range(top, bottom):
            if t < lengths[r]:
                _copy(y[t, r], hn[r])
            elif projects:  # 0 times an infinite weight
                _fill(y[t, r])


# In lanes, for LLVM gives up on a loop over so many arrays that might overlap: 4 times as long.
@jit(forceinline=True)
def _lstm_grad_lanes(dm, row, s, before, dc, d, H, k, n):
    i, f = load(row, k, n), load(row, H + k, n)
    g, o = load(row, 2 * H + k, n), load(row, 3 * H + k, n)
    t, u = load(s, k, n), load(dm, k, n)
    dnew = load(dc, k, n) + u * o * (ONE - t * t)
    store(d, k, n, dnew * g * (i * (ONE - i)))
    store(d, H + k, n, dnew * load(before, k, n) * (f * (ONE - f)))
    store(d, 2 * H + k, n, dnew * i * (ONE - g * g))
    store(d, 3 * H + k, n, u * t * (o * (ONE - o)))
    store(dc, k, n, dnew * f)


@jit
def _lstm_grad_row(dm, row, c, before, dc, d, s):
    """s (H,): scratch, for tanh(c)."""
    H = c.shape[0]
    for k in range(H):
        s[k] = tanh(c[k])
    for k in range(0, whole(H), LANES):
        _lstm_grad_lanes(dm, row, s, before, dc, d, H, k, LANES)
    if whole(H) < H:
        _lstm_grad_lanes(dm, row, s, before, dc, d, H, whole(H), H - whole(H))


@jit
def _lstm_peephole_grad_row(dm, row, c, before, peephole, dc, d):
    H = c.shape[0]
    pi, pf, po = peephole[0], peephole[1], peephole[2]
    i, f, g, o = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
    di, df, dg, do = d[:H], d[H : 2 * H], d[2 * H : 3 * H], d[3 * H :]
    for k in range(H):
        s = tanh(c[k])
        do[k] = dm[k] * s * (o[k] * (ONE - o[k]))
        dnew = dc[k] + dm[k] * o[k] * (ONE - s * s) + do[k] * po[k]
        di[k] = dnew * g[k] * (i[k] * (ONE - i[k]))
        df[k] = dnew * before[k] * (f[k] * (ONE - f[k]))
        dg[k] = dnew * i[k] * (ONE - g[k] * g[k])
        dc[k] = dnew * f[k] + di[k] * pi[k] + df[k] * pf[k]


@loop("groups")
def lstm_grad(
    groups, dy, packed, packed_hr, peephole, lengths, reverse, gates, cells, c0,
    dgates, dhidden, dh, dc, dm, back, tanhs,
):  # fmt: skip
    """dh, dc: gradients of the last states, then of the first; dhidden (T, B, P): of each output
    with what comes back to it, for a projection (otherwise empty); dm (B, H), back (B, P), tanhs
    (B, H): scratch.
    """
    (T, B, H), P = cells.shape, dy.shape[2]
    projects, peeps = packed_hr.shape[0] > 0, peephole.shape[0] > 0
    top, bottom = _rows(groups, B)
    for number in range(T):
        t = _step(number, T, not reverse)
        for r in range(top, bottom):
            if projects:
                _fill(dm[r])
                if t < lengths[r]:
                    _add(dy[t, r], dh[r], dhidden[t, r])
                else:
                    _fill(dhidden[t, r])
            else:
                _add(dy[t, r], dh[r], dm[r])
            _fill(back[r])
        if projects:
            product(dhidden[t], 0, packed_hr, dm, 0, H, top, bottom)
        earlier = t + 1 if reverse else t - 1
        for r in range(top, bottom):
            d, row = dgates[t, r], gates[t, r]
            if t < lengths[r]:
                before = c0[r] if _is_first(t, lengths[r], reverse) else cells[earlier, r]
                if peeps:
                    _lstm_peephole_grad_row(dm[r], row, cells[t, r], before, peephole, dc[r], d)
                else:
                    _lstm_grad_row(dm[r], row, cells[t, r], before, dc[r], d, tanhs[r])
            else:
                _fill(d)
        product(dgates[t], 0, packed, back, 0, P, top, bottom)
        _keep_live(t, lengths, back, dh, top, bottom)


# GRU ----------------------------------------------------------------------------------------------


@jit
def _reset_row(r, h, u):
    """The reset gate before the product."""
    for k in range(r.shape[0]):
        r[k] = sigmoid(r[k])
        u[k] = r[k] * h[k]


@jit
def _reset_after_row(r, n, u):
    """The reset gate after the product."""
    for k in range(r.shape[0]):
        r[k] = sigmoid(r[k])
        n[k] += r[k] * u[k]


@jit
def _gru_row(z, n, h, y):
    for k in range(h.shape[0]):
        z[k] = sigmoid(z[k])
        n[k] = tanh(n[k])
        h[k] = (ONE - z[k]) * n[k] + z[k] * h[k]
        y[k] = h[k]


@loop("groups")
def gru(
    groups, packed_rz, packed_n, bias_n, lengths, reverse, reset_after, gates, u, y, hn
):  # fmt: skip
    """gates: what comes from the input, then r, z, n; hn: the initial state, then the last.

    u (T, B, H): W_n h + bias_n, or r h where the reset gate stands before the product.
    """
    T, B, H = u.shape
    top, bottom = _rows(groups, B)
    for number in range(T):
        t = _step(number, T, reverse)
        product(hn, 0, packed_rz, gates[t], 0, 2 * H, top, bottom)
        for r in range(top, bottom):
            if reset_after:
                _copy(bias_n, u[t, r])
            else:
                _reset_row(gates[t, r, :H], hn[r], u[t, r])
        if reset_after:
            product(hn, 0, packed_n, u[t], 0, H, top, bottom)
        else:
            product(u[t], 0, packed_n, gates[t], 2 * H, 3 * H, top, bottom)
        for r in range(top, bottom):
            row, out = gates[t, r], y[t, r]
            if t < lengths[r]:
                if reset_after:
                    _reset_after_row(row[:H], row[2 * H :], u[t, r])
                _gru_row(row[H : 2 * H], row[2 * H :], hn[r], out)
            else:
                _fill(row)
                _fill(out)
                _fill(u[t, r])


@jit(forceinline=True)
def _gru_grad_lanes(dy, dh, before, row, u, reset_after, back, d, H, k, count):
    r, z = load(row, k, count), load(row, H + k, count)
    n, dnew = load(row, 2 * H + k, count), load(dy, k, count) + load(dh, k, count)
    dn = dnew * (ONE - z) * (ONE - n * n)
    store(d, 2 * H + k, count, dnew * (load(before, k, count) - n) * (z * (ONE - z)))
    store(d, 3 * H + k, count, dn)
    store(back, k, count, dnew * z)
    if reset_after:
        store(d, k, count, dn * r)
        store(d, H + k, count, dn * load(u, k, count) * (r * (ONE - r)))
    else:
        store(d, k, count, dn)


@jit
def _gru_grad_row(dy, dh, before, row, u, reset_after, back, d):
    H = u.shape[0]
    for k in range(0, whole(H), LANES):
        _gru_grad_lanes(dy, dh, before, row, u, reset_after, back, d, H, k, LANES)
    if whole(H) < H:
        _gru_grad_lanes(dy, dh, before, row, u, reset_after, back, d, H, whole(H), H - whole(H))


@jit
def _reset_grad_row(du, r, before, back, dr):
    for k in range(r.shape[0]):
        dr[k] = du[k] * before[k] * (r[k] * (ONE - r[k]))
        back[k] += du[k] * r[k]


@loop("groups")
def gru_grad(
    groups, dy, packed_rz, packed_n, lengths, reverse, reset_after, gates, u, y, h0, d, dh, back, du
):  # fmt: skip
    """dh: the gradient of the last state, then of the first; back and du (B, H): scratch.

    d (T, B, 4 H): gradients of W_n's result, and of r, z, n before their functions. The weights of
    the state meet the first three quarters, those of the input the last three.
    """
    T, B, H = u.shape
    top, bottom = _rows(groups, B)
    for number in range(T):
        t = _step(number, T, not reverse)
        earlier = t + 1 if reverse else t - 1
        for r in range(top, bottom):
            row, out = gates[t, r], d[t, r]
            if t < lengths[r]:
                before = h0[r] if _is_first(t, lengths[r], reverse) else y[earlier, r]
                _gru_grad_row(dy[t, r], dh[r], before, row, u[t, r], reset_after, back[r], out)
            else:
                _fill(out)
                _fill(back[r])
            _fill(du[r])
        if reset_after:
            product(d[t], 0, packed_n, back, 0, H, top, bottom)
        else:
            product(d[t], 0, packed_n, du, 0, H, top, bottom)
            for r in range(top, bottom):
                if t < lengths[r]:
                    before = h0[r] if _is_first(t, lengths[r], reverse) else y[earlier, r]
                    _reset_grad_row(du[r], gates[t, r, :H], before, back[r], d[t, r, H : 2 * H])
        product(d[t], H, packed_rz, back, 0, H, top, bottom)
        _keep_live(t, lengths, back, dh, top, bottom)
