"""Group norm and its gradient: each sample's groups of neighbouring channels; with groups = C
instance norm.

x is (N, C, *); the result is C-contiguous. `weight` and `bias` (C,) may be None (1 and 0);
gradients for them are returned all the same. Source: Wu, He 2018.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channels import (
    across,
    as_planes,
    check_channels,
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
    total,
    vector,
)
from kernels.registry import kernel

loops = Lazy("kernels.cpu.normalization")


def _check_groups(name: str, x: Array, groups: int) -> None:
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(
            f"{name}: groups={groups} does not divide the {x.shape[1]} channels of x {x.shape}"
        )


# Group norm ---------------------------------------------------------------------------------------


@kernel(statistics=(1, 2))
def group_norm(
    x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> Triple:
    """Normalise each sample's `groups` groups of neighbouring channels, then weight and bias per
    channel.

    Returns y (as x), mean (N, groups) and rstd = 1 / sqrt(var + eps) (N, groups).
    """
    check_channels("group_norm", x, weight=weight, bias=bias)
    _check_groups("group_norm", x, groups)
    grouped = x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)  # (N, G, C / G * L)
    mean, var = moments(grouped, (2,))
    rstd = 1 / array_module(x).sqrt(var + eps)
    n = ((grouped - mean) * rstd).reshape(x.shape)
    return affine(n, across(weight, x.ndim), across(bias, x.ndim)), mean[..., 0], rstd[..., 0]


@group_norm.cpu
def _(x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    check_channels("group_norm", x, weight=weight, bias=bias)
    _check_groups("group_norm", x, groups)
    planes = as_planes(x)
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

    check_channels("group_norm", x, weight=weight, bias=bias)
    _check_groups("group_norm", x, groups)
    xp = array_module(x)
    planes = as_planes(x)
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
    check_channels("group_norm_grad", x, weight=weight)
    _check_groups("group_norm_grad", x, groups)
    check_dy("group_norm_grad", dy, x)
    shape = (x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    rstd = rstd[..., None]
    n = (x.reshape(shape) - mean[..., None]) * rstd
    g = affine(dy, across(weight, x.ndim), None).reshape(shape)
    dx = rstd * (g - average(g, (2,)) - n * average(g * n, (2,)))
    dyn = dy * n.reshape(x.shape)
    axes = other_axes(x)
    return (
        dx.reshape(x.shape),
        total(dyn, axes).reshape(-1).astype(x.dtype),
        total(dy, axes).reshape(-1).astype(x.dtype),
    )


@group_norm_grad.cpu
def _(dy: Array, x: Array, groups: int, weight: Array | None, mean: Array, rstd: Array) -> Triple:
    check_channels("group_norm_grad", x, weight=weight)
    _check_groups("group_norm_grad", x, groups)
    check_dy("group_norm_grad", dy, x)
    planes, dplanes = as_planes(x), as_planes(dy)
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

    check_channels("group_norm_grad", x, weight=weight)
    _check_groups("group_norm_grad", x, groups)
    check_dy("group_norm_grad", dy, x)
    xp = array_module(x)
    x_, dy_, mean, rstd = as_planes(x), as_planes(dy), float32(mean), float32(rstd)
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
