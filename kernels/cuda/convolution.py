"""Convolutions on CUDA without cuDNN: products of unfolded images (convolution.cu, cuBLASLt), and
depthwise kernels.

A product needs rows of taps times channels for every place, more than fits into memory: they are
made for so many places at a time that they take UNFOLDED bytes. A 1x1 convolution of stride 1 needs
none. The gradient of the input unfolds y, with zeros where a stride left places out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, is_half
from kernels.channels import channel_axis_second, dense_last, empty_last
from kernels.convolution_shapes import Geometry
from kernels.cuda import launch
from kernels.matmul import matmul
from kernels.moments import parts_of
from kernels.reductions import sum as sum_of

#: Bytes of unfolded rows at a time: enough work for a GPU, little beside its memory.
UNFOLDED = 256 << 20


def convolution(x: Array, weight: Array, bias: Array | None, g: Geometry, relu: bool) -> Array:
    """y (N, O, *output), channels-last in memory."""
    xp = array_module(x)
    x, y = dense_last(x), empty_last(x, g.y_shape)
    if _is_depthwise(g):
        w = _taps_first(weight, g)
        add = np.uintp(0) if bias is None else xp.ascontiguousarray(bias)
        times, pixels = g.out_channels // g.channels, _places(g, g.output)
        args = (x, w, add, y, np.int64(pixels), *_int32(g.channels, times, relu), *_axes(g))
        _each("depthwise", y, args)
        return channel_axis_second(y)
    w = weight.reshape(g.groups, -1, *weight.shape[1:])  # (G, O/G, C/G, *kernel)
    w = xp.ascontiguousarray(xp.moveaxis(w, 2, -1)).reshape(g.groups, w.shape[1], -1)
    rows_of_y = y.reshape(-1, g.out_channels)
    fused = not relu and (bias is None or g.groups == 1)
    add = np.uintp(0) if bias is None else xp.ascontiguousarray(bias)
    for places, rows in _unfolded("unfold", x, g, g.output, g.channels):
        part = rows_of_y[places]
        sums = part if fused else xp.empty(part.shape, np.float32)
        operands = _by_group(rows, g.groups), _one(w)
        matmul(*operands, False, True, bias if fused else None, _by_group(sums, g.groups))
        if not fused:
            sizes = np.int64(part.size), np.int64(g.out_channels), np.int32(relu)
            _each("add_bias", part, (sums, add, part, *sizes))
    return channel_axis_second(y)


def input_grad(dy: Array, weight: Array, g: Geometry) -> Array:
    """dx (N, C, *size), channels-last in memory."""
    xp = array_module(dy)
    dy, dx = dense_last(dy), empty_last(dy, g.x_shape)
    if _is_depthwise(g):
        times, pixels = g.out_channels // g.channels, _places(g, g.size)
        args = (dy, _taps_first(weight, g), dx, np.int64(pixels), *_int32(g.channels, times))
        _each("depthwise_input_grad", dx, (*args, *_axes(g)))
        return channel_axis_second(dx)
    w = weight.reshape(g.groups, -1, *weight.shape[1:])  # (G, O/G, C/G, *kernel)
    taps = range(3, w.ndim)
    w = xp.ascontiguousarray(w.transpose(0, *taps, 1, 2)).reshape(g.groups, -1, w.shape[2])
    rows_of_x = dx.reshape(-1, g.channels)
    for places, rows in _unfolded("unfold_backward", dy, g, g.size, g.out_channels):
        out = _by_group(rows_of_x[places], g.groups)
        matmul(_by_group(rows, g.groups), _one(w), out=out)
    return channel_axis_second(dx)


def weight_grad(dy: Array, x: Array, g: Geometry, out: Array | None) -> Array:
    """dweight (O, C / groups, *kernel), in `out` if given."""
    xp = array_module(x)
    dy, x = dense_last(dy), dense_last(x)
    if _is_depthwise(g):
        dw = _depthwise_weight_grad(dy, x, g).T.reshape(g.weight_shape)
    else:
        rows_of_y = dy.reshape(-1, g.out_channels)
        shape = g.groups, g.out_channels // g.groups, math.prod(g.kernel) * g.channels // g.groups
        total = None
        for places, rows in _unfolded("unfold", x, g, g.output, g.channels):
            part = xp.empty(shape, np.float32 if is_half(x.dtype) else x.dtype)
            to, rows = _by_group(rows_of_y[places], g.groups), _by_group(rows, g.groups)
            matmul(to, rows, True, False, None, _one(part))
            total = part if total is None else xp.add(total, part, out=total)
        if total is None:  # no images
            total = xp.zeros(shape, x.dtype)
        dw = xp.moveaxis(total.reshape(g.out_channels, *g.kernel, -1), -1, 1)
    if out is None:
        return xp.ascontiguousarray(dw).astype(x.dtype, copy=False)
    out[...] = dw.astype(out.dtype, copy=False)
    return out


def _depthwise_weight_grad(dy: Array, x: Array, g: Geometry) -> Array:
    """(taps, O), float32."""
    taps, outputs = math.prod(g.kernel), g.out_channels
    pixels, stripes = _places(g, g.output), -(-outputs // 32)
    parts, chunk = parts_of(pixels, stripes * taps, 64)
    partials = array_module(x).empty((parts, taps * outputs), np.float32)
    sizes = np.int64(pixels), np.int64(chunk), *_int32(g.channels, outputs // g.channels)
    name = f"depthwise_weight_grad<{launch.type_name(x.dtype)}>"
    args = (dy, x, partials, *sizes, *_axes(g))
    launch.run("convolution", name, parts * taps * stripes, 256, args)
    return sum_of(partials, 0).reshape(taps, outputs)


# Layouts ------------------------------------------------------------------------------------------


def _is_depthwise(g: Geometry) -> bool:
    return g.groups == g.channels and g.groups > 1


def _places(g: Geometry, size: tuple[int, ...]) -> int:
    return g.batch * math.prod(size)


def _taps_first(weight: Array, g: Geometry) -> Array:
    """(O, 1, *kernel) as (taps, O)."""
    return array_module(weight).ascontiguousarray(weight.reshape(g.out_channels, -1).T)


def _by_group(rows: Array, groups: int) -> Array:
    """(P, G k) as (G, P, k), without a copy; (P, k) as it is for one group."""
    if groups == 1:
        return rows
    return rows.reshape(rows.shape[0], groups, -1).transpose(1, 0, 2)


def _one(weight: Array) -> Array:
    """(G, m, n), as (m, n) for one group."""
    return weight[0] if weight.shape[0] == 1 else weight


# Launches -----------------------------------------------------------------------------------------


def _int32(*numbers: Any) -> tuple[np.int32, ...]:
    return tuple(map(np.int32, numbers))


def _axes(g: Geometry) -> tuple[np.int32, ...]:
    """The arguments AXES of convolution.cu, with axes of size 1 before those there are."""
    missing = 3 - len(g.size)
    axes = [(1, 1, 1, 1, 0, 1)] * missing
    before = [pair[0] for pair in g.padding]
    axes += zip(g.size, g.output, g.kernel, g.stride, before, g.dilation, strict=True)
    return _int32(*(number for axis in axes for number in axis))


def _each(name: str, written: Array, args: tuple[Any, ...]) -> None:
    """Launch <name>, grid-stride over what is written."""
    if written.size:
        grid = launch.grid_stride(written.size, written)
        expression = f"{name}<{launch.type_name(written.dtype)}>"
        launch.run("convolution", expression, grid, launch.BLOCK, args)


def _unfolded(
    name: str, image: Array, g: Geometry, size: tuple[int, ...], channels: int
) -> Iterator[tuple[slice, Array]]:
    """Places of the result, as many as fit into UNFOLDED, and their rows (places, taps C)."""
    places, width = _places(g, size), math.prod(g.kernel) * channels
    plain = all(pair == (0, 0) for pair in g.padding) and set(g.stride) == {1}
    if math.prod(g.kernel) == 1 and plain:
        yield slice(0, places), image.reshape(places, width)
        return
    step = max(1, UNFOLDED // (width * image.itemsize))
    rows = array_module(image).empty((min(step, places), width), image.dtype)
    for start in range(0, places, step):
        count = min(step, places - start)
        args = (image, rows, np.int64(start), np.int64(count), *_int32(channels, g.groups))
        _each(name, rows[:count], (*args, *_axes(g)))
        yield slice(start, start + count), rows[:count]
