"""PReLU: a leaky ReLU whose slope is learned, one for all channels or one each (He et al. 2015)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.lazy import Lazy
from kernels.registry import Draw, kernel

loops = Lazy("kernels.cpu.prelu")

#: Templates of kernels/cuda/prelu.cu over the element type.
CUDA_KERNELS = ("prelu_forward", "prelu_backward")

#: Elements of one partial sum of the weight's gradient; fixed, so that the sum does not depend on
#: the device's size.
_BLOCK = 4096


def _slopes(x: Array, weight: Array) -> Array:
    """`weight` shaped to broadcast against `x`: (1, C, 1, ...), or (1,) * ndim."""
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.ndim != 1 or weight.shape[0] not in (1, channels):
        raise ValueError(
            f"weight is {weight.shape}, x {x.shape}: expected (1,) or ({channels},), "
            "one slope for each channel (axis 1)"
        )
    at = 1 if weight.shape[0] > 1 else 0
    return weight.reshape([-1 if axis == at else 1 for axis in range(max(x.ndim, 1))])


@kernel
def prelu(x: Array, weight: Array) -> Array:
    """x where x > 0, else weight * x; `weight` is (1,) or, for x (N, C, ...), (C,)."""
    return array_module(x).where(x > 0, x, _slopes(x, weight) * x).reshape(x.shape)


@kernel
def prelu_grad(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """dx = dy where x > 0, else weight * dy; dweight = a channel's sum of dy * x where x <= 0."""
    xp = array_module(x)
    dx = xp.where(x > 0, dy, _slopes(x, weight) * dy).reshape(x.shape)
    per_element = xp.where(x > 0, 0, dy * x)
    if weight.shape[0] == 1:
        return dx, xp.reshape(per_element.sum(), 1)
    return dx, per_element.sum(axis=tuple(axis for axis in range(x.ndim) if axis != 1))


# --- tuned ----------------------------------------------------------------------------------------


def _channels_last(x: Array, weight: Array) -> bool:
    """Do channels lie side by side in memory? (Channels-last images, and matrices.)"""
    return weight.shape[0] > 1 and (x.ndim == 2 or abs(x.strides[1]) < abs(x.strides[-1]))


def _dense(last: bool, *arrays: Array) -> list[Array]:
    """`arrays` with the channels on the last axis where `last`, C-contiguous."""
    xp = array_module(arrays[0])
    if last:
        return [xp.ascontiguousarray(xp.moveaxis(a, 1, -1)) for a in arrays]
    # ascontiguousarray gives a 0-dimensional array a dimension
    return [xp.ascontiguousarray(a).reshape(a.shape) for a in arrays]


