"""Loops of kernels/prelu.py: planes of one slope each, or rows of channels."""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop

ZERO = np.float32(0)


@jit
def _plane(x, w, out):
    for i in range(x.shape[0]):
        out[i] = x[i] if x[i] > ZERO else w * x[i]


@loop("x", "w", "out")
def planes(x, w, out):
    """x, out (planes, size), w (planes,)."""
    for p in range(x.shape[0]):
        _plane(x[p], w[p], out[p])


@jit
def _plane_grad(dy, x, w, dx):
    total = ZERO
    for i in range(x.shape[0]):
        dx[i] = dy[i] if x[i] > ZERO else w * dy[i]
        total += ZERO if x[i] > ZERO else dy[i] * x[i]
    return total


@loop("dy", "x", "w", "dx", "sums")
def planes_grad(dy, x, w, dx, sums):
    """dy, x, dx (planes, size); w, sums (planes,): a plane's part of the slope's gradient."""
    for p in range(x.shape[0]):
        sums[p] = _plane_grad(dy[p], x[p], w[p], dx[p])


@jit
def _row(x, w, out):
    for c in range(x.shape[0]):
        out[c] = x[c] if x[c] > ZERO else w[c] * x[c]


@loop("x", "out")
def columns(x, w, out):
    """x, out (rows, channels), w (channels,)."""
    for r in range(x.shape[0]):
        _row(x[r], w, out[r])


@jit
def _row_grad(dy, x, w, dx, sums):
    for c in range(x.shape[0]):
        dx[c] = dy[c] if x[c] > ZERO else w[c] * dy[c]
        sums[c] += ZERO if x[c] > ZERO else dy[c] * x[c]


@loop("dy", "x", "dx", "sums")
def columns_grad(dy, x, dx, w, sums):
    """dy, x, dx (blocks, rows, channels), w (channels,), sums (blocks, channels), zero before."""
    for b in range(x.shape[0]):
        for r in range(x.shape[1]):
            _row_grad(dy[b, r], x[b, r], w, dx[b, r], sums[b])
