"""Layer norm, step 3: the loop of step 1, compiled.

Idea: numba turns the text of step 1 into machine code. A row is done before the next one begins.
Memory: 1 read and 1 write of 4 bytes an element; a row of 1024 floats (4 KB) stays in L1 for all
    three passes.
Faster: a sixth of the traffic. The last pass becomes vector instructions; the two sums do not: an
    addition of floats is not associative, so the compiler must add one element after the other, and
    each addition waits for the one before, 4 cycles an element, whatever the width of a register.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.cpu.engine import jit

EPS = 1e-5


@jit(fastmath=False)
def _layer_norm(x, weight, bias, y):
    rows, columns = x.shape
    for r in range(rows):
        row, out = x[r], y[r]
        total = np.float32(0)
        for i in range(columns):
            total += row[i]
        mean = np.float32(total / columns)
        total = np.float32(0)
        for i in range(columns):
            d = row[i] - mean
            total += d * d
        rstd = np.float32(1 / math.sqrt(total / columns + EPS))
        for i in range(columns):
            out[i] = (row[i] - mean) * rstd * weight[i] + bias[i]


def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The layer norm of each row of x."""
    y = np.empty_like(x)
    _layer_norm(x, weight, bias, y)
    return y
