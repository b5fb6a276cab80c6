"""Pooling: the largest element or the average of each window, and gradients; unpooling.

x is (N, C, *) with one to three axes after the channels, and `windows` says what is pooled
(kernels/windows.py): sliding and adaptive windows alike. NaN propagates.

Two loops for two memory layouts: planes (N C, D, H, W), vectorised over the elements of a row, and
columns (N, D, H, W, C) of channels-last images, vectorised over channels. The strides of x choose;
the result is laid out like x. A gradient is summed row of the input by row, from the windows over
it: the sums do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channels import channel_axis_last, channel_axis_second, empty_last, is_columns
from kernels.checking import looked_at
from kernels.lazy import Lazy
from kernels.reductions import mean
from kernels.registry import kernel
from kernels.windows import Windows, adaptive, sliding

loops = Lazy("kernels.cpu.pooling")

CUDA_KERNELS = (
    "max_pool",
    "max_pool_grad",
    "avg_pool",
    "avg_pool_grad",
    "unpool_owners",
    "max_unpool",
    "max_unpool_grad",
)

#: Its places may be of one type alone.
CUDA_TYPES = {"unpool_owners": ("long long",)}

#: Elements of a row which the loop for columns may add up in float32, one after the other.
LONG = 256


def deep(x: Array, dims: int) -> Array:
    """(N, C, *) as (N, C, D, H, W)."""
    return x.reshape(*x.shape[:2], *(1,) * (3 - dims), *x.shape[2:])


def as_images(x: Array, columns: bool) -> Array:
    """(N, C, *) contiguous, as columns (N, D, H, W, C) or planes (N C, D, H, W)."""
    dims = x.ndim - 2
    if not columns:
        return array_module(x).ascontiguousarray(x).reshape(-1, *(1,) * (3 - dims), *x.shape[2:])
    x = array_module(x).ascontiguousarray(channel_axis_last(x))
    return x.reshape(x.shape[0], *(1,) * (3 - dims), *x.shape[1:])


def empty_images(x: Array, sizes: tuple[int, ...], columns: bool, dtype: Any = None) -> Array:
    """(N, C, *sizes) for x (N, C, *), uninitialised, channels last in memory or not."""
    xp, (N, C) = array_module(x), x.shape[:2]
    dtype = x.dtype if dtype is None else dtype
    if not columns:
        return xp.empty((N, C, *sizes), dtype)
    return channel_axis_second(empty_last(x, (N, C, *sizes), dtype))


def _launch(
    name: str, columns: bool, windows: Windows, images: tuple[Array, ...], *more: Any
) -> None:
    """Launch <name> of pooling.cu, whose first floating array gives the type; the last image is
    written, or the two last of max_pool.
    """
    from kernels.cuda import launch

    x, written = images[0], images[-1]
    C = x.shape[1]
    axes = [
        np.int32(v)
        for a in windows.axes
        for v in (a.windows, a.size, a.kernel, a.stride, a.padding, a.step)
    ]
    dense = [as_images(a, columns) for a in images]
    args = (*dense, np.int64(written.size), np.int64(C), np.int32(columns), *axes, *more)
    grid = launch.grid_stride(written.size, x)
    launch.run("pooling", f"{name}<{launch.type_name(x.dtype)}>", grid, launch.BLOCK, args)


def _divisor(windows: Windows) -> tuple[Any, Any]:
    """Does the padding count in an average; what it divides by instead of a count, 0 for none."""
    padded = windows.options.get("count_include_pad", False)
    return np.int32(padded), np.float32(windows.options.get("divisor_override") or 0)


# Largest elements ---------------------------------------------------------------------------------


@kernel
def max_pool(x: Array, windows: Windows) -> tuple[Array, Array]:
    """The largest element of each window, and where it is: its place in the flattened (*) of x,
    int32.

    The first of equals, as in PyTorch; the last NaN, if there is one.
    """
    windows.check("max_pool", "x", x, windows.sizes)
    xp, x5 = array_module(x), deep(x, windows.dims)
    _, H, W = (a.size for a in windows.axes)
    y = places = None
    for at, _ in windows.offsets():
        d, h, w = map(xp.asarray, at)
        value, place = x5[:, :, d, h, w], ((d * H + h) * W + w).astype(np.int32)
        if y is None:
            y, places = value, xp.broadcast_to(place, value.shape)
            continue
        larger = (value > y) | (value != value)
        y, places = xp.where(larger, value, y), xp.where(larger, place, places)
    shape = (*x.shape[:2], *windows.outputs)
    return y.reshape(shape), places.reshape(shape)


@max_pool.cpu
def _(x: Array, windows: Windows) -> tuple[Array, Array]:
    windows.check("max_pool", "x", x, windows.sizes)
    columns = is_columns(x)
    y = empty_images(x, windows.outputs, columns)
    places = empty_images(x, windows.outputs, columns, np.int32)
    if y.size == 0:
        return y, places
    w = windows.axes[2]
    images = [as_images(a, columns) for a in (x, y, places)]
    tables, steps = [a.table for a in windows.axes], [a.step for a in windows.axes]
    if columns:
        tasks, flat = _rows_of(images)
        loops.max_pool_columns(tasks, *flat, images[0].shape[1:], *tables, *steps, work=x.size)
    elif w.stride:
        loops.max_pool_planes(*images, *tables, *steps, w.stride, w.padding, w.kernel)
    else:
        loops.adaptive_max_pool_planes(*images, *tables)
    return y, places


def _rows_of(images: list[Array], written: int = 1) -> tuple[Array, list[Array]]:
    """The tasks of a loop over columns, rows of what is written; and all images as one axis."""
    from kernels.cpu.engine import numbers

    return numbers(math.prod(images[written].shape[:3])), [a.reshape(-1) for a in images]


@max_pool.cuda
def _(x: Array, windows: Windows) -> tuple[Array, Array]:
    windows.check("max_pool", "x", x, windows.sizes)
    columns = is_columns(x)
    y = empty_images(x, windows.outputs, columns)
    places = empty_images(x, windows.outputs, columns, np.int32)
    if y.size:
        _launch("max_pool", columns, windows, (x, y, places))
    return y, places


@kernel
def max_pool_grad(dy: Array, places: Array, windows: Windows) -> Array:
    """dx of `max_pool`: each dy goes to the place its window's largest element came from."""
    windows.check("max_pool_grad", "dy", dy, windows.outputs)
    windows.check("max_pool_grad", "places", places, windows.outputs)
    xp = array_module(dy)
    rows, length = math.prod(dy.shape[:2]), math.prod(windows.sizes)
    # float64, so that the order in which CuPy's add.at adds cannot be seen in a float32 result
    dx = xp.zeros((rows, length), np.float64)
    each = rows, math.prod(windows.outputs)
    where = xp.arange(rows)[:, None], places.reshape(each)
    xp.add.at(dx, where, dy.reshape(each).astype(np.float64))
    return dx.astype(dy.dtype).reshape(*dy.shape[:2], *windows.sizes)


