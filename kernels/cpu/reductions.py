"""Loops of kernels/reductions.py over x as (rows, columns), or (outer, n, inner) with n reduced.

What is cut between threads depends on the shape alone, so the result does not depend on their
number.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.summation import BLOCK, column_sum, row_deviation, row_sum
from kernels.cpu.vectormath import fast_max, maximum, minimum

INF = np.float32(np.inf)
NAN = np.float32(np.nan)
ZERO = np.float32(0)
ONE = np.float32(1)

#: Elements of a row between two looks at the position of the largest.
SLICE = 512

#: A task of a column reduction: so many rows (the length of a float32 sum) by so many columns (2
#: KiB).
ROWS, COLUMNS = 256, 512


# Sums ---------------------------------------------------------------------------------------------


@loop("blocks")
def block_sums(blocks, x, partials):
    """partials[b] (float64) = sum of the b-th BLOCK elements of a flat x."""
    for b in blocks:
        partials[b] = row_sum(x[b * BLOCK : (b + 1) * BLOCK])


@loop("blocks")
def block_deviations(blocks, x, centre, partials):
    """partials[b] (float64) = sum of (x - centre)^2 over the b-th BLOCK elements of a flat x."""
    for b in blocks:
        partials[b] = row_deviation(x[b * BLOCK : (b + 1) * BLOCK], centre)


@loop("x", "out")
def row_sums(x, scale, out):
    for r in range(x.shape[0]):
        out[r] = np.float32(row_sum(x[r]) * scale)


@loop("x", "out")
def row_variances(x, divisor, out):
    columns = x.shape[1]
    for r in range(x.shape[0]):
        m = np.float32(row_sum(x[r]) / columns)
        out[r] = np.float32(row_deviation(x[r], m) / divisor)


@loop("x", "out")
def row_norms(x, out):
    for r in range(x.shape[0]):
        out[r] = np.float32(math.sqrt(row_deviation(x[r], ZERO)))


@jit
def short_column_sums(x, out):
    """out (columns,) = sums over the rows of x, at most ROWS: one block of column_sums."""
    column_sum(x, 0, x.shape[0], 0, x.shape[1], out)


@loop("tasks")
def column_sums(tasks, x, out):
    """out (outer, blocks, inner): sums over each block of ROWS of the middle axis of x."""
    n, inner = x.shape[1], x.shape[2]
    blocks = out.shape[1]
    stripes = -(-inner // COLUMNS)
    for t in tasks:
        stripe, block, o = t % stripes, t // stripes % blocks, t // stripes // blocks
        first, last = stripe * COLUMNS, min((stripe + 1) * COLUMNS, inner)
        start, stop = block * ROWS, min((block + 1) * ROWS, n)
        column_sum(x[o], start, stop, first, last, out[o, block])


# Largest and smallest -----------------------------------------------------------------------------


@jit(forceinline=True)
def _largest(part, sign):
    """Largest sign * x of a slice, and how many elements are NaN."""
    m = -INF
    nans = ZERO
    for i in range(part.shape[0]):
        v = part[i]
        m = fast_max(m, sign * v)
        nans += ZERO if v == v else ONE
    return m, nans


@loop("x", "out")
def row_maxima(x, sign, out):
    """out = largest of sign * x in every row (sign is 1 or -1) times sign, NaN where the row has
    one.
    """
    for r in range(x.shape[0]):
        m, nans = _largest(x[r], sign)
        out[r] = NAN if nans > ZERO else sign * m


@loop("tasks")
def column_maxima(tasks, x, largest, out):
    """As column_sums, with the largest or the smallest instead of the sum."""
    n, inner = x.shape[1], x.shape[2]
    blocks = out.shape[1]
    stripes = -(-inner // COLUMNS)
    for t in tasks:
        stripe, block, o = t % stripes, t // stripes % blocks, t // stripes // blocks
        first, last = stripe * COLUMNS, min((stripe + 1) * COLUMNS, inner)
        target = out[o, block, first:last]
        row = x[o, block * ROWS, first:last]
        for j in range(target.shape[0]):
            target[j] = row[j]
        for i in range(block * ROWS + 1, min((block + 1) * ROWS, n)):
            row = x[o, i, first:last]
            if largest:
                for j in range(target.shape[0]):
                    target[j] = maximum(target[j], row[j])
            else:
                for j in range(target.shape[0]):
                    target[j] = minimum(target[j], row[j])


@loop("x", "out")
def row_argmaxima(x, sign, out):
    """The first position of the largest sign * x in every row; a NaN is larger than anything.

    The largest of each slice is found without branches; only the winning slice is searched.
    """
    columns = x.shape[1]
    for r in range(x.shape[0]):
        row = x[r]
        best = -INF
        winner = 0
        found_nan = False
        for start in range(0, columns, SLICE):
            m, nans = _largest(row[start : start + SLICE], sign)
            if nans > ZERO:
                winner = start
                found_nan = True
                break
            if m > best:
                best = m
                winner = start
        position = winner
        if found_nan:
            while row[position] == row[position]:
                position += 1
        else:
            while sign * row[position] != best:
                position += 1
        out[r] = position


# Running sums -------------------------------------------------------------------------------------


@loop("x", "out")
def row_cumsums(x, reverse, out):
    """out[r, i] = sum of x[r, :i + 1], or of x[r, i:] in reverse, accumulated in float64."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        n = row.shape[0]
        total = 0.0
        if reverse:
            for i in range(n - 1, -1, -1):
                total += row[i]
                target[i] = np.float32(total)
        else:
            for i in range(n):
                total += row[i]
                target[i] = np.float32(total)
