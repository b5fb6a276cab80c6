"""Reductions along one, several or all axes: sum, mean, var, max, min, argmax, argmin, cumsum,
norm, and gradients.

`axis` is None (all), an int or a tuple; `keepdims` keeps reduced axes as 1. Results are arrays,
0-dimensional ones included, never NumPy scalars. NaN propagates. Sums are accumulated in float64,
or in float32 over short blocks that are added in float64, in an order that depends on the shape
alone: the same bits for any number of threads.
Largest and smallest elements are in extremes.py.

The gradients of sum and mean are broadcasts, and need no kernel.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, as_rows, from_rows, is_floating, memory_order
from kernels.axes import (
    SQUARES,
    SUM,
    Axis,
    axes_of,
    count,
    cube_of,
    fold,
    in_blocks,
    one_axis,
    reduced,
    reduced_shape,
    rows_of,
    sample_all,
    sample_channels,
    sample_columns,
    sample_rows,
    spread,
)
from kernels.extremes import (
    argmax as argmax,
    argmin as argmin,
    max as max,  # noqa: A004
    max_grad as max_grad,
    min as min,  # noqa: A004
)
from kernels.lazy import Lazy
from kernels.registry import kernel

loops = Lazy("kernels.cpu.reductions")

CUDA_KERNELS = (
    "reduce_rows",
    "reduce_columns",
    "variance_rows",
    "argmax_rows",
    "argmax_columns",
    "cumsum_rows",
    "cumsum_columns",
)


# Sum, mean ----------------------------------------------------------------------------------------


@kernel
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Sum along `axis`, in x's dtype (integers and booleans: int64). 0 over nothing."""
    axes = axes_of("sum", x, axis)
    dtype = np.float64 if is_floating(x.dtype) else None
    total = array_module(x).asarray(x.sum(axis=axes, keepdims=keepdims, dtype=dtype))
    return total.astype(x.dtype) if is_floating(x.dtype) else total


@sum.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    # The two sums of every training step, without the general case's bookkeeping (10 us): a bias's
    # gradient, and the mean of a batch's losses.
    if axis == 0 and x.ndim == 2 and not keepdims and x.flags.c_contiguous:
        loops = _loops()
        if 0 < x.shape[0] <= loops.ROWS and 1 < x.shape[1] and x.size <= 131_072:
            out = np.empty(x.shape[1], np.float32)
            loops.short_column_sums(x, out)
            return out
    if axis is None and not keepdims and x.size <= 1024:
        with np.errstate(all="ignore"):  # inf - inf is NaN, silently
            return np.asarray(x.sum(dtype=np.float64), np.float32)
    return _summed("sum", x, axis, keepdims, average=False)


