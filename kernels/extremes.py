"""Largest and smallest elements along one, several or all axes, and where they are (NaN is both).

`axis` and `keepdims` as in kernels/reductions.py. Results are arrays, never NumPy scalars.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.axes import (
    LARGEST,
    SMALLEST,
    Axis,
    axes_of,
    cube_of,
    fold,
    in_blocks,
    needs_elements,
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
from kernels.lazy import Lazy
from kernels.registry import kernel

loops = Lazy("kernels.cpu.reductions")

# Largest, smallest --------------------------------------------------------------------------------


@kernel
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Largest element along `axis`, NaN where there is one. ValueError over nothing."""
    axes = axes_of("max", x, axis)
    needs_elements("max", x, axes)
    return array_module(x).asarray(x.max(axis=axes, keepdims=keepdims))


@max.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _extreme("max", x, axis, keepdims, np.float32(1))


@kernel
def min(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Smallest element along `axis`, NaN where there is one. ValueError over nothing."""
    axes = axes_of("min", x, axis)
    needs_elements("min", x, axes)
    return array_module(x).asarray(x.min(axis=axes, keepdims=keepdims))


@min.cpu
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return _extreme("min", x, axis, keepdims, np.float32(-1))


@max.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = axes_of("max", x, axis)
    needs_elements("max", x, axes)
    return reduced(x, axes, keepdims, LARGEST, 1.0).astype(x.dtype, copy=False)


@min.cuda
def _(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    axes = axes_of("min", x, axis)
    needs_elements("min", x, axes)
    return reduced(x, axes, keepdims, SMALLEST, 1.0).astype(x.dtype, copy=False)


def _extreme(name: str, x: Array, axis: Axis, keepdims: bool, sign: np.float32) -> Array:
    axes = axes_of(name, x, axis)
    needs_elements(name, x, axes)
    if x.size == 0:
        return np.empty(reduced_shape(x, axes, keepdims), np.float32)
    largest = bool(sign > 0)
    merge = np.maximum.reduce if largest else np.minimum.reduce

    def reduce(cube: Array) -> Array:
        outer, n, inner = cube.shape
        if inner > 1:
            return in_blocks(cube, loops.column_maxima, lambda parts: merge(parts, axis=1), largest)
        # one long row: in pieces of BLOCK, for the sake of threads
        pieces = n // loops.BLOCK if outer == 1 and n >= 2 * loops.BLOCK else 1
        whole = n // pieces * pieces
        rows = cube.reshape(outer, n)[:, :whole].reshape(outer * pieces, -1)
        out = np.empty(outer * pieces, np.float32)
        loops.row_maxima(rows, sign, out)
        out = merge(out.reshape(outer, pieces), axis=1, keepdims=True)
        return out if whole == n else merge([out, merge(cube[:, whole:], axis=1)], axis=0)

    with np.errstate(invalid="ignore"):
        return np.asarray(fold(x, axes, reduce)).reshape(reduced_shape(x, axes, keepdims))


def _with_elements(sample: Callable[..., Any]) -> Callable[..., Any]:
    """`sample` with at least one row: there is no largest of nothing."""
    return lambda draw, shape: sample(draw, (shape[0] or 1, *shape[1:]))


for _reduction in (max, min):
    _reduction.samples.update(
        _=sample_rows,
        columns=_with_elements(sample_columns),
        channels=_with_elements(sample_channels),
        whole=_with_elements(sample_all),
    )


@kernel
def max_grad(dy: Array, x: Array, y: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """dx of `max` and of `min`, from their result y: dy where x == y, in equal shares among ties,
    else 0.

    Where y is NaN, the NaNs of x share dy.
    """
    axes = axes_of("max_grad", x, axis)
    xp = array_module(x)
    y = spread(x, axes, keepdims, y)
    chosen = (x == y) | ((x != x) & (y != y))
    ties = chosen.sum(axis=axes, keepdims=True).astype(x.dtype)
    return xp.where(chosen, spread(x, axes, keepdims, dy) / ties, x.dtype.type(0))


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
    return xp.asarray(found, np.int64).reshape(reduced_shape(x, axes, keepdims))


def _position_axes(name: str, x: Array, axis: int | None) -> tuple[int, ...]:
    axes = tuple(range(x.ndim)) if axis is None else (one_axis(name, x, axis),)
    needs_elements(name, x, axes)
    return axes


@argmax.cpu
def _(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return _position("argmax", x, axis, keepdims, np.float32(1))


@argmin.cpu
def _(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    return _position("argmin", x, axis, keepdims, np.float32(-1))


def _position(name: str, x: Array, axis: int | None, keepdims: bool, sign: np.float32) -> Array:
    axes = _position_axes(name, x, axis)
    rows = rows_of(x, axes)
    out = np.empty(rows.shape[0], np.int64)
    loops.row_argmaxima(rows, sign, out)
    return out.reshape(reduced_shape(x, axes, keepdims))


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
    outer, n, inner = cube_of(x, axes)
    dense = array_module(x).ascontiguousarray(x)
    out = array_module(x).empty(reduced_shape(x, axes, keepdims), np.int64)
    kind = launch.type_name(x.dtype)
    if inner == 1:
        block = 64 if n <= 512 else 256 if n <= 16384 else 1024
        args = (dense, out, np.int64(n), sign)
        launch.run("reductions", f"argmax_rows<{kind}>", outer, block, args)
    else:
        args = (dense, out, np.int64(outer), np.int64(n), np.int64(inner), sign)
        launch.run("reductions", f"argmax_columns<{kind}>", -(-outer * inner // 256), 256, args)
    return out


for _reduction in (argmax, argmin):
    _reduction.samples.update(
        _=sample_rows,
        columns=_with_elements(sample_columns),
        whole=_with_elements(sample_all),
    )
