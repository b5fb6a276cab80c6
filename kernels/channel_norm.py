"""Normalisation of channels: batch norm (training and inference) and its gradients.

x is (N, C) or (N, C, *). `weight` and `bias` (C,) may be None (1 and 0); gradients for them are
returned all the same. In the gradients dy comes first, and the statistics are those which the
forward kernel returned. All variances are biased and taken in two passes, or merged from blocks:
E[x^2] - E[x]^2 cancels in float32.

Two loops for two memory layouts: planes (N, C, L), where a channel's elements lie together, and
columns (rows, C), where the channels do (plain features, channels-last images). The strides of x
choose; the result is laid out like x.

Sources: Ioffe, Szegedy 2015 (batch norm); Wu, He 2018 (group norm; with groups = C it is instance
norm).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channels import (
    Channels,
    across,
    as_columns,
    as_planes,
    check_channels,
    from_columns,
    is_columns,
    other_axes,
)
from kernels.lazy import Lazy
from kernels.moments import (
    Triple,
    added,
    affine,
    average,
    check_dy,
    dense,
    float32,
    like,
    moments,
    row_blocks,
    total,
    vector,
)
from kernels.registry import kernel

loops = Lazy("kernels.cpu.normalization")

CUDA_KERNELS = (
    "batch_moments_planes",
    "batch_moments_columns",
    "batch_merge",
    "batch_affine",
    "batch_dy_sums_planes",
    "batch_dy_sums_columns",
    "channel_sums",
    "batch_grad",
    "group_norm_block",
    "group_dy_sums",
    "group_norm_grad_block",
)


# Batch norm, training -----------------------------------------------------------------------------


@kernel(statistics=(1, 2))
def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and biased variance per channel over
    all other axes.

    Returns y (as x), mean (C,) and var (C,).
    """
    check_channels("batch_norm", x, weight=weight, bias=bias)
    mean, var = moments(x, other_axes(x))
    n = (x - mean) / array_module(x).sqrt(var + eps)
    return (
        affine(n, across(weight, x.ndim), across(bias, x.ndim)),
        mean.reshape(-1),
        var.reshape(-1),
    )