@kernel
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum along `axis` / number of elements, in x's dtype (integers and booleans: float64). NaN
    over nothing.
    """
    axes = axes_of("mean", x, axis)
    total = array_module(x).asarray(x.sum(axis=axes, keepdims=keepdims, dtype=np.float64))
    average = total / (count(x, axes) or math.nan)
    return array_module(x).asarray(average).astype(x.dtype if is_floating(x.dtype) else np.float64)


@mean.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _summed("mean", x, axis, keepdims, average=True)


@cache
def _loops() -> Any:
    """kernels/cpu/reductions.py; the import statement itself would cost 1 us a call."""
    return loops


def _summed(name: str, x: Array, axis: Axis, keepdims: bool, average: bool) -> Array:
    from kernels.cpu.engine import numbers

    loops = _loops()
    axes = axes_of(name, x, axis)
    scale = 1 / (count(x, axes) or math.nan) if average else 1.0
    if len(axes) == x.ndim:
        flat = memory_order(x).reshape(-1)
        blocks = numbers(-(-x.size // loops.BLOCK))
        partials = np.empty(blocks.size)
        loops.block_sums(blocks, flat, partials, work=x.size)
        with np.errstate(all="ignore"):
            total = np.asarray(partials.sum() * scale, np.float32)
        return total.reshape((1,) * x.ndim) if keepdims else total
    if count(x, axes) == 0:
        return np.full(reduced_shape(x, axes, keepdims), math.nan if average else 0, np.float32)
    factor = scale

    def reduce(cube: Array) -> Array:
        nonlocal factor
        outer, n, inner = cube.shape
        by, factor = factor, 1.0
        if inner == 1:
            out = np.empty((outer, 1), np.float32)
            loops.row_sums(cube.reshape(outer, n), by, out.reshape(outer), work=cube.size)
            return out
        together = 1  # rows side by side: few columns leave most of a register idle
        while together * inner < 128 and n % (2 * together) == 0 and n >= 1024 * together:
            together *= 2
        cube = cube.reshape(outer, n // together, together * inner)
        with np.errstate(all="ignore"):
            out = in_blocks(cube, loops.column_sums, lambda p: p.sum(axis=1, dtype=np.float64))
            if together > 1:
                out = out.reshape(outer, together, inner).sum(axis=1, dtype=np.float64)
                out = out.astype(np.float32)
            return out if by == 1 else out * np.float32(by)

    return fold(x, axes, reduce).reshape(reduced_shape(x, axes, keepdims))


@sum.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return reduced(x, axes_of("sum", x, axis), keepdims, SUM, 1.0).astype(x.dtype, copy=False)


@mean.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = axes_of("mean", x, axis)
    scale = 1 / (count(x, axes) or math.nan)
    return reduced(x, axes, keepdims, SUM, scale).astype(x.dtype, copy=False)


for _reduction in (sum, mean):
    _reduction.samples.update(
        _=sample_all, rows=sample_rows, columns=sample_columns, channels=sample_channels
    )


# Variance -----------------------------------------------------------------------------------------


@kernel
def var(x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Array:
    """Sum of (x - mean)^2 along `axis` / (number of elements - correction), in two passes.

    `correction` 1 estimates the variance of a population, 0 is that of the elements. NaN over too
    few elements.
    """
    axes = axes_of("var", x, axis)
    xp = array_module(x)
    n = count(x, axes)
    average = (x.sum(axis=axes, keepdims=True, dtype=np.float64) / (n or math.nan)).astype(x.dtype)
    square = xp.square(x - average).sum(axis=axes, keepdims=keepdims, dtype=np.float64)
    return xp.asarray(square / _divisor(n, correction)).astype(x.dtype)


def _divisor(n: int, correction: int) -> float:
    """n - correction, NaN where that is not positive."""
    return n - correction if n > correction else math.nan


@var.cpu
def _(x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Array:
    from kernels.cpu.engine import numbers

    axes = axes_of("var", x, axis)
    divisor = float(_divisor(count(x, axes), correction))
    if len(axes) == x.ndim:
        flat = memory_order(x).reshape(-1)
        centre = mean(flat)[()]
        blocks = numbers(-(-x.size // loops.BLOCK))
        partials = np.empty(blocks.size)
        loops.block_deviations(blocks, flat, centre, partials, work=x.size)
        with np.errstate(all="ignore"):
            out = np.asarray(partials.sum() / divisor, np.float32)
    else:
        rows = rows_of(x, axes)
        out = np.empty(rows.shape[0], np.float32)
        loops.row_variances(rows, divisor, out)
    return out.reshape(reduced_shape(x, axes, keepdims))


@var.cuda
def _(x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Array:
    from kernels.cuda import launch

    axes = axes_of("var", x, axis)
    xp = array_module(x)
    rows = memory_order(x).reshape(1, -1) if len(axes) == x.ndim else rows_of(x, axes)
    out = xp.empty(rows.shape[0], np.float32)
    n = count(x, axes)
    args = (rows, out, np.int64(n), np.float32(_divisor(n, correction)))
    block = 64 if n <= 512 else 256 if n <= 16384 else 1024
    launch.run(
        "reductions", f"variance_rows<{launch.type_name(x.dtype)}>", rows.shape[0], block, args
    )
    return out.reshape(reduced_shape(x, axes, keepdims)).astype(x.dtype, copy=False)


@var.sample
def _(draw, shape):
    return (draw.normal(shape) + 2.0,)


@var.sample
def columns(draw, shape):
    return draw.normal(shape) + 2.0, 0, 0, True


@kernel
def var_grad(
    dy: Array, x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False
) -> Array:
    """dx = dy * 2 (x - mean) / (number of elements - correction)."""
    axes = axes_of("var_grad", x, axis)
    n = count(x, axes)
    average = (x.sum(axis=axes, keepdims=True, dtype=np.float64) / (n or math.nan)).astype(x.dtype)
    return spread(x, axes, keepdims, dy) * (x - average) * (2 / _divisor(n, correction))


@var_grad.sample
def _(draw, shape):
    return draw.normal(shape[0]), draw.normal(shape), -1, 1


@var_grad.sample
def whole(draw, shape):
    return np.asarray(draw.normal(())), draw.normal(shape), None, 0


# Running sum --------------------------------------------------------------------------------------


@kernel
def cumsum(x: Array, axis: int = -1) -> Array:
    """y_i = x_0 + ... + x_i along `axis`, in x's dtype (integers and booleans: int64)."""
    axis = one_axis("cumsum", x, axis)
    if is_floating(x.dtype):
        return x.cumsum(axis=axis, dtype=np.float64).astype(x.dtype)
    return x.cumsum(axis=axis)


@cumsum.cpu
def _(x: Array, axis: int = -1) -> Array:
    return _running(x, one_axis("cumsum", x, axis), reverse=False)


@kernel
def cumsum_grad(dy: Array, axis: int = -1) -> Array:
    """dx_i = dy_i + ... + dy_n along `axis`: the running sum from the other end."""
    axis = one_axis("cumsum_grad", dy, axis)
    xp = array_module(dy)
    return xp.flip(xp.flip(dy, axis).cumsum(axis=axis, dtype=np.float64), axis).astype(dy.dtype)


