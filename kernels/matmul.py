"""Matrix products, plain and batched, with either side transposed and a bias added."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, is_half
from kernels.registry import kernel


@kernel(inplace=("out",))
def matmul(
    a: Array,
    b: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    """a b + bias over the last two axes.

    a is (..., m, k), or (..., k, m) with `transpose_a`; b is (..., k, n), or (..., n, k) with
    `transpose_b`; the leading axes are equal. `bias` is (n,). Gives (..., m, n), in `out` if given,
    which must not overlap the rest. Zeros (plus bias) for k = 0.
    """
    xp = array_module(a)
    shape = _result_shape(a, b, transpose_a, transpose_b, bias, out)
    a = a.swapaxes(-1, -2) if transpose_a else a
    b = b.swapaxes(-1, -2) if transpose_b else b
    y = xp.matmul(a, b) if a.shape[-1] else xp.zeros(shape, a.dtype)
    if bias is not None:
        y += bias
    if out is None:
        return y
    out[...] = y
    return out


def _result_shape(
    a: Array, b: Array, transpose_a: bool, transpose_b: bool, bias: Any, out: Any
) -> tuple[int, ...]:
    """(..., m, n), after checking that everything fits."""
    if a.ndim < 2 or b.ndim != a.ndim or (a.ndim > 2 and a.shape[:-2] != b.shape[:-2]):
        raise ValueError(
            f"matmul: a is {a.shape}, b is {b.shape}: "
            "expected matrices, or equal leading axes before the last two"
        )
    m, k = a.shape[-2:]
    k_b, n = b.shape[-2:]
    if transpose_a:
        m, k = k, m
    if transpose_b:
        k_b, n = n, k_b
    if k != k_b:
        raise ValueError(
            f"matmul: a is {a.shape} (transpose_a={transpose_a}) and "
            f"b is {b.shape} (transpose_b={transpose_b}): the inner sizes {k} and {k_b} differ"
        )
    if a.dtype != b.dtype:
        raise ValueError(f"matmul: a is {a.dtype}, b is {b.dtype}: expected one dtype")
    shape = (*a.shape[:-2], m, n)
    if bias is not None and (bias.shape != (n,) or bias.dtype != a.dtype):
        raise ValueError(f"matmul: bias is {bias.dtype}{bias.shape}, expected {a.dtype}({n},)")
    if out is not None and (out.shape != shape or out.dtype != a.dtype):
        raise ValueError(f"matmul: out is {out.dtype}{out.shape}, expected {a.dtype}{shape}")
    return shape


@cache
def _engines() -> Any:
    """kernels/cpu/blas.py and dot_tiles.py; the import itself would cost 1 us a call."""
    from kernels.cpu import blas, dot_tiles

    return blas, dot_tiles


@matmul.cpu
def _(
    a: Array,
    b: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    blas, tiles = _engines()
    shape = _result_shape(a, b, transpose_a, transpose_b, bias, out)
    y = out if out is not None and out.flags.c_contiguous else np.empty(shape, np.float32)
    k = a.shape[-2 if transpose_a else -1]
    if y.size == 0 or k == 0:
        y[...] = 0 if bias is None else bias
    elif transpose_b and not transpose_a and tiles.suits(a, b):
        tiles.product(a, b, bias, y)
    elif blas.is_small(*shape[-2:], k, y.size) or not blas.has_openblas():
        a = a if a.flags.forc or blas.has_unit_stride(a) else np.ascontiguousarray(a)
        b = b if b.flags.forc or blas.has_unit_stride(b) else np.ascontiguousarray(b)
        a = a.swapaxes(-1, -2) if transpose_a else a
        b = b.swapaxes(-1, -2) if transpose_b else b
        with np.errstate(all="ignore"):
            np.matmul(a, b, out=y)
        if bias is not None:
            np.add(y, bias, out=y)
    else:
        blas.matmul(a, b, transpose_a, transpose_b, bias, y)
    if out is None or out is y:
        return y
    out[...] = y
    return out


@matmul.cuda
def _(
    a: Array,
    b: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    if is_half(a.dtype) and a.ndim > 2:
        # CuPy has no batched product in bfloat16 (TypeError) and none in float16 without widening.
        wide = (x.astype(np.float32) for x in (a, b))
        wide_bias = None if bias is None else bias.astype(np.float32)
        _result_shape(a, b, transpose_a, transpose_b, bias, out)
        y = matmul.reference(*wide, transpose_a, transpose_b, wide_bias).astype(a.dtype)
        if out is None:
            return y
        out[...] = y
        return out
    return matmul.reference(a, b, transpose_a, transpose_b, bias, out)


@matmul.sample
def _(draw, shape):
    rows, columns = shape
    return draw.normal(rows, columns), draw.normal(columns, 24)


@matmul.sample
def transposed_a(draw, shape):
    rows, columns = shape
    return draw.normal(columns, rows), draw.normal(columns, 24), True


@matmul.sample
def transposed_b_with_bias(draw, shape):
    rows, columns = shape
    return draw.normal(rows, columns), draw.normal(24, columns), False, True, draw.normal(24)


@matmul.sample
def batched(draw, shape):
    rows, columns = shape
    return draw.normal(3, rows, columns), draw.normal(3, 24, columns), False, True
