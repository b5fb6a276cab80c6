"""Images channels-last in memory, as the convolutions on CUDA take them."""

from __future__ import annotations

from typing import Any

from kernels.arrays import Array, array_module
from kernels.channels import channel_axis_last


def last(x: Array) -> Array:
    """(N, C, *size) as C-contiguous (N, *size, C)."""
    return array_module(x).ascontiguousarray(channel_axis_last(x))


def empty_last(x: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """C-contiguous (N, *size, C) for the shape (N, C, *size), where x lies, uninitialised."""
    shape = shape[0], *shape[2:], shape[1]
    return array_module(x).empty(shape, x.dtype if dtype is None else dtype)


def first(y: Array) -> Array:
    """(N, *size, C) as (N, C, *size)."""
    return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))
