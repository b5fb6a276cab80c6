"""Softmax, step 4: a maximum and an exponential for vectors.

Idea: the loops of step 2 with two functions of kernels/cpu/vectormath.py. fast_max is LLVM's maxnum
    with a licence to ignore NaN: one instruction for 16 floats (a NaN still reaches the result, by
    way of the sum). exp_nonpositive is a polynomial of degree 5 on |r| < ln(2)/2, then 2^n by a
    shift of n into the exponent's bits: additions and multiplications, no call, no jump.
    "reassoc" allows LLVM to add up the row in several sums side by side.
Memory: 1 read and 1 write of 4 bytes an element.
Faster: 8 or 16 elements an instruction, and three passes over a row in L1 in place of five over
    memory. The row is handed over as a 1-D array: with x[r, i] in the loop LLVM would have to prove
    that rows do not overlap.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit
from kernels.cpu.vectormath import exp_nonpositive, fast_max

ZERO = np.float32(0)
ONE = np.float32(1)
MINUS_INF = np.float32(-np.inf)


@jit
def _row(x, y):
    m = MINUS_INF
    for i in range(x.shape[0]):
        m = fast_max(m, x[i])
    total = ZERO
    for i in range(x.shape[0]):
        e = exp_nonpositive(x[i] - m)
        y[i] = e
        total += e
    scale = ONE / total
    for i in range(y.shape[0]):
        y[i] *= scale


@jit
def _softmax(x, y):
    for r in range(x.shape[0]):
        _row(x[r], y[r])


def run(x: np.ndarray) -> np.ndarray:
    """The softmax of each row of x."""
    y = np.empty_like(x)
    _softmax(x, y)
    return y
