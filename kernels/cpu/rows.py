"""Passes over one float32 row, in lanes: for loops over many short rows."""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit
from kernels.cpu.lanes import LANES, each, load, peak, prefetch, store, total, whole
from kernels.cpu.vectormath import exp_nonpositive, fast_max

ZERO = np.float32(0)
ONE = np.float32(1)
MINUS_INF = np.float32(-np.inf)


@jit(forceinline=True)
def row_max(x):
    """Largest element; does not look for NaN. Four maxima side by side hide each other's waits."""
    full = whole(x.shape[0])
    a = load(x, full, x.shape[0] - full, MINUS_INF)
    b = c = d = each(MINUS_INF)
    i = 0
    while i + 4 * LANES <= full:
        a = fast_max(a, load(x, i, LANES))
        b = fast_max(b, load(x, i + LANES, LANES))
        c = fast_max(c, load(x, i + 2 * LANES, LANES))
        d = fast_max(d, load(x, i + 3 * LANES, LANES))
        i += 4 * LANES
    while i < full:
        a = fast_max(a, load(x, i, LANES))
        i += LANES
    return peak(fast_max(fast_max(a, b), fast_max(c, d)))


@jit(forceinline=True)
def _four_exps(x, m, i):
    """e^(x - m) of four lanes from x[i], side by side. Meanwhile the same place of the next row is
    fetched: its maximum, one comparison an element, would have to wait for memory.
    """
    for k in range(4):
        prefetch(x, x.shape[0] + i + k * LANES)
    return (
        exp_nonpositive(load(x, i, LANES) - m),
        exp_nonpositive(load(x, i + LANES, LANES) - m),
        exp_nonpositive(load(x, i + 2 * LANES, LANES) - m),
        exp_nonpositive(load(x, i + 3 * LANES, LANES) - m),
    )


@jit(forceinline=True)
def row_exp_sum(x, m):
    """Sum of e^(x - m), for m = row_max(x)."""
    full = whole(x.shape[0])
    s = exp_nonpositive(load(x, full, x.shape[0] - full, MINUS_INF) - m)
    i = 0
    while i + 4 * LANES <= full:
        a, b, c, d = _four_exps(x, m, i)
        s += (a + b) + (c + d)
        i += 4 * LANES
    while i < full:
        s += exp_nonpositive(load(x, i, LANES) - m)
        i += LANES
    return total(s)


@jit(forceinline=True)
def row_softmax(x, m, out):
    """out = e^(x - m) over its sum, which is returned.

    The last lanes wait in a register: what a masked store has written cannot be loaded at once.
    """
    n = x.shape[0]
    full = whole(n)
    last = exp_nonpositive(load(x, full, n - full, MINUS_INF) - m)
    s = last
    i = 0
    while i + 4 * LANES <= full:
        a, b, c, d = _four_exps(x, m, i)
        store(out, i, LANES, a)
        store(out, i + LANES, LANES, b)
        store(out, i + 2 * LANES, LANES, c)
        store(out, i + 3 * LANES, LANES, d)
        s += (a + b) + (c + d)
        i += 4 * LANES
    while i < full:
        e = exp_nonpositive(load(x, i, LANES) - m)
        store(out, i, LANES, e)
        s += e
        i += LANES
    t = total(s)
    scale = ONE / t
    for i in range(0, full, LANES):
        store(out, i, LANES, load(out, i, LANES) * scale)
    store(out, full, n - full, last * scale)
    return t


@jit(forceinline=True)
def row_dot(x, y):
    """Sum of x y, in four sums side by side."""
    full = whole(x.shape[0])
    rest = x.shape[0] - full
    a = load(x, full, rest) * load(y, full, rest)
    b = c = d = each(ZERO)
    i = 0
    while i + 4 * LANES <= full:
        a += load(x, i, LANES) * load(y, i, LANES)
        b += load(x, i + LANES, LANES) * load(y, i + LANES, LANES)
        c += load(x, i + 2 * LANES, LANES) * load(y, i + 2 * LANES, LANES)
        d += load(x, i + 3 * LANES, LANES) * load(y, i + 3 * LANES, LANES)
        i += 4 * LANES
    while i < full:
        a += load(x, i, LANES) * load(y, i, LANES)
        i += LANES
    return total((a + b) + (c + d))
