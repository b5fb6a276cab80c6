"""What a layer y = x W^T + b computes together with its products: the gradients of W and b, and the
tanh GELU between the two layers of a transformer's MLP.

On CUDA each is one matrix product with an epilogue, where the library has it; elsewhere a product
and what follows it. x is (N, in), W (out, in), b (out,).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels import reductions
from kernels.arrays import Array, array_module
from kernels.gates import gelu_tanh, gelu_tanh_grad
from kernels.matmul import matmul, matmul_on_cpu, product_for_more, result_shape
from kernels.registry import kernel

_CUDA_DTYPES = ("float32", "float16", "bfloat16", "float64")


@cache
def _cublas() -> Any:
    """kernels/cuda/cublas.py."""
    from kernels.cuda import cublas

    return cublas


def _fuses(*arrays: Array) -> bool:
    """Can the library be asked: is it there, and is there something to multiply?"""
    return all(x.size for x in arrays) and _cublas().usable()


def _matrices(name: str, *arrays: Array) -> None:
    """ValueError unless all have two axes."""
    if any(x.ndim != 2 for x in arrays):
        raise ValueError(f"{name}: expected matrices, got shapes {[x.shape for x in arrays]}")


# Gradients of the parameters ----------------------------------------------------------------------


@kernel(inplace=("out",))
def linear_weight_grad(dy: Array, x: Array, out: Array | None = None) -> tuple[Array, Array]:
    """dW = dy^T x and db = the sum of dy's rows.

    dy (N, out), x (N, in) -> (out, in), in `out` if given (float32 will do for 16-bit dy and x),
    and (out,) in the dtype of dy or of dW.
    """
    _matrices("linear_weight_grad", dy, x)
    return matmul.reference(dy, x, True, False, None, out), reductions.sum.reference(dy, 0)


@linear_weight_grad.cpu
def _(dy: Array, x: Array, out: Array | None = None) -> tuple[Array, Array]:
    if dy.ndim != 2:
        _matrices("linear_weight_grad", dy, x)
    return matmul_on_cpu(dy, x, True, False, None, out), reductions.sum(dy, 0)


@linear_weight_grad.cuda(dtypes=_CUDA_DTYPES)
def _(dy: Array, x: Array, out: Array | None = None) -> tuple[Array, Array]:
    cublas, xp = _cublas(), array_module(dy)
    _matrices("linear_weight_grad", dy, x)
    shape = result_shape(dy, x, True, False, None, out)
    if (out is None or cublas.writable(out)) and _fuses(dy, x):
        dw = xp.empty(shape, dy.dtype) if out is None else out
        db = xp.empty(shape[0], dw.dtype)  # the library's epilogue has the type of its result
        if cublas.product(dy, x, True, False, dw, cublas.SUM_A, db):
            return dw, db
    return matmul(dy, x, transpose_a=True, out=out), reductions.sum(dy, 0)


@linear_weight_grad.sample
def _(draw, shape):
    rows, columns = shape
    return draw.normal(rows, columns), draw.normal(rows, 24)


# Linear and GELU ----------------------------------------------------------------------------------


@kernel
def linear_gelu(x: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """gelu_tanh(pre) and pre = x W^T + b, which the gradient needs: both (N, out).

    The library's GELU is the tanh approximation too, but x sigmoid(...) spelled out: on CUDA it may
    give NaN instead of 0 where pre is -inf.
    """
    _matrices("linear_gelu", x, weight)
    pre = matmul.reference(x, weight, False, True, bias)
    return gelu_tanh.reference(pre), pre


@linear_gelu.cpu
def _(x: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    _matrices("linear_gelu", x, weight)
    pre = matmul_on_cpu(x, weight, False, True, bias)
    return gelu_tanh(pre), pre


@linear_gelu.cuda(dtypes=_CUDA_DTYPES)
def _(x: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    cublas, xp = _cublas(), array_module(x)
    _matrices("linear_gelu", x, weight)
    shape = result_shape(x, weight, False, True, bias, None)
    if _fuses(x, weight):
        y, pre = xp.empty(shape, x.dtype), xp.empty(shape, x.dtype)
        bias = xp.ascontiguousarray(bias)
        if cublas.product(x, weight, False, True, y, cublas.GELU_AUX_BIAS, bias, pre):
            return y, pre
    wide = product_for_more(x, weight, False, True)
    wide += bias.astype(wide.dtype, copy=False)
    return gelu_tanh(wide).astype(x.dtype, copy=False), wide.astype(x.dtype, copy=False)


@linear_gelu.sample
def _(draw, shape):
    rows, columns = shape
    return draw.normal(rows, columns), draw.normal(24, columns, scale=0.2), draw.normal(24)


@kernel
def linear_gelu_grad(dy: Array, weight: Array, pre: Array) -> tuple[Array, Array]:
    """Back through the layer after a GELU, and through the GELU: the gradients of pre and of the
    bias in it.

    dpre = (dy W) gelu_tanh'(pre), and the sum of its rows. dy (N, out), W (out, hidden) of the
    layer that follows, pre (N, hidden) of `linear_gelu` -> (N, hidden), (hidden,).
    """
    _check_pre(dy, weight, pre)
    dpre = gelu_tanh_grad.reference(matmul.reference(dy, weight), pre)
    return dpre, reductions.sum.reference(dpre, 0)


def _check_pre(dy: Array, weight: Array, pre: Array) -> None:
    _matrices("linear_gelu_grad", dy, weight)
    shape = result_shape(dy, weight, False, False, None, None)
    if pre.shape != shape or pre.dtype != dy.dtype:
        raise ValueError(
            f"linear_gelu_grad: pre is {pre.dtype}{pre.shape}, expected {dy.dtype}{shape}"
        )


@linear_gelu_grad.cpu
def _(dy: Array, weight: Array, pre: Array) -> tuple[Array, Array]:
    _check_pre(dy, weight, pre)
    dpre = gelu_tanh_grad(matmul_on_cpu(dy, weight), pre)
    return dpre, reductions.sum(dpre, 0)


@linear_gelu_grad.cuda(dtypes=_CUDA_DTYPES)
def _(dy: Array, weight: Array, pre: Array) -> tuple[Array, Array]:
    cublas, xp = _cublas(), array_module(dy)
    _check_pre(dy, weight, pre)
    if _fuses(dy, weight):
        dpre, db = xp.empty(pre.shape, dy.dtype), xp.empty(pre.shape[1], dy.dtype)
        pre = xp.ascontiguousarray(pre)
        if cublas.product(dy, weight, False, False, dpre, cublas.DGELU_BGRAD, db, pre):
            return dpre, db
    wide = product_for_more(dy, weight, False, False)
    wide = gelu_tanh_grad(wide, pre.astype(wide.dtype, copy=False))
    return tuple(d.astype(dy.dtype, copy=False) for d in (wide, reductions.sum(wide, 0)))


@linear_gelu_grad.sample
def _(draw, shape):
    rows, columns = shape
    return draw.normal(rows, 24), draw.normal(24, columns, scale=0.2), draw.normal(rows, columns)
