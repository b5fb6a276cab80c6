"""Layer norm, step 4: many sums side by side.

Idea: with "reassoc" LLVM may add in any order. It takes 4 registers of 16 sums each: 64 additions
    under way at a time, none waiting for another, added up at the end. row_sum and row_deviation of
    kernels/cpu/summation.py do so for blocks of 4096 elements and add the blocks in float64.
Memory: 1 read and 1 write of 4 bytes an element, as before.
Faster: 64 sums in place of one. It is the more exact, too: a sum adds up 64 elements, not the whole
    row. The licence is for additions only. "nnan" and "ninf" of the full fastmath would let the
    compiler assume that there are no NaN and infinities, and they must come out.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.cpu.engine import jit
from kernels.cpu.summation import row_deviation, row_sum

EPS = 1e-5


@jit
def _layer_norm(x, weight, bias, y):
    columns = x.shape[1]
    for r in range(x.shape[0]):
        row, out = x[r], y[r]
        mean = np.float32(row_sum(row) / columns)
        rstd = np.float32(1 / math.sqrt(row_deviation(row, mean) / columns + EPS))
        for i in range(columns):
            out[i] = (row[i] - mean) * rstd * weight[i] + bias[i]


def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The layer norm of each row of x."""
    y = np.empty_like(x)
    _layer_norm(x, weight, bias, y)
    return y