@max_pool_grad.cpu
def _(dy: Array, places: Array, windows: Windows) -> Array:
    windows.check("max_pool_grad", "dy", dy, windows.outputs)
    windows.check("max_pool_grad", "places", places, windows.outputs)
    columns = is_columns(places)  # as x was: a dy out of Flatten's gradient lies in planes
    dx = empty_images(dy, windows.sizes, columns)
    if dx.size == 0:
        return dx
    images = [as_images(a, columns) for a in (dy, places, dx)]
    if columns:
        tasks, flat = _rows_of(images, 2)
        inverse = (a.inverse for a in windows.axes)
        loops.max_pool_grad_columns(tasks, *flat, images[0].shape[1:], *inverse, work=dx.size)
    else:
        loops.scatter_planes(*(a.reshape(a.shape[0], -1) for a in images), work=dx.size)
    return dx


@max_pool_grad.cuda
def _(dy: Array, places: Array, windows: Windows) -> Array:
    windows.check("max_pool_grad", "dy", dy, windows.outputs)
    windows.check("max_pool_grad", "places", places, windows.outputs)
    columns = is_columns(places)  # as x was: a dy out of Flatten's gradient lies in planes
    dx = empty_images(dy, windows.sizes, columns)
    if dx.size:
        _launch("max_pool_grad", columns, windows, (dy, places, dx))
    return dx