@batch_norm.cpu
def _(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    check_channels("batch_norm", x, weight=weight, bias=bias)
    C = x.shape[1]
    w, b = vector(weight, C, 1), vector(bias, C, 0)
    mean, var = np.empty(C, np.float32), np.empty(C, np.float32)
    if not is_columns(x):
        planes = as_planes(x)
        y = np.empty_like(planes)
        loops.batch_norm_planes(
            row_blocks(C, 1), planes, w, b, float(eps), y, mean, var, work=x.size
        )
        return y.reshape(x.shape), mean, var
    columns = as_columns(x)
    rows = columns.shape[0]
    block = loops.column_block(C)
    tasks = row_blocks(rows, block)
    means, deviations = np.empty((2, tasks.size, C), np.float32)
    loops.column_moments(tasks, columns, block, means, deviations, work=x.size)
    loops.merge_moments(rows, block, means, deviations, mean, var)
    y = np.empty_like(columns)
    loops.affine_columns(columns, mean, scale_of(w, var, eps), b, y)
    return from_columns(y, x.shape), mean, var


@batch_norm.cuda
def _(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    check_channels("batch_norm", x, weight=weight, bias=bias)
    layout = Channels(x)
    mean, var = layout.moments()
    return normalised(layout, weight, bias, mean, var, eps), mean, var


def normalised(
    layout: Channels,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    residual: Array | None = None,
    relu: bool = False,
) -> Array:
    """x normalised, plus residual, and then rectified with `relu` (CUDA)."""
    x, y = layout.x, layout.empty()
    statistics = float32(mean), float32(var), np.float32(eps)
    more = np.uintp(0) if residual is None else layout.arranged(residual)
    args = (x, like(weight, x), like(bias, x), *statistics, more, np.int32(relu), y)
    layout.each_element("batch_affine", args)
    return layout.restored(y)


def scale_of(weight: Array, var: Array, eps: float) -> Array:
    """weight / sqrt(var + eps), NaN where the variance is."""
    with np.errstate(all="ignore"):
        return weight / np.sqrt(var + np.float32(eps))


@batch_norm.sample
def _(draw, shape):
    return draw.normal(shape) + 1.0, draw.normal(shape[1]), draw.normal(shape[1]), 1e-5


@batch_norm.sample
def images(draw, shape):
    return draw.normal(*shape, 3, 2) + 1.0, draw.normal(shape[1]), draw.normal(shape[1])


@batch_norm.sample
def channels_last(draw, shape):
    return draw.normal(shape[0], 3, 2, shape[1]).transpose(0, 3, 1, 2) + 1.0, None, None


@kernel
def batch_norm_grad(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    """(dx, dweight, dbias) of `batch_norm`, with n = (x - mean) rstd and rstd = 1 / sqrt(var +
    eps):

    dx = weight rstd (dy - mean(dy) - n mean(dy n)), dweight = sum of dy n, dbias = sum of dy, means
    and sums per channel.
    """
    check_channels("batch_norm_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_grad", dy, x)
    rstd = 1 / array_module(x).sqrt(across(var, x.ndim) + eps)
    n = (x - across(mean, x.ndim)) * rstd
    axes = other_axes(x)
    dx = affine(
        rstd * (dy - average(dy, axes) - n * average(dy * n, axes)), across(weight, x.ndim), None
    )
    return (
        dx,
        total(dy * n, axes).reshape(-1).astype(x.dtype),
        total(dy, axes).reshape(-1).astype(x.dtype),
    )


@batch_norm_grad.cpu
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    check_channels("batch_norm_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_grad", dy, x)
    return batch_grad(dy, x, weight, mean, var, eps, training=True)


def batch_grad(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float, training: bool
) -> Triple:
    C = x.shape[1]
    if x.size == 0:
        return np.empty_like(x), np.zeros(C, np.float32), np.zeros(C, np.float32)
    w, mean, var = vector(weight, C, 1), dense(mean), dense(var)
    if not is_columns(x):
        planes, dplanes = as_planes(x), as_planes(dy)
        dx, dweight, dbias = np.empty_like(planes), np.empty(C, np.float32), np.empty(C, np.float32)
        loops.batch_norm_grad_planes(
            row_blocks(C, 1),
            dplanes,
            planes,
            w,
            mean,
            var,
            float(eps),
            training,
            dx,
            dweight,
            dbias,
            work=x.size,
        )
        return dx.reshape(x.shape), dweight, dbias
    columns, dcolumns = as_columns(x), as_columns(dy)
    rows = columns.shape[0]
    block = loops.column_block(C)
    tasks = row_blocks(rows, block)
    partials = np.empty((tasks.size, 2 * C), np.float32)
    loops.column_dy_sums(tasks, dcolumns, columns, mean, block, partials, work=x.size)
    weighted, dbias = added(partials, C)
    dx = np.empty_like(columns)
    if training:
        dweight = columns_grad(dcolumns, columns, w, mean, var, eps, weighted, dbias, dx)
    else:
        with np.errstate(all="ignore"):
            rstd = 1 / np.sqrt(var + np.float32(eps))
            dweight = weighted * rstd
            loops.scale_columns(dcolumns, w * rstd, dx)
    return from_columns(dx, x.shape), dweight, dbias


def columns_grad(
    dy: Array,
    x: Array,
    weight: Array,
    mean: Array,
    var: Array,
    eps: float,
    weighted: Array,
    dbias: Array,
    dx: Array,
) -> Array:
    """Fill dx (rows, C) from the sums of dy (x - mean) and of dy; returns dweight (CPU)."""
    rows = np.float32(x.shape[0])
    with np.errstate(all="ignore"):
        rstd = 1 / np.sqrt(var + np.float32(eps))
        dweight = weighted * rstd
        a, b = dbias / rows, dweight * rstd / rows
        loops.batch_norm_grad_columns(dy, x, mean, weight * rstd, a, b, dx)
    return dweight


@batch_norm_grad.cuda
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    check_channels("batch_norm_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_grad", dy, x)
    dx, _, dweight, dbias = batch_grad_cuda(dy, x, weight, mean, var, eps, training=True)
    return dx, dweight, dbias


def batch_grad_cuda(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    training: bool,
    y: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """dx, what dy is behind a rectifier whose output was `y` (None: dy), dweight and dbias."""
    layout = Channels(x)
    dx, sums, grads = layout.empty(), layout.vectors(2), layout.vectors(2, x.dtype)
    g = dy if y is None else layout.empty()
    if x.size == 0:
        grads[...] = 0
        return layout.restored(dx), layout.restored(layout.empty()), grads[0], grads[1]
    x, dy, statistics = (
        layout.x,
        layout.arranged(dy),
        (float32(mean), float32(var), np.float32(eps)),
    )
    null = np.uintp(0)
    rectified = (null, null) if y is None else (layout.arranged(y), g)
    partials = layout.reduce("batch_dy_sums", (dy, x, *rectified, *statistics))
    width = 2 * layout.C
    args = (partials, sums, grads, np.int64(layout.parts), np.int64(width))
    layout.each_channel("channel_sums", width, args)
    count = np.int64(layout.per_channel if training else 0)
    g = dy if y is None else g
    layout.each_element("batch_grad", (g, x, like(weight, x), *statistics, sums, dx, count))
    return layout.restored(dx), layout.restored(g), grads[0], grads[1]


def _grad_sample(draw: Any, x: Array, weight: Array | None) -> tuple[Any, ...]:
    mean, var = moments(x, other_axes(x))
    dy = draw.normal(x.shape)
    return dy, x, weight, mean.reshape(-1), var.reshape(-1), 1e-5


@batch_norm_grad.sample
def _(draw, shape):
    return _grad_sample(draw, draw.normal(shape), draw.normal(shape[1]))


@batch_norm_grad.sample
def images(draw, shape):  # noqa: F811
    return _grad_sample(draw, draw.normal(*shape, 3, 2), draw.normal(shape[1]))


@batch_norm_grad.sample
def channels_last(draw, shape):  # noqa: F811
    return _grad_sample(draw, draw.normal(shape[0], 3, 2, shape[1]).transpose(0, 3, 1, 2), None)


# Batch norm, inference ----------------------------------------------------------------------------


@kernel
def batch_norm_inference(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    """y = (x - mean) / sqrt(var + eps) * weight + bias with given mean (C,) and var (C,)."""
    check_channels("batch_norm_inference", x, weight=weight, bias=bias, mean=mean, var=var)
    n = (x - across(mean, x.ndim)) / array_module(x).sqrt(across(var, x.ndim) + eps)
    return affine(n, across(weight, x.ndim), across(bias, x.ndim))


@batch_norm_inference.cpu
def _(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    check_channels("batch_norm_inference", x, weight=weight, bias=bias, mean=mean, var=var)
    C = x.shape[1]
    w, b, mean, var = vector(weight, C, 1), vector(bias, C, 0), dense(mean), dense(var)
    if is_columns(x):
        columns = as_columns(x)
        y = np.empty_like(columns)
        loops.affine_columns(columns, mean, scale_of(w, var, eps), b, y)
        return from_columns(y, x.shape)
    planes = as_planes(x)
    y = np.empty_like(planes)
    loops.batch_norm_inference_planes(
        row_blocks(C, 1), planes, w, b, mean, var, float(eps), y, work=x.size
    )
    return y.reshape(x.shape)


@batch_norm_inference.cuda
def _(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    check_channels("batch_norm_inference", x, weight=weight, bias=bias, mean=mean, var=var)
    return normalised(Channels(x), weight, bias, mean, var, eps)


def _statistics(draw: Any, channels: int) -> tuple[Array, Array]:
    return draw.normal(channels), draw.uniform(channels, low=0.5, high=2.0)


@batch_norm_inference.sample
def _(draw, shape):
    return (
        draw.normal(shape),
        draw.normal(shape[1]),
        draw.normal(shape[1]),
        *_statistics(draw, shape[1]),
    )


@batch_norm_inference.sample
def images(draw, shape):  # noqa: F811
    return draw.normal(*shape, 3, 2), None, None, *_statistics(draw, shape[1])


@kernel
def batch_norm_inference_grad(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    """(dx, dweight, dbias) of `batch_norm_inference`: dx = dy weight rstd, dweight = sum of dy n,
    dbias = sum of dy.
    """
    check_channels("batch_norm_inference_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_inference_grad", dy, x)
    rstd = 1 / array_module(x).sqrt(across(var, x.ndim) + eps)
    n = (x - across(mean, x.ndim)) * rstd
    axes = other_axes(x)
    dx = affine(dy * rstd, across(weight, x.ndim), None)
    return (
        dx,
        total(dy * n, axes).reshape(-1).astype(x.dtype),
        total(dy, axes).reshape(-1).astype(x.dtype),
    )


@batch_norm_inference_grad.cpu
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    check_channels("batch_norm_inference_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_inference_grad", dy, x)
    return batch_grad(dy, x, weight, mean, var, eps, training=False)


@batch_norm_inference_grad.cuda
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    check_channels("batch_norm_inference_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_inference_grad", dy, x)
    dx, _, dweight, dbias = batch_grad_cuda(dy, x, weight, mean, var, eps, training=False)
    return dx, dweight, dbias


@batch_norm_inference_grad.sample
def _(draw, shape):
    return (
        draw.normal(shape),
        draw.normal(shape),
        draw.normal(shape[1]),
        *_statistics(draw, shape[1]),
    )


@batch_norm_inference_grad.sample
def images(draw, shape):  # noqa: F811
    x = draw.normal(*shape, 3, 2)
    return draw.normal(x.shape), x, None, *_statistics(draw, shape[1])
