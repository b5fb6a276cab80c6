"""Small matrix products inside of other loops: c (+)= a b, tile by tile in vector registers.

For what a convolution multiplies: blocks that its own transforms have laid out a moment ago and
that are still in a core's caches. A BLAS would copy them once more. One tile of R rows and P
columns keeps R P / 16 sums in registers and does two multiply-adds of 16 a cycle on AVX-512 (270
GFLOP/s a core at 4.2 GHz), whatever the strides of a.

b lies in panels of P columns, each (K, P), the last one padded; c's rows have room for whole
registers of 16, its number of rows for whole tiles.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np

from kernels.cpu.engine import define, jit
from kernels.cpu.lanes import LANES, each, load, load_each, store


def _tile_shape() -> tuple[int, int]:
    """Rows and vectors of a tile: as many sums as leave registers for what is multiplied."""
    if llvm.get_host_cpu_features().get("avx512f"):
        return 12, 2
    return 6, 1  # two registers of 8 for one of 16 lanes, or four of 4


R, _VECTORS = _tile_shape()
P = LANES * _VECTORS


def _tile(vectors: int) -> Any:
    """A compiled function: R rows and 16 * `vectors` columns of c from ``c[c0]`` on.

    Element k of row r of a is ``a[a0 + r * row + k * step]``, row k of b begins at ``b[b0 + k *
    ldb]``.
    """
    name, down, across = f"tile_{R}x{vectors}", range(R), range(vectors)
    lines = [f"def {name}(a, a0, row, step, b, b0, ldb, K, c, c0, ldc, add):"]
    lines += ["    if add:"]
    at = [(r, v, f"c, c0 + {r} * ldc + {LANES * v}, LANES") for r in down for v in across]
    lines += [f"        s{r}_{v} = load({place})" for r, v, place in at]
    lines += ["    else:"]
    lines += [f"        s{r}_{v} = each(ZERO)" for r, v, _ in at]
    lines += ["    for k in range(K):"]
    lines += [f"        y{v} = load(b, b0 + k * ldb + {LANES * v}, LANES)" for v in across]
    for r in down:
        lines += [f"        x = load_each(a, a0 + {r} * row + k * step)"]
        lines += [f"        s{r}_{v} += x * y{v}" for v in across]
    lines += [f"    store({place}, s{r}_{v})" for r, v, place in at]
    names = {"each": each, "load": load, "load_each": load_each, "store": store, "LANES": LANES}
    return jit(define(name, "\n".join(lines) + "\n", ZERO=np.float32(0), **names))


_wide, _narrow = _tile(_VECTORS), _tile(1)


@jit
def padded(n, unit):
    """n up to a multiple of `unit`."""
    return (n + unit - 1) // unit * unit


def padded_to(n: int, unit: int) -> int:
    """The same, called from Python."""
    return -(-n // unit) * unit


@jit
def spaced(n):
    """n floats up to an odd number of cache lines: blocks so far apart lie in different sets of a
    cache, where 36 of them at a power of two would all want the same one.
    """
    return (padded(n, LANES) // LANES | 1) * LANES


@jit
def multiply(a, a0, row, step, m, b, b0, ldb, panel, K, n, c, c0, ldc, add):
    """c[:m, :n] = a b, or += with `add`, for flat arrays: see the module's text.

    m counts whole tiles. Panel j of b begins at ``b[b0 + j * panel]``, its rows are `ldb` apart.
    """
    for j in range(0, n, P):
        b1 = b0 + j // P * panel
        if n - j > LANES or P == LANES:
            for i in range(0, m, R):
                _wide(a, a0 + i * row, row, step, b, b1, ldb, K, c, c0 + i * ldc + j, ldc, add)
        else:
            for i in range(0, m, R):
                _narrow(a, a0 + i * row, row, step, b, b1, ldb, K, c, c0 + i * ldc + j, ldc, add)


@jit
def copy(x, i, y, j, n):
    """y[j : j + n] = x[i : i + n], flat."""
    whole = n // LANES * LANES
    for k in range(0, whole, LANES):
        store(y, j + k, LANES, load(x, i + k, LANES))
    if whole < n:
        store(y, j + whole, n - whole, load(x, i + whole, n - whole))


@jit
def clear(y, j, n):
    """y[j : j + n] = 0, flat."""
    whole = n // LANES * LANES
    for k in range(0, whole, LANES):
        store(y, j + k, LANES, each(np.float32(0)))
    if whole < n:
        store(y, j + whole, n - whole, each(np.float32(0)))


@jit
def share(n, worker, workers):
    """First and last + 1 of a worker's tasks of n."""
    return n * worker // workers, n * (worker + 1) // workers