def _planes(weight: Array, *arrays: Array) -> tuple[Array, list[list[Array]]]:
    """Cut channels-first arrays into planes of one slope: the slopes, and the arrays of each cut.

    With one slope for all there are no channels: planes of _BLOCK elements and one of what is left.
    """
    x = arrays[0]
    if weight.shape[0] > 1:
        count = x.shape[0]
        shape = (count * weight.shape[0], math.prod(x.shape[2:]))
        return np.tile(weight, count), [[a.reshape(shape) for a in arrays]]
    whole = x.size // _BLOCK * _BLOCK
    flat = [a.reshape(-1) for a in arrays]
    cuts = [[a[:whole].reshape(-1, _BLOCK) for a in flat], [a[whole:].reshape(1, -1) for a in flat]]
    return np.repeat(weight, max(x.size // _BLOCK, 1)), [cut for cut in cuts if cut[0].size]


@prelu.cpu
def _(x: Array, weight: Array) -> Array:
    _slopes(x, weight)
    last = _channels_last(x, weight)
    weight = np.ascontiguousarray(weight)
    (dense,) = _dense(last, x)
    out = np.empty_like(dense)
    if last:
        shape = (-1, weight.shape[0])
        if dense.size:
            loops.columns(dense.reshape(shape), weight, out.reshape(shape))
        return np.moveaxis(out, -1, 1)
    slopes, cuts = _planes(weight, dense, out)
    for source, target in cuts:
        loops.planes(source, slopes[: len(source)], target)
    return out


@prelu_grad.cpu
def _(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    _slopes(x, weight)
    last = _channels_last(x, weight)
    channels = weight.shape[0]
    weight = np.ascontiguousarray(weight)
    x_dense, dy_dense = _dense(last, x, dy)
    dx = np.empty_like(x_dense)
    if x.size == 0:
        return np.zeros_like(x), np.zeros(channels, x.dtype)
    if last:
        rows = x.size // channels
        height = max(_BLOCK // channels, 1)  # rows of a block, whose sums are kept apart
        sums = np.zeros((-(-rows // height), channels), x.dtype)
        whole = rows // height * height
        arrays = [a.reshape(rows, channels) for a in (dy_dense, x_dense, dx)]
        blocks = [a[:whole].reshape(-1, height, channels) for a in arrays]
        if whole:
            loops.columns_grad(*blocks, weight, sums[: whole // height])
        if whole < rows:
            loops.columns_grad(*(a[None, whole:] for a in arrays), weight, sums[-1:])
        return np.moveaxis(dx, -1, 1), sums.sum(axis=0, dtype=np.float64).astype(x.dtype)
    slopes, cuts = _planes(weight, x_dense, dy_dense, dx)
    partial = []
    for x_cut, dy_cut, dx_cut in cuts:
        sums = np.empty(len(x_cut), x.dtype)
        loops.planes_grad(dy_cut, x_cut, slopes[: len(x_cut)], dx_cut, sums)
        partial.append(sums)
    total = np.concatenate(partial).reshape(-1, channels).sum(axis=0, dtype=np.float64)
    return dx, total.astype(x.dtype)


@prelu.cuda
def _(x: Array, weight: Array) -> Array:
    from kernels.cuda import launch

    _slopes(x, weight)
    last = _channels_last(x, weight)
    (dense,) = _dense(last, x)
    xp = array_module(x)
    out = xp.empty_like(dense)
    channels, inner = _sizes(x, weight, last)
    if x.size:
        launch.run(
            "prelu",
            f"prelu_forward<{launch.type_name(x.dtype)}>",
            launch.grid_stride(x.size, x),
            launch.BLOCK,
            [dense, xp.ascontiguousarray(weight), out, np.int64(x.size), channels, inner],
        )
    return xp.moveaxis(out, -1, 1) if last else out


@prelu_grad.cuda
def _(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    from kernels.cuda import launch

    _slopes(x, weight)
    last = _channels_last(x, weight)
    x_dense, dy_dense = _dense(last, x, dy)
    xp = array_module(x)
    dx = xp.empty_like(x_dense)
    channels, inner = _sizes(x, weight, last)
    each = x.size // int(channels)  # elements of a channel
    blocks = max(1, min(-(-each // _BLOCK), 1024))
    sums = xp.zeros((blocks, int(channels)), np.float32)
    if x.size:
        launch.run(
            "prelu",
            f"prelu_backward<{launch.type_name(x.dtype)}>",
            blocks * int(channels),
            launch.BLOCK,
            [
                *(dy_dense, x_dense, xp.ascontiguousarray(weight), dx, sums),
                *(np.int64(each), channels, inner, np.int64(blocks)),
            ],
        )
    return xp.moveaxis(dx, -1, 1) if last else dx, sums.sum(axis=0).astype(x.dtype)


def _sizes(x: Array, weight: Array, last: bool) -> tuple[np.int64, np.int64]:
    """Number of slopes, and elements from one channel to the next."""
    channels = weight.shape[0]
    if channels == 1:
        return np.int64(1), np.int64(max(x.size, 1))
    return np.int64(channels), np.int64(1 if last else math.prod(x.shape[2:]))


# --- samples --------------------------------------------------------------------------------------


@prelu.sample
def matrix(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape), draw.uniform(shape[1], low=0.1, high=0.5)


@prelu.sample
def images(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape[0], 3, shape[1]), draw.uniform(3, low=0.1, high=0.5)


@prelu.sample
def one_slope(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return draw.normal(shape), draw.uniform(1, low=0.1, high=0.5)


for _sample in (matrix, images, one_slope):

    def _gradient_sample(
        draw: Draw, shape: tuple[int, ...], forward: Any = _sample
    ) -> tuple[Any, ...]:
        x, weight = forward(draw, shape)
        return draw.normal(x.shape), x, weight

    _gradient_sample.__name__ = _sample.__name__
    prelu_grad.sample(_gradient_sample)
