"""Reductions along one, several or all axes: sum, mean, var, max, min, argmax, argmin, cumsum,
norm, and gradients.

`axis` is None (all), an int or a tuple; `keepdims` keeps reduced axes as 1. Results are arrays,
0-dimensional ones included, never NumPy scalars. NaN propagates. Sums are accumulated in float64,
or in float32 over short blocks that are added in float64, in an order that depends on the shape
alone: the same bits for any number of threads.

The gradients of sum and mean are broadcasts, and need no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, as_rows, from_rows, is_floating, memory_order
from kernels.moments import parts_of
from kernels.registry import kernel

Axis = int | tuple[int, ...] | None

CUDA_KERNELS = (
    "reduce_rows",
    "reduce_columns",
    "variance_rows",
    "argmax_rows",
    "argmax_columns",
    "cumsum_rows",
    "cumsum_columns",
)


# Axes ---------------------------------------------------------------------------------------------


def _axes(name: str, x: Array, axis: Axis) -> tuple[int, ...]:
    """`axis` as a sorted tuple of non-negative ints."""
    if axis is None:
        return tuple(range(x.ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(a + x.ndim if a < 0 else a for a in given))
    if any(not 0 <= a < x.ndim for a in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"{name}: axis={axis} for x of shape {x.shape}: "
            f"expected distinct axes from {-x.ndim} to {x.ndim - 1}"
        )
    return axes


def _shape(x: Array, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Shape of the result."""
    if keepdims:
        return tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    return tuple(n for a, n in enumerate(x.shape) if a not in axes)


def _count(x: Array, axes: tuple[int, ...]) -> int:
    """Elements that go into one result."""
    return math.prod(x.shape[a] for a in axes)


def _needs_elements(name: str, x: Array, axes: tuple[int, ...]) -> None:
    if _count(x, axes) == 0:
        raise ValueError(f"{name}: x of shape {x.shape} has no elements along axis {axes}")


def _one_axis(name: str, x: Array, axis: int) -> int:
    if not isinstance(axis, (int, np.integer)) or not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"{name}: axis={axis} for x of shape {x.shape}: "
            f"expected an int from {-x.ndim} to {x.ndim - 1}"
        )
    return int(axis) % x.ndim


def _fold(x: Array, axes: tuple[int, ...], reduce: Callable[[Array], Array]) -> Array:
    """Reduce `axes` of x, group by group of axes that are neighbours in memory, and drop them.

    `reduce` takes (outer, n, inner), C-contiguous, to (outer, inner). It is called once for most
    layouts, a second time for, say, axes 0 and 2 of an NCHW image.
    """
    if not axes:
        return x.copy()
    if x.ndim == 2 and len(axes) == 1 and x.flags.c_contiguous:
        rows, columns = x.shape
        return reduce(x.reshape(1, rows, columns) if axes == (0,) else x.reshape(rows, columns, 1))
    order = sorted(range(x.ndim), key=lambda a: (-abs(x.strides[a]), a))
    dense = x.transpose(order)
    if not dense.flags.c_contiguous:
        order, dense = list(range(x.ndim)), array_module(x).ascontiguousarray(x)
    while True:
        last = _last_position(order, axes)
        if last < 0:
            break
        first = last
        while first and order[first - 1] in axes:
            first -= 1
        shape = dense.shape
        cube = dense.reshape(
            math.prod(shape[:first]),
            math.prod(shape[first : last + 1]),
            math.prod(shape[last + 1 :]),
        )
        dense = reduce(cube).reshape(shape[:first] + shape[last + 1 :])
        order = order[:first] + order[last + 1 :]
    return dense.transpose(np.argsort(order)) if order != sorted(order) else dense


def _last_position(order: list[int], axes: tuple[int, ...]) -> int:
    """The last position in `order` that holds one of `axes`, -1 for none."""
    for position in range(len(order) - 1, -1, -1):
        if order[position] in axes:
            return position
    return -1


