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
    which must not overlap the rest and may be float32 for 16-bit a and b (nothing is rounded to 16
    bits then). Zeros (plus bias) for k = 0.
    """
    xp = array_module(a)
    shape = result_shape(a, b, transpose_a, transpose_b, bias, out)
    a = a.swapaxes(-1, -2) if transpose_a else a
    b = b.swapaxes(-1, -2) if transpose_b else b
    y = xp.matmul(a, b) if a.shape[-1] else xp.zeros(shape, a.dtype)
    if bias is not None:
        y += bias
    if out is None:
        return y
    out[...] = y
    return out


def result_shape(
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
    if out is not None and (out.shape != shape or not _holds(out.dtype, a.dtype)):
        raise ValueError(f"matmul: out is {out.dtype}{out.shape}, expected {a.dtype}{shape}")
    return shape


def _holds(out: Any, operands: Any) -> bool:
    """May products of `operands` be written as `out`?"""
    return out == operands or (out == np.float32 and is_half(operands))


@cache
def _engines() -> Any:
    """kernels/cpu/blas.py and dot_tiles.py; the import itself would cost 1 us a call."""
    from kernels.cpu import blas, dot_tiles

    return blas, dot_tiles


@matmul.cpu
def matmul_on_cpu(
    a: Array,
    b: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    blas, tiles = _engines()
    shape = result_shape(a, b, transpose_a, transpose_b, bias, out)
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


def add_product(out: Array, a: Array, b: Array, first: bool = False) -> None:
    """out += a^T b, or out = a^T b if it is the `first`; out may be float32 for 16-bit a and b."""
    if first:
        matmul(a, b, transpose_a=True, out=out)
    elif matmul.version("cpu") is not None and isinstance(a, np.ndarray) and a.dtype == np.float32:
        blas, _ = _engines()
        if blas.has_openblas() and min(a.size, b.size):
            blas.matmul(a, b, True, False, None, out, more=True)
        else:
            out += matmul(a, b, transpose_a=True)
    else:
        out += matmul(a, b, transpose_a=True, out=array_module(out).empty_like(out))


@cache
def _cublas() -> Any:
    """kernels/cuda/cublas.py."""
    from kernels.cuda import cublas

    return cublas


@matmul.cuda(dtypes=("float32", "float16", "bfloat16", "float64"))
def _(
    a: Array,
    b: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    cublas = _cublas()
    shape = result_shape(a, b, transpose_a, transpose_b, bias, out)
    if not cublas.usable():
        return _through_cupy(a, b, transpose_a, transpose_b, bias, out)
    xp = array_module(a)
    y = out if cublas.writable(out) else xp.empty(shape, a.dtype)
    if y.size == 0 or a.shape[-2 if transpose_a else -1] == 0:
        y[...] = 0 if bias is None else bias
    elif bias is None:
        cublas.product(a, b, transpose_a, transpose_b, y)
    else:
        bias = xp.ascontiguousarray(bias).astype(y.dtype, copy=False)  # the library takes y's type
        if not cublas.product(a, b, transpose_a, transpose_b, y, cublas.BIAS, bias):
            wide = product_for_more(a, b, transpose_a, transpose_b)
            wide += bias.astype(wide.dtype, copy=False)
            y[...] = wide.astype(y.dtype, copy=False)
    if out is None or out is y:
        return y
    out[...] = y
    return out


def product_for_more(a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> Array:
    """a b of CUDA arrays, float32 for 16-bit ones: what is made of it is rounded once."""
    cublas, xp = _cublas(), array_module(a)
    shape = result_shape(a, b, transpose_a, transpose_b, None, None)
    y = xp.empty(shape, np.float32 if is_half(a.dtype) else a.dtype)
    if y.size == 0 or a.shape[-2 if transpose_a else -1] == 0:
        y[...] = 0
    elif cublas.usable():
        cublas.product(a, b, transpose_a, transpose_b, y)
    else:
        a, b = (x.astype(y.dtype, copy=False) for x in (a, b))
        return matmul.reference(a, b, transpose_a, transpose_b)
    return y


def _through_cupy(
    a: Array, b: Array, transpose_a: bool, transpose_b: bool, bias: Any, out: Any
) -> Array:
    """Without cuBLASLt."""
    narrow = out is None or out.dtype == a.dtype
    if not is_half(a.dtype) or (a.ndim == 2 and bias is None and narrow):
        return matmul.reference(a, b, transpose_a, transpose_b, bias, out)
    # CuPy has no batched product in bfloat16 (TypeError) and none in float16 without widening; and
    # product and bias are to be rounded once.
    y = product_for_more(a, b, transpose_a, transpose_b)
    if bias is not None:
        y += bias.astype(np.float32)
    if out is None:
        return y.astype(a.dtype)
    out[...] = y.astype(out.dtype, copy=False)
    return out


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
