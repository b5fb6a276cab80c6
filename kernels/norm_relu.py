"""Batch norm, the addition of a residual and ReLU as one kernel, and its gradient: what stands
behind most convolutions of a residual network (He et al. 2015). Each array is read and written once
where three kernels would do it three times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channel_norm import (
    batch_grad_cuda,
    batch_norm,
    batch_norm_grad,
    columns_grad,
    normalised,
    scale_of,
)
from kernels.channels import (
    Channels,
    as_columns,
    as_planes,
    check_channels,
    from_columns,
    is_columns,
)
from kernels.lazy import Lazy
from kernels.moments import Triple, added, check_dy, dense, row_blocks, vector
from kernels.registry import kernel

loops = Lazy("kernels.cpu.normalization")

Gradients = tuple[Array, Array | None, Array, Array]


def _check(name: str, x: Array, residual: Array | None) -> None:
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"{name}: residual has shape {residual.shape}, x has shape {x.shape}: expected the same"
        )


@kernel(statistics=(1, 2))
def batch_norm_relu(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None = None,
    eps: float = 1e-5,
) -> Triple:
    """y = max(batch_norm(x) + residual, 0), mean and biased variance per channel; see `batch_norm`.

    `residual` is shaped like x, or None (0). Returns y (as x), mean (C,) and var (C,).
    """
    _check("batch_norm_relu", x, residual)
    y, mean, var = batch_norm.reference(x, weight, bias, eps)
    y = y if residual is None else y + residual
    return array_module(x).maximum(y, 0), mean, var


@batch_norm_relu.cpu
def _(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None = None,
    eps: float = 1e-5,
) -> Triple:
    check_channels("batch_norm_relu", x, weight=weight, bias=bias)
    _check("batch_norm_relu", x, residual)
    C, also = x.shape[1], residual is not None
    w, b = vector(weight, C, 1), vector(bias, C, 0)
    mean, var = np.empty(C, np.float32), np.empty(C, np.float32)
    if not is_columns(x):
        planes = as_planes(x)
        more = as_planes(residual) if also else planes
        y = np.empty_like(planes)
        args = planes, w, b, float(eps), more, also, y, mean, var
        loops.batch_norm_relu_planes(row_blocks(C, 1), *args, work=x.size)
        return y.reshape(x.shape), mean, var
    columns = as_columns(x)
    more = as_columns(residual) if also else columns
    rows, block = columns.shape[0], loops.column_block(C)
    tasks = row_blocks(rows, block)
    means, deviations = np.empty((2, tasks.size, C), np.float32)
    loops.column_moments(tasks, columns, block, means, deviations, work=x.size)
    loops.merge_moments(rows, block, means, deviations, mean, var)
    y = np.empty_like(columns)
    loops.affine_relu_columns(columns, mean, scale_of(w, var, eps), b, more, also, y)
    return from_columns(y, x.shape), mean, var


@batch_norm_relu.cuda
def _(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None = None,
    eps: float = 1e-5,
) -> Triple:
    check_channels("batch_norm_relu", x, weight=weight, bias=bias)
    _check("batch_norm_relu", x, residual)
    layout = Channels(x)
    mean, var = layout.moments()
    return normalised(layout, weight, bias, mean, var, eps, residual, relu=True), mean, var


@kernel
def batch_norm_relu_grad(
    dy: Array,
    x: Array,
    y: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    eps: float = 1e-5,
    residual: bool = True,
) -> Gradients:
    """(dx, dresidual, dweight, dbias) of `batch_norm_relu`, from its result y: dresidual is dy
    where y is positive, else 0, and the others are `batch_norm_grad` of that.

    dresidual is None without `residual`.
    """
    check_dy("batch_norm_relu_grad", dy, x)
    check_dy("batch_norm_relu_grad", dy, y)
    g = array_module(x).where(y > 0, dy, dy.dtype.type(0))
    dx, dweight, dbias = batch_norm_grad.reference(g, x, weight, mean, var, eps)
    return dx, g if residual else None, dweight, dbias


@batch_norm_relu_grad.cpu
def _(
    dy: Array,
    x: Array,
    y: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    eps: float = 1e-5,
    residual: bool = True,
) -> Gradients:
    check_channels("batch_norm_relu_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_relu_grad", dy, x)
    check_dy("batch_norm_relu_grad", dy, y)
    C = x.shape[1]
    w, mean, var = vector(weight, C, 1), dense(mean), dense(var)
    columns = is_columns(x)
    arranged = as_columns if columns else as_planes
    dy, a, y = arranged(dy), arranged(x), arranged(y)
    g = np.empty_like(a)
    dx = np.empty_like(a) if residual else g
    if x.size == 0:
        dweight, dbias = np.zeros(C, np.float32), np.zeros(C, np.float32)
    elif columns:
        block = loops.column_block(C)
        tasks = row_blocks(a.shape[0], block)
        partials = np.empty((tasks.size, 2 * C), np.float32)
        loops.column_relu_dy_sums(tasks, dy, y, a, mean, block, g, partials, work=x.size)
        weighted, dbias = added(partials, C)
        dweight = columns_grad(g, a, w, mean, var, eps, weighted, dbias, dx)
    else:
        dweight, dbias = np.empty(C, np.float32), np.empty(C, np.float32)
        args = dy, y, a, w, mean, var, float(eps), g, dx, dweight, dbias
        loops.batch_norm_relu_grad_planes(row_blocks(C, 1), *args, work=x.size)
    dx, g = (from_columns(i, x.shape) if columns else i.reshape(x.shape) for i in (dx, g))
    return dx, g if residual else None, dweight, dbias


@batch_norm_relu_grad.cuda
def _(
    dy: Array,
    x: Array,
    y: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    eps: float = 1e-5,
    residual: bool = True,
) -> Gradients:
    check_channels("batch_norm_relu_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_relu_grad", dy, x)
    check_dy("batch_norm_relu_grad", dy, y)
    dx, g, dweight, dbias = batch_grad_cuda(dy, x, weight, mean, var, eps, True, y)
    return dx, g if residual else None, dweight, dbias


# Samples ------------------------------------------------------------------------------------------


def _image(draw: Any, shape: tuple[int, ...], last: bool) -> Array:
    N, C = shape
    return draw.normal(N, 3, 2, C).transpose(0, 3, 1, 2) if last else draw.normal(N, C, 3, 2)


def _forward(last: bool, residual: bool) -> Any:
    def sample(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
        x = _image(draw, shape, last) + 1.0
        more = _image(draw, shape, last) if residual else None
        return x, draw.normal(shape[1]), draw.normal(shape[1]), more

    return sample


def _backward(last: bool, residual: bool) -> Any:
    def sample(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
        x, weight, bias, more = _forward(last, residual)(draw, shape)
        y, mean, var = batch_norm_relu.reference(x, weight, bias, more)
        return _image(draw, shape, last), x, y, weight, mean, var, 1e-5, residual

    return sample


for _kernel, _made in ((batch_norm_relu, _forward), (batch_norm_relu_grad, _backward)):
    _kernel.samples["_"] = _made(False, True)
    _kernel.samples["images"] = _made(False, False)
    _kernel.samples["channels_last"] = _made(True, True)
    _kernel.samples["channels_last_alone"] = _made(True, False)
