"""Row loops of kernels/gates.py: a row of x and dx is a half a, then a half b.

y and dy have half as many columns.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.vectormath import absolute, exp, sigmoid

ZERO = np.float32(0)
ONE = np.float32(1)


@jit
def _glu_row(a, b, y):
    for i in range(y.shape[0]):
        y[i] = a[i] * sigmoid(b[i])


@loop("x", "y")
def glu(x, y):
    """y = a sigmoid(b)."""
    n = y.shape[1]
    for r in range(y.shape[0]):
        _glu_row(x[r, :n], x[r, n:], y[r])


@jit
def _glu_grad_row(dy, a, b, da, db):
    for i in range(dy.shape[0]):
        e = exp(-absolute(b[i]))
        s = ONE / (ONE + e)
        da[i] = dy[i] * (e * s if b[i] < ZERO else s)
        db[i] = dy[i] * a[i] * (e * s * s)


@loop("dy", "x", "dx")
def glu_grad(dy, x, dx):
    """da = dy sigmoid(b), db = dy a sigmoid'(b)."""
    n = dy.shape[1]
    for r in range(dy.shape[0]):
        _glu_grad_row(dy[r], x[r, :n], x[r, n:], dx[r, :n], dx[r, n:])


@jit
def _swiglu_row(a, b, y):
    for i in range(y.shape[0]):
        gate = sigmoid(a[i])
        y[i] = (ZERO if gate == ZERO else a[i] * gate) * b[i]


@loop("x", "y")
def swiglu(x, y):
    """y = silu(a) b."""
    n = y.shape[1]
    for r in range(y.shape[0]):
        _swiglu_row(x[r, :n], x[r, n:], y[r])


@jit
def _swiglu_grad_row(dy, a, b, da, db):
    for i in range(dy.shape[0]):
        e = exp(-absolute(a[i]))
        s = ONE / (ONE + e)
        gate = e * s if a[i] < ZERO else s
        slope = e * s * s
        da[i] = dy[i] * (gate + (ZERO if slope == ZERO else a[i] * slope)) * b[i]
        db[i] = dy[i] * (ZERO if gate == ZERO else a[i] * gate)


@loop("dy", "x", "dx")
def swiglu_grad(dy, x, dx):
    """da = dy b silu'(a), db = dy silu(a)."""
    n = dy.shape[1]
    for r in range(dy.shape[0]):
        _swiglu_grad_row(dy[r], x[r, :n], x[r, n:], dx[r, :n], dx[r, n:])
