"""Which elements of an image go into which pooled one: windows along each axis, as tables.

A window is `start`, `start + step`, ... below `stop`, already cut to the elements there are.
Sliding windows (with padding, dilation, ceil_mode) and adaptive ones differ in their tables alone,
so one kernel pools with either. Images of one or two axes get axes of size 1 before them: every
kernel works on three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, TypeVar

import numpy as np

from kernels.arrays import Array

Sizes = tuple[int, ...]
_A = TypeVar("_A")


@dataclass(frozen=True, eq=False)
class Axis:
    """Windows along one axis of `size` elements."""

    size: int
    #: (windows, 3) int64: start, stop, and the divisor's share in an average
    table: np.ndarray
    #: (size, 2) int64: windows first, ..., last - 1 are those that reach over an element (and hold
    #: it, if it lies a multiple of `step` from their start)
    inverse: np.ndarray
    step: int = 1
    #: Of sliding windows: window o begins at o stride - padding. 0 for others.
    stride: int = 0
    padding: int = 0
    kernel: int = 0

    @property
    def windows(self) -> int:
        return len(self.table)

    @property
    def widest(self) -> int:
        """Elements of the largest window."""
        spans = self.table[:, 1] - self.table[:, 0]
        return int(-(-spans.max(initial=0) // self.step))


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows over the last `dims` axes of an image (N, C, *)."""

    dims: int
    axes: tuple[Axis, Axis, Axis]
    #: The arguments that made it, for whoever calls another library with them.
    options: dict[str, Any]

    @property
    def sizes(self) -> Sizes:
        """Elements along the axes of the image."""
        return tuple(a.size for a in self.axes[3 - self.dims :])

    @property
    def outputs(self) -> Sizes:
        """Windows along the axes of the image."""
        return tuple(a.windows for a in self.axes[3 - self.dims :])

    @cached_property
    def shares(self) -> tuple[np.ndarray, ...]:
        """1 / count along each axis, float32."""
        with np.errstate(divide="ignore"):
            return tuple((1 / a.table[:, 2]).astype(np.float32) for a in self.axes)

    @property
    def is_global(self) -> bool:
        """Is it one window over everything, as an average of all?"""
        return all(
            a.windows == 1 and a.step == 1 and a.table[0].tolist() == [0, a.size, a.size]
            for a in self.axes
        )

    def check(self, name: str, argument: str, x: Array, sizes: Sizes) -> None:
        """ValueError unless x is (N, C, *sizes)."""
        if x.ndim != 2 + self.dims or x.shape[2:] != sizes:
            expected = ", ".join(map(str, ("N", "C", *sizes)))
            raise ValueError(f"{name}: {argument} has shape {x.shape}, expected ({expected})")

    def offsets(self) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        """The k-th elements of all windows, k by k in the order of memory: positions along the
        three axes, shaped to broadcast, and which of them are there. One beyond its window's end
        stands at the last element.
        """
        for offset in product(*(range(a.widest) for a in self.axes)):
            places, valid = [], np.ones((1, 1, 1), bool)
            for i, (axis, k) in enumerate(zip(self.axes, offset, strict=True)):
                start, stop, _ = axis.table.T
                last = start + (stop - 1 - start) // axis.step * axis.step
                shape = [1, 1, 1]
                shape[i] = axis.windows
                at = start + k * axis.step
                places.append(np.minimum(at, last).reshape(shape))
                valid = valid & (at < stop).reshape(shape)
            yield tuple(places), valid

    def counts(self) -> np.ndarray:
        """The divisors of an average, (windows...) along three axes."""
        d, h, w = (a.table[:, 2] for a in self.axes)
        return d[:, None, None] * h[:, None] * w


def _axis(table: np.ndarray, begin: np.ndarray, end: np.ndarray, size: int, **slide: int) -> Axis:
    """`begin` and `end` are those of the windows before they are cut, in ascending order."""
    at = np.arange(size)
    first, last = np.searchsorted(end, at, "right"), np.searchsorted(begin, at, "right")
    inverse = np.ascontiguousarray(np.stack([first, last], axis=1), np.int64)
    return Axis(size, np.ascontiguousarray(table, np.int64), inverse, **slide)


def in_three_axes(axes: list[_A], unit: _A) -> tuple[_A, _A, _A]:
    """One to three axes, with `unit` (of one element) in place of those that are not there."""
    d, h, w = [unit] * (3 - len(axes)) + axes
    return d, h, w


