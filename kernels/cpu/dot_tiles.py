"""a b^T + bias for float32 matrices whose rows are the inner axis: the forward pass of Linear.

Both operands are read as they lie. A tile of the result is R x C dot products side by side, their
R * C running sums in vector registers: R + C loads for R * C multiply-adds a step. A BLAS packs its
operands first, which pays for large matrices; for a batch of 128 it costs more than it saves
(128x784x512 on 2 cores: 0.77 of OpenBLAS's time).
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np

from kernels.cpu.engine import define, jit, one_launch_at_a_time, spread, threads


def _tile_shape() -> tuple[int, int]:
    """Rows and columns of a tile: as many sums as leave registers for what is multiplied."""
    features = llvm.get_host_cpu_features()
    many = features.get("avx512f") or features.get("neon")  # 32 vector registers, AVX2 has 16
    return (4, 4) if many else (4, 2)


R, C = _tile_shape()

#: Float32 elements of a that stay in a core's L2 cache while the columns go by: 512 KiB.
CACHED = 131_072

#: Longest inner axis: a tile's R + C rows stay in L1 (32 KiB) up to about 1,000, in L2 beyond.
LONGEST = 4096

#: Multiply-adds up to which one thread does it all (40 us): launching a second one saves little,
#: and on a busy machine it costs a time slice.
SERIAL_UP_TO = 1 << 21


def _tile(rows: int, columns: int) -> Any:
    """A compiled function: out[i:i+rows, j:j+columns] = rows of a times rows of b, plus bias."""
    down, across = range(rows), range(columns)
    lines = [f"def tile_{rows}x{columns}(a, b, bias, out, i, j):"]
    lines += [f"    a{r} = a[i + {r}]" for r in down]
    lines += [f"    b{c} = b[j + {c}]" for c in across]
    lines += [f"    s{r}_{c} = ZERO" for r in down for c in across]
    lines += ["    for k in range(a0.shape[0]):"]
    lines += [f"        y{c} = b{c}[k]" for c in across]
    for r in down:
        lines += [f"        x = a{r}[k]"]
        lines += [f"        s{r}_{c} += x * y{c}" for c in across]
    lines += [f"    out[i + {r}, j + {c}] = s{r}_{c} + bias[j + {c}]" for r in down for c in across]
    return jit(define(f"tile_{rows}x{columns}", "\n".join(lines) + "\n", ZERO=np.float32(0)))


_whole, _bottom, _corner = _tile(R, C), _tile(1, C), _tile(1, 1)


@jit
def _block(a, b, bias, out, top, bottom, left, right):
    """The tiles of out[top:bottom, left:right]."""
    step = max(R, CACHED // a.shape[1] // R * R)
    while top < bottom:
        end = min(bottom, top + step)
        whole = top + (end - top) // R * R
        j = left
        while j + C <= right:
            for i in range(top, whole, R):
                _whole(a, b, bias, out, i, j)
            for i in range(whole, end):
                _bottom(a, b, bias, out, i, j)
            j += C
        while j < right:  # at most C - 1 columns: not worth the compile time of a tile of their own
            for i in range(top, end):
                _corner(a, b, bias, out, i, j)
            j += 1
        top = end


@jit
def _cut(n, grain, pieces, piece):
    """First and last + 1 of a piece, between whole tiles: which tile computes an element depends
    on the shape alone.
    """
    last = n if piece == pieces - 1 else n * (piece + 1) // pieces // grain * grain
    return n * piece // pieces // grain * grain, last


@jit
def _piece(piece, pieces, a, b, bias, out, row_pieces, column_pieces):
    m, n = out.shape
    top, bottom = _cut(m, R, row_pieces, piece // column_pieces)
    left, right = _cut(n, C, column_pieces, piece % column_pieces)
    _block(a, b, bias, out, top, bottom, left, right)


_product = spread("dot_tiles", _piece, "a, b, bias, out, row_pieces, column_pieces")


def suits(a: np.ndarray, b: np.ndarray) -> bool:
    """Are these the matrices, a (m, k) and b (n, k), for which tiles are faster than OpenBLAS?

    Measured on 2 cores: ahead up to m = 128, 10-20 % behind from m = 256.
    """
    return (
        a.ndim == 2
        and a.shape[0] <= 192
        and 16 <= a.shape[1] <= LONGEST
        and a.flags.c_contiguous
        and b.flags.c_contiguous
    )


def product(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
    """out (m, n) = a (m, k) b (n, k)^T + bias (n,), all float32 and C-contiguous, k >= 1."""
    m, n = out.shape
    bias = np.zeros(n, np.float32) if bias is None else np.ascontiguousarray(bias)
    by_columns = n >= m
    pieces = min(threads(), max(1, (n // C if by_columns else m // R) // 4))
    if pieces == 1 or m * n * a.shape[1] <= SERIAL_UP_TO:
        _block(a, b, bias, out, 0, m, 0, n)
    else:
        with one_launch_at_a_time:
            cuts = (1, pieces) if by_columns else (pieces, 1)
            _product(pieces, pieces, a, b, bias, out, *cuts)
