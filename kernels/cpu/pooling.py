"""Loops of kernels/pooling.py. Columns are (N, D, H, W, C) seen as one axis, 16 channels in a
register; planes are (N C, D, H, W).

Tables of windows (kernels/windows.py): `d`, `h`, `w` (windows, 3) start, stop and count along each
axis, `di`, `hi`, `wi` (elements, 2) the windows over each element. A task of the columns is a row of
what is written, one of the planes is a plane.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, each, load, load_ints, same, select, store, whole

ZERO = np.float32(0)
MINUS_INF = np.float32(-np.inf)


@jit(forceinline=True)
def _row_of(task, depth, height):
    """(n, d, h) of the task-th row of (N, depth, height)."""
    n = task // (depth * height)
    rest = task - n * (depth * height)
    return n, rest // height, rest % height


# Largest elements ---------------------------------------------------------------------------------


@jit(forceinline=True)
def _largest(x, base, c, count, C, row, d, h, w, step, y, places, out):
    """One window, `count` channels from c: `base` is the image's first element, `row` (H, W)."""
    H, W = row
    (d0, d1), (h0, h1), (w0, w1) = d, h, w
    place = (d0 * H + h0) * W + w0
    best = load(x, base + place * C + c, count)
    where = each(np.int32(place))
    for i in range(d0, d1, step[0]):
        for j in range(h0, h1, step[1]):
            for k in range(w0, w1, step[2]):
                place = (i * H + j) * W + k
                v = load(x, base + place * C + c, count)
                here = each(np.int32(place))
                number = v == v
                where = select(number, select(v > best, here, where), here)
                best = select(number, select(v > best, v, best), v)
    store(y, out + c, count, best)
    store(places, out + c, count, where)


@loop("tasks")
def max_pool_columns(tasks, x, y, places, sizes, d, h, w, dd, dh, dw):
    D, H, W, C = sizes
    full = whole(C)
    step = dd, dh, dw
    for t in tasks:
        n, od, oh = _row_of(t, d.shape[0], h.shape[0])
        base = n * D * H * W * C
        out = t * w.shape[0] * C
        ds, hs = (d[od, 0], d[od, 1]), (h[oh, 0], h[oh, 1])
        for ow in range(w.shape[0]):
            ws = w[ow, 0], w[ow, 1]
            for c in range(0, full, LANES):
                _largest(x, base, c, LANES, C, (H, W), ds, hs, ws, step, y, places, out)
            if full < C:
                _largest(x, base, full, C - full, C, (H, W), ds, hs, ws, step, y, places, out)
            out += C


@loop("x", "y", "places")
def max_pool_planes(x, y, places, d, h, w, dd, dh, dw):
    H, W = x.shape[2], x.shape[3]
    for p in range(x.shape[0]):
        for od in range(d.shape[0]):
            for oh in range(h.shape[0]):
                best, where = y[p, od, oh], places[p, od, oh]
                for ow in range(w.shape[0]):
                    place = (d[od, 0] * H + h[oh, 0]) * W + w[ow, 0]
                    m = x[p, d[od, 0], h[oh, 0], w[ow, 0]]
                    for i in range(d[od, 0], d[od, 1], dd):
                        for j in range(h[oh, 0], h[oh, 1], dh):
                            for k in range(w[ow, 0], w[ow, 1], dw):
                                v = x[p, i, j, k]
                                if v > m or v != v:
                                    m = v
                                    place = (i * H + j) * W + k
                    best[ow] = m
                    where[ow] = place


@jit(forceinline=True)
def _claims(dy, places, base, c, count, C, row, d, h, w, place, dx, out):
    """What the windows d, h, w (ranges) over the element at `place` give it."""
    OH, OW = row
    here = each(np.int32(place))
    s = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            for k in range(w[0], w[1]):
                at = base + ((i * OH + j) * OW + k) * C + c
                v = load(dy, at, count)
                s += select(same(load_ints(places, at, count), here), v, each(ZERO))
    store(dx, out + c, count, s)


@loop("tasks")
def max_pool_grad_columns(tasks, dy, places, dx, sizes, di, hi, wi):
    """`sizes` (OD, OH, OW, C) are those of dy."""
    OD, OH, OW, C = sizes
    D, H, W = di.shape[0], hi.shape[0], wi.shape[0]
    full = whole(C)
    row = OH, OW
    for t in tasks:
        n, i, j = _row_of(t, D, H)
        base = n * OD * OH * OW * C
        out = t * W * C
        ds, hs = (di[i, 0], di[i, 1]), (hi[j, 0], hi[j, 1])
        for k in range(W):
            ws = wi[k, 0], wi[k, 1]
            place = (i * H + j) * W + k
            for c in range(0, full, LANES):
                _claims(dy, places, base, c, LANES, C, row, ds, hs, ws, place, dx, out)
            if full < C:
                _claims(dy, places, base, full, C - full, C, row, ds, hs, ws, place, dx, out)
            out += C


