"""Images and features by channel, for batch and group norm: planes (N, C, L) or columns (rows, C),
by the strides.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.moments import check_parameters, parts_of


def other_axes(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def across(parameter: Array | None, ndim: int) -> Array | None:
    """A per-channel vector (C,) shaped to broadcast over (N, C, *)."""
    return None if parameter is None else parameter.reshape((1, -1) + (1,) * (ndim - 2))


def check_channels(name: str, x: Array, **parameters: Array | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, C) or (N, C, *)")
    check_parameters(name, x.shape[1], "channel", x, **parameters)


def is_columns(x: Array) -> bool:
    """Is the channel axis (1) the fastest in memory? True for (N, C) and channels-last images."""
    if x.ndim == 2:
        return True
    if x.flags.c_contiguous and math.prod(x.shape[2:]) > 1:
        return False
    return bool(channel_axis_last(x).flags.c_contiguous)


def channel_axis_last(x: Array) -> Array:
    return x.transpose(0, *range(2, x.ndim), 1)


def channel_axis_second(x: Array) -> Array:
    """Undo `channel_axis_last`: (N, *, C) as (N, C, *)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def dense_last(x: Array) -> Array:
    """(N, C, *) as C-contiguous (N, *, C)."""
    return array_module(x).ascontiguousarray(channel_axis_last(x))


def empty_last(x: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """C-contiguous (N, *, C) for the shape (N, C, *), where x lies, uninitialised."""
    shape = shape[0], *shape[2:], shape[1]
    return array_module(x).empty(shape, x.dtype if dtype is None else dtype)


def as_columns(x: Array) -> Array:
    """(N, C, *) as contiguous (N * prod(*), C): a view of a channels-last array."""
    return (
        array_module(x)
        .ascontiguousarray(channel_axis_last(x))
        .reshape(-1 if x.size else 0, x.shape[1])
    )


def from_columns(y: Array, shape: tuple[int, ...]) -> Array:
    """Undo `as_columns`: (N, C, *) with channels-last strides."""
    return channel_axis_second(y.reshape(shape[0], *shape[2:], shape[1]))


def as_planes(x: Array) -> Array:
    """(N, C, *) as contiguous (N, C, L)."""
    return (
        array_module(x).ascontiguousarray(x).reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    )


# CUDA: one description of a layout for all launches -----------------------------------------------


class Channels:
    """x for the CUDA kernels: dense, its sizes, and how a reduction over it is cut into parts."""

    def __init__(self, x: Array) -> None:
        from kernels.cuda import launch

        self.columns = is_columns(x)
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
        return as_columns(a) if self.columns else as_planes(a)

    def restored(self, y: Array) -> Array:
        """A result in the shape and layout of x."""
        return from_columns(y, self.shape) if self.columns else y.reshape(self.shape)

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

    def moments(self) -> tuple[Array, Array]:
        """Mean and biased variance of every channel, NaN over nothing."""
        mean, var = self.vectors(2)
        if self.x.size == 0:
            mean[...], var[...] = math.nan, math.nan
            return mean, var
        partials = self.reduce("batch_moments", (self.x,))
        counts = (self.parts, self.C, self.chunk * self.unit, self.per_channel)
        self.each_channel("batch_merge", self.C, (partials, mean, var, *map(np.int64, counts)))
        return mean, var

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