def _rows(x: Array, axes: tuple[int, ...]) -> Array:
    """x as (rows, elements of one result), C-contiguous; a copy where the axes do not lie so."""
    if x.ndim == 2 and axes == (1,):
        return array_module(x).ascontiguousarray(x)
    kept = [a for a in range(x.ndim) if a not in axes]
    moved = x.transpose([*kept, *axes])
    rows = math.prod(x.shape[a] for a in kept)
    return array_module(x).ascontiguousarray(moved).reshape(rows, _count(x, axes))


def _spread(x: Array, axes: tuple[int, ...], keepdims: bool, result: Array) -> Array:
    """A result with its reduced axes back as 1, so that it broadcasts against x."""
    return result if keepdims else result.reshape(_shape(x, axes, keepdims=True))


# CUDA ---------------------------------------------------------------------------------------------

#: The operations of kernels/cuda/reductions.cu.
SUM, SQUARES, LARGEST, SMALLEST = (np.int32(i) for i in range(4))


def _reduced(x: Array, axes: tuple[int, ...], keepdims: bool, op: np.int32, scale: float) -> Array:
    """The CUDA reduction of x, float32. Squares are of one group of axes, or of rows."""
    done = False

    def reduce(cube: Array) -> Array:
        nonlocal done
        # the first launch squares and scales, what follows adds
        result = _reduce_cube(cube, SUM if done and op == SQUARES else op, 1.0 if done else scale)
        done = True
        return result

    if x.size == 0:
        return array_module(x).full(_shape(x, axes, keepdims), 0 * scale, np.float32)
    if len(axes) == x.ndim:
        return reduce(memory_order(x).reshape(1, x.size, 1)).reshape(_shape(x, axes, keepdims))
    return _fold(x, axes, reduce).reshape(_shape(x, axes, keepdims))