# Averages -----------------------------------------------------------------------------------------


@kernel
def avg_pool(x: Array, windows: Windows) -> Array:
    """The sum of each window over its count (`Windows.counts`)."""
    windows.check("avg_pool", "x", x, windows.sizes)
    xp, x5 = array_module(x), deep(x, windows.dims)
    total = xp.zeros((*x.shape[:2], *(a.windows for a in windows.axes)), np.float64)
    for at, valid in windows.offsets():
        d, h, w = map(xp.asarray, at)
        total += xp.where(xp.asarray(valid), x5[:, :, d, h, w], 0)
    y = total / xp.asarray(windows.counts())
    return y.astype(x.dtype).reshape(*x.shape[:2], *windows.outputs)


@avg_pool.cpu
def _(x: Array, windows: Windows) -> Array:
    windows.check("avg_pool", "x", x, windows.sizes)
    if windows.is_global and (not is_columns(x) or x.shape[-1] > LONG):
        return mean(x, tuple(range(2, x.ndim)), keepdims=True)
    return window_sums(x, windows)


def window_sums(x: Array, windows: Windows) -> Array:
    """The sum of each window, times its share (CPU, float32)."""
    columns = is_columns(x)
    y = empty_images(x, windows.outputs, columns)
    if y.size == 0:
        return y
    images = [as_images(a, columns) for a in (x, y)]
    tables, w = [a.table for a in windows.axes], windows.axes[2]
    if columns:
        tasks, flat = _rows_of(images)
        sizes = images[0].shape[1:]
        loops.avg_pool_columns(tasks, *flat, sizes, *tables, *windows.shares, work=x.size)
    else:
        sums = np.empty((images[0].shape[0], w.size), np.float32)
        slide = w.stride, w.padding, w.kernel
        loops.avg_pool_planes(*images, sums, *tables, *windows.shares, *slide)
    return y


@avg_pool.cuda
def _(x: Array, windows: Windows) -> Array:
    windows.check("avg_pool", "x", x, windows.sizes)
    if windows.is_global:
        return mean(x, tuple(range(2, x.ndim)), keepdims=True)
    columns = is_columns(x)
    y = empty_images(x, windows.outputs, columns)
    if y.size:
        _launch("avg_pool", columns, windows, (x, y), *_divisor(windows))
    return y


@kernel
def avg_pool_grad(dy: Array, windows: Windows) -> Array:
    """dx of `avg_pool`: the sum, over the windows that hold an element, of dy by their counts."""
    windows.check("avg_pool_grad", "dy", dy, windows.outputs)
    xp, dy5 = array_module(dy), deep(dy, windows.dims)
    share = dy5 / xp.asarray(windows.counts(), np.float64)
    dx = xp.zeros((*dy.shape[:2], *(a.size for a in windows.axes)), np.float64)
    for at, valid in windows.offsets():
        d, h, w = map(xp.asarray, at)
        part = xp.where(xp.asarray(valid), share, 0)
        xp.add.at(dx, (slice(None), slice(None), d, h, w), part)
    return dx.astype(dy.dtype).reshape(*dy.shape[:2], *windows.sizes)


@avg_pool_grad.cpu
def _(dy: Array, windows: Windows) -> Array:
    windows.check("avg_pool_grad", "dy", dy, windows.outputs)
    return spread(dy, windows)


