"""Convolution over one, two or three spatial axes, and its gradients.

x is (N, C, *size), weight (O, C / groups, *kernel), y (N, O, *output), PyTorch's meaning and names:
y at place p is the sum over channels and taps of weight times x at ``p * stride - before + tap *
dilation``, zeros around x. `padding` is a number, one for each axis, or a pair (before, after) for
each. A transposed convolution is `convolution_input_grad`, its gradients are the other two.

Results lie channels-last in memory; arguments may lie as they like.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, is_half
from kernels.channels import channel_axis_last, channel_axis_second
from kernels.convolution_shapes import (
    Geometry,
    Numbers,
    check_bias,
    check_dtypes,
    check_output,
    geometry_of,
)
from kernels.lazy import Lazy
from kernels.precision import convolution_is_exact
from kernels.registry import kernel

loops = Lazy("kernels.cpu.convolution")
products = Lazy("kernels.cuda.convolution")
cudnn = Lazy("kernels.cuda.cudnn")

CUDA_KERNELS = (
    "unfold",
    "unfold_backward",
    "add_bias",
    "depthwise",
    "depthwise_input_grad",
    "depthwise_weight_grad",
)


def _zeros(x: Array, shape: tuple[int, ...]) -> Array:
    """(N, C, *) zeros in x's dtype, channels-last in memory."""
    last = array_module(x).zeros((shape[0], *shape[2:], shape[1]), x.dtype)
    return channel_axis_second(last)


def _by_group(x: Array, groups: int) -> Array:
    """(N, C, *) as (groups, N * the rest, C / groups)."""
    last = channel_axis_last(x)
    return last.reshape(-1 if x.size else 0, groups, x.shape[1] // groups).swapaxes(0, 1)


def _set_by_group(y: Array, places: tuple[slice, ...], values: Array) -> None:
    """Add (groups, N * the rest, C / groups) to the `places` of y."""
    last = channel_axis_last(y)[(slice(None), *places)]
    last += values.swapaxes(0, 1).reshape(last.shape)


def _tap(weight: Array, index: tuple[int, ...], groups: int) -> Array:
    """The weights of one tap as (groups, O / groups, C / groups)."""
    w = weight[(slice(None), slice(None), *index)]
    return w.reshape(groups, w.shape[0] // groups, w.shape[1])


@kernel
def convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    relu: bool = False,
) -> Array:
    """y = x * weight + bias, with `relu` max(0, that)."""
    g = _checked(x, weight, bias, stride, padding, dilation, groups)
    xp = array_module(x)
    y = _zeros(x, g.y_shape)
    for tap, places, reads in g.taps():
        read = _by_group(x[(slice(None), slice(None), *reads)], groups)
        _set_by_group(y, places, xp.matmul(read, _tap(weight, tap, groups).swapaxes(1, 2)))
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(g.size))
    return xp.maximum(y, 0, out=y) if relu else y


@convolution.cpu
def _(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    relu: bool = False,
) -> Array:
    g = _checked(x, weight, bias, stride, padding, dilation, groups)
    return loops.convolution(x, weight, bias, g, relu, convolution_is_exact())


def _on_cuda(operation: str, *args: Any) -> Array:
    """Through cuDNN where it is installed and has an engine, else through our own kernels."""
    found = getattr(cudnn, operation)(*args) if cudnn.usable() else None
    return getattr(products, operation)(*args) if found is None else found


@convolution.cuda
def _(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    relu: bool = False,
) -> Array:
    g = _checked(x, weight, bias, stride, padding, dilation, groups)
    return _on_cuda("convolution", x, weight, bias, g, relu)


