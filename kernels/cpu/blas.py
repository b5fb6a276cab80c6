"""float32 matrix products: the OpenBLAS inside NumPy, called from numba's own threads.

Two thread pools that spin on few cores disturb each other: a 0.2 ms product on OpenBLAS's threads
followed by an 8 us loop on numba's took 8 ms. So each numba thread calls cblas_sgemm for a block of
the result while OpenBLAS is told to use one thread; its setting is restored afterwards.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.engine import define, jit, one_launch_at_a_time, spread, threads

#: Up to this m n k OpenBLAS stays on one thread by itself, so that NumPy may be called directly.
SMALL = 262_144

#: Multiply-adds for which a further thread is worth launching (10 us of work).
WORTH_A_THREAD = 500_000

#: In the place of the address of a bias: the product is added to what is in the result.
_MORE = -1

_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112


def _libraries() -> list[Path]:
    """Files that may hold NumPy's BLAS: the extension that links it; on Windows the DLL."""
    folder = Path(np.__file__).parent
    extension = Path(np._core._multiarray_umath.__file__)
    return [extension, *sorted((folder.parent / "numpy.libs").glob("*openblas*.dll"))]


def _find_openblas() -> tuple[Any, dict[str, int]]:
    """OpenBLAS's index type and the addresses of what we need of it.

    No addresses where NumPy was built with another BLAS (Accelerate, MKL), which looks after its
    threads itself.
    """
    for file in _libraries():
        try:
            library = ctypes.CDLL(str(file))
        except OSError:
            continue
        for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
            names = {
                "sgemm": f"{prefix}cblas_sgemm{suffix}",
                "get_threads": f"{prefix}openblas_get_num_threads{suffix}",
                "set_threads": f"{prefix}openblas_set_num_threads{suffix}",
            }
            if all(hasattr(library, name) for name in names.values()):
                return types.int64 if suffix else types.int32, {
                    key: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
                    for key, name in names.items()
                }
    return types.int64, {}


_INDEX, _ADDRESSES = _find_openblas()
# The index type is part of the names (and of the signature below), hence of the key in numba's
# cache.
_NAMES = {key: f"framework_{key}_{_INDEX}" for key in ("sgemm", "get_threads", "set_threads")}
for _key, _address in _ADDRESSES.items():
    llvm.add_symbol(_NAMES[_key], _address)

_i4, _f4, _p = types.int32, types.float32, types.voidptr
_sgemm = types.ExternalFunction(
    _NAMES["sgemm"],
    types.void(_i4, _i4, _i4, _INDEX, _INDEX, _INDEX, _f4, _p, _INDEX, _p, _INDEX, _f4, _p, _INDEX),
)
_get_threads = types.ExternalFunction(_NAMES["get_threads"], _i4())
_set_threads = types.ExternalFunction(_NAMES["set_threads"], types.void(_i4))


def has_openblas() -> bool:
    """Was OpenBLAS found? If not, call np.matmul."""
    return bool(_ADDRESSES)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(
        args[0], cgutils.voidptr_t
    )


@jit
def address(x):
    """Where the array's memory begins (`x.ctypes.data` costs 1 us from Python, this 0.2)."""
    return x.ctypes.data


@jit(allocates=True)  # as numba sees it: carray makes an array of a pointer
def _block(m, n, k, a_flag, a, lda, b_flag, b, ldb, bias, c, ldc):
    """One block of the result, all pointers at its corner."""
    beta = np.float32(0)
    if bias == _MORE:
        beta = np.float32(1)
    elif bias != 0:
        # Instead of the zeros that OpenBLAS would begin with: the bias costs nothing extra.
        beta = np.float32(1)
        source = carray(_pointer(bias), (n,), np.float32)
        for i in range(m):
            target = carray(_pointer(c + 4 * ldc * i), (n,), np.float32)
            for j in range(n):
                target[j] = source[j]
    _sgemm(
        _ROW_MAJOR, a_flag, b_flag, m, n, k, np.float32(1),
        _pointer(a), lda, _pointer(b), ldb, beta, _pointer(c), ldc,
    )  # fmt: skip


