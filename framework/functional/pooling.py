"""Pooling over windows of an image (N, C, *), or of a single one (C, *): the largest element, the
average.

The arguments are PyTorch's. Sizes are one number for all axes or one for each.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from framework.autograd import Tensor, record
from framework.autograd.shaping import reshape
from framework.functional.check import floating, tensor_argument
from kernels import pooling as kernels
from kernels.arrays import Array
from kernels.windows import Windows, adaptive, sliding

Size = int | Sequence[int]


def sizes_of(name: str, argument: str, value: Any, dims: int, least: int = 1) -> tuple[int, ...]:
    """`value` for each of `dims` axes: one integer of at least `least`, or a sequence of them."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * dims
    try:
        sizes = tuple(operator.index(v) for v in values)
    except TypeError:
        sizes = ()
    if len(sizes) == 1:
        sizes *= dims
    if len(sizes) != dims or min(sizes) < least:
        many = f" or {dims} of them" if dims > 1 else ""
        raise ValueError(
            f"{name}: {argument}={value!r}, expected an integer of at least {least}{many}"
        )
    return sizes


def batched(name: str, x: Tensor, dims: int) -> Tensor:
    """x as (N, C, *) with `dims` axes after the channels; (C, *) is one image."""
    floating(name, x)
    if x.ndim not in (dims + 1, dims + 2):
        axes = ("L", "H, W", "D, H, W")[dims - 1]
        raise ValueError(
            f"{name}: input has shape {x.shape}, expected (N, C, {axes}) or (C, {axes})"
        )
    return x if x.ndim == dims + 2 else reshape(x, 1, *x.shape)


def like_input(y: Tensor, x: Tensor) -> Tensor:
    """Undo `batched` for the result."""
    return y if y.ndim == x.ndim else reshape(y, *y.shape[1:])


# Largest elements ---------------------------------------------------------------------------------


def _max_pool(name: str, x: Tensor, windows: Windows, indices: bool) -> Any:
    images = batched(name, x, windows.dims)
    y, places = kernels.max_pool(images.data, windows)
    out = like_input(
        record(y, [images], lambda dy: [kernels.max_pool_grad(dy, places, windows)]), x
    )
    if not indices:
        return out
    return out, like_input(Tensor(places.astype("int64")), x)


