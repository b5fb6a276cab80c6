"""Convolution and transposed convolution over one, two or three spatial axes.

x is (N, C, *size) or, without a batch, (C, *size). Results lie channels-last in memory. Under
`framework.autocast` products run in 16 bits, as in `linear`.
"""

from __future__ import annotations

from typing import Any

from framework.autograd import Tensor, record
from framework.autograd.casting import compute_copy, product_dtype, state
from framework.functional.check import array_of, floating, optional_tensor, tensor_argument
from framework.functional.linear import fitted, place_of
from kernels import reductions
from kernels.activations import relu_grad
from kernels.arrays import Array
from kernels.convolution import (
    convolution,
    convolution_input_grad,
    convolution_weight_grad,
)
from kernels.convolution_shapes import Geometry, Numbers, geometry_of, per_axis

#: A number, one for each axis, "same" (the output has the input's size) or "valid" (none).
Padding = Numbers | str


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, L), weight (O, C / groups, K), bias (O,) -> (N, O, (L + 2 padding - dilation (K - 1)
    - 1) // stride + 1).

    With `activation` "relu" that of the result, in one pass with the bias (not in PyTorch).
    """
    options = stride, padding, dilation, groups, activation
    return _convolve("conv1d", 1, x, weight, bias, *options)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, H, W), weight (O, C / groups, KH, KW), bias (O,) -> (N, O, H', W'), sizes as in
    `conv1d`.
    """
    options = stride, padding, dilation, groups, activation
    return _convolve("conv2d", 2, x, weight, bias, *options)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, D, H, W), weight (O, C / groups, KD, KH, KW), bias (O,) -> (N, O, D', H', W')."""
    options = stride, padding, dilation, groups, activation
    return _convolve("conv3d", 3, x, weight, bias, *options)


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """The gradient of `conv1d` as a layer: x (N, C, L), weight (C, O / groups, K), bias (O,) -> (N,
    O, (L - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1).
    """
    options = stride, padding, output_padding, groups, dilation
    return _transposed("conv_transpose1d", 1, x, weight, bias, *options)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """The gradient of `conv2d` as a layer: x (N, C, H, W), weight (C, O / groups, KH, KW), bias
    (O,) -> (N, O, H', W'), sizes as in `conv_transpose1d`.
    """
    options = stride, padding, output_padding, groups, dilation
    return _transposed("conv_transpose2d", 2, x, weight, bias, *options)


def conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """The gradient of `conv3d` as a layer: x (N, C, D, H, W), weight (C, O / groups, KD, KH, KW),
    bias (O,) -> (N, O, D', H', W').
    """
    options = stride, padding, output_padding, groups, dilation
    return _transposed("conv_transpose3d", 3, x, weight, bias, *options)


# What they share ----------------------------------------------------------------------------------


def _convolve(
    name: str,
    axes: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Padding,
    dilation: Numbers,
    groups: int,
    activation: str | None,
) -> Tensor:
    _check_tensors(name, axes, x, weight, bias)
    if activation not in (None, "relu"):
        raise ValueError(f"{name}: activation={activation!r}, expected 'relu' or None")
    if x.ndim == axes + 1:
        given = stride, padding, dilation, groups, activation
        return _convolve(name, axes, x.unsqueeze(0), weight, bias, *given).squeeze(0)
    if isinstance(padding, str):
        padding = padding_of(name, padding, weight.shape[2:], stride, dilation)
    g = geometry_of(name, x.shape, weight.shape, stride, padding, dilation, groups)
    _check_bias(name, bias, g.out_channels)
    half, a, w, b = _operands(name, x, weight, bias)
    options = g.stride, g.padding, g.dilation, groups
    y = convolution(a, w, b, *options, activation == "relu")
    want_x, want_w = x.requires_grad, weight.requires_grad
    a, w = a if want_w else None, w if want_x else None  # what the gradients need
    slot_of = place_of if x is not weight else lambda *_: None  # as in `linear`
    inputs = [x, weight] if bias is None else [x, weight, bias]

    def backward(dy: Array) -> list[Array | None]:
        if activation is not None:
            dy = relu_grad(dy, y)  # y is above 0 where the sum was
        dx = convolution_input_grad(dy, w, g.size, *options) if want_x else None
        dw = None
        if want_w:
            dw = convolution_weight_grad(dy, a, g.kernel, *options, slot_of(weight, dy))
        gradients = [dx, dw] if bias is None else [dx, dw, _channel_sums(dy)]
        return gradients if half is None else fitted(gradients, inputs)

    return record(y, inputs, backward)


def _transposed(
    name: str,
    axes: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers,
    output_padding: Numbers,
    groups: int,
    dilation: Numbers,
) -> Tensor:
    _check_tensors(name, axes, x, weight, bias)
    if x.ndim == axes + 1:
        options = stride, padding, output_padding, groups, dilation
        return _transposed(name, axes, x.unsqueeze(0), weight, bias, *options).squeeze(0)
    g = _transposed_geometry(
        name, x.shape, weight.shape, stride, padding, output_padding, groups, dilation
    )
    _check_bias(name, bias, g.channels)
    half, a, w, b = _operands(name, x, weight, bias)
    options = g.stride, g.padding, g.dilation, groups
    y = convolution_input_grad(a, w, g.size, *options)
    if b is not None:
        y += b.reshape(-1, *(1,) * axes)
    want_x, want_w = x.requires_grad, weight.requires_grad
    a, w = a if want_w else None, w if want_x else None
    slot_of = place_of if x is not weight else lambda *_: None
    inputs = [x, weight] if bias is None else [x, weight, bias]

    def backward(dy: Array) -> list[Array | None]:
        dx = convolution(dy, w, None, *options) if want_x else None
        dw = None
        if want_w:
            dw = convolution_weight_grad(a, dy, g.kernel, *options, slot_of(weight, dy))
        gradients = [dx, dw] if bias is None else [dx, dw, _channel_sums(dy)]
        return gradients if half is None else fitted(gradients, inputs)

    return record(y, inputs, backward)


def _transposed_geometry(
    name: str,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Numbers,
    padding: Numbers,
    output_padding: Numbers,
    groups: int,
    dilation: Numbers,
) -> Geometry:
    """The convolution that this is the transpose of: its y is our x, its x is our y."""
    axes = len(weight_shape) - 2
    strides = per_axis(name, "stride", stride, axes, 1)
    paddings = per_axis(name, "padding", padding, axes, 0)
    dilations = per_axis(name, "dilation", dilation, axes, 1)
    extra = per_axis(name, "output_padding", output_padding, axes, 0)
    if any(e >= s for e, s in zip(extra, strides, strict=True)):
        raise ValueError(f"{name}: output_padding={output_padding}, expected less than {stride=}")
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(
            x_shape[2:], strides, paddings, dilations, weight_shape[2:], extra, strict=True
        )
    )
    if x_shape[1] != weight_shape[0]:
        raise ValueError(
            f"{name}: the input {x_shape} has {x_shape[1]} channels, the weight {weight_shape} "
            f"expects {weight_shape[0]}; "
            f"the output would be {(x_shape[0], weight_shape[1] * groups, *size)}"
        )
    if min(size) < 1:
        raise ValueError(
            f"{name}: an input of shape {x_shape} and a weight {weight_shape} with padding="
            f"{padding} would give an output of size {'x'.join(map(str, size))}"
        )
    y_shape = (x_shape[0], weight_shape[1] * groups, *size)
    return geometry_of(name, y_shape, weight_shape, strides, paddings, dilations, groups)


