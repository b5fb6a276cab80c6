"""Transpose, step 1: a loop in Python.

Idea: y[i, r] = x[r, i], one element after the other.
Memory: next to none of it matters. A number taken out of an array becomes an object on the heap,
    and goes back into another array from there.
Slow: about a hundred nanoseconds an element, where memory could deliver it in less than one. It
    runs on a few rows only, and its time is scaled up.
"""

from __future__ import annotations

import numpy as np

#: Rows that are computed; the others would take the same time each.
ROWS = 16


def run(x: np.ndarray) -> np.ndarray:
    """The transpose of x, contiguous."""
    rows, columns = x.shape
    y = np.empty((columns, rows), x.dtype)
    for r in range(rows):
        for i in range(columns):
            y[i, r] = x[r, i]
    return y
