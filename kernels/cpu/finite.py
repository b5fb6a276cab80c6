"""The loop of kernels/finite.py: each element is read once, at the speed of memory."""

from __future__ import annotations

import numpy as np

from kernels.cpu import engine

_ZERO = np.float32(0)


@engine.loop("x")
def mark_nonfinite(x, found):
    s = _ZERO
    for i in range(x.shape[0]):
        s += _ZERO * x[i]  # 0 of what is finite, else NaN, which stays: one instruction a vector
    if s != s:
        found[0] = 1  # several threads may: they all write the same