def _reduce_cube(cube: Array, op: np.int32, scale: float) -> Array:
    """(outer, n, inner) -> (outer, inner), in several launches where n is long."""
    from kernels.cuda import launch

    xp = array_module(cube)
    outer, n, inner = cube.shape
    kind = launch.type_name(cube.dtype)
    stripes = -(-inner // 32)
    parts, chunk = parts_of(n, outer * stripes, 512 if inner > 1 else 16384)
    chunk = -(-chunk // 8) * 8  # whole packs
    parts = -(-n // chunk)
    out = xp.empty((outer, parts, inner), np.float32)
    sizes = (np.int64(n), np.int64(inner), np.int64(parts), np.int64(chunk))
    if inner > 1:
        args = (cube, out, *sizes, op, np.float32(scale))
        launch.run("reductions", f"reduce_columns<{kind}>", outer * parts * stripes, 256, args)
    else:
        warps = 1 if n <= 1024 else 8
        grid = -(-outer // 8) if warps == 1 else outer * parts
        args = (cube, out, np.int64(outer), *sizes[:1], *sizes[2:], op, np.float32(scale))
        launch.run("reductions", f"reduce_rows<{kind}>", grid, 256, (*args, np.int32(warps)))
    if parts == 1:
        return out.reshape(outer, inner)
    return _reduce_cube(out, SUM if op == SQUARES else op, 1.0)


# Sum, mean ----------------------------------------------------------------------------------------


@kernel
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Sum along `axis`, in x's dtype (integers and booleans: int64). 0 over nothing."""
    axes = _axes("sum", x, axis)
    dtype = np.float64 if is_floating(x.dtype) else None
    total = array_module(x).asarray(x.sum(axis=axes, keepdims=keepdims, dtype=dtype))
    return total.astype(x.dtype) if is_floating(x.dtype) else total


@sum.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _summed("sum", x, axis, keepdims, average=False)


@kernel
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum along `axis` / number of elements, in x's dtype (integers and booleans: float64). NaN
    over nothing.
    """
    axes = _axes("mean", x, axis)
    total = array_module(x).asarray(x.sum(axis=axes, keepdims=keepdims, dtype=np.float64))
    average = total / (_count(x, axes) or math.nan)
    return array_module(x).asarray(average).astype(x.dtype if is_floating(x.dtype) else np.float64)


@mean.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _summed("mean", x, axis, keepdims, average=True)


def _summed(name: str, x: Array, axis: Axis, keepdims: bool, average: bool) -> Array:
    from kernels.cpu import reductions as loops
    from kernels.cpu.engine import numbers

    axes = _axes(name, x, axis)
    scale = 1 / (_count(x, axes) or math.nan) if average else 1.0
    if len(axes) == x.ndim:
        flat = memory_order(x).reshape(-1)
        blocks = numbers(-(-x.size // loops.BLOCK))
        partials = np.empty(blocks.size)
        loops.block_sums(blocks, flat, partials, work=x.size)
        total = np.asarray(partials.sum() * scale, np.float32)
        return total.reshape((1,) * x.ndim) if keepdims else total
    if _count(x, axes) == 0:
        return np.full(_shape(x, axes, keepdims), math.nan if average else 0, np.float32)
    factor = scale

    def reduce(cube: Array) -> Array:
        nonlocal factor
        outer, n, inner = cube.shape
        by, factor = factor, 1.0
        if inner == 1:
            out = np.empty((outer, 1), np.float32)
            loops.row_sums(cube.reshape(outer, n), by, out.reshape(outer), work=cube.size)
            return out
        out = _in_blocks(cube, loops.column_sums, lambda parts: parts.sum(axis=1, dtype=np.float64))
        return out if by == 1 else out * np.float32(by)

    return _fold(x, axes, reduce).reshape(_shape(x, axes, keepdims))


def _in_blocks(
    cube: Array, loop: Callable[..., None], merge: Callable[[Array], Array], *options: Any
) -> Array:
    """Run a column loop over blocks of rows and stripes of columns, then merge the blocks."""
    from kernels.cpu import reductions as loops
    from kernels.cpu.engine import numbers

    outer, n, inner = cube.shape
    blocks = -(-n // loops.ROWS) or 1
    partials = np.empty((outer, blocks, inner), np.float32)
    tasks = numbers(outer * blocks * -(-inner // loops.COLUMNS))
    # a quarter of the elements: additions in cache are cheap, 128x512 takes less than a launch
    # saves
    loop(tasks, cube, *options, partials, work=cube.size // 4)
    return partials[:, 0] if blocks == 1 else merge(partials).astype(np.float32)


@sum.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduced(x, _axes("sum", x, axis), keepdims, SUM, 1.0).astype(x.dtype, copy=False)


@mean.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = _axes("mean", x, axis)
    scale = 1 / (_count(x, axes) or math.nan)
    return _reduced(x, axes, keepdims, SUM, scale).astype(x.dtype, copy=False)


def _sample_all(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (draw.normal(shape) + 0.5,)


def _sample_rows(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape), -1


def _sample_columns(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape), 0, True


def _sample_channels(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(*shape, 3), (0, 2)


for _reduction in (sum, mean):
    _reduction.samples.update(
        _=_sample_all, rows=_sample_rows, columns=_sample_columns, channels=_sample_channels
    )


# Variance -----------------------------------------------------------------------------------------


@kernel
def var(x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Array:
    """Sum of (x - mean)^2 along `axis` / (number of elements - correction), in two passes.

    `correction` 1 estimates the variance of a population, 0 is that of the elements. NaN over too
    few elements.
    """
    axes = _axes("var", x, axis)
    xp = array_module(x)
    count = _count(x, axes)
    average = (x.sum(axis=axes, keepdims=True, dtype=np.float64) / (count or math.nan)).astype(
        x.dtype
    )
    square = xp.square(x - average).sum(axis=axes, keepdims=keepdims, dtype=np.float64)
    return xp.asarray(square / _divisor(count, correction)).astype(x.dtype)


def _divisor(count: int, correction: int) -> float:
    """count - correction, NaN where that is not positive."""
    return count - correction if count > correction else math.nan


@var.cpu
def _(x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Array:
    from kernels.cpu import reductions as loops
    from kernels.cpu.engine import numbers

    axes = _axes("var", x, axis)
    divisor = float(_divisor(_count(x, axes), correction))
    if len(axes) == x.ndim:
        flat = memory_order(x).reshape(-1)
        centre = mean(flat)[()]
        blocks = numbers(-(-x.size // loops.BLOCK))
        partials = np.empty(blocks.size)
        loops.block_deviations(blocks, flat, centre, partials, work=x.size)
        out = np.asarray(partials.sum() / divisor, np.float32)
    else:
        rows = _rows(x, axes)
        out = np.empty(rows.shape[0], np.float32)
        loops.row_variances(rows, divisor, out)
    return out.reshape(_shape(x, axes, keepdims))


@var.cuda
def _(x: Array, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Array:
    from kernels.cuda import launch

    axes = _axes("var", x, axis)
    xp = array_module(x)
    rows = memory_order(x).reshape(1, -1) if len(axes) == x.ndim else _rows(x, axes)
    out = xp.empty(rows.shape[0], np.float32)
    n = _count(x, axes)
    args = (rows, out, np.int64(n), np.float32(_divisor(n, correction)))
    block = 64 if n <= 512 else 256 if n <= 16384 else 1024
    launch.run(
        "reductions", f"variance_rows<{launch.type_name(x.dtype)}>", rows.shape[0], block, args
    )
    return out.reshape(_shape(x, axes, keepdims)).astype(x.dtype, copy=False)


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
    axes = _axes("var_grad", x, axis)
    count = _count(x, axes)
    average = (x.sum(axis=axes, keepdims=True, dtype=np.float64) / (count or math.nan)).astype(
        x.dtype
    )
    return _spread(x, axes, keepdims, dy) * (x - average) * (2 / _divisor(count, correction))


@var_grad.sample
def _(draw, shape):
    return draw.normal(shape[0]), draw.normal(shape), -1, 1


@var_grad.sample
def whole(draw, shape):
    return np.asarray(draw.normal(())), draw.normal(shape), None, 0


# Largest, smallest --------------------------------------------------------------------------------


@kernel
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Largest element along `axis`, NaN where there is one. ValueError over nothing."""
    axes = _axes("max", x, axis)
    _needs_elements("max", x, axes)
    return array_module(x).asarray(x.max(axis=axes, keepdims=keepdims))


@max.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _extreme("max", x, axis, keepdims, np.float32(1))


@kernel
def min(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Smallest element along `axis`, NaN where there is one. ValueError over nothing."""
    axes = _axes("min", x, axis)
    _needs_elements("min", x, axes)
    return array_module(x).asarray(x.min(axis=axes, keepdims=keepdims))


@min.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _extreme("min", x, axis, keepdims, np.float32(-1))


@max.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = _axes("max", x, axis)
    _needs_elements("max", x, axes)
    return _reduced(x, axes, keepdims, LARGEST, 1.0).astype(x.dtype, copy=False)


@min.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = _axes("min", x, axis)
    _needs_elements("min", x, axes)
    return _reduced(x, axes, keepdims, SMALLEST, 1.0).astype(x.dtype, copy=False)


def _extreme(name: str, x: Array, axis: Axis, keepdims: bool, sign: np.float32) -> Array:
    from kernels.cpu import reductions as loops

    axes = _axes(name, x, axis)
    _needs_elements(name, x, axes)
    if x.size == 0:
        return np.empty(_shape(x, axes, keepdims), np.float32)
    largest = bool(sign > 0)
    merge = np.maximum.reduce if largest else np.minimum.reduce

    def reduce(cube: Array) -> Array:
        outer, n, inner = cube.shape
        if inner > 1:
            return _in_blocks(
                cube, loops.column_maxima, lambda parts: merge(parts, axis=1), largest
            )
        # one long row: in pieces of BLOCK, for the sake of threads
        pieces = n // loops.BLOCK if outer == 1 and n >= 2 * loops.BLOCK else 1
        whole = n // pieces * pieces
        rows = cube.reshape(outer, n)[:, :whole].reshape(outer * pieces, -1)
        out = np.empty(outer * pieces, np.float32)
        loops.row_maxima(rows, sign, out)
        out = merge(out.reshape(outer, pieces), axis=1, keepdims=True)
        return out if whole == n else merge([out, merge(cube[:, whole:], axis=1)], axis=0)

    with np.errstate(invalid="ignore"):
        return np.asarray(_fold(x, axes, reduce)).reshape(_shape(x, axes, keepdims))


def _with_elements(sample: Callable[..., Any]) -> Callable[..., Any]:
    """`sample` with at least one row: there is no largest of nothing."""
    return lambda draw, shape: sample(draw, (shape[0] or 1, *shape[1:]))


for _reduction in (max, min):
    _reduction.samples.update(
        _=_sample_rows,
        columns=_with_elements(_sample_columns),
        channels=_with_elements(_sample_channels),
        whole=_with_elements(_sample_all),
    )


@kernel
def max_grad(dy: Array, x: Array, y: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """dx of `max` and of `min`, from their result y: dy where x == y, in equal shares among ties,
    else 0.

    Where y is NaN, the NaNs of x share dy.
    """
    axes = _axes("max_grad", x, axis)
    xp = array_module(x)
    y = _spread(x, axes, keepdims, y)
    chosen = (x == y) | ((x != x) & (y != y))
    ties = chosen.sum(axis=axes, keepdims=True).astype(x.dtype)
    return xp.where(chosen, _spread(x, axes, keepdims, dy) / ties, x.dtype.type(0))


@max_grad.sample
def _(draw, shape):
    x = draw.normal(shape)
    return draw.normal(shape[0]), x, x.max(axis=-1, initial=-np.inf), -1


# Positions ----------------------------------------------------------------------------------------


@kernel
def argmax(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Position of the largest element along `axis` (None: in the flattened x), int64.

    The first of equals; a NaN counts as the largest. ValueError over nothing.
    """
    return _reference_position("argmax", x, axis, keepdims)


@kernel
def argmin(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Position of the smallest element along `axis` (None: in the flattened x), int64.

    The first of equals; a NaN counts as the smallest. ValueError over nothing.
    """
    return _reference_position("argmin", x, axis, keepdims)


def _reference_position(name: str, x: Array, axis: int | None, keepdims: bool) -> Array:
    xp = array_module(x)
    axes = _position_axes(name, x, axis)
    found = getattr(xp, name)(x, axis=axis)
    return xp.asarray(found, np.int64).reshape(_shape(x, axes, keepdims))


def _position_axes(name: str, x: Array, axis: int | None) -> tuple[int, ...]:
    axes = tuple(range(x.ndim)) if axis is None else (_one_axis(name, x, axis),)
    _needs_elements(name, x, axes)
    return axes


@argmax.cpu
def _(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return _position("argmax", x, axis, keepdims, np.float32(1))


@argmin.cpu
def _(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return _position("argmin", x, axis, keepdims, np.float32(-1))


def _position(name: str, x: Array, axis: int | None, keepdims: bool, sign: np.float32) -> Array:
    from kernels.cpu import reductions as loops

    axes = _position_axes(name, x, axis)
    rows = _rows(x, axes)
    out = np.empty(rows.shape[0], np.int64)
    loops.row_argmaxima(rows, sign, out)
    return out.reshape(_shape(x, axes, keepdims))


@argmax.cuda
def _(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return _position_cuda("argmax", x, axis, keepdims, np.float32(1))


@argmin.cuda
def _(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return _position_cuda("argmin", x, axis, keepdims, np.float32(-1))


def _position_cuda(
    name: str, x: Array, axis: int | None, keepdims: bool, sign: np.float32
) -> Array:
    from kernels.cuda import launch

    axes = _position_axes(name, x, axis)
    outer, n, inner = _cube(x, axes)
    dense = array_module(x).ascontiguousarray(x)
    out = array_module(x).empty(_shape(x, axes, keepdims), np.int64)
    kind = launch.type_name(x.dtype)
    if inner == 1:
        block = 64 if n <= 512 else 256 if n <= 16384 else 1024
        args = (dense, out, np.int64(n), sign)
        launch.run("reductions", f"argmax_rows<{kind}>", outer, block, args)
    else:
        args = (dense, out, np.int64(outer), np.int64(n), np.int64(inner), sign)
        launch.run("reductions", f"argmax_columns<{kind}>", -(-outer * inner // 256), 256, args)
    return out


def _cube(x: Array, axes: tuple[int, ...]) -> tuple[int, int, int]:
    """(outer, n, inner) of neighbouring axes of a C-contiguous array."""
    if not axes:
        return 1, 1, 1
    return math.prod(x.shape[: axes[0]]), _count(x, axes), math.prod(x.shape[axes[-1] + 1 :])


for _reduction in (argmax, argmin):
    _reduction.samples.update(
        _=_sample_rows,
        columns=_with_elements(_sample_columns),
        whole=_with_elements(_sample_all),
    )


# Running sum --------------------------------------------------------------------------------------


@kernel
def cumsum(x: Array, axis: int = -1) -> Array:
    """y_i = x_0 + ... + x_i along `axis`, in x's dtype (integers and booleans: int64)."""
    axis = _one_axis("cumsum", x, axis)
    if is_floating(x.dtype):
        return x.cumsum(axis=axis, dtype=np.float64).astype(x.dtype)
    return x.cumsum(axis=axis)


@cumsum.cpu
def _(x: Array, axis: int = -1) -> Array:
    return _running(x, _one_axis("cumsum", x, axis), reverse=False)


@kernel
def cumsum_grad(dy: Array, axis: int = -1) -> Array:
    """dx_i = dy_i + ... + dy_n along `axis`: the running sum from the other end."""
    axis = _one_axis("cumsum_grad", dy, axis)
    xp = array_module(dy)
    return xp.flip(xp.flip(dy, axis).cumsum(axis=axis, dtype=np.float64), axis).astype(dy.dtype)


@cumsum_grad.cpu
def _(dy: Array, axis: int = -1) -> Array:
    return _running(dy, _one_axis("cumsum_grad", dy, axis), reverse=True)


def _running(x: Array, axis: int, reverse: bool) -> Array:
    from kernels.cpu import reductions as loops

    rows, shape = as_rows(x, axis)
    out = np.empty_like(rows)
    loops.row_cumsums(rows, reverse, out)
    return from_rows(out, shape, axis)


@cumsum.cuda
def _(x: Array, axis: int = -1) -> Array:
    return _running_cuda(x, _one_axis("cumsum", x, axis), reverse=False)


@cumsum_grad.cuda
def _(dy: Array, axis: int = -1) -> Array:
    return _running_cuda(dy, _one_axis("cumsum_grad", dy, axis), reverse=True)


def _running_cuda(x: Array, axis: int, reverse: bool) -> Array:
    from kernels.cuda import launch

    outer, n, inner = _cube(x, (axis,))
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
    _reduction.samples.update(_=_sample_rows, columns=lambda draw, shape: (draw.normal(shape), 0))


# Euclidean norm -----------------------------------------------------------------------------------


@kernel
def norm(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """sqrt(sum of x^2) along `axis`: the Euclidean norm; 0 over nothing."""
    axes = _axes("norm", x, axis)
    xp = array_module(x)
    square = xp.square(x).sum(axis=axes, keepdims=keepdims, dtype=np.float64)
    return xp.asarray(xp.sqrt(square)).astype(x.dtype)


@norm.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    from kernels.cpu import reductions as loops

    axes = _axes("norm", x, axis)
    if len(axes) == x.ndim:
        out = np.asarray(math.sqrt(_square(memory_order(x).reshape(-1))), np.float32)
    else:
        rows = _rows(x, axes)
        out = np.empty(rows.shape[0], np.float32)
        loops.row_norms(rows, out)
    return out.reshape(_shape(x, axes, keepdims))


@norm.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = _axes("norm", x, axis)
    square = _reduced(x, axes, keepdims, SQUARES, 1.0)
    return array_module(x).sqrt(square).astype(x.dtype, copy=False)


def _square(flat: Array) -> float:
    """Sum of squares of a flat float32 array, float64."""
    from kernels.cpu import reductions as loops
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
    axes = _axes("norm_grad", x, axis)
    xp = array_module(x)
    y = _spread(x, axes, keepdims, y)
    origin = y == 0
    unit = x / xp.where(origin, x.dtype.type(1), y)
    return xp.where(origin, x.dtype.type(0), _spread(x, axes, keepdims, dy) * unit)


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
    return _reduced(x, tuple(range(x.ndim)), False, SQUARES, 1.0)


@sum_of_squares.sample
def _(draw, shape):
    return (draw.normal(shape),)
