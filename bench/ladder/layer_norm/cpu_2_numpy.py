"""Layer norm, step 2: whole arrays at once, in NumPy.

Idea: one call for all elements. The loop runs inside NumPy, compiled, over numbers in place of
    objects.
Memory: mean (1 read), x - mean (1 read, 1 write), square (the same), mean of it (1 read), and three
    more of a read and a write for rstd, weight and bias: 12 times 4 bytes an element, where 2 times
    would do.
Faster: Python is asked a dozen times a call, not a dozen times an element. From here on memory
    counts.
"""

from __future__ import annotations

import numpy as np

EPS = np.float32(1e-5)


def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The layer norm of each row of x."""
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    return centred * (1 / np.sqrt(variance + EPS)) * weight + bias
