"""Loops of kernels/normalization.py. Rows are (rows, columns); planes are (N, C, L); columns are
(rows, C).

Weight gradients are summed in blocks of rows whose size depends on the shape alone, then over the
blocks in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, each, load, select, store, total, totals, whole
from kernels.cpu.summation import BLOCK, add_partials, column_sum, row_deviation, row_sum

#: No gradient to add, as an array: a compiled loop takes one type only.
NO_MORE = np.empty(0, np.float32)

ZERO = np.float32(0)
ONE = np.float32(1)

#: Rows whose weight gradients are summed in one float32 partial.
ROW_BLOCK = 96


def column_block(columns: int) -> int:
    """Rows of a block whose statistics are taken in cache: 8,192 elements, that is half of a 64 KiB
    L1.
    """
    return max(16, min(256, 8192 // max(columns, 1) // 8 * 8))


# Rows: layer norm, RMS norm -----------------------------------------------------------------------


@jit
def _added(x, residual, out):
    for i in range(x.shape[0]):
        out[i] = x[i] + residual[i]


@loop("x", "residual", "total", "y", "mean", "rstd")
def add_layer_norm(x, residual, weight, bias, eps, total, y, mean, rstd):
    """`layer_norm` of total = x + residual, whose rows are still in L1."""
    columns = x.shape[1]
    for r in range(x.shape[0]):
        row, out = total[r], y[r]
        _added(x[r], residual[r], row)
        m = np.float32(row_sum(row) / columns)
        s = np.float32(1.0 / math.sqrt(row_deviation(row, m) / columns + eps))
        for j in range(columns):
            out[j] = (row[j] - m) * s * weight[j] + bias[j]
        mean[r] = m
        rstd[r] = s


@loop("x", "residual", "total", "y", "rstd")
def add_rms_norm(x, residual, weight, eps, total, y, rstd):
    """`rms_norm` of total = x + residual."""
    columns = x.shape[1]
    for r in range(x.shape[0]):
        row, out = total[r], y[r]
        _added(x[r], residual[r], row)
        s = np.float32(1.0 / math.sqrt(row_deviation(row, ZERO) / columns + eps))
        for j in range(columns):
            out[j] = row[j] * s * weight[j]
        rstd[r] = s


@loop("x", "y", "mean", "rstd")
def layer_norm(x, weight, bias, eps, y, mean, rstd):
    columns = x.shape[1]
    for r in range(x.shape[0]):
        row, out = x[r], y[r]
        m = np.float32(row_sum(row) / columns)
        s = np.float32(1.0 / math.sqrt(row_deviation(row, m) / columns + eps))
        for j in range(columns):
            out[j] = (row[j] - m) * s * weight[j] + bias[j]
        mean[r] = m
        rstd[r] = s


@jit(forceinline=True)
def _row_sums(dy, x, w, m, s, i, count, sums, dw, db):
    """Adds to the sums over a row, g and g n with g = dy w, n = (x - m) s, and to dw and db."""
    d = load(dy, i, count)
    t = d * ((load(x, i, count) - m) * s)
    return (sums[0] + d * w, sums[1] + t * w), dw + t, db + d


@jit(forceinline=True)
def _row_gradient(dy, x, w, m, s, means, i, count, dx, more, j):
    """`more` is a flat array to add, j its row's start, or NO_MORE."""
    d = load(x, i, count) - m
    g = (load(dy, i, count) * w - means[0]) * s - d * means[1]
    if more.shape[0] > 0:
        g += load(more, j + i, count)
    store(dx, i, count, g)


@jit(forceinline=True)
def _four_sums(dy, x, r, weight, m, s, i, count, sums, dweight, dbias):
    """`_row_sums` of rows r to r + 3: dweight and dbias are read and written once for the four."""
    w, dw, db = load(weight, i, count), load(dweight, i, count), load(dbias, i, count)
    a, dw, db = _row_sums(dy[r], x[r], w, m[0], s[0], i, count, sums[0], dw, db)
    b, dw, db = _row_sums(dy[r + 1], x[r + 1], w, m[1], s[1], i, count, sums[1], dw, db)
    c, dw, db = _row_sums(dy[r + 2], x[r + 2], w, m[2], s[2], i, count, sums[2], dw, db)
    d, dw, db = _row_sums(dy[r + 3], x[r + 3], w, m[3], s[3], i, count, sums[3], dw, db)
    store(dweight, i, count, dw)
    store(dbias, i, count, db)
    return a, b, c, d


