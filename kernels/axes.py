"""What the reductions share: axes, layouts, and the launches of reductions.cu."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, memory_order
from kernels.moments import parts_of

Axis = int | tuple[int, ...] | None


# Axes ---------------------------------------------------------------------------------------------


def axes_of(name: str, x: Array, axis: Axis) -> tuple[int, ...]:
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


def reduced_shape(x: Array, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Shape of the result."""
    if keepdims:
        return tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    return tuple(n for a, n in enumerate(x.shape) if a not in axes)


def count(x: Array, axes: tuple[int, ...]) -> int:
    """Elements that go into one result."""
    return math.prod(x.shape[a] for a in axes)


def needs_elements(name: str, x: Array, axes: tuple[int, ...]) -> None:
    if count(x, axes) == 0:
        raise ValueError(f"{name}: x of shape {x.shape} has no elements along axis {axes}")


def one_axis(name: str, x: Array, axis: int) -> int:
    if not isinstance(axis, (int, np.integer)) or not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"{name}: axis={axis} for x of shape {x.shape}: "
            f"expected an int from {-x.ndim} to {x.ndim - 1}"
        )
    return int(axis) % x.ndim


def fold(x: Array, axes: tuple[int, ...], reduce: Callable[[Array], Array]) -> Array:
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
        last = last_position(order, axes)
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


def last_position(order: list[int], axes: tuple[int, ...]) -> int:
    """The last position in `order` that holds one of `axes`, -1 for none."""
    for position in range(len(order) - 1, -1, -1):
        if order[position] in axes:
            return position
    return -1


def rows_of(x: Array, axes: tuple[int, ...]) -> Array:
    """x as (rows, elements of one result), C-contiguous; a copy where the axes do not lie so."""
    if x.ndim == 2 and axes == (1,):
        return array_module(x).ascontiguousarray(x)
    kept = [a for a in range(x.ndim) if a not in axes]
    moved = x.transpose([*kept, *axes])
    rows = math.prod(x.shape[a] for a in kept)
    return array_module(x).ascontiguousarray(moved).reshape(rows, count(x, axes))


def spread(x: Array, axes: tuple[int, ...], keepdims: bool, result: Array) -> Array:
    """A result with its reduced axes back as 1, so that it broadcasts against x."""
    return result if keepdims else result.reshape(reduced_shape(x, axes, keepdims=True))


def cube_of(x: Array, axes: tuple[int, ...]) -> tuple[int, int, int]:
    """(outer, n, inner) of neighbouring axes of a C-contiguous array."""
    if not axes:
        return 1, 1, 1
    return math.prod(x.shape[: axes[0]]), count(x, axes), math.prod(x.shape[axes[-1] + 1 :])


# CPU ----------------------------------------------------------------------------------------------


def in_blocks(
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


# CUDA ---------------------------------------------------------------------------------------------

#: The operations of kernels/cuda/reductions.cu.
SUM, SQUARES, LARGEST, SMALLEST = (np.int32(i) for i in range(4))


def reduced(x: Array, axes: tuple[int, ...], keepdims: bool, op: np.int32, scale: float) -> Array:
    """The CUDA reduction of x, float32. Squares are of one group of axes, or of rows."""
    done = False

    def reduce(cube: Array) -> Array:
        nonlocal done
        # the first launch squares and scales, what follows adds
        result = reduce_cube(cube, SUM if done and op == SQUARES else op, 1.0 if done else scale)
        done = True
        return result

    if x.size == 0:
        return array_module(x).full(reduced_shape(x, axes, keepdims), 0 * scale, np.float32)
    if len(axes) == x.ndim:
        return reduce(memory_order(x).reshape(1, x.size, 1)).reshape(
            reduced_shape(x, axes, keepdims)
        )
    return fold(x, axes, reduce).reshape(reduced_shape(x, axes, keepdims))


def reduce_cube(cube: Array, op: np.int32, scale: float) -> Array:
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
    return reduce_cube(out, SUM if op == SQUARES else op, 1.0)


# Samples ------------------------------------------------------------------------------------------


def sample_all(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (draw.normal(shape) + 0.5,)


def sample_rows(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape), -1


def sample_columns(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape), 0, True


def sample_channels(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(*shape, 3), (0, 2)