def spread(dy: Array, windows: Windows) -> Array:
    """Each element's sum of the windows that hold it, times their shares (CPU, float32)."""
    columns = is_columns(dy)
    dx = empty_images(dy, windows.sizes, columns)
    if dx.size == 0:
        return dx
    images = [as_images(a, columns) for a in (dy, dx)]
    d, h, w = windows.axes
    inverse = d.inverse, h.inverse, w.inverse
    if columns:
        tasks, flat = _rows_of(images)
        sizes = images[0].shape[1:]
        loops.avg_pool_grad_columns(tasks, *flat, sizes, *inverse, *windows.shares, work=dx.size)
    else:
        scratch = np.empty((images[0].shape[0], w.windows), np.float32)
        pairs = (w.stride, w.kernel, w.padding, w.size) == (2, 2, 0, 2 * w.windows)
        args = w.table, *inverse[:2], *windows.shares, pairs
        loops.avg_pool_grad_planes(*images, scratch, *args, work=dx.size)
    return dx


@avg_pool_grad.cuda
def _(dy: Array, windows: Windows) -> Array:
    windows.check("avg_pool_grad", "dy", dy, windows.outputs)
    columns = is_columns(dy)
    dx = empty_images(dy, windows.sizes, columns)
    if dx.size:
        _launch("avg_pool_grad", columns, windows, (dy, dx), *_divisor(windows))
    return dx


# Unpooling ----------------------------------------------------------------------------------------


