"""Passes over one float32 row, in lanes: for loops over many short rows."""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit
from kernels.cpu.lanes import LANES, each, load, peak, store, total, whole
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
def row_exp_sum(x, m):
    """Sum of e^(x - m), for m = row_max(x)."""
    full = whole(x.shape[0])
    s = exp_nonpositive(load(x, full, x.shape[0] - full, MINUS_INF) - m)
    for i in range(0, full, LANES):
        s += exp_nonpositive(load(x, i, LANES) - m)
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
    for i in range(0, full, LANES):
        e = exp_nonpositive(load(x, i, LANES) - m)
        store(out, i, LANES, e)
        s += e
    t = total(s)
    scale = ONE / t
    for i in range(0, full, LANES):
        store(out, i, LANES, load(out, i, LANES) * scale)
    store(out, full, n - full, last * scale)
    return t