@loop("dy", "places", "dx")
def scatter_planes(dy, places, dx):
    """dx (planes, elements) = the sum of dy (planes, windows) at each place."""
    for p in range(dy.shape[0]):
        out, values, where = dx[p], dy[p], places[p]
        for i in range(out.shape[0]):
            out[i] = ZERO
        for o in range(values.shape[0]):
            out[where[o]] += values[o]


# Averages -----------------------------------------------------------------------------------------


@jit(forceinline=True)
def _average(x, base, c, count, C, row, d, h, w, scale, y, out):
    H, W = row
    s = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            for k in range(w[0], w[1]):
                s += load(x, base + ((i * H + j) * W + k) * C + c, count)
    store(y, out + c, count, s * scale)


@loop("tasks")
def avg_pool_columns(tasks, x, y, sizes, d, h, w):
    D, H, W, C = sizes
    full = whole(C)
    for t in tasks:
        n, od, oh = _row_of(t, d.shape[0], h.shape[0])
        base = n * D * H * W * C
        out = t * w.shape[0] * C
        ds, hs = (d[od, 0], d[od, 1]), (h[oh, 0], h[oh, 1])
        for ow in range(w.shape[0]):
            ws = w[ow, 0], w[ow, 1]
            scale = np.float32(1.0 / (d[od, 2] * h[oh, 2] * w[ow, 2]))
            for c in range(0, full, LANES):
                _average(x, base, c, LANES, C, (H, W), ds, hs, ws, scale, y, out)
            if full < C:
                _average(x, base, full, C - full, C, (H, W), ds, hs, ws, scale, y, out)
            out += C


@loop("x", "y", "sums")
def avg_pool_planes(x, y, sums, d, h, w):
    """sums (planes, W): scratch for the sums of rows."""
    for p in range(x.shape[0]):
        total = sums[p]
        for od in range(d.shape[0]):
            for oh in range(h.shape[0]):
                first = x[p, d[od, 0], h[oh, 0]]
                for k in range(total.shape[0]):
                    total[k] = ZERO
                for i in range(d[od, 0], d[od, 1]):
                    for j in range(h[oh, 0], h[oh, 1]):
                        row = x[p, i, j]
                        for k in range(total.shape[0]):
                            total[k] += row[k]
                out = y[p, od, oh]
                count = d[od, 2] * h[oh, 2]
                for ow in range(w.shape[0]):
                    s = ZERO
                    for k in range(w[ow, 0], w[ow, 1]):
                        s += total[k]
                    out[ow] = s * np.float32(1.0 / (count * w[ow, 2]))


@jit(forceinline=True)
def _shares(dy, base, c, count, C, row, d, h, w, dt, ht, wt, dx, out):
    """The sum, over the windows d, h, w (ranges), of their gradients by their counts."""
    OH, OW = row
    s = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            for k in range(w[0], w[1]):
                scale = np.float32(1.0 / (dt[i, 2] * ht[j, 2] * wt[k, 2]))
                s += load(dy, base + ((i * OH + j) * OW + k) * C + c, count) * scale
    store(dx, out + c, count, s)


@loop("tasks")
def avg_pool_grad_columns(tasks, dy, dx, sizes, d, h, w, di, hi, wi):
    OD, OH, OW, C = sizes
    D, H, W = di.shape[0], hi.shape[0], wi.shape[0]
    full = whole(C)
    row = OH, OW
    for t in tasks:
        n, i, j = _row_of(t, D, H)
        base = n * OD * OH * OW * C
        out = t * W * C
        ds, hs = (di[i, 0], di[i, 1]), (hi[j, 0], hi[j, 1])
        for k in range(W):
            ws = wi[k, 0], wi[k, 1]
            for c in range(0, full, LANES):
                _shares(dy, base, c, LANES, C, row, ds, hs, ws, d, h, w, dx, out)
            if full < C:
                _shares(dy, base, full, C - full, C, row, ds, hs, ws, d, h, w, dx, out)
            out += C


@loop("dy", "dx", "shares")
def avg_pool_grad_planes(dy, dx, shares, d, h, w, di, hi):
    """shares (planes, OW): scratch for the sums of rows of dy."""
    for p in range(dy.shape[0]):
        share = shares[p]
        for i in range(di.shape[0]):
            for j in range(hi.shape[0]):
                for ow in range(share.shape[0]):
                    share[ow] = ZERO
                for od in range(di[i, 0], di[i, 1]):
                    for oh in range(hi[j, 0], hi[j, 1]):
                        row = dy[p, od, oh]
                        scale = np.float32(1.0 / (d[od, 2] * h[oh, 2]))
                        for ow in range(share.shape[0]):
                            share[ow] += row[ow] * scale
                out = dx[p, i, j]
                for k in range(out.shape[0]):
                    out[k] = ZERO
                for ow in range(share.shape[0]):
                    v = share[ow] * np.float32(1.0 / w[ow, 2])
                    for k in range(w[ow, 0], w[ow, 1]):
                        out[k] += v
