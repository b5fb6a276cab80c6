"""Transpose, step 5: tiles turned in registers.

Idea: the 16 lines of a tile are loaded into 16 registers, whole, and turned there: in each of 4
    rounds lines at distance 1, 2, 4, 8 exchange blocks of so many lanes (a bit of the line's number
    changes place with the same bit of the lane's). LLVM calls it shufflevector and knows the
    instructions. CPUs with narrower registers use several for a line.
Memory: 1 read and 1 write of 4 bytes an element (and the fetch of y's lines before the write). No
    line is needed twice, so that none can be lost to its neighbours in between, not even with rows
    of 4096 floats, whose columns share one set of L1.
Faster: 16 loads, 64 shuffles and 16 stores a tile in place of 256 loads and 256 stores. Tiles go
    down a column of x, along a row of y: the writes are then 16 streams, which the core follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.engine import jit, loop, numbers

TILE = 16

_LINE = ir.VectorType(ir.FloatType(), TILE)
_ORDER = ir.VectorType(ir.IntType(32), TILE)


def _exchange(builder: Any, lines: list[Any], distance: int) -> list[Any]:
    """Of each pair of lines `distance` apart: the first's odd blocks of `distance` lanes change
    places with the second's even ones.
    """
    lanes, out = range(TILE), list(lines)
    first = [k if not k & distance else TILE + k - distance for k in lanes]
    second = [k + distance if not k & distance else TILE + k for k in lanes]
    for i in (i for i in lanes if not i & distance):
        for j, order in ((i, first), (i + distance, second)):
            mask = ir.Constant(_ORDER, order)
            out[j] = builder.shuffle_vector(lines[i], lines[i + distance], mask)
    return out


def _line(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """The address of array[row, column : column + 16]."""
    fields = context.make_array(kind)(context, builder, array)
    _, columns = cgutils.unpack_tuple(builder, fields.shape)
    place = builder.gep(fields.data, [builder.add(builder.mul(row, columns), column)])
    return builder.bitcast(place, ir.PointerType(_LINE))


@intrinsic
def _turn(context: Any, x: Any, r: Any, i: Any, y: Any) -> Any:
    """y[i : i + 16, r : r + 16] = x[r : r + 16, i : i + 16].T of C-contiguous float32 arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, r, i, y = args
        kind = signature.args[0]

        def line(array: Any, row: Any, k: int, column: Any) -> Any:
            row = builder.add(row, ir.Constant(row.type, k))
            return _line(context, builder, kind, array, row, column)

        lines = [builder.load(line(x, r, k, i), align=4) for k in range(TILE)]
        for distance in (1, 2, 4, 8):
            lines = _exchange(builder, lines, distance)
        for k in range(TILE):
            builder.store(lines[k], line(y, i, k, r), align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, y), generate


@jit
def _stripe(x, y, i):
    """16 columns of x, from i on, which are 16 rows of y."""
    rows, columns = x.shape
    full = rows // TILE * TILE if i + TILE <= columns else 0
    for r in range(0, full, TILE):
        _turn(x, r, i, y)
    for b in range(i, min(i + TILE, columns)):
        for a in range(full, rows):
            y[b, a] = x[a, b]


@loop("stripes")
def transpose(stripes, x, y):
    """The stripes of 16 columns with these numbers; the next step cuts them between threads."""
    for s in stripes:
        _stripe(x, y, s * TILE)


def prepared(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of all stripes, x, and where its transpose goes."""
    rows, columns = x.shape
    return numbers(-(-columns // TILE)), x, np.empty((columns, rows), np.float32)


def run(x: np.ndarray) -> np.ndarray:
    """The transpose of x, contiguous."""
    stripes, x, y = prepared(x)
    transpose.serial(stripes, x, y)
    return y
