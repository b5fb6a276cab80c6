"""Normalisation of rows, layer norm and RMS norm, with their gradients; batch and group norm are in
channel_norm.py.

`weight` and `bias` may be None (1 and 0); gradients for them are returned all the same. In the
gradients dy comes first, and the statistics are those which the forward kernel returned. The
variance is biased and taken in two passes: E[x^2] - E[x]^2 cancels in float32.

Sources: Ba, Kiros, Hinton 2016 (layer norm); Zhang, Sennrich 2019 (RMS norm).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channel_norm import (
    batch_norm as batch_norm,
    batch_norm_grad as batch_norm_grad,
    batch_norm_inference as batch_norm_inference,
    batch_norm_inference_grad as batch_norm_inference_grad,
)
from kernels.group_norm import group_norm as group_norm, group_norm_grad as group_norm_grad
from kernels.lazy import Lazy
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

loops = Lazy("kernels.cpu.normalization")

CUDA_KERNELS = (
    "layer_norm_warp",
    "layer_norm_block",
    "layer_norm_grad_warp",
    "layer_norm_grad_block",
    "row_norm_partials",
    "finish_partials",
)


#: A null pointer.
NULL: Any = np.uintp(0)


def check_rows(
    name: str, x: Array, weight: Array | None, bias: Array | None = None, dy: Array | None = None
) -> None:
    shape = x.shape
    if len(shape) != 2:
        raise ValueError(
            f"{name}: x has shape {shape}, expected (rows, columns): "
            "reshape the normalised axes into one"
        )
    check_parameters(name, shape[1], "column", x, weight=weight, bias=bias)
    if dy is not None:
        check_dy(name, dy, x)


# Layer norm ---------------------------------------------------------------------------------------


@kernel(statistics=(1, 2))
def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    """y = (x - mean) / sqrt(var + eps) * weight + bias over each row of x (rows, D).

    Returns y (rows, D), mean (rows,) and rstd = 1 / sqrt(var + eps) (rows,).
    """
    check_rows("layer_norm", x, weight, bias)
    mean, var = moments(x, (1,))
    rstd = 1 / array_module(x).sqrt(var + eps)
    return affine((x - mean) * rstd, weight, bias), mean[:, 0], rstd[:, 0]


@layer_norm.cpu
def _(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    check_rows("layer_norm", x, weight, bias)
    x = dense(x)
    rows, D = x.shape
    y, mean, rstd = np.empty_like(x), np.empty(rows, np.float32), np.empty(rows, np.float32)
    loops.layer_norm(x, vector(weight, D, 1), vector(bias, D, 0), float(eps), y, mean, rstd)
    return y, mean, rstd


def launch_rows(name: str, x: Array, args: tuple[Any, ...], centred: bool) -> None:
    """Launch <name>_warp or <name>_block over the rows of x."""
    from kernels.cuda import launch

    rows, D = x.shape
    kind = launch.type_name(x.dtype)
    args = (*args, np.int64(rows), np.int64(D), np.int32(centred))
    if D <= 1024:
        launch.run("normalization", f"{name}_warp<{kind}>", -(-rows // 8), 256, args)
    else:
        block = 256 if D <= 8192 else 1024
        launch.run("normalization", f"{name}_block<{kind}>", rows, block, args)


@layer_norm.cuda
def _(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> Triple:
    check_rows("layer_norm", x, weight, bias)
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, mean, rstd = xp.empty_like(x), *(xp.empty(x.shape[0], np.float32) for _ in range(2))
    args = (x, NULL, like(weight, x), like(bias, x), np.float32(eps), NULL, y, mean, rstd)
    launch_rows("layer_norm", x, args, centred=True)
    return y, mean, rstd


@layer_norm.sample
def _(draw, shape):
    return draw.normal(shape) + 1.5, draw.normal(shape[1]), draw.normal(shape[1]), 1e-5


@layer_norm.sample
def plain(draw, shape):
    return draw.normal(shape, scale=3.0), None, None


@kernel
def layer_norm_grad(dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array) -> Triple:
    """(dx, dweight, dbias), with n = (x - mean) rstd and g = dy weight:

    dx = rstd (g - mean(g) - n mean(g n)), dweight = sum of dy n and dbias = sum of dy over the
    rows.
    """
    check_rows("layer_norm_grad", x, weight, dy=dy)
    rstd = rstd[:, None]
    n = (x - mean[:, None]) * rstd
    g = affine(dy, weight, None)
    dx = rstd * (g - average(g, (1,)) - n * average(g * n, (1,)))
    return dx, total(dy * n, (0,))[0].astype(x.dtype), total(dy, (0,))[0].astype(x.dtype)


@layer_norm_grad.cpu
def layer_norm_grad_on_cpu(
    dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, more: Array | None = None
) -> Triple:
    """With `more` (like x) added to dx: kernels/residual_norm.py."""
    shape = x.shape
    if len(shape) != 2 or dy.shape != shape or (weight is not None and weight.shape != shape[1:]):
        check_rows("layer_norm_grad", x, weight, dy=dy)  # says what is wrong; 0.3 us of 11
    dy, x, mean, rstd = dense(dy), dense(x), dense(mean), dense(rstd)
    rows, D = x.shape
    tasks = row_blocks(rows, loops.ROW_BLOCK)
    dx, parts = np.empty_like(x), np.empty((tasks.size + 1, 2 * D), np.float32)
    w = vector(weight, D, 1)
    more = loops.NO_MORE if more is None else dense(more).reshape(-1)
    loops.layer_norm_grad(tasks, dy, x, w, mean, rstd, dx, parts, more, work=x.size)
    return dx, parts[0, :D], parts[0, D:]


def row_grads(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    rstd: Array,
    more: Array | None = None,
) -> Triple:
    """dx, dweight, dbias on CUDA; mean None for RMS norm; `more` (like x) is added to dx."""
    from kernels.cuda import launch

    xp = array_module(x)
    dy, x, rstd = xp.ascontiguousarray(dy), xp.ascontiguousarray(x), float32(rstd)
    m = NULL if mean is None else float32(mean)
    more = NULL if more is None else xp.ascontiguousarray(more)
    centred = mean is not None
    rows, D = x.shape
    dx = xp.empty_like(x)
    launch_rows("layer_norm_grad", x, (dy, x, like(weight, x), m, rstd, more, dx), centred)
    stripes = -(-D // 32)
    parts, chunk = parts_of(rows, stripes, 64)
    partials = xp.empty((parts, 2 * D), np.float32)
    kind = launch.type_name(x.dtype)
    sizes = (np.int64(rows), np.int64(D), np.int64(chunk), np.int32(centred))
    args = (dy, x, m, rstd, partials, *sizes)
    launch.run("normalization", f"row_norm_partials<{kind}>", parts * stripes, 256, args)
    grads = xp.empty((2, D), x.dtype)
    args = (partials, grads, np.int64(parts), np.int64(2 * D))
    launch.run("normalization", f"finish_partials<{kind}>", -(-2 * D // 64), 64, args)
    return dx, grads[0], grads[1]


@layer_norm_grad.cuda
def _(dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array) -> Triple:
    check_rows("layer_norm_grad", x, weight, dy=dy)
    return row_grads(dy, x, weight, mean, rstd)


@layer_norm_grad.sample
def _(draw, shape):
    x = draw.normal(shape)
    _, mean, rstd = layer_norm.reference(x, None, None)
    return draw.normal(shape), x, draw.normal(shape[1]), mean, rstd


@layer_norm_grad.sample
def plain(draw, shape):  # noqa: F811
    x = draw.normal(shape)
    _, mean, rstd = layer_norm.reference(x, None, None)
    return draw.normal(shape), x, None, mean, rstd


# RMS norm -----------------------------------------------------------------------------------------


@kernel(statistics=(1,))
def rms_norm(x: Array, weight: Array | None, eps: float = 1e-6) -> tuple[Array, Array]:
    """y = x / sqrt(mean(x^2) + eps) * weight over each row of x (rows, D).

    Returns y (rows, D) and rstd = 1 / sqrt(mean(x^2) + eps) (rows,).
    """
    check_rows("rms_norm", x, weight)
    xp = array_module(x)
    rstd = 1 / xp.sqrt(average(xp.square(x), (1,)) + eps)
    return affine(x * rstd, weight, None), rstd[:, 0]


@rms_norm.cpu
def _(x: Array, weight: Array | None, eps: float = 1e-6) -> tuple[Array, Array]:
    check_rows("rms_norm", x, weight)
    x = dense(x)
    y, rstd = np.empty_like(x), np.empty(x.shape[0], np.float32)
    loops.rms_norm(x, vector(weight, x.shape[1], 1), float(eps), y, rstd)
    return y, rstd


@rms_norm.cuda
def _(x: Array, weight: Array | None, eps: float = 1e-6) -> tuple[Array, Array]:
    check_rows("rms_norm", x, weight)
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, rstd = xp.empty_like(x), xp.empty(x.shape[0], np.float32)
    args = (x, NULL, like(weight, x), NULL, np.float32(eps), NULL, y, NULL, rstd)
    launch_rows("layer_norm", x, args, centred=False)
    return y, rstd


@rms_norm.sample
def _(draw, shape):
    return draw.normal(shape) + 0.5, draw.normal(shape[1]), 1e-6


@rms_norm.sample
def plain(draw, shape):  # noqa: F811
    return draw.normal(shape, scale=3.0), None


@kernel
def rms_norm_grad(dy: Array, x: Array, weight: Array | None, rstd: Array) -> tuple[Array, Array]:
    """(dx, dweight), with n = x rstd and g = dy weight: dx = rstd (g - n mean(g n)), dweight = sum
    of dy n over the rows.
    """
    check_rows("rms_norm_grad", x, weight, dy=dy)
    rstd = rstd[:, None]
    n = x * rstd
    g = affine(dy, weight, None)
    return rstd * (g - n * average(g * n, (1,))), total(dy * n, (0,))[0].astype(x.dtype)


@rms_norm_grad.cpu
def rms_norm_grad_on_cpu(
    dy: Array, x: Array, weight: Array | None, rstd: Array, more: Array | None = None
) -> tuple[Array, Array]:
    """With `more` (like x) added to dx: kernels/residual_norm.py."""
    check_rows("rms_norm_grad", x, weight, dy=dy)
    dy, x, rstd = dense(dy), dense(x), dense(rstd)
    rows, D = x.shape
    tasks = row_blocks(rows, loops.ROW_BLOCK)
    dx, partials = np.empty_like(x), np.empty((tasks.size, D), np.float32)
    more = loops.NO_MORE if more is None else dense(more).reshape(-1)
    w = vector(weight, D, 1)
    loops.rms_norm_grad(tasks, dy, x, w, rstd, dx, partials, more, work=x.size)
    return dx, added(partials, D)[0]


@rms_norm_grad.cuda
def _(dy: Array, x: Array, weight: Array | None, rstd: Array) -> tuple[Array, Array]:
    check_rows("rms_norm_grad", x, weight, dy=dy)
    return row_grads(dy, x, weight, None, rstd)[:2]


@rms_norm_grad.sample
def _(draw, shape):
    x = draw.normal(shape)
    return draw.normal(shape), x, draw.normal(shape[1]), rms_norm.reference(x, None)[1]


@rms_norm_grad.sample
def plain(draw, shape):  # noqa: F811
    x = draw.normal(shape)
    return draw.normal(shape), x, None, rms_norm.reference(x, None)[1]