@jit(forceinline=True)
def _four_gradients(dy, x, r, weight, m, s, means, i, count, dx, more):
    w, n = load(weight, i, count), x.shape[1]
    j = r * n
    _row_gradient(dy[r], x[r], w, m[0], s[0], means[0], i, count, dx[r], more, j)
    r, j = r + 1, j + n
    _row_gradient(dy[r], x[r], w, m[1], s[1], means[1], i, count, dx[r], more, j)
    r, j = r + 1, j + n
    _row_gradient(dy[r], x[r], w, m[2], s[2], means[2], i, count, dx[r], more, j)
    r, j = r + 1, j + n
    _row_gradient(dy[r], x[r], w, m[3], s[3], means[3], i, count, dx[r], more, j)


@jit(forceinline=True)
def _means(sum_g, sum_gn, s, columns):
    """mean(g) and s^2 mean(g n) of a row."""
    share = ONE / np.float32(columns)
    return sum_g * share, sum_gn * share * s * s


@jit(forceinline=True)
def _four_rows(dy, x, weight, mean, rstd, r, dx, dweight, dbias, more):
    """Gradients of rows r to r + 3, side by side: one waits while another computes."""
    columns = x.shape[1]
    full = whole(columns)
    m = mean[r], mean[r + 1], mean[r + 2], mean[r + 3]
    s = rstd[r], rstd[r + 1], rstd[r + 2], rstd[r + 3]
    zero = each(ZERO), each(ZERO)
    sums = zero, zero, zero, zero
    for i in range(0, full, LANES):
        sums = _four_sums(dy, x, r, weight, m, s, i, LANES, sums, dweight, dbias)
    if full < columns:
        sums = _four_sums(dy, x, r, weight, m, s, full, columns - full, sums, dweight, dbias)
    g = totals(sums[0][0], sums[1][0], sums[2][0], sums[3][0])
    gn = totals(sums[0][1], sums[1][1], sums[2][1], sums[3][1])
    means = (
        _means(g[0], gn[0], s[0], columns),
        _means(g[1], gn[1], s[1], columns),
        _means(g[2], gn[2], s[2], columns),
        _means(g[3], gn[3], s[3], columns),
    )
    for i in range(0, full, LANES):
        _four_gradients(dy, x, r, weight, m, s, means, i, LANES, dx, more)
    if full < columns:
        _four_gradients(dy, x, r, weight, m, s, means, full, columns - full, dx, more)


@jit(forceinline=True)
def _one_row(dy, x, weight, m, s, dx, dweight, dbias, more, j):
    columns = x.shape[0]
    sums = each(ZERO), each(ZERO)
    for i in range(0, columns, LANES):
        count = min(LANES, columns - i)
        w, dw, db = load(weight, i, count), load(dweight, i, count), load(dbias, i, count)
        sums, dw, db = _row_sums(dy, x, w, m, s, i, count, sums, dw, db)
        store(dweight, i, count, dw)
        store(dbias, i, count, db)
    means = _means(total(sums[0]), total(sums[1]), s, columns)
    for i in range(0, columns, LANES):
        count = min(LANES, columns - i)
        _row_gradient(dy, x, load(weight, i, count), m, s, means, i, count, dx, more, j)


@jit
def _add_layer_norm_parts(tasks, dy, x, weight, mean, rstd, dx, parts, more):
    add_partials(parts[1:], parts[0])