def _sliding_max(
    name: str,
    dims: int,
    x: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    sizes = batched(name, x, dims).shape[2:]
    kernel = sizes_of(name, "kernel_size", kernel_size, dims)
    windows = sliding(
        name,
        sizes,
        kernel,
        kernel if stride is None else sizes_of(name, "stride", stride, dims),
        sizes_of(name, "padding", padding, dims, 0),
        sizes_of(name, "dilation", dilation, dims),
        bool(ceil_mode),
    )
    return _max_pool(name, x, windows, return_indices)


def max_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of x (N, C, L); `stride` None is `kernel_size`.

    With `return_indices` also where it is (int64, in the flattened axes after the channels), for
    `max_unpool1d`. A ValueError where a window is larger than the padded input.
    """
    args = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return _sliding_max("max_pool1d", 1, x, *args)


def max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of x (N, C, H, W); see `max_pool1d`.

    >>> import framework as fw
    >>> x = fw.tensor([[[[1.0, 5.0, 2.0, 3.0], [4.0, 0.0, 7.0, 6.0]]]])
    >>> max_pool2d(x, 2).tolist()
    [[[[5.0, 7.0]]]]
    """
    args = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return _sliding_max("max_pool2d", 2, x, *args)


def max_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of x (N, C, D, H, W); see `max_pool1d`."""
    args = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return _sliding_max("max_pool3d", 3, x, *args)


def _adaptive(name: str, dims: int, x: Tensor, output_size: Any) -> Windows:
    sizes = batched(name, x, dims).shape[2:]
    given = output_size if isinstance(output_size, Sequence) else [output_size] * dims
    if len(given) == dims:  # None keeps a size
        given = [n if o is None else o for o, n in zip(given, sizes, strict=True)]
    return adaptive(name, sizes, sizes_of(name, "output_size", given, dims))


def adaptive_max_pool1d(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest element of each of `output_size` windows that cover x (N, C, L)."""
    name = "adaptive_max_pool1d"
    return _max_pool(name, x, _adaptive(name, 1, x, output_size), return_indices)


def adaptive_max_pool2d(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest element of each of `output_size` windows that cover x (N, C, H, W); None keeps
    the size of an axis.
    """
    name = "adaptive_max_pool2d"
    return _max_pool(name, x, _adaptive(name, 2, x, output_size), return_indices)


def adaptive_max_pool3d(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The largest element of each of `output_size` windows that cover x (N, C, D, H, W)."""
    name = "adaptive_max_pool3d"
    return _max_pool(name, x, _adaptive(name, 3, x, output_size), return_indices)


# Averages -----------------------------------------------------------------------------------------


def _avg_pool(name: str, x: Tensor, windows: Windows) -> Tensor:
    images = batched(name, x, windows.dims)
    y = kernels.avg_pool(images.data, windows)

    def backward(dy: Array) -> list[Array]:
        return [kernels.avg_pool_grad(dy, windows)]

    return like_input(record(y, [images], backward), x)


def _sliding_avg(
    name: str,
    dims: int,
    x: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    sizes = batched(name, x, dims).shape[2:]
    kernel = sizes_of(name, "kernel_size", kernel_size, dims)
    if divisor_override == 0:
        raise ValueError(f"{name}: divisor_override=0, expected another integer or None")
    windows = sliding(
        name,
        sizes,
        kernel,
        kernel if stride is None else sizes_of(name, "stride", stride, dims),
        sizes_of(name, "padding", padding, dims, 0),
        (1,) * dims,
        bool(ceil_mode),
        bool(count_include_pad),
        None if divisor_override is None else operator.index(divisor_override),
    )
    return _avg_pool(name, x, windows)


def avg_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The average of each window of x (N, C, L); `stride` None is `kernel_size`.

    The zeros of the padding count as elements, unless `count_include_pad` is False.
    """
    args = kernel_size, stride, padding, ceil_mode, count_include_pad, None
    return _sliding_avg("avg_pool1d", 1, x, *args)


def avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of x (N, C, H, W); see `avg_pool1d`. `divisor_override` is divided
    by in place of the number of elements.
    """
    args = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _sliding_avg("avg_pool2d", 2, x, *args)


def avg_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of x (N, C, D, H, W); see `avg_pool2d`."""
    args = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _sliding_avg("avg_pool3d", 3, x, *args)


def adaptive_avg_pool1d(x: Tensor, output_size: Any) -> Tensor:
    """The average of each of `output_size` windows that cover x (N, C, L)."""
    name = "adaptive_avg_pool1d"
    return _avg_pool(name, x, _adaptive(name, 1, x, output_size))


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """The average of each of `output_size` windows that cover x (N, C, H, W); None keeps the size
    of an axis. `output_size` 1 is global pooling.
    """
    name = "adaptive_avg_pool2d"
    return _avg_pool(name, x, _adaptive(name, 2, x, output_size))


def adaptive_avg_pool3d(x: Tensor, output_size: Any) -> Tensor:
    """The average of each of `output_size` windows that cover x (N, C, D, H, W)."""
    name = "adaptive_avg_pool3d"
    return _avg_pool(name, x, _adaptive(name, 3, x, output_size))


# Unpooling ----------------------------------------------------------------------------------------


def _max_unpool(
    name: str,
    dims: int,
    x: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    output_size: Sequence[int] | None,
) -> Tensor:
    images = batched(name, x, dims)
    tensor_argument(name, "indices", indices)
    if indices.shape != x.shape or indices.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: indices are {indices.dtype.name} of shape {indices.shape}, expected integers "
            f"of the input's shape {x.shape}"
        )
    kernel = sizes_of(name, "kernel_size", kernel_size, dims)
    steps = kernel if stride is None else sizes_of(name, "stride", stride, dims)
    pads = sizes_of(name, "padding", padding, dims, 0)
    found = images.shape[2:]
    default = tuple(
        (n - 1) * s - 2 * p + k for n, k, s, p in zip(found, kernel, steps, pads, strict=True)
    )
    sizes = default
    if output_size is not None:
        sizes = sizes_of(name, "output_size", tuple(output_size)[-dims:], dims)
        wrong = [o for o, n, s in zip(sizes, default, steps, strict=True) if abs(o - n) >= s]
        if wrong:
            raise ValueError(
                f"{name}: output_size={tuple(output_size)}, expected each axis within a stride "
                f"{steps} of {default}"
            )
    places = indices.data.reshape(images.shape)
    y = kernels.max_unpool(images.data, places, sizes)
    return like_input(record(y, [images], lambda dy: [kernels.max_unpool_grad(dy, places)]), x)


def max_unpool1d(
    x: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undo `max_pool1d`: each element at its place in `indices`, zeros elsewhere.

    Several input sizes give one output size; `output_size` says which it was. Where two elements
    have one place, the last stands there.
    """
    args = kernel_size, stride, padding, output_size
    return _max_unpool("max_unpool1d", 1, x, indices, *args)


def max_unpool2d(
    x: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undo `max_pool2d`; see `max_unpool1d`."""
    args = kernel_size, stride, padding, output_size
    return _max_unpool("max_unpool2d", 2, x, indices, *args)


def max_unpool3d(
    x: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undo `max_pool3d`; see `max_unpool1d`."""
    args = kernel_size, stride, padding, output_size
    return _max_unpool("max_unpool3d", 3, x, indices, *args)