def padding_of(
    name: str, padding: str, kernel: tuple[int, ...], stride: Numbers, dilation: Numbers
) -> tuple[tuple[int, int], ...]:
    """The pairs of numbers that "same" and "valid" mean; "same" puts what is odd after."""
    axes = len(kernel)
    if padding == "valid":
        return ((0, 0),) * axes
    if padding != "same":
        raise ValueError(
            f'{name}: padding={padding!r}, expected an integer, {axes} of them, "same" or "valid"'
        )
    if any(s != 1 for s in per_axis(name, "stride", stride, axes, 1)):
        raise ValueError(f'{name}: padding="same" with stride={stride}, expected stride=1')
    dilations = per_axis(name, "dilation", dilation, axes, 1)
    totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _check_tensors(name: str, axes: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    floating(name, x)
    tensor_argument(name, "weight", weight)
    optional_tensor(name, "bias", bias)
    if weight.ndim != axes + 2 or x.ndim not in (axes + 1, axes + 2):
        raise ValueError(
            f"{name}: the input has shape {x.shape}, the weight {weight.shape}: expected "
            f"{axes + 2} axes (or, without a batch, {axes + 1}) and {axes + 2}"
        )


def _check_bias(name: str, bias: Tensor | None, channels: int) -> None:
    if bias is not None and bias.shape != (channels,):
        raise ValueError(
            f"{name}: bias has shape {bias.shape}, the {channels} output channels need "
            f"({channels},)"
        )


def _operands(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """autocast's 16-bit dtype or None, and the arrays to compute with."""
    half = None if state.dtype is None else product_dtype(x, weight, bias)
    if half is not None:
        return half, *(None if t is None else compute_copy(t, half) for t in (x, weight, bias))
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        dtypes = f"weight {weight.dtype.name}" + ("" if bias is None else f", bias {bias.dtype}")
        raise TypeError(f"{name}: input is {x.dtype.name}, {dtypes}; use .to(...)")
    return None, x.data, weight.data, array_of(bias)


def _channel_sums(dy: Array) -> Array:
    """The gradient of the bias."""
    return reductions.sum(dy, (0, *range(2, dy.ndim)))
