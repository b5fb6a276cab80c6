"""Loops of kernels/upsampling.py. Images (N, D, H, W, C) are seen as one axis; planes are images of
one channel. A row is first made of the rows around it, then its pixels of the pixels around them.

`dw`, `hw`, `ww` are the weights of low and high, (samples, 2): LLVM makes y - w y of a (1 - w) y
that it sees, which is NaN for infinite y. A task writes ROWS rows. `scratch` has a row for each
task.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, each, load, store, whole

ZERO = np.float32(0)

#: kernels/upsampling.py has the same.
ROWS = 8


@jit(forceinline=True)
def _add_row(row, weight, out):
    for k in range(out.shape[0]):
        out[k] += row[k] * weight


@jit(forceinline=True)
def _slice_between(x, first, W, low, high, weights, share, out):
    """Add `share` of the row between two of a slice that begins at x[first], of W elements each."""
    _add_row(x[first + low * W : first + (low + 1) * W], weights[0] * share, out)
    if weights[1] != ZERO:
        _add_row(x[first + high * W : first + (high + 1) * W], weights[1] * share, out)


@jit(forceinline=True)
def _pixel_between(row, a, b, weights, out, at, C):
    """Where the weight is 0 an infinite b stays out: 0 * inf is NaN."""
    full = whole(C)
    rest = C - full
    if weights[1] == ZERO:
        for c in range(0, full, LANES):
            store(out, at + c, LANES, load(row, a + c, LANES))
        store(out, at + full, rest, load(row, a + full, rest))
        return
    for c in range(0, full, LANES):
        v = load(row, a + c, LANES) * weights[0] + load(row, b + c, LANES) * weights[1]
        store(out, at + c, LANES, v)
    v = load(row, a + full, rest) * weights[0] + load(row, b + full, rest) * weights[1]
    store(out, at + full, rest, v)


@loop("tasks", "scratch")
def upsample_linear(tasks, scratch, x, y, sizes, dl, dh, dw, hl, hh, hw, wl, wh, ww):
    D, H, W, C = sizes
    OD, OH, OW = dl.shape[0], hl.shape[0], wl.shape[0]
    rows = y.shape[0] // (OW * C)
    for t in range(tasks.shape[0]):
        row = scratch[t]
        for r in range(tasks[t] * ROWS, min((tasks[t] + 1) * ROWS, rows)):
            n, rest = r // (OD * OH), r % (OD * OH)
            od, oh = rest // OH, rest % OH
            low, high, weights = np.int64(hl[oh]), np.int64(hh[oh]), (hw[oh, 0], hw[oh, 1])
            for k in range(W * C):
                row[k] = ZERO
            first = (n * D + np.int64(dl[od])) * H * W * C
            _slice_between(x, first, W * C, low, high, weights, dw[od, 0], row)
            if dw[od, 1] != ZERO:
                first = (n * D + np.int64(dh[od])) * H * W * C
                _slice_between(x, first, W * C, low, high, weights, dw[od, 1], row)
            out = y[r * OW * C : (r + 1) * OW * C]
            if C == 1:
                for k in range(OW):
                    v = row[wl[k]] * ww[k, 0]
                    out[k] = v if ww[k, 1] == ZERO else v + row[wh[k]] * ww[k, 1]
            else:
                for k in range(OW):
                    a, b, weights = np.int64(wl[k]) * C, np.int64(wh[k]) * C, (ww[k, 0], ww[k, 1])
                    _pixel_between(row, a, b, weights, out, k * C, C)


@jit(forceinline=True)
def _weight_of(i, low, high, weights):
    """What a sample between `low` and `high` takes of pixel i."""
    share = ZERO
    if np.int64(low) == i:
        share += weights[0]
    if np.int64(high) == i:
        share += weights[1]
    return share


@loop("tasks", "scratch")
def upsample_linear_grad(
    tasks, scratch, dy, dx, sizes, dl, dh, dw, hl, hh, hw, wl, wh, ww, di, hi, wi
):
    """`sizes` (OD, OH, OW, C) are those of dy."""
    OD, OH, OW, C = sizes
    D, H, W = di.shape[0], hi.shape[0], wi.shape[0]
    rows = dx.shape[0] // (W * C)
    full = whole(C)
    for t in range(tasks.shape[0]):
        row = scratch[t]
        for r in range(tasks[t] * ROWS, min((tasks[t] + 1) * ROWS, rows)):
            n, rest = r // (D * H), r % (D * H)
            i, j = rest // H, rest % H
            for k in range(row.shape[0]):
                row[k] = ZERO
            for od in range(di[i, 0], di[i, 1]):
                a = _weight_of(i, dl[od], dh[od], dw[od])
                for oh in range(hi[j, 0], hi[j, 1]):
                    b = a * _weight_of(j, hl[oh], hh[oh], hw[oh])
                    first = ((n * OD + od) * OH + oh) * OW * C
                    if b != ZERO:
                        _add_row(dy[first : first + OW * C], b, row)
            out = dx[r * W * C : (r + 1) * W * C]
            if C == 1:
                for k in range(W):
                    s = ZERO
                    for ow in range(wi[k, 0], wi[k, 1]):
                        weight = _weight_of(k, wl[ow], wh[ow], ww[ow])
                        s += row[ow] * weight if weight != ZERO else ZERO
                    out[k] = s
                continue
            for k in range(W):
                for c in range(0, C, LANES):
                    count = min(LANES, C - c)
                    s = each(ZERO)
                    for ow in range(wi[k, 0], wi[k, 1]):
                        weight = _weight_of(k, wl[ow], wh[ow], ww[ow])
                        if weight == ZERO:
                            continue
                        if c < full:
                            s += load(row, ow * C + c, LANES) * weight
                        else:
                            s += load(row, ow * C + c, count) * weight
                    store(out, k * C + c, count, s)