def _check_places(name: str, places: Array, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Shape and dtype, and the range (on CUDA within `check_indices`)."""
    if places.shape != shape or places.dtype.kind not in "iu" or len(sizes) != len(shape) - 2:
        raise ValueError(
            f"{name}: places are {places.dtype} of shape {places.shape}, expected integers of "
            f"shape {shape}, places in {sizes}"
        )
    seen = looked_at(places)
    if seen is None or seen.size == 0:
        return
    least, most = int(seen.min()), int(seen.max())
    if least < 0 or most >= math.prod(sizes):
        raise IndexError(
            f"{name}: a place is {least if least < 0 else most}, expected 0 <= place < "
            f"{math.prod(sizes)}, the elements of {sizes}"
        )


@kernel
def max_unpool(x: Array, places: Array, sizes: tuple[int, ...]) -> Array:
    """(N, C, *sizes) with each element of x at its place in the flattened axes, else 0.

    The last of two at one place stands. A place outside raises IndexError on the CPU, and within
    `check_indices`; on CUDA, where a check would wait for the device, its element is left out.
    """
    _check_places("max_unpool", places, x.shape, sizes)
    xp = array_module(x)
    rows, each = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    y = xp.zeros((rows, math.prod(sizes)), x.dtype)
    y[xp.arange(rows)[:, None], places.reshape(rows, each)] = x.reshape(rows, each)
    return y.reshape(*x.shape[:2], *sizes)


@max_unpool.cuda
def _(x: Array, places: Array, sizes: tuple[int, ...]) -> Array:
    from kernels.cuda import launch

    _check_places("max_unpool", places, x.shape, sizes)
    xp = array_module(x)
    x, places = xp.ascontiguousarray(x), xp.ascontiguousarray(places, np.int64)
    y = xp.empty((*x.shape[:2], *sizes), x.dtype)
    if y.size == 0:
        return y
    owners = xp.full(y.shape, -1, np.int32)
    lengths = np.int64(math.prod(x.shape[2:])), np.int64(math.prod(sizes))
    args = places, owners, np.int64(x.size), *lengths
    grid = launch.grid_stride(x.size, places)
    launch.run("pooling", "unpool_owners<long long>", grid, launch.BLOCK, args)
    args = x, owners, y, np.int64(y.size), *lengths
    name = f"max_unpool<{launch.type_name(x.dtype)}>"
    launch.run("pooling", name, launch.grid_stride(y.size, y), launch.BLOCK, args)
    return y


@kernel
def max_unpool_grad(dy: Array, places: Array) -> Array:
    """dx of `max_unpool`: dy (N, C, *sizes) at each of the places."""
    xp = array_module(dy)
    _check_places("max_unpool_grad", places, (*dy.shape[:2], *places.shape[2:]), dy.shape[2:])
    rows, each = math.prod(dy.shape[:2]), math.prod(places.shape[2:])
    flat = dy.reshape(rows, math.prod(dy.shape[2:]))
    taken = flat[xp.arange(rows)[:, None], places.reshape(rows, each)]
    return taken.reshape(places.shape)


@max_unpool_grad.cuda
def _(dy: Array, places: Array) -> Array:
    from kernels.cuda import launch

    xp = array_module(dy)
    _check_places("max_unpool_grad", places, (*dy.shape[:2], *places.shape[2:]), dy.shape[2:])
    dy, places = xp.ascontiguousarray(dy), xp.ascontiguousarray(places, np.int64)
    dx = xp.empty(places.shape, dy.dtype)
    if dx.size:
        lengths = np.int64(math.prod(places.shape[2:])), np.int64(math.prod(dy.shape[2:]))
        args = dy, places, dx, np.int64(dx.size), *lengths
        name = f"max_unpool_grad<{launch.type_name(dy.dtype)}>"
        launch.run("pooling", name, launch.grid_stride(dx.size, dx), launch.BLOCK, args)
    return dx


# Samples ------------------------------------------------------------------------------------------

#: What is pooled in tests: an even and an odd size, overlaps, padding, dilation, ceil_mode.
GEOMETRIES = {
    "_": lambda: sliding("sample", (6, 8), (2, 2), (2, 2), (0, 0), (1, 1)),
    "overlapping": lambda: sliding("sample", (9, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    "volume": lambda: sliding(
        "sample", (3, 5, 6), (2, 1, 3), (1, 2, 2), (1, 0, 1), (1, 1, 1), True
    ),
    "line": lambda: sliding("sample", (11,), (3,), (2,), (1,), (1,), True, False),
    "adaptive": lambda: adaptive("sample", (7, 5), (3, 4)),
}
DILATED = {"dilated": lambda: sliding("sample", (11, 9), (3, 2), (1, 2), (2, 1), (2, 3), True)}
GLOBAL = {"whole": lambda: adaptive("sample", (5, 3), (1, 1))}


def images(draw: Any, shape: tuple[int, ...], sizes: tuple[int, ...], columns: bool) -> Array:
    """An eighth of the rows and of the columns as images and channels: they have many pixels."""
    N, C = (-(-n // 8) for n in shape)
    if not columns:
        return draw.normal(N, C, *sizes)
    return np.moveaxis(draw.normal(N, *sizes, C), -1, 1)


def _samples(geometry: Any, columns: bool, largest: bool) -> tuple[Any, Any]:
    def forward(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
        windows = geometry()
        return images(draw, shape, windows.sizes, columns), windows

    def backward(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
        x, windows = forward(draw, shape)
        dy = images(draw, shape, windows.outputs, columns)
        if not largest:
            return dy, windows
        places = max_pool.reference(x, windows)[1]
        if columns:  # as the forward kernel lays them out
            places = np.moveaxis(np.ascontiguousarray(np.moveaxis(places, 1, -1)), -1, 1)
        return dy, places, windows

    return forward, backward


for _kernels, _geometries in (
    ((max_pool, max_pool_grad), GEOMETRIES | DILATED),
    ((avg_pool, avg_pool_grad), GEOMETRIES | GLOBAL),
):
    for _name, _geometry in _geometries.items():
        for _columns in (False, True):
            _label = _name if not _columns else "channels_last" if _name == "_" else f"{_name}_last"
            for _kernel, _sample in zip(
                _kernels, _samples(_geometry, _columns, _kernels[0] is max_pool), strict=True
            ):
                _kernel.samples[_label] = _sample


def _unpooled(draw: Any, shape: tuple[int, ...], columns: bool) -> tuple[Any, ...]:
    windows = GEOMETRIES["_"]()
    x = images(draw, shape, windows.sizes, columns)
    return *max_pool.reference(x, windows), windows.sizes


@max_unpool.sample
def _(draw, shape):
    return _unpooled(draw, shape, False)


@max_unpool.sample
def channels_last(draw, shape):
    return _unpooled(draw, shape, True)


@max_unpool_grad.sample
def _(draw, shape):
    x, places, sizes = _unpooled(draw, shape, False)
    return images(draw, shape, sizes, False), places