@loop("tasks", finish=_add_layer_norm_parts)
def layer_norm_grad(tasks, dy, x, weight, mean, rstd, dx, parts, more):
    """parts (1 + blocks, 2 columns): dweight and dbias of all rows, then those of each block.

    `more` (flat, like x) is added to dx, if it is not NO_MORE.
    """
    rows, columns = x.shape
    for t in tasks:
        dweight, dbias = parts[t + 1, :columns], parts[t + 1, columns:]
        for j in range(columns):
            dweight[j] = ZERO
            dbias[j] = ZERO
        r, stop = t * ROW_BLOCK, min((t + 1) * ROW_BLOCK, rows)
        while r + 4 <= stop:
            _four_rows(dy, x, weight, mean, rstd, r, dx, dweight, dbias, more)
            r += 4
        while r < stop:
            m, s = mean[r], rstd[r]
            _one_row(dy[r], x[r], weight, m, s, dx[r], dweight, dbias, more, r * columns)
            r += 1


@loop("x", "y", "rstd")
def rms_norm(x, weight, eps, y, rstd):
    columns = x.shape[1]
    for r in range(x.shape[0]):
        row, out = x[r], y[r]
        s = np.float32(1.0 / math.sqrt(row_deviation(row, ZERO) / columns + eps))
        for j in range(columns):
            out[j] = row[j] * s * weight[j]
        rstd[r] = s


@loop("tasks")
def rms_norm_grad(tasks, dy, x, weight, rstd, dx, partials, more):
    """partials (blocks, columns): dweight of each block of rows. `more` as in layer_norm_grad."""
    rows, columns = x.shape
    for t in tasks:
        dw = partials[t]
        for j in range(columns):
            dw[j] = ZERO
        for r in range(t * ROW_BLOCK, min((t + 1) * ROW_BLOCK, rows)):
            row, drow, out = x[r], dy[r], dx[r]
            s = rstd[r]
            s1 = ZERO
            for j in range(columns):
                n = row[j] * s
                dw[j] += drow[j] * n
                s1 += drow[j] * weight[j] * n
            b = s1 / np.float32(columns)
            for j in range(columns):
                out[j] = s * (drow[j] * weight[j] - row[j] * s * b)
            if more.shape[0] > 0:
                _added(out, more[r * columns : (r + 1) * columns], out)


# Batch norm over planes (N, C, L): a task is a channel, whose N planes stay in L2 for all passes --


@jit(forceinline=True)
def _affine(row, m, scale, shift, out):
    for i in range(row.shape[0]):
        out[i] = (row[i] - m) * scale + shift


@loop("channels")
def batch_norm_planes(channels, x, weight, bias, eps, y, mean, var):
    N = x.shape[0]
    count = N * x.shape[2]
    for c in channels:
        total = 0.0
        for n in range(N):
            total += row_sum(x[n, c])
        m = np.float32(total / count)
        total = 0.0
        for n in range(N):
            total += row_deviation(x[n, c], m)
        v = np.float32(total / count)
        scale = np.float32(weight[c] / math.sqrt(v + eps))
        for n in range(N):
            _affine(x[n, c], m, scale, bias[c], y[n, c])
        mean[c] = m
        var[c] = v


@loop("channels")
def batch_norm_inference_planes(channels, x, weight, bias, mean, var, eps, y):
    for c in channels:
        scale = np.float32(weight[c] / math.sqrt(var[c] + eps))
        for n in range(x.shape[0]):
            _affine(x[n, c], mean[c], scale, bias[c], y[n, c])


@jit(forceinline=True)
def _dy_sums(drow, row, m, s):
    """Sums of dy and of dy * (x - m) * s over one plane, float64."""
    t0 = 0.0
    t1 = 0.0
    for start in range(0, row.shape[0], BLOCK):
        s0 = ZERO
        s1 = ZERO
        part, dpart = row[start : start + BLOCK], drow[start : start + BLOCK]
        for i in range(part.shape[0]):
            d = dpart[i]
            s0 += d
            s1 += d * ((part[i] - m) * s)
        t0 += s0
        t1 += s1
    return t0, t1


@jit(fastmath={"contract"})
def _weighted_sums(drow, row, m, s, w):
    """Sums of dy w and dy w n, element by element: for an infinite w, NaN where signs mix."""
    t0 = 0.0
    t1 = 0.0
    for i in range(row.shape[0]):
        g = drow[i] * w
        t0 += g
        t1 += g * ((row[i] - m) * s)
    return t0, t1


