"""Unfold: the windows of an image as columns of a matrix; and fold, which adds them up again. Each
is the gradient of the other.

A column holds, for one window, C x kernel elements: channel by channel, in the order of memory.
They are copies of strided slices, one for each element of the kernel, which the array library does
well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

from kernels.arrays import Array, array_module
from kernels.registry import kernel
from kernels.windows import Windows, sliding


def _slices(
    windows: Windows,
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """For each element of the kernel: itself, the windows in which it is there, and where it is."""
    axes = windows.axes[3 - windows.dims :]
    for offset in product(*(range(a.kernel) for a in axes)):
        inside, places = [], []
        for a, k in zip(axes, offset, strict=True):
            shift = k * a.step - a.padding
            first = max(0, -(shift // a.stride))
            last = min(a.windows, (a.size - 1 - shift) // a.stride + 1)
            start, stop = first * a.stride + shift, (last - 1) * a.stride + shift + 1
            empty = last <= first
            inside.append(slice(0, 0) if empty else slice(first, last))
            places.append(slice(0, 0) if empty else slice(start, stop, a.stride))
        yield offset, tuple(inside), tuple(places)


def _kernel(windows: Windows) -> tuple[int, ...]:
    return tuple(a.kernel for a in windows.axes[3 - windows.dims :])


@kernel
def unfold(x: Array, windows: Windows) -> Array:
    """(N, C, *) -> (N, C * elements of a window, windows); 0 where a window reaches beyond x."""
    windows.check("unfold", "x", x, windows.sizes)
    shape = _kernel(windows)
    y = array_module(x).zeros((*x.shape[:2], *shape, *windows.outputs), x.dtype)
    for offset, inside, places in _slices(windows):
        y[(slice(None), slice(None), *offset, *inside)] = x[(..., *places)]
    return y.reshape(x.shape[0], x.shape[1] * math.prod(shape), math.prod(windows.outputs))


@kernel
def fold(y: Array, windows: Windows) -> Array:
    """(N, C * elements of a window, windows) -> (N, C, *): the sum of what lies at each place."""
    shape = _kernel(windows)
    each, count = math.prod(shape), math.prod(windows.outputs)
    if y.ndim != 3 or y.shape[1] % each or y.shape[2] != count:
        raise ValueError(
            f"fold: y has shape {y.shape}, expected (N, C * {each}, {count}): kernels of "
            f"{shape}, {windows.outputs} of them in {windows.sizes}"
        )
    N, C = y.shape[0], y.shape[1] // each
    y = y.reshape(N, C, *shape, *windows.outputs)
    x = array_module(y).zeros((N, C, *windows.sizes), y.dtype)
    for offset, inside, places in _slices(windows):
        x[(..., *places)] += y[(slice(None), slice(None), *offset, *inside)]
    return x


def _windows() -> Windows:
    return sliding("sample", (6, 5), (3, 2), (2, 1), (1, 0), (1, 2))


@unfold.sample
def _(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    N, C = (-(-n // 8) for n in shape)
    return draw.normal(N, C, 6, 5), _windows()


@fold.sample
def _(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    N, C = (-(-n // 8) for n in shape)
    windows = _windows()
    return draw.normal(N, 6 * C, math.prod(windows.outputs)), windows