@cumsum_grad.cpu
def _(dy: Array, axis: int = -1) -> Array:
    return _running(dy, one_axis("cumsum_grad", dy, axis), reverse=True)


def _running(x: Array, axis: int, reverse: bool) -> Array:
    rows, shape = as_rows(x, axis)
    out = np.empty_like(rows)
    loops.row_cumsums(rows, reverse, out)
    return from_rows(out, shape, axis)


@cumsum.cuda
def _(x: Array, axis: int = -1) -> Array:
    return _running_cuda(x, one_axis("cumsum", x, axis), reverse=False)


@cumsum_grad.cuda
def _(dy: Array, axis: int = -1) -> Array:
    return _running_cuda(dy, one_axis("cumsum_grad", dy, axis), reverse=True)


def _running_cuda(x: Array, axis: int, reverse: bool) -> Array:
    from kernels.cuda import launch

    outer, n, inner = cube_of(x, (axis,))
    dense = array_module(x).ascontiguousarray(x)
    out = array_module(x).empty(x.shape, x.dtype)
    kind = launch.type_name(x.dtype)
    if inner == 1 and x.size:
        args = (dense, out, np.int64(n), np.int32(reverse))
        launch.run("reductions", f"cumsum_rows<{kind}>", outer, 64 if n <= 256 else 256, args)
    elif x.size:
        args = (dense, out, *(np.int64(i) for i in (outer, n, inner)), np.int32(reverse))
        launch.run("reductions", f"cumsum_columns<{kind}>", -(-outer * inner // 256), 256, args)
    return out


for _reduction in (cumsum, cumsum_grad):
    _reduction.samples.update(_=sample_rows, columns=lambda draw, shape: (draw.normal(shape), 0))


# Euclidean norm -----------------------------------------------------------------------------------


@kernel
def norm(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """sqrt(sum of x^2) along `axis`: the Euclidean norm; 0 over nothing."""
    axes = axes_of("norm", x, axis)
    xp = array_module(x)
    square = xp.square(x).sum(axis=axes, keepdims=keepdims, dtype=np.float64)
    return xp.asarray(xp.sqrt(square)).astype(x.dtype)


@norm.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = axes_of("norm", x, axis)
    if len(axes) == x.ndim:
        out = np.asarray(math.sqrt(_square(memory_order(x).reshape(-1))), np.float32)
    else:
        rows = rows_of(x, axes)
        out = np.empty(rows.shape[0], np.float32)
        loops.row_norms(rows, out)
    return out.reshape(reduced_shape(x, axes, keepdims))


@norm.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = axes_of("norm", x, axis)
    square = reduced(x, axes, keepdims, SQUARES, 1.0)
    return array_module(x).sqrt(square).astype(x.dtype, copy=False)


def _square(flat: Array) -> float:
    """Sum of squares of a flat float32 array, float64."""
    from kernels.cpu.engine import numbers

    blocks = numbers(-(-flat.size // loops.BLOCK))
    partials = np.empty(blocks.size)
    loops.block_deviations(blocks, flat, np.float32(0), partials, work=flat.size)
    return float(partials.sum())


@norm.sample
def _(draw, shape):
    return draw.normal(shape), -1


@norm.sample
def whole(draw, shape):  # noqa: F811
    return draw.normal(shape), None, True


@kernel
def norm_grad(dy: Array, x: Array, y: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """dx = dy * x / y from the result y of `norm`; 0 at the origin, which has no slope."""
    axes = axes_of("norm_grad", x, axis)
    xp = array_module(x)
    y = spread(x, axes, keepdims, y)
    origin = y == 0
    unit = x / xp.where(origin, x.dtype.type(1), y)
    return xp.where(origin, x.dtype.type(0), spread(x, axes, keepdims, dy) * unit)


@norm_grad.sample
def _(draw, shape):
    x = draw.normal(shape)
    return draw.normal(shape[0]), x, np.sqrt((x * x).sum(axis=-1)), -1


@kernel(statistics=(0,))
def sum_of_squares(x: Array) -> Array:
    """Sum of x^2 over all elements as a 0-dimensional array, float32 for 16-bit x.

    For clipping by the global norm: on CUDA nothing waits for the device.
    """
    xp = array_module(x)
    return xp.asarray(xp.square(x).sum(dtype=np.float64)).astype(x.dtype)


@sum_of_squares.cpu
def _(x: Array) -> Array:
    return np.asarray(_square(memory_order(x).reshape(-1)), np.float32)


@sum_of_squares.cuda
def _(x: Array) -> Array:
    return reduced(x, tuple(range(x.ndim)), False, SQUARES, 1.0)


@sum_of_squares.sample
def _(draw, shape):
    return (draw.normal(shape),)
