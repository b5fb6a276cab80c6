"""Normalisation of channels: batch norm (training and inference), group norm, and their gradients.

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

import math
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.moments import (
    Triple,
    added,
    affine,
    average,
    check_dy,
    check_parameters,
    dense,
    float32,
    like,
    moments,
    parts_of,
    row_blocks,
    total,
    vector,
)
from kernels.registry import kernel

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


def _across(parameter: Array | None, ndim: int) -> Array | None:
    """A per-channel vector (C,) shaped to broadcast over (N, C, *)."""
    return None if parameter is None else parameter.reshape((1, -1) + (1,) * (ndim - 2))


def _check_channels(name: str, x: Array, **parameters: Array | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, C) or (N, C, *)")
    check_parameters(name, x.shape[1], "channel", x, parameters)


def _check_groups(name: str, x: Array, groups: int) -> None:
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(
            f"{name}: groups={groups} does not divide the {x.shape[1]} channels of x {x.shape}"
        )


def _is_columns(x: Array) -> bool:
    """Is the channel axis (1) the fastest in memory? True for (N, C) and channels-last images."""
    if x.ndim == 2:
        return True
    if x.flags.c_contiguous and math.prod(x.shape[2:]) > 1:
        return False
    return bool(_channels_last(x).flags.c_contiguous)


def _channels_last(x: Array) -> Array:
    return x.transpose(0, *range(2, x.ndim), 1)


def _as_columns(x: Array) -> Array:
    """(N, C, *) as contiguous (N * prod(*), C): a view of a channels-last array."""
    return (
        array_module(x)
        .ascontiguousarray(_channels_last(x))
        .reshape(-1 if x.size else 0, x.shape[1])
    )


def _from_columns(y: Array, shape: tuple[int, ...]) -> Array:
    """Undo `_as_columns`: (N, C, *) with channels-last strides."""
    return y.reshape(shape[0], *shape[2:], shape[1]).transpose(
        0, len(shape) - 1, *range(1, len(shape) - 1)
    )


def _as_planes(x: Array) -> Array:
    """(N, C, *) as contiguous (N, C, L)."""
    return (
        array_module(x).ascontiguousarray(x).reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    )


# CUDA: one description of a layout for all launches -----------------------------------------------


class _Channels:
    """x for the CUDA kernels: dense, its sizes, and how a reduction over it is cut into parts."""

    def __init__(self, x: Array) -> None:
        from kernels.cuda import launch

        self.columns = _is_columns(x)
        self.shape = x.shape
        self.x = self.arranged(x)
        self.C = x.shape[1]
        self.per_channel = x.size // self.C if self.C else 0
        self.kind = launch.type_name(x.dtype)
        if self.columns:
            self.inner = 1
            self.items, self.blocks_each, self.unit = self.per_channel, -(-self.C // 32), 1
            self.parts, self.chunk = parts_of(self.items, self.blocks_each, 64)
            self.sizes = (np.int64(self.items), np.int64(self.C), np.int64(self.chunk))
        else:
            N, L = x.shape[0], math.prod(x.shape[2:])
            self.inner, self.items, self.blocks_each, self.unit = L, N, self.C, L
            self.parts, self.chunk = parts_of(N, self.C, 1)
            self.sizes = (np.int64(N), np.int64(self.C), np.int64(L), np.int64(self.chunk))

    def arranged(self, a: Array) -> Array:
        """x, or an array that goes with it, dense in x's layout."""
        return _as_columns(a) if self.columns else _as_planes(a)

    def restored(self, y: Array) -> Array:
        """A result in the shape and layout of x."""
        return _from_columns(y, self.shape) if self.columns else y.reshape(self.shape)

    def empty(self) -> Array:
        return array_module(self.x).empty(self.x.shape, self.x.dtype)

    def vectors(self, count: int, dtype: Any = np.float32) -> Array:
        return array_module(self.x).empty((count, self.C), dtype)

    def reduce(self, name: str, args: tuple[Any, ...]) -> Array:
        """First stage: partials (parts, 2, C) of <name>_columns or <name>_planes."""
        from kernels.cuda import launch

        partials = array_module(self.x).empty((self.parts, 2, self.C), np.float32)
        expression = f"{name}_{'columns' if self.columns else 'planes'}<{self.kind}>"
        grid = self.parts * self.blocks_each
        launch.run("channel_norm", expression, grid, 256, (*args, partials, *self.sizes))
        return partials

    def each_channel(self, name: str, width: int, args: tuple[Any, ...]) -> None:
        """Second stage: a thread for each of `width` sums."""
        from kernels.cuda import launch

        launch.run("channel_norm", f"{name}<{self.kind}>", -(-width // 64), 64, args)

    def each_element(self, name: str, args: tuple[Any, ...]) -> None:
        from kernels.cuda import launch

        if self.x.size:
            sizes = (np.int64(self.x.size), np.int64(self.inner), np.int64(self.C))
            grid = launch.grid_stride(self.x.size, self.x)
            args = (*args[:-1], *sizes, args[-1]) if name == "batch_grad" else (*args, *sizes)
            launch.run("channel_norm", f"{name}<{self.kind}>", grid, launch.BLOCK, args)


# Batch norm, training -----------------------------------------------------------------------------


def _axes(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


@kernel(statistics=(1, 2))
def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and biased variance per channel over
    all other axes.

    Returns y (as x), mean (C,) and var (C,).
    """
    _check_channels("batch_norm", x, weight=weight, bias=bias)
    mean, var = moments(x, _axes(x))
    n = (x - mean) / array_module(x).sqrt(var + eps)
    return (
        affine(n, _across(weight, x.ndim), _across(bias, x.ndim)),
        mean.reshape(-1),
        var.reshape(-1),
    )


@batch_norm.cpu
def _(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    from kernels.cpu import normalization as loops

    _check_channels("batch_norm", x, weight=weight, bias=bias)
    C = x.shape[1]
    w, b = vector(weight, C, 1), vector(bias, C, 0)
    mean, var = np.empty(C, np.float32), np.empty(C, np.float32)
    if not _is_columns(x):
        planes = _as_planes(x)
        y = np.empty_like(planes)
        loops.batch_norm_planes(
            row_blocks(C, 1), planes, w, b, float(eps), y, mean, var, work=x.size
        )
        return y.reshape(x.shape), mean, var
    columns = _as_columns(x)
    rows = columns.shape[0]
    block = loops.column_block(C)
    tasks = row_blocks(rows, block)
    means, deviations = np.empty((2, tasks.size, C), np.float32)
    loops.column_moments(tasks, columns, block, means, deviations, work=x.size)
    loops.merge_moments(rows, block, means, deviations, mean, var)
    y = np.empty_like(columns)
    loops.affine_columns(columns, mean, _scale(w, var, eps), b, y)
    return _from_columns(y, x.shape), mean, var


@batch_norm.cuda
def _(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    _check_channels("batch_norm", x, weight=weight, bias=bias)
    layout = _Channels(x)
    mean, var = layout.vectors(2)
    if x.size == 0:
        mean[...], var[...] = math.nan, math.nan
        return layout.restored(layout.empty()), mean, var
    partials = layout.reduce("batch_moments", (layout.x,))
    counts = (layout.parts, layout.C, layout.chunk * layout.unit, layout.per_channel)
    layout.each_channel("batch_merge", layout.C, (partials, mean, var, *map(np.int64, counts)))
    return _normalised(layout, weight, bias, mean, var, eps), mean, var


def _normalised(
    layout: _Channels, weight: Array | None, bias: Array | None, mean: Array, var: Array, eps: float
) -> Array:
    x, y = layout.x, layout.empty()
    args = (x, like(weight, x), like(bias, x), float32(mean), float32(var), np.float32(eps), y)
    layout.each_element("batch_affine", args)
    return layout.restored(y)


def _scale(weight: Array, var: Array, eps: float) -> Array:
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
    _check_channels("batch_norm_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_grad", dy, x)
    rstd = 1 / array_module(x).sqrt(_across(var, x.ndim) + eps)
    n = (x - _across(mean, x.ndim)) * rstd
    axes = _axes(x)
    dx = affine(
        rstd * (dy - average(dy, axes) - n * average(dy * n, axes)), _across(weight, x.ndim), None
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
    _check_channels("batch_norm_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_grad", dy, x)
    return _batch_grad(dy, x, weight, mean, var, eps, training=True)


def _batch_grad(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float, training: bool
) -> Triple:
    from kernels.cpu import normalization as loops

    C = x.shape[1]
    if x.size == 0:
        return np.empty_like(x), np.zeros(C, np.float32), np.zeros(C, np.float32)
    w, mean, var = vector(weight, C, 1), dense(mean), dense(var)
    if not _is_columns(x):
        planes, dplanes = _as_planes(x), _as_planes(dy)
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
    columns, dcolumns = _as_columns(x), _as_columns(dy)
    rows = columns.shape[0]
    block = loops.column_block(C)
    tasks = row_blocks(rows, block)
    partials = np.empty((tasks.size, 2 * C), np.float32)
    loops.column_dy_sums(tasks, dcolumns, columns, mean, block, partials, work=x.size)
    weighted, dbias = added(partials, C)
    dx = np.empty_like(columns)
    with np.errstate(all="ignore"):
        rstd = 1 / np.sqrt(var + np.float32(eps))
        dweight = weighted * rstd
        if training:
            a, b = dbias / np.float32(rows), dweight * rstd / np.float32(rows)
            loops.batch_norm_grad_columns(dcolumns, columns, mean, w * rstd, a, b, dx)
        else:
            loops.scale_columns(dcolumns, w * rstd, dx)
    return _from_columns(dx, x.shape), dweight, dbias


@batch_norm_grad.cuda
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    _check_channels("batch_norm_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_grad", dy, x)
    return _batch_grad_cuda(dy, x, weight, mean, var, eps, training=True)


def _batch_grad_cuda(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    training: bool,
) -> Triple:
    layout = _Channels(x)
    dx, sums, grads = layout.empty(), layout.vectors(2), layout.vectors(2, x.dtype)
    if x.size == 0:
        grads[...] = 0
        return layout.restored(dx), grads[0], grads[1]
    x, dy, statistics = (
        layout.x,
        layout.arranged(dy),
        (float32(mean), float32(var), np.float32(eps)),
    )
    partials = layout.reduce("batch_dy_sums", (dy, x, *statistics))
    width = 2 * layout.C
    args = (partials, sums, grads, np.int64(layout.parts), np.int64(width))
    layout.each_channel("channel_sums", width, args)
    count = np.int64(layout.per_channel if training else 0)
    layout.each_element("batch_grad", (dy, x, like(weight, x), *statistics, sums, dx, count))
    return layout.restored(dx), grads[0], grads[1]


def _grad_sample(draw: Any, x: Array, weight: Array | None) -> tuple[Any, ...]:
    mean, var = moments(x, _axes(x))
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
    _check_channels("batch_norm_inference", x, weight=weight, bias=bias, mean=mean, var=var)
    n = (x - _across(mean, x.ndim)) / array_module(x).sqrt(_across(var, x.ndim) + eps)
    return affine(n, _across(weight, x.ndim), _across(bias, x.ndim))


@batch_norm_inference.cpu
def _(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    from kernels.cpu import normalization as loops

    _check_channels("batch_norm_inference", x, weight=weight, bias=bias, mean=mean, var=var)
    C = x.shape[1]
    w, b, mean, var = vector(weight, C, 1), vector(bias, C, 0), dense(mean), dense(var)
    if _is_columns(x):
        columns = _as_columns(x)
        y = np.empty_like(columns)
        loops.affine_columns(columns, mean, _scale(w, var, eps), b, y)
        return _from_columns(y, x.shape)
    planes = _as_planes(x)
    y = np.empty_like(planes)
    loops.batch_norm_inference_planes(
        row_blocks(C, 1), planes, w, b, mean, var, float(eps), y, work=x.size
    )
    return y.reshape(x.shape)


@batch_norm_inference.cuda
def _(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    _check_channels("batch_norm_inference", x, weight=weight, bias=bias, mean=mean, var=var)
    return _normalised(_Channels(x), weight, bias, mean, var, eps)


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
    _check_channels("batch_norm_inference_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_inference_grad", dy, x)
    rstd = 1 / array_module(x).sqrt(_across(var, x.ndim) + eps)
    n = (x - _across(mean, x.ndim)) * rstd
    axes = _axes(x)
    dx = affine(dy * rstd, _across(weight, x.ndim), None)
    return (
        dx,
        total(dy * n, axes).reshape(-1).astype(x.dtype),
        total(dy, axes).reshape(-1).astype(x.dtype),
    )


@batch_norm_inference_grad.cpu
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    _check_channels("batch_norm_inference_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_inference_grad", dy, x)
    return _batch_grad(dy, x, weight, mean, var, eps, training=False)


@batch_norm_inference_grad.cuda
def _(
    dy: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float = 1e-5
) -> Triple:
    _check_channels("batch_norm_inference_grad", x, weight=weight, mean=mean, var=var)
    check_dy("batch_norm_inference_grad", dy, x)
    return _batch_grad_cuda(dy, x, weight, mean, var, eps, training=False)


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


# Group norm ---------------------------------------------------------------------------------------


@kernel(statistics=(1, 2))
def group_norm(
    x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> Triple:
    """Normalise each sample's `groups` groups of neighbouring channels, then weight and bias per
    channel.

    Returns y (as x), mean (N, groups) and rstd = 1 / sqrt(var + eps) (N, groups).
    """
    _check_channels("group_norm", x, weight=weight, bias=bias)
    _check_groups("group_norm", x, groups)
    grouped = x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)  # (N, G, C / G * L)
    mean, var = moments(grouped, (2,))
    rstd = 1 / array_module(x).sqrt(var + eps)
    n = ((grouped - mean) * rstd).reshape(x.shape)
    return affine(n, _across(weight, x.ndim), _across(bias, x.ndim)), mean[..., 0], rstd[..., 0]


@group_norm.cpu
def _(x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    from kernels.cpu import normalization as loops

    _check_channels("group_norm", x, weight=weight, bias=bias)
    _check_groups("group_norm", x, groups)
    planes = _as_planes(x)
    N, C = planes.shape[:2]
    y, mean, rstd = (
        np.empty_like(planes),
        np.empty((N, groups), np.float32),
        np.empty((N, groups), np.float32),
    )
    loops.group_norm(planes, vector(weight, C, 1), vector(bias, C, 0), float(eps), y, mean, rstd)
    return y.reshape(x.shape), mean, rstd


@group_norm.cuda
def _(x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    from kernels.cuda import launch

    _check_channels("group_norm", x, weight=weight, bias=bias)
    _check_groups("group_norm", x, groups)
    xp = array_module(x)
    planes = _as_planes(x)
    N, C, L = planes.shape
    y = xp.empty(planes.shape, x.dtype)
    mean, rstd = xp.empty((2, N, groups), np.float32)
    sizes = (np.int64(groups), np.int64(C // groups), np.int64(L))
    args = (planes, like(weight, x), like(bias, x), np.float32(eps), y, mean, rstd, *sizes)
    name = f"group_norm_block<{launch.type_name(x.dtype)}>"
    launch.run("channel_norm", name, N * groups, _block(C // groups * L), args)
    return y.reshape(x.shape), mean, rstd


def _block(elements: int) -> int:
    """Threads of a block that owns so many elements."""
    return 64 if elements <= 512 else 256 if elements <= 16384 else 1024


def _groups_of(shape: tuple[int, ...]) -> int:
    return 2 if shape[1] % 2 == 0 and shape[1] else 1


@group_norm.sample
def _(draw, shape):
    return (
        draw.normal(*shape, 5) + 1.0,
        _groups_of(shape),
        draw.normal(shape[1]),
        draw.normal(shape[1]),
    )


@group_norm.sample
def instance(draw, shape):
    return draw.normal(*shape, 3, 2), max(shape[1], 1), None, None


@kernel
def group_norm_grad(
    dy: Array, x: Array, groups: int, weight: Array | None, mean: Array, rstd: Array
) -> Triple:
    """(dx, dweight (C,), dbias (C,)), with n = (x - mean) rstd and g = dy weight, means per sample
    and group:

    dx = rstd (g - mean(g) - n mean(g n)), dweight = sum of dy n and dbias = sum of dy per channel.
    """
    _check_channels("group_norm_grad", x, weight=weight)
    _check_groups("group_norm_grad", x, groups)
    check_dy("group_norm_grad", dy, x)
    shape = (x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    rstd = rstd[..., None]
    n = (x.reshape(shape) - mean[..., None]) * rstd
    g = affine(dy, _across(weight, x.ndim), None).reshape(shape)
    dx = rstd * (g - average(g, (2,)) - n * average(g * n, (2,)))
    dyn = dy * n.reshape(x.shape)
    axes = _axes(x)
    return (
        dx.reshape(x.shape),
        total(dyn, axes).reshape(-1).astype(x.dtype),
        total(dy, axes).reshape(-1).astype(x.dtype),
    )


@group_norm_grad.cpu
def _(dy: Array, x: Array, groups: int, weight: Array | None, mean: Array, rstd: Array) -> Triple:
    from kernels.cpu import normalization as loops

    _check_channels("group_norm_grad", x, weight=weight)
    _check_groups("group_norm_grad", x, groups)
    check_dy("group_norm_grad", dy, x)
    planes, dplanes = _as_planes(x), _as_planes(dy)
    N, C = planes.shape[:2]
    dx, partials = np.empty_like(planes), np.empty((N, 2 * C), np.float32)
    loops.group_norm_grad(
        dplanes, planes, vector(weight, C, 1), dense(mean), dense(rstd), dx, partials, work=x.size
    )
    dweight, dbias = added(partials, C)
    return dx.reshape(x.shape), dweight, dbias


@group_norm_grad.cuda
def _(dy: Array, x: Array, groups: int, weight: Array | None, mean: Array, rstd: Array) -> Triple:
    from kernels.cuda import launch

    _check_channels("group_norm_grad", x, weight=weight)
    _check_groups("group_norm_grad", x, groups)
    check_dy("group_norm_grad", dy, x)
    xp = array_module(x)
    x_, dy_, mean, rstd = _as_planes(x), _as_planes(dy), float32(mean), float32(rstd)
    N, C, L = x_.shape
    kind = launch.type_name(x.dtype)
    partials = xp.empty((N, 2 * C), np.float32)
    sizes = (np.int64(N), np.int64(C), np.int64(groups), np.int64(L))
    args = (dy_, x_, mean, rstd, partials, *sizes)
    launch.run("channel_norm", f"group_dy_sums<{kind}>", -(-N * C // 8), 256, args)
    dx = xp.empty(x_.shape, x.dtype)
    args = (dy_, x_, like(weight, x), mean, rstd, partials, dx)
    args = (*args, np.int64(groups), np.int64(C // groups), np.int64(L))
    block = _block(C // groups * L)
    launch.run("channel_norm", f"group_norm_grad_block<{kind}>", N * groups, block, args)
    sums, grads = xp.empty((2, C), np.float32), xp.empty((2, C), x.dtype)
    args = (partials, sums, grads, np.int64(N), np.int64(2 * C))
    launch.run("channel_norm", f"channel_sums<{kind}>", -(-2 * C // 64), 64, args)
    return dx.reshape(x.shape), grads[0], grads[1]


@group_norm_grad.sample
def _(draw, shape):
    x, groups = draw.normal(*shape, 5), _groups_of(shape)
    _, mean, rstd = group_norm.reference(x, groups, None, None)
    return draw.normal(x.shape), x, groups, draw.normal(shape[1]), mean, rstd


@group_norm_grad.sample
def instance(draw, shape):  # noqa: F811
    x, groups = draw.normal(*shape, 3, 2), max(shape[1], 1)
    _, mean, rstd = group_norm.reference(x, groups, None, None)
    return draw.normal(x.shape), x, groups, None, mean, rstd
