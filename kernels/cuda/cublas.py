"""Matrix products on CUDA: NVIDIA's cuBLASLt, with handles, workspaces and plans of our own.

CuPy's products cannot be captured into a CUDA graph, widen batched float16 and refuse batched
bfloat16. Here every product, plain, batched or fused with what follows it, is one call on CuPy's
current stream (plans.py), through ctypes (cublaslt.py).

Row-major arrays in a column-major library: the memory of a row-major (m, n) array is that of a
column-major (n, m) matrix, so the library computes y^T = b^T a^T with our b as its A, our a as its
B. Its rows are then our columns, which is where its epilogues want them: a bias is added along
rows of y^T, one number per feature.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels.arrays import Array, array_module
from kernels.cuda import cublaslt as lt, plans
from kernels.precision import tf32_is_allowed

#: Bytes beyond which an alignment makes no difference to the library.
_ALIGNMENT = 256

#: What may follow a product y = a b in the same kernel.
BIAS = lt.EPILOGUE_BIAS  # y + bias
GELU_AUX_BIAS = lt.EPILOGUE_GELU_AUX_BIAS  # gelu_tanh(aux) with aux = y + bias kept
DGELU_BGRAD = lt.EPILOGUE_DGELU_BGRAD  # y = gelu_tanh_grad(y, aux), bias = sum of y's rows
SUM_A = lt.EPILOGUE_BGRADB  # y, bias = sum of a over the axis that the product sums over


# Is it there? -------------------------------------------------------------------------------------


def usable() -> bool:
    """Do products on the current device go through cuBLASLt? Where not, the reason is logged once,
    and CuPy multiplies.
    """
    return _found() and _starts(plans.current_device())


@cache
def _found() -> bool:
    """Is the library installed?"""
    reason = lt.missing()
    if reason is not None:
        _report(reason)
    return reason is None


@cache
def _starts(device: int) -> bool:
    """Does the library start on `device`?"""
    try:
        plans.handle(device)
    except lt.CublasError as error:
        _report(str(error))
        return False
    return True


def _report(reason: str) -> None:
    plans.log.warning("matrix products on CUDA go through CuPy and cannot be captured: %s", reason)


# Operands -----------------------------------------------------------------------------------------


def _layout(x: Array) -> tuple[int, bool, int] | None:
    """How the matrices of `x` (..., rows, columns) lie in memory.

    Returns (leading dimension, columns instead of rows?, distance between matrices) in elements,
    or None if they lie in a way that the library cannot read.
    """
    size, shape, strides = x.itemsize, x.shape, x.strides
    rows, columns = shape[-2:]
    row, column = strides[-2:]
    if columns == 1 or column == size:
        ld, turned, least = (row if rows > 1 else columns * size), False, columns * size
    elif rows == 1 or row == size:
        ld, turned, least = column, True, rows * size
    else:
        return None
    if ld < least or ld % size:
        return None
    if len(shape) == 2:
        return ld // size, turned, 0
    count, distance = 1, 0
    for n, stride in zip(shape[-3::-1], strides[-3::-1], strict=True):
        if n == 1:
            continue
        if count == 1:
            distance = stride
        elif stride != count * distance:
            return None
        count *= n
    return None if distance < 0 or distance % size else (ld // size, turned, distance // size)


def _operand(x: Array) -> tuple[Array, int, bool, int]:
    """`x`, or a contiguous copy where it cannot be read as it lies, and its layout."""
    layout = _layout(x)
    if layout is None:
        x = array_module(x).ascontiguousarray(x)
        layout = _layout(x)
        assert layout is not None
    return x, *layout


_kinds: dict[Any, int] = {}


def _kind(dtype: Any) -> int:
    """The library's number for a dtype, whose name NumPy takes 1 us to spell out."""
    kind = _kinds.get(dtype)
    if kind is None:
        kind = _kinds[dtype] = plans.TYPES[dtype.name]
    return kind


def writable(y: Array | None) -> bool:
    """May a product be written into `y` directly: does it have rows in memory?"""
    if y is None:
        return False
    layout = _layout(y)
    return layout is not None and not layout[1] and (layout[2] > 0 or _matrices(y) == 1)


def _matrices(x: Array) -> int:
    count = 1
    for n in x.shape[:-2]:
        count *= n
    return count


def _alignment(pointer: int) -> int:
    """The largest power of two up to 256 that divides an address; 256 for none at all."""
    return pointer & -pointer & (_ALIGNMENT - 1) or _ALIGNMENT


# Products -----------------------------------------------------------------------------------------


def product(
    a: Array,
    b: Array,
    transpose_a: bool,
    transpose_b: bool,
    y: Array,
    epilogue: int = lt.EPILOGUE_DEFAULT,
    bias: Array | None = None,
    aux: Array | None = None,
) -> bool:
    """y = epilogue(a b) over the last two axes, on the current stream.

    Shapes are those of `kernels.matmul.matmul`, nothing empty; y is `writable` and may be float32
    for 16-bit a and b. `bias` (n,) and `aux` (m, n), both with neighbouring elements, are what the
    epilogue reads or writes. False, and nothing written, where the library does not have the
    epilogue for this problem; CublasError where it cannot multiply at all.
    """
    (m, n), k = y.shape[-2:], a.shape[-2 if transpose_a else -1]
    aux_ld = 0 if aux is None else aux.strides[0] // aux.itemsize
    if aux_ld % 8:  # the library's rule
        return False
    a, a_ld, a_turned, a_distance = _operand(a)
    b, b_ld, b_turned, b_distance = _operand(b)
    layout = _layout(y)
    assert layout is not None
    batch = _matrices(y) if y.ndim > 2 else 1
    at_a, at_b, at_y = a.data.ptr, b.data.ptr, y.data.ptr
    at_bias = 0 if bias is None else bias.data.ptr
    at_aux = 0 if aux is None else aux.data.ptr
    kind = _kind(a.dtype)
    problem = plans.Problem(
        plans.current_device(),
        n,
        m,
        k,
        batch,
        (b_ld, transpose_b != b_turned, b_distance),
        (a_ld, transpose_a != a_turned, a_distance),
        (layout[0], layout[2]),
        kind,
        _kind(y.dtype),
        epilogue,
        aux_ld,
        (
            _alignment(at_b),
            _alignment(at_a),
            _alignment(at_y),
            _alignment(at_bias),
            _alignment(at_aux),
        ),
        kind == lt.CUDA_R_32F and tf32_is_allowed(),
    )
    plan = plans.find(problem, at_bias, at_aux)
    if isinstance(plan, str):
        if epilogue == lt.EPILOGUE_DEFAULT:
            raise lt.CublasError(plan)
        return False
    plan.run(at_b, at_a, at_y, at_bias, at_aux)
    return True
