"""The one place that knows which array libraries there are.

An array is a ``numpy.ndarray`` (CPU) or a ``cupy.ndarray`` (CUDA). CuPy is never imported here: an
array that is CuPy's proves that it has been imported already, so asking costs no start-up time and
opens no device.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

#: Any array the kernels accept. CuPy ships no types, so a static checker sees NumPy's.
Array = Any


def is_cuda(x: object) -> bool:
    """True for a CuPy array."""
    return not isinstance(x, np.ndarray) and type(x).__module__.partition(".")[0] == "cupy"


def is_array(x: object) -> bool:
    """True for a NumPy or CuPy array, 0-dimensional ones included, NumPy scalars excluded."""
    return isinstance(x, np.ndarray) or (is_cuda(x) and hasattr(x, "ndim"))


def array_module(x: object) -> ModuleType:
    """``numpy`` or ``cupy``, whichever made `x`."""
    return sys.modules["cupy"] if is_cuda(x) else np


def to_numpy(x: Array) -> np.ndarray:
    """`x` as a NumPy array; a CUDA array is copied to the host (this waits for the device)."""
    return x.get() if is_cuda(x) else np.asarray(x)


def address(x: Array) -> int:
    """Where the first element of `x` is."""
    return int(x.data.ptr if is_cuda(x) else x.__array_interface__["data"][0])


def is_floating(dtype: np.dtype) -> bool:
    """True for float16, float32, float64 and bfloat16 (which NumPy itself files under 'V')."""
    # the name takes 1 us to make: only where it has to be asked for
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16")


def is_half(dtype: np.dtype) -> bool:
    """True for the two 16-bit floating-point types."""
    return dtype.itemsize == 2 and is_floating(dtype)


def memory_order(x: Array) -> Array:
    """A C-contiguous array with the elements of `x` in the order they have in memory.

    Dense arrays in any axis order (channels-last images, say) cost nothing: the result is a view. A
    strided slice is copied.
    """
    if x.flags.c_contiguous:
        return x
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    view = x.transpose(order)
    return view if view.flags.c_contiguous else array_module(x).ascontiguousarray(x)


def layout_like(x: Array, *others: Array) -> tuple[Array, list[Array]]:
    """An uninitialised array shaped and laid out like `x`, and flat views of it and of all
    arguments.

    Returns ``(out, [flat_out, flat_x, *flat_others])`` whose elements correspond one to one.
    """
    xp = array_module(x)
    if all(a.flags.c_contiguous for a in (x, *others)):
        out = xp.empty(x.shape, x.dtype)
        return out, [out.reshape(-1), x.reshape(-1), *(a.reshape(-1) for a in others)]
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    if not x.transpose(order).flags.c_contiguous:
        order = list(range(x.ndim))
    flat = [xp.ascontiguousarray(a.transpose(order)).reshape(-1) for a in (x, *others)]
    dense = xp.empty(tuple(x.shape[axis] for axis in order), x.dtype)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return dense.transpose(inverse), [dense.reshape(-1), *flat]


def as_rows(x: Array, axis: int) -> tuple[Array, tuple[int, ...]]:
    """`x` as C-contiguous rows (rows, columns) with `axis` as the columns, and the moved shape.

    `from_rows` is the way back.
    """
    xp = array_module(x)
    moved = x if axis in (-1, x.ndim - 1) else xp.moveaxis(x, axis, -1)
    columns = moved.shape[-1]
    rows = xp.ascontiguousarray(moved).reshape(moved.size // columns if columns else 0, columns)
    return rows, moved.shape


def from_rows(rows: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Undo `as_rows`."""
    moved = rows.reshape(shape)
    return moved if axis in (-1, len(shape) - 1) else array_module(rows).moveaxis(moved, -1, axis)
