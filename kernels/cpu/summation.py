"""Sums over float32 rows for the bodies of compiled loops: float32 lanes within a block, float64
between blocks.

Loops here run from 0 over a slice: from any other start LLVM cannot exclude Python's negative
indices, and does not vectorise.

LLVM turns a block's loop into 4 vector accumulators (64 lanes with AVX-512), so a lane adds at most
64 numbers before the block's sum joins the float64 total: the error stays near 1e-6 for any length,
at the speed of memory. The order of the additions depends on the length alone.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit
from kernels.cpu.lanes import LANES, each, load, select, store

#: Elements of a block.
BLOCK = 4096

ZERO = np.float32(0)


@jit(forceinline=True)
def row_sum(x):
    """Sum of a contiguous 1-D array, float64."""
    n = x.shape[0]
    total = 0.0
    for start in range(0, n, BLOCK):
        part = x[start : start + BLOCK]
        s = ZERO
        for i in range(part.shape[0]):
            s += part[i]
        total += s
    return total


@jit(forceinline=True)
def row_deviation(x, centre):
    """Sum of (x - centre)^2 over a contiguous 1-D array, float64; `centre` is float32."""
    n = x.shape[0]
    total = 0.0
    for start in range(0, n, BLOCK):
        part = x[start : start + BLOCK]
        s = ZERO
        for i in range(part.shape[0]):
            d = part[i] - centre
            s += d * d
        total += s
    return total


@jit(forceinline=True)
def column_sum(x, start, stop, first, last, out):
    """out[first:last] = sum of the rows start:stop of x (2-D, C-contiguous), columns first:last.

    Eight rows at a time are added as a tree: one load an element, and an eighth of the additions to
    the running sum. The row slices tell numba that their elements are neighbours; x[:, first:last]
    would not.
    """
    total = out[first:last]
    n = total.shape[0]
    for j in range(n):
        total[j] = ZERO
    i = start
    while i + 8 <= stop:
        a, b, c, d = (
            x[i, first:last],
            x[i + 1, first:last],
            x[i + 2, first:last],
            x[i + 3, first:last],
        )
        e, f, g, h = (
            x[i + 4, first:last],
            x[i + 5, first:last],
            x[i + 6, first:last],
            x[i + 7, first:last],
        )
        for j in range(n):
            total[j] += ((a[j] + b[j]) + (c[j] + d[j])) + ((e[j] + f[j]) + (g[j] + h[j]))
        i += 8
    while i < stop:
        a = x[i, first:last]
        for j in range(n):
            total[j] += a[j]
        i += 1


@jit
def add_partials(partials, out):
    """out = sum of the rows of partials (parts, columns), in their order. What each addition
    rounds off is added up beside it (Knuth's two-sum): as exact as float64.
    """
    columns = out.shape[0]
    for j in range(0, columns, LANES):
        count = min(LANES, columns - j)
        s = lost = each(ZERO)
        for p in range(partials.shape[0]):
            x = load(partials[p], j, count)
            t = s + x
            added = t - s
            lost += (s - (t - added)) + (x - added)
            s = t
        # where s is infinite or NaN, lost is NaN
        store(out, j, count, select(s - s == ZERO, s + lost, s))
