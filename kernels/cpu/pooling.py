"""Loops of kernels/pooling.py. Columns are (N, D, H, W, C) seen as one axis, 16 channels in a
register; planes are (N C, D, H, W).

Tables of windows (kernels/windows.py): `d`, `h`, `w` (windows, 3) start, stop and count along each
axis, `di`, `hi`, `wi` (elements, 2) the windows over each element. A task of the columns is a row
of what is written, one of the planes is a plane.
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


@jit(forceinline=True)
def _inside(k, stride, padding, step, size, windows):
    """The windows (first, last + 1) whose k-th element is there, and where the first one's is."""
    shift = padding - k * step
    first = min(max(-(-shift // stride), 0), windows)
    last = max(min((size - 1 + shift) // stride + 1, windows), first)
    return first, last, first * stride - shift


@jit(forceinline=True)
def _take(row, stride, place, best, where):
    """best and where = the larger of them and every stride-th element of row, and its place."""
    for o in range(best.shape[0]):
        v, m = row[o * stride], best[o]
        larger = (v > m) | (v != v)
        best[o] = v if larger else m
        where[o] = place + o * stride if larger else where[o]


@loop("x", "y", "places")
def max_pool_planes(x, y, places, d, h, w, dd, dh, dw, stride, padding, kernel):
    """`stride` to `kernel` are those of the last axis."""
    H, W = x.shape[2], x.shape[3]
    for p in range(x.shape[0]):
        for od in range(d.shape[0]):
            for oh in range(h.shape[0]):
                best, where = y[p, od, oh], places[p, od, oh]
                place = (d[od, 0] * H + h[oh, 0]) * W
                for ow in range(best.shape[0]):
                    best[ow] = MINUS_INF
                    where[ow] = place + w[ow, 0]
                for i in range(d[od, 0], d[od, 1], dd):
                    for j in range(h[oh, 0], h[oh, 1], dh):
                        place = (i * H + j) * W
                        for k in range(kernel):
                            a, b, at = _inside(k, stride, padding, dw, W, best.shape[0])
                            row = x[p, i, j, at:]
                            if stride == 1:
                                _take(row, 1, place + at, best[a:b], where[a:b])
                            elif stride == 2:
                                _take(row, 2, place + at, best[a:b], where[a:b])
                            else:
                                _take(row, stride, place + at, best[a:b], where[a:b])


@loop("x", "y", "places")
def adaptive_max_pool_planes(x, y, places, d, h, w):
    H, W = x.shape[2], x.shape[3]
    for p in range(x.shape[0]):
        for od in range(d.shape[0]):
            for oh in range(h.shape[0]):
                for ow in range(w.shape[0]):
                    place = (d[od, 0] * H + h[oh, 0]) * W + w[ow, 0]
                    m = MINUS_INF
                    for i in range(d[od, 0], d[od, 1]):
                        for j in range(h[oh, 0], h[oh, 1]):
                            for k in range(w[ow, 0], w[ow, 1]):
                                v = x[p, i, j, k]
                                if v > m or v != v:
                                    m = v
                                    place = (i * H + j) * W + k
                    y[p, od, oh, ow] = m
                    places[p, od, oh, ow] = place


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


@jit(forceinline=True)
def _claim(dy, places, at, here):
    return select(same(load_ints(places, at, LANES), here), load(dy, at, LANES), each(ZERO))


@jit(forceinline=True)
def _four_claims(dy, places, base, c, C, row, d, h, w, place, dx, out):
    """`_claims` of four registers side by side."""
    OH, OW = row
    here = each(np.int32(place))
    s0 = s1 = s2 = s3 = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            for k in range(w[0], w[1]):
                at = base + ((i * OH + j) * OW + k) * C + c
                s0 += _claim(dy, places, at, here)
                s1 += _claim(dy, places, at + LANES, here)
                s2 += _claim(dy, places, at + 2 * LANES, here)
                s3 += _claim(dy, places, at + 3 * LANES, here)
    store(dx, out + c, LANES, s0)
    store(dx, out + c + LANES, LANES, s1)
    store(dx, out + c + 2 * LANES, LANES, s2)
    store(dx, out + c + 3 * LANES, LANES, s3)


@loop("tasks")
def max_pool_grad_columns(tasks, dy, places, dx, sizes, di, hi, wi):
    """`sizes` (OD, OH, OW, C) are those of dy."""
    OD, OH, OW, C = sizes
    D, H, W = di.shape[0], hi.shape[0], wi.shape[0]
    full, fours = whole(C), C // (4 * LANES) * (4 * LANES)
    row = OH, OW
    for t in tasks:
        n, i, j = _row_of(t, D, H)
        base = n * OD * OH * OW * C
        out = t * W * C
        ds, hs = (di[i, 0], di[i, 1]), (hi[j, 0], hi[j, 1])
        for k in range(W):
            ws = wi[k, 0], wi[k, 1]
            place = (i * H + j) * W + k
            for c in range(0, fours, 4 * LANES):
                _four_claims(dy, places, base, c, C, row, ds, hs, ws, place, dx, out)
            for c in range(fours, full, LANES):
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
def _average(x, base, c, count, C, row, d, h, w, share, y, out):
    """Rows are summed before they are added: a global average takes many elements."""
    H, W = row
    s = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            r = each(ZERO)
            for k in range(w[0], w[1]):
                r += load(x, base + ((i * H + j) * W + k) * C + c, count)
            s += r
    store(y, out + c, count, s * share)


@jit(forceinline=True)
def _four_averages(x, base, c, C, row, d, h, w, share, y, out):
    """`_average` of four registers side by side: one waits while another adds."""
    H, W = row
    s0 = s1 = s2 = s3 = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            r0 = r1 = r2 = r3 = each(ZERO)
            for k in range(w[0], w[1]):
                at = base + ((i * H + j) * W + k) * C + c
                r0 += load(x, at, LANES)
                r1 += load(x, at + LANES, LANES)
                r2 += load(x, at + 2 * LANES, LANES)
                r3 += load(x, at + 3 * LANES, LANES)
            s0 += r0
            s1 += r1
            s2 += r2
            s3 += r3
    store(y, out + c, LANES, s0 * share)
    store(y, out + c + LANES, LANES, s1 * share)
    store(y, out + c + 2 * LANES, LANES, s2 * share)
    store(y, out + c + 3 * LANES, LANES, s3 * share)


@loop("tasks")
def avg_pool_columns(tasks, x, y, sizes, d, h, w, ds, hs, ws):
    """`ds`, `hs`, `ws`: what a window along each axis multiplies its sum by."""
    D, H, W, C = sizes
    full, fours = whole(C), C // (4 * LANES) * (4 * LANES)
    row = H, W
    for t in tasks:
        n, od, oh = _row_of(t, d.shape[0], h.shape[0])
        base = n * D * H * W * C
        out = t * w.shape[0] * C
        a, b = (d[od, 0], d[od, 1]), (h[oh, 0], h[oh, 1])
        for ow in range(w.shape[0]):
            e = w[ow, 0], w[ow, 1]
            share = ds[od] * hs[oh] * ws[ow]
            for c in range(0, fours, 4 * LANES):
                _four_averages(x, base, c, C, row, a, b, e, share, y, out)
            for c in range(fours, full, LANES):
                _average(x, base, c, LANES, C, row, a, b, e, share, y, out)
            if full < C:
                _average(x, base, full, C - full, C, row, a, b, e, share, y, out)
            out += C


@jit(forceinline=True)
def _add(row, stride, out):
    """out += every stride-th element of row."""
    for o in range(out.shape[0]):
        out[o] += row[o * stride]


@loop("x", "y", "sums")
def avg_pool_planes(x, y, sums, d, h, w, ds, hs, ws, stride, padding, kernel):
    """sums (planes, W): scratch for the sums of rows. `stride` to `kernel` are those of the last
    axis, 0 where its windows do not slide.
    """
    for p in range(x.shape[0]):
        total = sums[p]
        for od in range(d.shape[0]):
            for oh in range(h.shape[0]):
                for k in range(total.shape[0]):
                    total[k] = ZERO
                for i in range(d[od, 0], d[od, 1]):
                    for j in range(h[oh, 0], h[oh, 1]):
                        row = x[p, i, j]
                        for k in range(total.shape[0]):
                            total[k] += row[k]
                out = y[p, od, oh]
                for ow in range(out.shape[0]):
                    out[ow] = ZERO
                for k in range(kernel):
                    a, b, at = _inside(k, stride, padding, 1, total.shape[0], out.shape[0])
                    if stride == 1:
                        _add(total[at:], 1, out[a:b])
                    elif stride == 2:
                        _add(total[at:], 2, out[a:b])
                    else:
                        _add(total[at:], stride, out[a:b])
                if kernel == 0:
                    for ow in range(out.shape[0]):
                        for k in range(w[ow, 0], w[ow, 1]):
                            out[ow] += total[k]
                share = ds[od] * hs[oh]
                for ow in range(out.shape[0]):
                    out[ow] *= share * ws[ow]


@jit(forceinline=True)
def _shares(dy, base, c, count, C, row, d, h, w, ds, hs, ws, dx, out):
    """The sum, over the windows d, h, w (ranges), of their gradients by their counts."""
    OH, OW = row
    s = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            for k in range(w[0], w[1]):
                share = ds[i] * hs[j] * ws[k]
                s += load(dy, base + ((i * OH + j) * OW + k) * C + c, count) * share
    store(dx, out + c, count, s)


@jit(forceinline=True)
def _four_shares(dy, base, c, C, row, d, h, w, ds, hs, ws, dx, out):
    OH, OW = row
    s0 = s1 = s2 = s3 = each(ZERO)
    for i in range(d[0], d[1]):
        for j in range(h[0], h[1]):
            for k in range(w[0], w[1]):
                share = ds[i] * hs[j] * ws[k]
                at = base + ((i * OH + j) * OW + k) * C + c
                s0 += load(dy, at, LANES) * share
                s1 += load(dy, at + LANES, LANES) * share
                s2 += load(dy, at + 2 * LANES, LANES) * share
                s3 += load(dy, at + 3 * LANES, LANES) * share
    store(dx, out + c, LANES, s0)
    store(dx, out + c + LANES, LANES, s1)
    store(dx, out + c + 2 * LANES, LANES, s2)
    store(dx, out + c + 3 * LANES, LANES, s3)


@loop("tasks")
def avg_pool_grad_columns(tasks, dy, dx, sizes, di, hi, wi, ds, hs, ws):
    OD, OH, OW, C = sizes
    D, H, W = di.shape[0], hi.shape[0], wi.shape[0]
    full, fours = whole(C), C // (4 * LANES) * (4 * LANES)
    row = OH, OW
    for t in tasks:
        n, i, j = _row_of(t, D, H)
        base = n * OD * OH * OW * C
        out = t * W * C
        a, b = (di[i, 0], di[i, 1]), (hi[j, 0], hi[j, 1])
        for k in range(W):
            e = wi[k, 0], wi[k, 1]
            for c in range(0, fours, 4 * LANES):
                _four_shares(dy, base, c, C, row, a, b, e, ds, hs, ws, dx, out)
            for c in range(fours, full, LANES):
                _shares(dy, base, c, LANES, C, row, a, b, e, ds, hs, ws, dx, out)
            if full < C:
                _shares(dy, base, full, C - full, C, row, a, b, e, ds, hs, ws, dx, out)
            out += C


@loop("dy", "dx", "shares")
def avg_pool_grad_planes(dy, dx, shares, w, di, hi, ds, hs, ws, pairs):
    """shares (planes, OW): scratch for the sums of rows of dy. `pairs`: along the last axis window
    o holds the elements 2 o and 2 o + 1, and there are no others.
    """
    for p in range(dy.shape[0]):
        share = shares[p]
        for i in range(di.shape[0]):
            for j in range(hi.shape[0]):
                for ow in range(share.shape[0]):
                    share[ow] = ZERO
                for od in range(di[i, 0], di[i, 1]):
                    for oh in range(hi[j, 0], hi[j, 1]):
                        row = dy[p, od, oh]
                        scale = ds[od] * hs[oh]
                        for ow in range(share.shape[0]):
                            share[ow] += row[ow] * scale
                for ow in range(share.shape[0]):
                    share[ow] *= ws[ow]
                out = dx[p, i, j]
                if pairs:
                    for ow in range(share.shape[0]):
                        out[2 * ow] = share[ow]
                        out[2 * ow + 1] = share[ow]
                else:
                    for k in range(out.shape[0]):
                        out[k] = ZERO
                    for ow in range(share.shape[0]):
                        for k in range(w[ow, 0], w[ow, 1]):
                            out[k] += share[ow]