@loop("channels")
def batch_norm_grad_planes(channels, dy, x, weight, mean, var, eps, training, dx, dweight, dbias):
    """dx = weight rstd (dy - mean(dy) - n mean(dy n)), n = (x - mean) rstd; in inference the means
    are no function of x.
    """
    N = x.shape[0]
    count = N * x.shape[2]
    for c in channels:
        m = mean[c]
        rstd = 1.0 / math.sqrt(var[c] + eps)
        t0 = 0.0
        t1 = 0.0
        for n in range(N):
            s0, s1 = _dy_sums(dy[n, c], x[n, c], m, np.float32(rstd))
            t0 += s0
            t1 += s1
        dweight[c] = np.float32(t1)
        dbias[c] = np.float32(t0)
        scale = np.float32(weight[c] * rstd)
        a = np.float32(t0 / count)
        b = np.float32(t1 * rstd / count)
        for n in range(N):
            drow, row, out = dy[n, c], x[n, c], dx[n, c]
            if training:
                for i in range(row.shape[0]):
                    out[i] = scale * (drow[i] - a - (row[i] - m) * b)
            else:
                for i in range(row.shape[0]):
                    out[i] = scale * drow[i]


_batch_norm_planes = batch_norm_planes.serial
_batch_norm_grad_planes = batch_norm_grad_planes.serial


@jit(forceinline=True)
def _positive(dy, y, g):
    for i in range(g.shape[0]):
        g[i] = dy[i] if y[i] > ZERO else ZERO


@jit(forceinline=True)
def _rectified(row, residual, added):
    for i in range(row.shape[0]):
        v = row[i] + residual[i] if added else row[i]
        row[i] = v if (v > ZERO) | (v != v) else ZERO


@loop("channels")
def batch_norm_relu_planes(channels, x, weight, bias, eps, residual, added, y, mean, var):
    """`batch_norm_planes`, and then relu(y + residual), or relu(y), channel by channel in L2."""
    for k in range(channels.shape[0]):
        _batch_norm_planes(channels[k : k + 1], x, weight, bias, eps, y, mean, var)
        for n in range(x.shape[0]):
            _rectified(y[n, channels[k]], residual[n, channels[k]], added)


@loop("channels")
def batch_norm_relu_grad_planes(channels, dy, y, x, weight, mean, var, eps, g, dx, dweight, dbias):
    """`batch_norm_grad_planes` of g = dy where y is positive, else 0, which is written; dx may be
    g.
    """
    for k in range(channels.shape[0]):
        for n in range(x.shape[0]):
            _positive(dy[n, channels[k]], y[n, channels[k]], g[n, channels[k]])
        _batch_norm_grad_planes(
            channels[k : k + 1], g, x, weight, mean, var, eps, True, dx, dweight, dbias
        )


# Batch norm over columns (rows, C): channels-last images and plain features -----------------------


