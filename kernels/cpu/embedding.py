"""Loops of kernels/embedding.py: weight (V, D), indices (n,) int64, rows (n, D)."""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop

ZERO = np.float32(0)


@jit
def first_outside(indices, rows):
    """Position of the first index that is not in 0 <= i < rows, -1 if there is none."""
    bad = False
    for i in range(indices.shape[0]):
        bad |= indices[i] < 0 or indices[i] >= rows
    if bad:
        for i in range(indices.shape[0]):
            if indices[i] < 0 or indices[i] >= rows:
                return i
    return -1


@loop("indices", "out")
def gather(indices, weight, out):
    for i in range(indices.shape[0]):
        row, target = weight[indices[i]], out[i]
        for j in range(target.shape[0]):
            target[j] = row[j]


@loop("rows", "indices", "out")
def gather_and_add(rows, indices, weight, positions, out):
    """`rows` are the numbers of the indices, whose places repeat after those of positions."""
    for i in range(indices.shape[0]):
        row, place, target = weight[indices[i]], positions[rows[i] % positions.shape[0]], out[i]
        for j in range(target.shape[0]):
            target[j] = row[j] + place[j]


@loop("stripes")
def scatter_add(stripes, width, dy, indices, skip, out):
    """out[indices[i]] += dy[i] in the order of i, index `skip` left out.

    A stripe is `width` columns, so threads share no element and every sum has the same order for
    any number of stripes.
    """
    columns = out.shape[1]
    for s in stripes:
        first, last = s * width, min((s + 1) * width, columns)
        for i in range(indices.shape[0]):
            k = indices[i]
            if k != skip:
                row, target = dy[i, first:last], out[k, first:last]
                for j in range(target.shape[0]):
                    target[j] += row[j]
