"""unfold and fold: windows of images as columns, and back."""

from __future__ import annotations

from typing import Any

from framework.autograd import Tensor, record
from framework.autograd.shaping import reshape
from framework.functional.check import floating
from framework.functional.pooling import Size, batched, sizes_of
from kernels import unfolding as kernels
from kernels.windows import Windows, sliding


def _windows(
    name: str, sizes: tuple[int, ...], kernel: Any, dilation: Any, padding: Any, stride: Any
) -> Windows:
    return sliding(
        name,
        sizes,
        sizes_of(name, "kernel_size", kernel, 2),
        sizes_of(name, "stride", stride, 2),
        sizes_of(name, "padding", padding, 2, 0),
        sizes_of(name, "dilation", dilation, 2),
        free=True,
    )


def unfold(
    x: Tensor, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1
) -> Tensor:
    """x (N, C, H, W) -> (N, C kh kw, windows): each window's elements as a column, channel by
    channel.
    """
    images = batched("unfold", x, 2)
    windows = _windows("unfold", images.shape[2:], kernel_size, dilation, padding, stride)
    y = kernels.unfold(images.data, windows)
    out = record(y, [images], lambda dy: [kernels.fold(dy, windows)])
    return reshape(out, *out.shape[1:]) if x.ndim == 3 else out


def fold(
    x: Tensor,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Size = 0,
    stride: Size = 1,
) -> Tensor:
    """x (N, C kh kw, windows) -> (N, C, *output_size): what `unfold` took from a place, added up
    there.
    """
    floating("fold", x)
    sizes = sizes_of("fold", "output_size", output_size, 2)
    windows = _windows("fold", sizes, kernel_size, dilation, padding, stride)
    columns = reshape(x, 1, *x.shape) if x.ndim == 2 else x
    y = kernels.fold(columns.data, windows)
    out = record(y, [columns], lambda dy: [kernels.unfold(dy, windows)])
    return reshape(out, *out.shape[1:]) if x.ndim == 2 else out