@loop("tasks")
def column_moments(tasks, x, block, mean, deviation):
    """Mean and sum of squared deviations of every column, block by block: both are (blocks, C)."""
    rows, C = x.shape
    for t in tasks:
        m, q = mean[t], deviation[t]
        start, stop = t * block, min((t + 1) * block, rows)
        column_sum(x, start, stop, 0, C, m)
        for j in range(C):
            m[j] /= np.float32(stop - start)
            q[j] = ZERO
        i = start
        while i + 4 <= stop:
            r0, r1, r2, r3 = x[i], x[i + 1], x[i + 2], x[i + 3]
            for j in range(C):
                d0, d1, d2, d3 = r0[j] - m[j], r1[j] - m[j], r2[j] - m[j], r3[j] - m[j]
                q[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
            i += 4
        while i < stop:
            r0 = x[i]
            for j in range(C):
                d0 = r0[j] - m[j]
                q[j] += d0 * d0
            i += 1


@jit(allocates=True)
def merge_moments(rows, block, means, deviations, mean, var):
    """Mean and variance of all rows from those of the blocks, in float64 (Chan, Golub, LeVeque
    1979).
    """
    parts, C = means.shape
    total = np.zeros(C)
    for p in range(parts):
        count = float(min(block, rows - p * block))
        for j in range(C):
            total[j] += count * means[p, j]
    for j in range(C):
        total[j] /= rows
    square = np.zeros(C)
    for p in range(parts):
        count = float(min(block, rows - p * block))
        for j in range(C):
            d = means[p, j] - total[j]
            square[j] += deviations[p, j] + count * d * d
    for j in range(C):
        mean[j] = np.float32(total[j])
        var[j] = np.float32(square[j] / rows)


@loop("x", "y")
def affine_columns(x, mean, scale, bias, y):
    for r in range(x.shape[0]):
        row, out = x[r], y[r]
        for j in range(row.shape[0]):
            out[j] = (row[j] - mean[j]) * scale[j] + bias[j]


@loop("x", "residual", "y")
def affine_relu_columns(x, mean, scale, bias, residual, added, y):
    """relu(y + residual), or relu(y), of `affine_columns`."""
    for r in range(x.shape[0]):
        row, more, out = x[r], residual[r], y[r]
        if added:
            for j in range(row.shape[0]):
                v = (row[j] - mean[j]) * scale[j] + bias[j] + more[j]
                out[j] = v if (v > ZERO) | (v != v) else ZERO
        else:
            for j in range(row.shape[0]):
                v = (row[j] - mean[j]) * scale[j] + bias[j]
                out[j] = v if (v > ZERO) | (v != v) else ZERO


@jit(forceinline=True)
def _incoming(dy, y, g, c, count, rectified):
    """dy, or if `rectified` g = dy where y is positive, else 0, which is written."""
    d = load(dy, c, count)
    if rectified:
        d = select(load(y, c, count) > ZERO, d, each(ZERO))
        store(g, c, count, d)
    return d


@jit(forceinline=True)
def _stripe(dy, y, g, rectified, x, mean, start, stop, c, count, s0, s1):
    """Sums of dy and of dy (x - mean) over rows start to stop, for `count` channels from c."""
    m = load(mean, c, count)
    a = b = each(ZERO)
    for r in range(start, stop):
        d = _incoming(dy[r], y[r], g[r], c, count, rectified)
        a += d
        b += d * (load(x[r], c, count) - m)
    store(s0, c, count, a)
    store(s1, c, count, b)


@jit(forceinline=True)
def _four_stripes(dy, y, g, rectified, x, mean, start, stop, c, s0, s1):
    """`_stripe` of 64 channels: reads memory in its order; one sum waits while another adds."""
    i, j, k = c + LANES, c + 2 * LANES, c + 3 * LANES
    m0, m1 = load(mean, c, LANES), load(mean, i, LANES)
    m2, m3 = load(mean, j, LANES), load(mean, k, LANES)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = each(ZERO)
    for r in range(start, stop):
        drow, yrow, grow, row = dy[r], y[r], g[r], x[r]
        d0 = _incoming(drow, yrow, grow, c, LANES, rectified)
        d1 = _incoming(drow, yrow, grow, i, LANES, rectified)
        d2 = _incoming(drow, yrow, grow, j, LANES, rectified)
        d3 = _incoming(drow, yrow, grow, k, LANES, rectified)
        a0 += d0
        a1 += d1
        a2 += d2
        a3 += d3
        b0 += d0 * (load(row, c, LANES) - m0)
        b1 += d1 * (load(row, i, LANES) - m1)
        b2 += d2 * (load(row, j, LANES) - m2)
        b3 += d3 * (load(row, k, LANES) - m3)
    store(s0, c, LANES, a0)
    store(s0, i, LANES, a1)
    store(s0, j, LANES, a2)
    store(s0, k, LANES, a3)
    store(s1, c, LANES, b0)
    store(s1, i, LANES, b1)
    store(s1, j, LANES, b2)
    store(s1, k, LANES, b3)


@jit(forceinline=True)
def _dy_block(dy, y, g, rectified, x, mean, start, stop, s0, s1):
    C = x.shape[1]
    full, fours = whole(C), C // (4 * LANES) * (4 * LANES)
    for c in range(0, fours, 4 * LANES):
        _four_stripes(dy, y, g, rectified, x, mean, start, stop, c, s0, s1)
    for c in range(fours, full, LANES):
        _stripe(dy, y, g, rectified, x, mean, start, stop, c, LANES, s0, s1)
    if full < C:
        _stripe(dy, y, g, rectified, x, mean, start, stop, full, C - full, s0, s1)


@loop("tasks")
def column_dy_sums(tasks, dy, x, mean, block, partials):
    """partials (blocks, 2 C): sums of dy (x - mean) and of dy of each block of rows."""
    rows, C = x.shape
    for t in tasks:
        stop = min((t + 1) * block, rows)
        s1, s0 = partials[t, :C], partials[t, C:]
        _dy_block(dy, dy, dy, False, x, mean, t * block, stop, s0, s1)


@loop("tasks")
def column_relu_dy_sums(tasks, dy, y, x, mean, block, g, partials):
    """The same of g = dy where y is positive, else 0, which is written."""
    rows, C = x.shape
    for t in tasks:
        stop = min((t + 1) * block, rows)
        s1, s0 = partials[t, :C], partials[t, C:]
        _dy_block(dy, y, g, True, x, mean, t * block, stop, s0, s1)


@jit(forceinline=True)
def _grad_lanes(dy, x, mean, scale, a, b, c, count, dx):
    n = load(x, c, count) - load(mean, c, count)
    v = load(dy, c, count) - load(a, c, count) - n * load(b, c, count)
    store(dx, c, count, v * load(scale, c, count))


@loop("dy", "x", "dx")
def batch_norm_grad_columns(dy, x, mean, scale, a, b, dx):
    """dx may be dy."""
    C = x.shape[1]
    full = whole(C)
    for r in range(x.shape[0]):
        drow, row, out = dy[r], x[r], dx[r]
        for c in range(0, full, LANES):
            _grad_lanes(drow, row, mean, scale, a, b, c, LANES, out)
        if full < C:
            _grad_lanes(drow, row, mean, scale, a, b, full, C - full, out)


@loop("dy", "dx")
def scale_columns(dy, scale, dx):
    for r in range(dy.shape[0]):
        drow, out = dy[r], dx[r]
        for j in range(out.shape[0]):
            out[j] = scale[j] * drow[j]


# Group norm over planes (N, C, L) -----------------------------------------------------------------


@loop("x", "y", "mean", "rstd")
def group_norm(x, weight, bias, eps, y, mean, rstd):
    """mean and rstd are (N, groups)."""
    groups = mean.shape[1]
    size = x.shape[1] // groups
    count = size * x.shape[2]
    for n in range(x.shape[0]):
        for g in range(groups):
            total = 0.0
            for c in range(g * size, (g + 1) * size):
                total += row_sum(x[n, c])
            m = np.float32(total / count)
            total = 0.0
            for c in range(g * size, (g + 1) * size):
                total += row_deviation(x[n, c], m)
            s = np.float32(1.0 / math.sqrt(total / count + eps))
            for c in range(g * size, (g + 1) * size):
                _affine(x[n, c], m, s * weight[c], bias[c], y[n, c])
            mean[n, g] = m
            rstd[n, g] = s


@loop("dy", "x", "mean", "rstd", "dx", "partials")
def group_norm_grad(dy, x, weight, mean, rstd, dx, partials):
    """partials (N, 2 C): dweight and dbias of each sample."""
    C = x.shape[1]
    groups = mean.shape[1]
    size = C // groups
    count = size * x.shape[2]
    for n in range(x.shape[0]):
        for g in range(groups):
            m, s = mean[n, g], rstd[n, g]
            t0 = 0.0
            t1 = 0.0
            for c in range(g * size, (g + 1) * size):
                s0, s1 = _dy_sums(dy[n, c], x[n, c], m, s)
                partials[n, c] = np.float32(s1)
                partials[n, C + c] = np.float32(s0)
                if math.isfinite(weight[c]):
                    t0 += s0 * weight[c]
                    t1 += s1 * weight[c]
                else:
                    s0, s1 = _weighted_sums(dy[n, c], x[n, c], m, s, weight[c])
                    t0 += s0
                    t1 += s1
            a = np.float32(t0 / count)
            b = np.float32(t1 / count)
            for c in range(g * size, (g + 1) * size):
                drow, row, out, w = dy[n, c], x[n, c], dx[n, c], weight[c]
                for i in range(row.shape[0]):
                    out[i] = s * (drow[i] * w - a - (row[i] - m) * s * b)
