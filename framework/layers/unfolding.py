"""Unfold, Fold."""

from __future__ import annotations

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.pooling import Size, sizes_of
from framework.layers.module import Module


class Unfold(Module):
    """x (N, C, H, W) -> (N, C kh kw, windows): each window's elements as a column."""

    def __init__(
        self, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1
    ) -> None:
        super().__init__()
        self.arguments = _checked("Unfold", kernel_size, dilation, padding, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C kh kw, windows)."""
        return F.unfold(x, *self.arguments)

    def extra_repr(self) -> str:
        """The arguments."""
        return "kernel_size={}, dilation={}, padding={}, stride={}".format(*self.arguments)


class Fold(Module):
    """x (N, C kh kw, windows) -> (N, C, *output_size): what Unfold took from a place, added up
    there.
    """

    def __init__(
        self,
        output_size: Size,
        kernel_size: Size,
        dilation: Size = 1,
        padding: Size = 0,
        stride: Size = 1,
    ) -> None:
        super().__init__()
        self.output_size = sizes_of("Fold", "output_size", output_size, 2)
        self.arguments = _checked("Fold", kernel_size, dilation, padding, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C kh kw, windows) -> (N, C, *output_size)."""
        return F.fold(x, self.output_size, *self.arguments)

    def extra_repr(self) -> str:
        """The arguments."""
        text = "kernel_size={}, dilation={}, padding={}, stride={}".format(*self.arguments)
        return f"output_size={self.output_size}, {text}"


def _checked(
    layer: str, kernel_size: Size, dilation: Size, padding: Size, stride: Size
) -> tuple[tuple[int, ...], ...]:
    return (
        sizes_of(layer, "kernel_size", kernel_size, 2),
        sizes_of(layer, "dilation", dilation, 2),
        sizes_of(layer, "padding", padding, 2, 0),
        sizes_of(layer, "stride", stride, 2),
    )
