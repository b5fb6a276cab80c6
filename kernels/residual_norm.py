"""A residual sum and its norm in one pass: total = x + residual and layer or RMS norm of it, as
transformers have before each of their parts; the gradients add what else the sum has to its norm's.

Everything is (rows, columns); the rest as in kernels/normalization.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.lazy import Lazy
from kernels.moments import Triple, dense, like, vector
from kernels.normalization import (
    NULL,
    check_rows,
    launch_rows,
    layer_norm,
    layer_norm_grad,
    layer_norm_grad_on_cpu,
    rms_norm,
    rms_norm_grad,
    rms_norm_grad_on_cpu,
    row_grads,
)
from kernels.registry import kernel

loops = Lazy("kernels.cpu.normalization")


def _check(name: str, x: Array, residual: Array, **parameters: Array | None) -> None:
    check_rows(name, x, **parameters)
    if residual.shape != x.shape:
        raise ValueError(
            f"{name}: residual has shape {residual.shape}, x has shape {x.shape}: expected the same"
        )


def _on_cuda(
    x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float, centred: bool
) -> tuple[Array, ...]:
    xp = array_module(x)
    x, residual = xp.ascontiguousarray(x), xp.ascontiguousarray(residual)
    total, y = xp.empty_like(x), xp.empty_like(x)
    mean, rstd = (xp.empty(x.shape[0], np.float32) for _ in range(2))
    b = like(bias, x) if centred else NULL
    args = (x, residual, like(weight, x), b, np.float32(eps), total, y, mean, rstd)
    launch_rows("layer_norm", x, args, centred)
    return total, y, mean, rstd


# Layer norm ---------------------------------------------------------------------------------------


@kernel(statistics=(2, 3))
def add_layer_norm(
    x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> tuple[Array, Array, Array, Array]:
    """x + residual, its layer norm, mean and rstd."""
    _check("add_layer_norm", x, residual, weight=weight, bias=bias)
    total = x + residual
    return total, *layer_norm.reference(total, weight, bias, eps)


@add_layer_norm.cpu
def _(
    x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> tuple[Array, Array, Array, Array]:
    _check("add_layer_norm", x, residual, weight=weight, bias=bias)
    x, residual = dense(x), dense(residual)
    rows, D = x.shape
    total, y = np.empty_like(x), np.empty_like(x)
    mean, rstd = np.empty(rows, np.float32), np.empty(rows, np.float32)
    w, b = vector(weight, D, 1), vector(bias, D, 0)
    loops.add_layer_norm(x, residual, w, b, float(eps), total, y, mean, rstd)
    return total, y, mean, rstd


@add_layer_norm.cuda
def _(
    x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> tuple[Array, ...]:
    _check("add_layer_norm", x, residual, weight=weight, bias=bias)
    return _on_cuda(x, residual, weight, bias, eps, True)


@add_layer_norm.sample
def _(draw, shape):
    vectors = draw.normal(shape[1]), draw.normal(shape[1])
    return draw.normal(shape) + 1.5, draw.normal(shape), *vectors, 1e-5


@kernel
def add_layer_norm_grad(
    dy: Array, dtotal: Array | None, total: Array, weight: Array | None, mean: Array, rstd: Array
) -> Triple:
    """The gradient of x, which is residual's too, dweight and dbias: `layer_norm_grad` of the sum,
    and to the first added `dtotal`, what else the sum's gradient has.
    """
    dx, dw, db = layer_norm_grad.reference(dy, total, weight, mean, rstd)
    return (dx if dtotal is None else dx + dtotal), dw, db


@add_layer_norm_grad.cpu
def _(
    dy: Array, dtotal: Array | None, total: Array, weight: Array | None, mean: Array, rstd: Array
) -> Triple:
    return layer_norm_grad_on_cpu(dy, total, weight, mean, rstd, dtotal)


@add_layer_norm_grad.cuda
def _(
    dy: Array, dtotal: Array | None, total: Array, weight: Array | None, mean: Array, rstd: Array
) -> Triple:
    check_rows("add_layer_norm_grad", total, weight=weight)
    return row_grads(dy, total, weight, mean, rstd, dtotal)


@add_layer_norm_grad.sample
def _(draw, shape):
    total = draw.normal(shape)
    _, mean, rstd = layer_norm.reference(total, None, None)
    return draw.normal(shape), draw.normal(shape), total, draw.normal(shape[1]), mean, rstd


@add_layer_norm_grad.sample
def alone(draw, shape):
    dy, _, total, _, *statistics = add_layer_norm_grad.samples["_"](draw, shape)
    return dy, None, total, None, *statistics


# RMS norm -----------------------------------------------------------------------------------------


@kernel(statistics=(2,))
def add_rms_norm(x: Array, residual: Array, weight: Array | None, eps: float = 1e-6) -> Triple:
    """x + residual, its RMS norm, and rstd."""
    _check("add_rms_norm", x, residual, weight=weight)
    total = x + residual
    return total, *rms_norm.reference(total, weight, eps)


@add_rms_norm.cpu
def _(x: Array, residual: Array, weight: Array | None, eps: float = 1e-6) -> Triple:
    _check("add_rms_norm", x, residual, weight=weight)
    x, residual = dense(x), dense(residual)
    total, y, rstd = np.empty_like(x), np.empty_like(x), np.empty(x.shape[0], np.float32)
    w = vector(weight, x.shape[1], 1)
    loops.add_rms_norm(x, residual, w, float(eps), total, y, rstd)
    return total, y, rstd


@add_rms_norm.cuda
def _(x: Array, residual: Array, weight: Array | None, eps: float = 1e-6) -> tuple[Any, ...]:
    _check("add_rms_norm", x, residual, weight=weight)
    total, y, _, rstd = _on_cuda(x, residual, weight, None, eps, False)
    return total, y, rstd


@add_rms_norm.sample
def _(draw, shape):
    return draw.normal(shape) + 0.5, draw.normal(shape), draw.normal(shape[1]), 1e-6


@kernel
def add_rms_norm_grad(
    dy: Array, dtotal: Array | None, total: Array, weight: Array | None, rstd: Array
) -> tuple[Array, Array]:
    """As `add_layer_norm_grad`: the gradient of x and residual, and dweight."""
    dx, dw = rms_norm_grad.reference(dy, total, weight, rstd)
    return (dx if dtotal is None else dx + dtotal), dw


@add_rms_norm_grad.cpu
def _(
    dy: Array, dtotal: Array | None, total: Array, weight: Array | None, rstd: Array
) -> tuple[Array, Array]:
    return rms_norm_grad_on_cpu(dy, total, weight, rstd, dtotal)


@add_rms_norm_grad.cuda
def _(
    dy: Array, dtotal: Array | None, total: Array, weight: Array | None, rstd: Array
) -> tuple[Array, Array]:
    check_rows("add_rms_norm_grad", total, weight=weight)
    return row_grads(dy, total, weight, None, rstd, dtotal)[:2]


@add_rms_norm_grad.sample
def _(draw, shape):
    total = draw.normal(shape)
    rstd = rms_norm.reference(total, None)[1]
    return draw.normal(shape), draw.normal(shape), total, draw.normal(shape[1]), rstd


@add_rms_norm_grad.sample
def alone(draw, shape):  # noqa: F811
    dy, _, total, _, *statistics = add_rms_norm_grad.samples["_"](draw, shape)
    return dy, None, total, None, *statistics
