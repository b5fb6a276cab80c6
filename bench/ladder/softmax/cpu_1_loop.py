"""Softmax, step 1: a loop in Python.

Idea: the formula as one would write it down. A row's maximum is subtracted first, so that no e^x
    overflows.
Memory: next to none of it matters. A number taken out of an array becomes an object on the heap; a
    hundred instructions find out what the "-" of two objects means, for one that subtracts.
Slow: hundreds of nanoseconds an element, where memory could deliver it in less than one. It runs on
    a few rows only, and its time is scaled up.
"""

from __future__ import annotations

import math

import numpy as np

#: Rows that are computed; the others would take the same time each.
ROWS = 4


def run(x: np.ndarray) -> np.ndarray:
    """The softmax of each row of x."""
    rows, columns = x.shape
    y = np.empty_like(x)
    for r in range(rows):
        m = -math.inf
        for i in range(columns):
            m = max(m, x[r, i])
        total = 0.0
        for i in range(columns):
            total += math.exp(x[r, i] - m)
        for i in range(columns):
            y[r, i] = math.exp(x[r, i] - m) / total
    return y
