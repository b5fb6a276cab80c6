"""The geometry of a convolution: what fits, and which sizes come out. For all its kernels, on all
devices.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from kernels.arrays import Array

#: One number for all spatial axes, or one for each; paddings may be pairs (before, after).
Numbers = int | tuple[Any, ...]


class Geometry(NamedTuple):
    """x (batch, channels, *size), weight (out_channels, channels / groups, *kernel) and y (batch,
    out_channels, *output), with one number for each spatial axis.

    y at place p reads x at ``p * stride - before + tap * dilation`` for every tap of the kernel;
    outside of x there are zeros.
    """

    batch: int
    channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.channels // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.output)

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """For every tap that meets x anywhere: its index in the kernel, the places of y which read
        inside of x through it, and what they read there (both as slices of the spatial axes).
        """
        axes = zip(
            self.size, self.kernel, self.output, self.stride, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        for taps in product(*(_reads(*axis) for axis in axes)):
            index, places, reads = zip(*taps, strict=True)
            yield index, places, reads


def _reads(
    size: int, kernel: int, output: int, stride: int, padding: tuple[int, int], dilation: int
) -> list[tuple[int, slice, slice]]:
    """`Geometry.taps` of one axis."""
    found = []
    for tap in range(kernel):
        offset = tap * dilation - padding[0]
        first = max(0, -(offset // stride))  # the first place with first * stride + offset >= 0
        stop = min(output, (size - 1 - offset) // stride + 1)
        if first < stop:
            start = first * stride + offset
            end = start + (stop - first - 1) * stride + 1
            found.append((tap, slice(first, stop), slice(start, end, stride)))
    return found


def geometry_of(
    name: str,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Geometry:
    """The geometry of a convolution of these shapes; ValueError, in the words of `name`, where they
    do not fit.

    `padding` is a number, or one for each axis, or a pair (before, after) for each axis.
    """
    try:
        return _geometry(name, x_shape, weight_shape, stride, padding, dilation, groups)
    except TypeError:  # lists cannot be looked up
        numbers = (_frozen(value) for value in (stride, padding, dilation))
        return _geometry(name, x_shape, weight_shape, *numbers, groups)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@lru_cache(4096)
def _geometry(
    name: str,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    groups: int,
) -> Geometry:
    axes = len(weight_shape) - 2
    if axes < 1 or len(x_shape) != axes + 2:
        raise ValueError(
            f"{name}: x has shape {x_shape}, the weight {weight_shape}: expected (N, C, *size) and "
            "(O, C / groups, *kernel) with as many spatial axes"
        )
    strides = per_axis(name, "stride", stride, axes, 1)
    dilations = per_axis(name, "dilation", dilation, axes, 1)
    pairs = _pairs(name, padding, axes)
    size, kernel = x_shape[2:], weight_shape[2:]
    output = tuple(
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, k, s, pad, d in zip(size, kernel, strides, pairs, dilations, strict=True)
    )
    (batch, channels), out_channels = x_shape[:2], weight_shape[0]
    _check_channels(name, x_shape, weight_shape, groups, output)
    if min(kernel) < 1:
        raise ValueError(f"{name}: the weight has shape {weight_shape}: an empty kernel")
    if min(output) < 1:
        padded = tuple(n + sum(pad) for n, pad in zip(size, pairs, strict=True))
        reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
        raise ValueError(
            f"{name}: the input of {_by(size)}{_with(padded, size, 'padding')} is smaller than the "
            f"kernel of {_by(kernel)}{_with(reach, kernel, 'dilation')}: "
            f"the output would be {_by(output)}"
        )
    return Geometry(
        batch, channels, out_channels, groups, size, kernel, output, strides, pairs, dilations
    )


def _check_channels(
    name: str, x: tuple[int, ...], weight: tuple[int, ...], groups: int, output: tuple[int, ...]
) -> None:
    channels, out_channels = x[1], weight[0]
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"{name}: groups={groups!r}, expected an integer of at least 1")
    if out_channels % groups:
        raise ValueError(
            f"{name}: the weight {weight} has {out_channels} output channels, which "
            f"groups={groups} does not divide"
        )
    if channels != weight[1] * groups:
        raise ValueError(
            f"{name}: the input {x} has {channels} channels, the weight {weight} with "
            f"groups={groups} expects {weight[1]} * {groups} = {weight[1] * groups}; "
            f"the output would be {(x[0], out_channels, *output)}"
        )


def per_axis(name: str, argument: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """One number for each of `axes` axes, all of at least `least`."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    try:
        numbers = tuple(map(operator.index, given))
    except TypeError:
        numbers = ()
    if len(numbers) != axes or min(numbers) < least:
        raise ValueError(
            f"{name}: {argument}={value!r}, expected an integer of at least {least}, "
            f"or {axes} of them"
        )
    return numbers


def _pairs(name: str, padding: Any, axes: int) -> tuple[tuple[int, int], ...]:
    given = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * axes
    sides = [p if isinstance(p, (tuple, list)) else (p, p) for p in given]
    try:
        pairs = tuple((operator.index(a), operator.index(b)) for a, b in sides)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != axes or min(map(min, pairs)) < 0:
        raise ValueError(
            f"{name}: padding={padding!r}, expected an integer of at least 0, "
            f"{axes} of them, or {axes} pairs (before, after)"
        )
    return pairs


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _with(whole: tuple[int, ...], plain: tuple[int, ...], what: str) -> str:
    return f" ({_by(whole)} with {what})" if whole != plain else ""


# What the kernels check besides -------------------------------------------------------------------


def check_bias(name: str, x: Array, bias: Array | None, channels: int) -> None:
    if bias is not None and (bias.shape != (channels,) or bias.dtype != x.dtype):
        raise ValueError(
            f"{name}: bias is {bias.dtype}{bias.shape}, expected {x.dtype}({channels},)"
        )


def check_dtypes(name: str, x: Array, weight: Array) -> None:
    if x.dtype != weight.dtype:
        raise ValueError(f"{name}: x is {x.dtype}, the weight {weight.dtype}: expected one dtype")


def check_output(name: str, dy: Array, geometry: Geometry) -> None:
    if dy.shape != geometry.y_shape:
        raise ValueError(
            f"{name}: dy has shape {dy.shape}, the output of the convolution {geometry.y_shape}"
        )