def _checked(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Geometry:
    g = geometry_of("convolution", x.shape, weight.shape, stride, padding, dilation, groups)
    check_dtypes("convolution", x, weight)
    check_bias("convolution", x, bias, g.out_channels)
    return g


@kernel
def convolution_input_grad(
    dy: Array,
    weight: Array,
    size: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Array:
    """dx (N, C, *size) of a convolution whose input had that `size`, for dy (N, O, *output)."""
    g = _checked_input_grad(dy, weight, size, stride, padding, dilation, groups)
    dx = _zeros(dy, g.x_shape)
    for tap, places, reads in g.taps():
        read = _by_group(dy[(slice(None), slice(None), *places)], groups)
        _set_by_group(dx, reads, array_module(dy).matmul(read, _tap(weight, tap, groups)))
    return dx


@convolution_input_grad.cpu
def _(
    dy: Array,
    weight: Array,
    size: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Array:
    g = _checked_input_grad(dy, weight, size, stride, padding, dilation, groups)
    return loops.input_grad(dy, weight, g, convolution_is_exact())


@convolution_input_grad.cuda
def _(
    dy: Array,
    weight: Array,
    size: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Array:
    g = _checked_input_grad(dy, weight, size, stride, padding, dilation, groups)
    return _on_cuda("input_grad", dy, weight, g)


def _checked_input_grad(
    dy: Array, weight: Array, size: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Geometry:
    name = "convolution_input_grad"
    x_shape = (*dy.shape[:1], weight.shape[1] * groups, *size)
    g = geometry_of(name, x_shape, weight.shape, stride, padding, dilation, groups)
    check_dtypes(name, dy, weight)
    check_output(name, dy, g)
    return g


@kernel(inplace=("out",))
def convolution_weight_grad(
    dy: Array,
    x: Array,
    kernel: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """dweight (O, C / groups, *kernel), in `out` if given (float32 will do for 16-bit dy and x)."""
    g = _checked_weight_grad(dy, x, kernel, stride, padding, dilation, groups, out)
    xp = array_module(x)
    dw = xp.zeros(g.weight_shape, x.dtype)
    for tap, places, reads in g.taps():
        to = _by_group(dy[(slice(None), slice(None), *places)], groups)
        read = _by_group(x[(slice(None), slice(None), *reads)], groups)
        product = xp.matmul(to.swapaxes(1, 2), read)
        dw[(slice(None), slice(None), *tap)] = product.reshape(g.weight_shape[:2])
    if out is None:
        return dw
    out[...] = dw
    return out


@convolution_weight_grad.cpu
def _(
    dy: Array,
    x: Array,
    kernel: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    g = _checked_weight_grad(dy, x, kernel, stride, padding, dilation, groups, out)
    return loops.weight_grad(dy, x, g, out, convolution_is_exact())


@convolution_weight_grad.cuda
def _(
    dy: Array,
    x: Array,
    kernel: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    g = _checked_weight_grad(dy, x, kernel, stride, padding, dilation, groups, out)
    return _on_cuda("weight_grad", dy, x, g, out)


def _checked_weight_grad(
    dy: Array,
    x: Array,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    out: Array | None,
) -> Geometry:
    name = "convolution_weight_grad"
    weight_shape = (dy.shape[1], x.shape[1] // max(1, groups), *kernel)
    g = geometry_of(name, x.shape, weight_shape, stride, padding, dilation, groups)
    if dy.dtype != x.dtype:
        raise ValueError(f"{name}: dy is {dy.dtype}, x is {x.dtype}: expected one dtype")
    check_output(name, dy, g)
    holds = out is None or out.dtype == x.dtype or (out.dtype == "float32" and is_half(x.dtype))
    if out is not None and (out.shape != weight_shape or not holds):
        raise ValueError(f"{name}: out is {out.dtype}{out.shape}, expected {x.dtype}{weight_shape}")
    return g


# Samples: one for each way to compute a convolution -----------------------------------------------

#: name -> (channels, output channels, kernel, stride, padding, dilation, groups); channels grow
#: with the shape that is asked for where `None`.
_SAMPLES: dict[str, tuple[Any, ...]] = {
    "_": (None, 20, (3, 3), 1, 1, 1, 1),
    "strided": (None, 5, (3, 3), 2, 1, 1, 1),
    "pointwise": (None, 7, (1, 1), 1, 0, 1, 1),
    "depthwise": (20, 20, (3, 3), 1, 1, 1, 20),
    "grouped": (6, 4, (3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), 2),
    "one_channel": (1, 6, (5, 5), 1, 2, 1, 1),
    "line": (None, 4, (4,), 3, 2, 1, 1),
    "volume": (2, 3, (2, 3, 3), (1, 2, 1), 1, 1, 1),
}


def _drawn(draw: Any, shape: tuple[int, int], name: str) -> tuple[Any, ...]:
    """x, weight and the geometry's arguments; N up to 3, up to 40 channels, 6 to 13 a side."""
    rows, columns = shape
    channels, out_channels, kernel, *rest = _SAMPLES[name]
    channels = min(columns, 40) if channels is None else channels
    size = tuple(6 + (rows + 3 * axis) % 8 for axis in range(len(kernel)))
    weight = (out_channels, channels // rest[-1], *kernel)
    x = draw.normal(min(rows, 3), *size, channels)
    x = x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))  # channels-last
    x = np.ascontiguousarray(x) if name == "grouped" else x
    return x, draw.normal(weight, scale=0.3), geometry_of(name, x.shape, weight, *rest), rest


def _sample(name: str) -> None:
    def forward(draw: Any, shape: tuple[int, int]) -> tuple[Any, ...]:
        x, weight, g, rest = _drawn(draw, shape, name)
        return x, weight, draw.normal(g.out_channels), *rest, name == "strided"

    def input_grad(draw: Any, shape: tuple[int, int]) -> tuple[Any, ...]:
        _, weight, g, rest = _drawn(draw, shape, name)
        return draw.normal(g.y_shape), weight, g.size, *rest

    def weight_grad(draw: Any, shape: tuple[int, int]) -> tuple[Any, ...]:
        x, _, g, rest = _drawn(draw, shape, name)
        return draw.normal(g.y_shape), x, g.kernel, *rest

    kernels = (convolution, convolution_input_grad, convolution_weight_grad)
    for k, make in zip(kernels, (forward, input_grad, weight_grad), strict=True):
        k.samples[name] = make


for _name in _SAMPLES:
    _sample(_name)
