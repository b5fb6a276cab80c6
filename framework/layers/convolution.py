"""Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.convolution import padding_of
from framework.layers import init
from framework.layers.checks import one_of, positive_integer
from framework.layers.module import Module
from framework.layers.storage import new_parameter
from kernels.convolution_shapes import Numbers, per_axis

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Convolution(Module):
    """What all six share: arguments, parameters and their first values."""

    #: Number of spatial axes.
    axes: ClassVar[int]

    def _setup(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers,
        dilation: Numbers,
        groups: int,
    ) -> None:
        name, axes = type(self).__name__, self.axes
        self.in_channels = positive_integer(name, "in_channels", in_channels)
        self.out_channels = positive_integer(name, "out_channels", out_channels)
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, axes, 1)
        self.stride = per_axis(name, "stride", stride, axes, 1)
        self.dilation = per_axis(name, "dilation", dilation, axes, 1)
        self.groups = positive_integer(name, "groups", groups)
        for argument in ("in_channels", "out_channels"):
            channels = getattr(self, argument)
            if channels % groups:
                raise ValueError(
                    f"{name}: {argument}={channels} is not divisible by groups={groups}"
                )

    def _new_parameters(self, shape: tuple[int, int], bias: bool, device: Any, dtype: Any) -> None:
        self.weight = new_parameter((*shape, *self.kernel_size), device, dtype)
        parameter = new_parameter((self.out_channels,), device, dtype) if bias else None
        self.register_parameter("bias", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: U(-k, k), k = 1 / sqrt(weight.shape[1] * kernel's size), as PyTorch."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(init.fans(self.weight)[0])
            init.uniform_(self.bias, -bound, bound)

    def _repr(self, **options: tuple[Any, Any]) -> str:
        """The arguments; `options` as (value, default) where they differ."""
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        parts += [f"{k}={value}" for k, (value, default) in options.items() if value != default]
        return ", ".join(parts)

    def _shared_options(self) -> dict[str, tuple[Any, Any]]:
        return {
            "dilation": (self.dilation, (1,) * self.axes),
            "groups": (self.groups, 1),
            "bias": (self.bias is not None, True),
        }


class _Plain(_Convolution):
    """Conv1d, Conv2d, Conv3d."""

    _function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._setup(in_channels, out_channels, kernel_size, stride, dilation, groups)
        name = type(self).__name__
        self.padding_mode = one_of(name, "padding_mode", padding_mode, _PADDING_MODES)
        if isinstance(padding, str):
            self._pairs = padding_of(name, padding, self.kernel_size, self.stride, self.dilation)
            self.padding: Any = padding
        else:
            self.padding = per_axis(name, "padding", padding, self.axes, 0)
            self._pairs = tuple((p, p) for p in self.padding)
        shape = (self.out_channels, self.in_channels // self.groups)
        self._new_parameters(shape, bias, device, dtype)

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """x (N, in_channels, *size) -> (N, out_channels, *output); with `activation` "relu" that of
        it, in one pass.
        """
        padding = self._pairs
        if self.padding_mode != "zeros":
            mode, batch = self.padding_mode, [(0, 0)] * (x.ndim - self.axes)
            x, padding = F.pad(x, [*batch, *padding], mode=mode), ((0, 0),) * self.axes
        options = self.stride, padding, self.dilation, self.groups, activation
        return type(self)._function(x, self.weight, self.bias, *options)

    def extra_repr(self) -> str:
        """The arguments."""
        return self._repr(
            padding=(self.padding, (0,) * self.axes),
            **self._shared_options(),
            padding_mode=(self.padding_mode, "zeros"),
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """The taps of in_channels / groups channels for every output element, those outside of the
        input included.
        """
        return int(output.size * math.prod(self.weight.shape[1:]))


class Conv1d(_Plain):
    """Convolution of x (N, in_channels, L); weight (out_channels, in_channels / groups, K).

    `padding` is a number, "same" or "valid"; `padding_mode` zeros, reflect, replicate or circular.
    """

    axes = 1
    _function = staticmethod(F.conv1d)


class Conv2d(_Plain):
    """Convolution of x (N, in_channels, H, W); weight (out_channels, in_channels / groups, KH, KW).

    `padding` is a number, one for each axis, "same" or "valid"; `padding_mode` zeros, reflect,
    replicate or circular.
    """

    axes = 2
    _function = staticmethod(F.conv2d)


class Conv3d(_Plain):
    """Convolution of x (N, in_channels, D, H, W); weight (out_channels, in_channels / groups, KD,
    KH, KW). Arguments as for `Conv2d`.
    """

    axes = 3
    _function = staticmethod(F.conv3d)


class _Transposed(_Convolution):
    """ConvTranspose1d, ConvTranspose2d, ConvTranspose3d."""

    _function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Numbers = 0,
        output_padding: Numbers = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Numbers = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._setup(in_channels, out_channels, kernel_size, stride, dilation, groups)
        name = type(self).__name__
        one_of(name, "padding_mode", padding_mode, ("zeros",))
        self.padding = per_axis(name, "padding", padding, self.axes, 0)
        self.output_padding = per_axis(name, "output_padding", output_padding, self.axes, 0)
        shape = (self.in_channels, self.out_channels // self.groups)
        self._new_parameters(shape, bias, device, dtype)

    def forward(self, x: Tensor, output_size: tuple[int, ...] | None = None) -> Tensor:
        """x (N, in_channels, *size) -> (N, out_channels, *output); `output_size` chooses among the
        sizes that a stride leaves open, in place of `output_padding`.
        """
        extra = self.output_padding if output_size is None else self._extra(x, output_size)
        options = self.stride, self.padding, extra, self.groups, self.dilation
        return type(self)._function(x, self.weight, self.bias, *options)

    def _extra(self, x: Tensor, output_size: tuple[int, ...]) -> tuple[int, ...]:
        wanted = tuple(output_size)[-self.axes :]
        least = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                x.shape[-self.axes :],
                self.stride,
                self.padding,
                self.dilation,
                self.kernel_size,
                strict=True,
            )
        )
        most = tuple(n + s - 1 for n, s in zip(least, self.stride, strict=True))
        extra = tuple(w - n for w, n in zip(wanted, least, strict=False))
        fits = all(0 <= e < s for e, s in zip(extra, self.stride, strict=False))
        if len(extra) != self.axes or not fits:
            raise ValueError(
                f"{type(self).__name__}: output_size={output_size} for an input of shape {x.shape}:"
                f" expected {self.axes} sizes from {least} to {most}"
            )
        return extra

    def extra_repr(self) -> str:
        """The arguments."""
        none = (0,) * self.axes
        return self._repr(
            padding=(self.padding, none),
            output_padding=(self.output_padding, none),
            **self._shared_options(),
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """The taps of out_channels / groups channels for every input element."""
        return int(inputs[0].size * math.prod(self.weight.shape[1:]))


class ConvTranspose1d(_Transposed):
    """Transposed convolution of x (N, in_channels, L); weight (in_channels, out_channels / groups,
    K).
    """

    axes = 1
    _function = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_Transposed):
    """Transposed convolution of x (N, in_channels, H, W); weight (in_channels, out_channels /
    groups, KH, KW).
    """

    axes = 2
    _function = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_Transposed):
    """Transposed convolution of x (N, in_channels, D, H, W); weight (in_channels, out_channels /
    groups, KD, KH, KW).
    """

    axes = 3
    _function = staticmethod(F.conv_transpose3d)