@jit
def _cut(n, pieces, piece):
    """First and last + 1 of a piece, at multiples of 16 (a register block) where n is large."""
    grain = 16 if n >= 32 * pieces else 1
    start = n * piece // pieces // grain * grain
    stop = n if piece == pieces - 1 else n * (piece + 1) // pieces // grain * grain
    return start, stop


@jit
def _task(
    task, tasks, batch1, row_pieces, column_pieces, m, n, k,
    a_transposed, a, lda, a_step0, a_step1,
    b_transposed, b, ldb, b_step0, b_step1,
    bias, c, ldc, c_step0, c_step1,
):  # fmt: skip
    """Piece number `task` of the batch, on OpenBLAS's one thread."""
    a_row = 4 if a_transposed else 4 * lda
    b_column = 4 * ldb if b_transposed else 4
    pieces = row_pieces * column_pieces
    matrix = task // pieces
    i = matrix // batch1
    j = matrix % batch1
    top, bottom = _cut(m, row_pieces, task % pieces // column_pieces)
    left, right = _cut(n, column_pieces, task % pieces % column_pieces)
    if bottom > top and right > left:
        _block(
            bottom - top, right - left, k,
            _TRANSPOSE if a_transposed else _NO_TRANSPOSE,
            a + i * a_step0 + j * a_step1 + top * a_row, lda,
            _TRANSPOSE if b_transposed else _NO_TRANSPOSE,
            b + i * b_step0 + j * b_step1 + left * b_column, ldb,
            bias + 4 * left if bias > 0 else bias,
            c + i * c_step0 + j * c_step1 + 4 * (top * ldc + left), ldc,
        )  # fmt: skip


_TASK = (
    "batch1, row_pieces, column_pieces, m, n, k, a_transposed, a, lda, a_step0, a_step1, "
    "b_transposed, b, ldb, b_step0, b_step1, bias, c, ldc, c_step0, c_step1"
)

_SERIAL = f"""
def product(tasks, team, {_TASK}):
    before = get_threads()
    set_threads(1)
    for task in range(tasks):
        run(task, tasks, {_TASK})
    set_threads(before)
"""

_PARALLEL = f"""
def product(tasks, team, {_TASK}):
    before = get_threads()
    set_threads(1)
    run(tasks, team, {_TASK})
    set_threads(before)
"""


@cache
def _compiled(parallel: bool) -> Any:
    """The loop over tasks, compiled once for all layouts: addresses and sizes are integers.

    The serial one compiles in a fifth of the time, and launches nothing.
    """
    run = spread("product_tasks", _task, _TASK) if parallel else _task
    names = {"run": run, "get_threads": _get_threads, "set_threads": _set_threads}
    function = jit(define("product", _PARALLEL if parallel else _SERIAL, **names))
    operand = (types.boolean, types.int64, _INDEX, types.int64, types.int64)
    result = (types.int64, _INDEX, types.int64, types.int64)
    sizes = (types.int64,) * 5 + (_INDEX,) * 3
    function.compile(types.void(*sizes, *operand, *operand, types.int64, *result))
    function.disable_compile()
    return function


@lru_cache(4096)
def _grid(m: int, n: int, k: int, batch: int, workers: int) -> tuple[int, int]:
    """Row and column pieces of each matrix: as many as there are threads, over the whole batch.

    More pieces would balance better on a busy machine, but each packs its operands anew: 16 pieces
    of a 1024^3 product take 8-10 % more than 2 on 2 cores. So the last bit of a product may depend
    on the number of threads, as with OpenBLAS's own.
    """
    pieces = -(-min(workers, max(1, batch * m * n * k // WORTH_A_THREAD)) // batch)
    shapes = [(r, pieces // r) for r in range(1, pieces + 1) if pieces % r == 0]
    # A block packs its rows of a and its columns of b: the fewer of both, the better. Rows of a
    # cost more: 512x128x784 with a transposed takes 7 % less cut by rows than by columns.
    return min(shapes, key=lambda s: (3 * m / s[0] + n / s[1], -s[0]))


def is_small(m: int, n: int, k: int, results: int) -> bool:
    """Is np.matmul on one thread the fastest? `results` is m n times the batch."""
    # A product with a vector goes to gemv, which takes OpenBLAS's threads from 9,216 elements on.
    return results * k <= (SMALL if m > 1 and n > 1 else 8192)


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    a_transposed: bool,
    b_transposed: bool,
    bias: np.ndarray | None,
    out: np.ndarray,
    more: bool = False,
) -> None:
    """out = a b + bias, transposed as told, float32, shapes already checked, nothing empty; with
    `more` (and no bias) a b is added to what is in out.

    The last two axes are the matrices; `out` is C-contiguous.
    """
    if out.ndim > 4:
        out = out.reshape(-1, *out.shape[-2:])
    if bias is not None and bias.strides != (4,):
        bias = np.ascontiguousarray(bias)
    m, n = out.shape[-2:]
    k = a.shape[-2] if a_transposed else a.shape[-1]
    batch0, batch1, c_step0, c_step1 = _batch(out)
    a, a_transposed, lda, a_step0, a_step1 = _operand(a, a_transposed)
    b, b_transposed, ldb, b_step0, b_step1 = _operand(b, b_transposed)
    team = threads()
    row_pieces, column_pieces = _grid(m, n, k, batch0 * batch1, team)
    tasks = batch0 * batch1 * row_pieces * column_pieces
    work = batch0 * batch1 * m * n * k
    function = _compiled(tasks > 1 and team > 1 and work >= 2 * WORTH_A_THREAD)
    # The number of OpenBLAS threads is global: two Python threads must not save and restore it
    # crosswise.
    with one_launch_at_a_time:
        function(
            tasks, team, batch1, row_pieces, column_pieces, m, n, k,
            a_transposed, address(a), lda, a_step0, a_step1,
            b_transposed, address(b), ldb, b_step0, b_step1,
            (_MORE if more else 0) if bias is None else address(bias),
            address(out), n, c_step0, c_step1,
        )  # fmt: skip


def has_unit_stride(x: np.ndarray) -> bool:
    """Can BLAS read the matrices of `x` as they lie, as rows or as columns?"""
    return _leading_dimension(x) is not None


def _leading_dimension(x: np.ndarray) -> tuple[bool, int] | None:
    """Do the last two axes of float32 `x` lie transposed, and how far apart are the rows?

    None where BLAS can read it neither way.
    """
    rows, columns = x.shape[-2:]
    down, right = x.strides[-2:]
    if (right == 4 or columns == 1) and (rows == 1 or (down >= 4 * columns and down % 4 == 0)):
        return False, down // 4 if rows > 1 else columns
    if (down == 4 or rows == 1) and (columns == 1 or (right >= 4 * rows and right % 4 == 0)):
        return True, right // 4 if columns > 1 else rows
    return None


def _operand(x: np.ndarray, transposed: bool) -> tuple[np.ndarray, bool, int, int, int]:
    """`x` (copied if BLAS cannot read it), is it to be transposed, row distance, batch steps."""
    layout = _leading_dimension(x)
    if layout is None:
        x = np.ascontiguousarray(x)
        layout = False, x.shape[-1]
    if x.ndim > 4:
        x = x.reshape(-1, *x.shape[-2:])
        layout = _leading_dimension(x) or layout
    _, _, step0, step1 = _batch(x)
    return x, transposed != layout[0], layout[1], step0, step1


def _batch(x: np.ndarray) -> tuple[int, int, int, int]:
    """Sizes and byte steps of the one or two batch axes (more than two have been merged)."""
    if x.ndim == 2:
        return 1, 1, 0, 0
    if x.ndim == 3:
        return 1, x.shape[0], 0, x.strides[0]
    return x.shape[0], x.shape[1], x.strides[0], x.strides[1]
