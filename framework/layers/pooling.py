"""Pooling layers: MaxPool, AvgPool, AdaptiveMaxPool, AdaptiveAvgPool and MaxUnpool, each for one to
three axes after the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.pooling import Size, sizes_of
from framework.layers.module import Module


def _size(layer: str, argument: str, value: Any, dims: int, least: int = 1) -> Any:
    """`value` as given, if it is an integer of at least `least` or one for each axis."""
    sizes_of(layer, argument, value, dims, least)
    return value


class _MaxPool(Module):
    _dims: int

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self._dims
        self.kernel_size = _size(name, "kernel_size", kernel_size, dims)
        self.stride = kernel_size if stride is None else _size(name, "stride", stride, dims)
        self.padding = _size(name, "padding", padding, dims, 0)
        self.dilation = _size(name, "dilation", dilation, dims)
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, x: Tensor) -> Any:
        """(N, C, *) -> (N, C, windows along each axis); with return_indices also where from."""
        pool = getattr(F, f"max_pool{self._dims}d")
        return pool(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The largest element of each window of x (N, C, L); `stride` None is `kernel_size`."""

    _dims = 1


class MaxPool2d(_MaxPool):
    """The largest element of each window of x (N, C, H, W); `stride` None is `kernel_size`."""

    _dims = 2


class MaxPool3d(_MaxPool):
    """The largest element of each window of x (N, C, D, H, W); `stride` None is `kernel_size`."""

    _dims = 3


class _AvgPool(Module):
    _dims: int

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self._dims
        self.kernel_size = _size(name, "kernel_size", kernel_size, dims)
        self.stride = kernel_size if stride is None else _size(name, "stride", stride, dims)
        self.padding = _size(name, "padding", padding, dims, 0)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def _arguments(self) -> tuple[Any, ...]:
        return (
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> (N, C, windows along each axis)."""
        pooled: Tensor = getattr(F, f"avg_pool{self._dims}d")(x, *self._arguments())
        return pooled

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_AvgPool):
    """The average of each window of x (N, C, L); `stride` None is `kernel_size`."""

    _dims = 1


class _AvgPoolDivided(_AvgPool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad)
        self.divisor_override = divisor_override

    def _arguments(self) -> tuple[Any, ...]:
        return (*super()._arguments(), self.divisor_override)


class AvgPool2d(_AvgPoolDivided):
    """The average of each window of x (N, C, H, W); `stride` None is `kernel_size`."""

    _dims = 2


class AvgPool3d(_AvgPoolDivided):
    """The average of each window of x (N, C, D, H, W); `stride` None is `kernel_size`."""

    _dims = 3


class _AdaptiveAvgPool(Module):
    _dims: int

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = _adaptive_size(type(self).__name__, output_size, self._dims)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> (N, C, *output_size)."""
        pooled: Tensor = getattr(F, f"adaptive_avg_pool{self._dims}d")(x, self.output_size)
        return pooled

    def extra_repr(self) -> str:
        """The argument."""
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The average of each of `output_size` windows that cover x (N, C, L)."""

    _dims = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The average of each of `output_size` windows that cover x (N, C, H, W): 1 is global pooling,
    None keeps the size of an axis.
    """

    _dims = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """The average of each of `output_size` windows that cover x (N, C, D, H, W)."""

    _dims = 3


class _AdaptiveMaxPool(Module):
    _dims: int

    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = _adaptive_size(type(self).__name__, output_size, self._dims)
        self.return_indices = return_indices

    def forward(self, x: Tensor) -> Any:
        """(N, C, *) -> (N, C, *output_size); with return_indices also where from."""
        pool = getattr(F, f"adaptive_max_pool{self._dims}d")
        return pool(x, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        """The argument."""
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The largest element of each of `output_size` windows that cover x (N, C, L)."""

    _dims = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The largest element of each of `output_size` windows that cover x (N, C, H, W)."""

    _dims = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The largest element of each of `output_size` windows that cover x (N, C, D, H, W)."""

    _dims = 3


def _adaptive_size(layer: str, value: Any, dims: int) -> Any:
    """`value` as given; None stands for the size that an axis has."""
    values = value if isinstance(value, Sequence) else [value] * dims
    sizes_of(layer, "output_size", [1 if v is None else v for v in values], dims)
    return value


class _MaxUnpool(Module):
    _dims: int

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        super().__init__()
        name, dims = type(self).__name__, self._dims
        self.kernel_size = _size(name, "kernel_size", kernel_size, dims)
        self.stride = kernel_size if stride is None else _size(name, "stride", stride, dims)
        self.padding = _size(name, "padding", padding, dims, 0)

    def forward(
        self, x: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """What `indices` (of max pooling with return_indices) were taken from, zeros elsewhere."""
        unpool = getattr(F, f"max_unpool{self._dims}d")
        whole: Tensor = unpool(x, indices, self.kernel_size, self.stride, self.padding, output_size)
        return whole

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    """Undo MaxPool1d: each element at the place it was taken from, zeros elsewhere."""

    _dims = 1


class MaxUnpool2d(_MaxUnpool):
    """Undo MaxPool2d: each element at the place it was taken from, zeros elsewhere."""

    _dims = 2


class MaxUnpool3d(_MaxUnpool):
    """Undo MaxPool3d: each element at the place it was taken from, zeros elsewhere."""

    _dims = 3
