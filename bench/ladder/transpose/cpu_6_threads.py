"""Transpose, step 6: all threads.

Idea: step 5, cut by stripes of 16 columns into as many pieces as there are cores
    (kernels/cpu/engine.py: @loop). Each writes rows of y of its own, so that no line is written by
    two cores.
Memory: 1 read and 1 write of 4 bytes an element (and the fetch of y's lines before the write).
Faster: a core has a limited number of cache lines under way; more cores wait for more of them at a
    time. This is the last step: the framework has no kernel for it, because none of its kernels
    needs one (products take transposed operands as they are).
"""

from __future__ import annotations

import numpy as np

from bench.ladder.transpose.cpu_5_registers import prepared, transpose


def run(x: np.ndarray) -> np.ndarray:
    """The transpose of x, contiguous."""
    stripes, x, y = prepared(x)
    transpose(stripes, x, y, work=x.size)
    return y