_TABLE = np.array([[0, 1, 1]])
_UNIT = _axis(_TABLE, _TABLE[:, 0], _TABLE[:, 1], 1, stride=1, kernel=1)


@lru_cache(1024)
def sliding(
    name: str,
    sizes: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
    free: bool = False,
) -> Windows:
    """Windows of `kernel` elements, `dilation` apart, every `stride` elements from -`padding` on.

    With `ceil_mode` a last window may reach beyond the padded image, if it begins within the image
    or the padding before it. An average divides by the elements of the padded image, or without
    `count_include_pad` of the image; or by `divisor`. With `free` a window may lie in the padding
    alone, however wide that is (unfold).
    """
    options = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor,
    }
    axes = []
    for i, (n, k, s, p, d) in enumerate(zip(sizes, kernel, stride, padding, dilation, strict=True)):
        outputs = _outputs(name, i + 2, n, k, s, p, d, ceil_mode, free)
        begin = np.arange(outputs) * s - p
        span = (k - 1) * d + 1
        start = np.where(begin < 0, begin + -(begin // d) * d, begin)
        stop = np.minimum(begin + span, n)
        if not free and (start >= stop).any():
            o = int((start >= stop).argmax())
            raise ValueError(
                f"{name}: window {o} along axis {i + 2} lies in the padding alone: it holds "
                f"{', '.join(str(begin[o] + j * d) for j in range(k))} of an input of size {n}"
            )
        count = np.minimum(begin + span, n + p) - begin if count_include_pad else stop - start
        if divisor is not None:
            count = np.full(outputs, divisor if i == 0 else 1)
        table = np.stack([start, stop, count], axis=1)
        axes.append(_axis(table, begin, begin + span, n, step=d, stride=s, padding=p, kernel=k))
    return Windows(len(axes), in_three_axes(axes, _UNIT), options)


def _outputs(
    name: str, axis: int, n: int, k: int, s: int, p: int, d: int, ceil: bool, free: bool
) -> int:
    """Windows along an axis, at least one."""
    span = (k - 1) * d + 1
    if p > span // 2 and not free:
        raise ValueError(
            f"{name}: padding={p} along axis {axis} is more than half of the kernel, which is {k}"
            + (f" with dilation {d} (over {span} elements)" if d > 1 else "")
        )
    room = n + 2 * p - span
    outputs = (-(-room // s) if ceil else room // s) + 1
    if ceil and (outputs - 1) * s >= n + p:
        outputs -= 1
    if n < 1 or outputs < 1:
        raise ValueError(
            f"{name}: kernel_size={k}"
            + (f" with dilation={d} (over {span} elements)" if d > 1 else "")
            + f" is larger than the padded input along axis {axis}, {n} + 2 * {p} = {n + 2 * p}: "
            f"the output would have size {outputs}"
        )
    return outputs


@lru_cache(64)
def neighbours(channels: int, size: int, positions: int) -> Windows:
    """`size` channels around each one, of (N, 1, channels, positions): size // 2 before it, and
    those beyond the first and last count as 0.
    """
    begin = np.arange(channels) - size // 2
    stop = np.minimum(begin + size, channels)
    table = np.stack([np.maximum(begin, 0), stop, np.full(channels, size)], axis=1)
    slide = {"stride": 1, "padding": size // 2, "kernel": size}
    axis = _axis(table, begin, begin + size, channels, **slide)
    at = np.arange(positions)
    table = np.stack([at, at + 1, np.ones_like(at)], axis=1)
    rest = _axis(table, at, at + 1, positions, stride=1, kernel=1)
    return Windows(2, in_three_axes([axis, rest], _UNIT), {"count_include_pad": True})


@lru_cache(1024)
def adaptive(name: str, sizes: Sizes, outputs: Sizes) -> Windows:
    """`outputs` windows that cover each axis: window o is floor(o n / outputs) to ceil((o + 1) n /
    outputs).
    """
    axes = []
    for i, (n, count) in enumerate(zip(sizes, outputs, strict=True)):
        if n < 1 or count < 1:
            raise ValueError(
                f"{name}: output_size={count} for {n} elements along axis {i + 2}: "
                "expected at least one of each"
            )
        o = np.arange(count)
        start, stop = o * n // count, -(-(o + 1) * n // count)
        table = np.stack([start, stop, stop - start], axis=1)
        axes.append(_axis(table, start, stop, n))
    return Windows(len(axes), in_three_axes(axes, _UNIT), {"output_size": outputs})
