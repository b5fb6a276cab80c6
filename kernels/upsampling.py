"""Images of other sizes: the nearest pixel, or linear between the two, four or eight around; and
gradients.

x is (N, C, *) with one to three axes after the channels; `sampling` says which pixels each one of
the result is made of. Nearest is pooling turned round: every pixel of the result lies in the window
of one pixel of x. Results are laid out like x, channels last or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channels import is_columns
from kernels.lazy import Lazy
from kernels.pooling import as_images, deep, empty_images, images, spread, window_sums
from kernels.registry import kernel
from kernels.windows import Axis, Sizes, Windows, in_three_axes

loops = Lazy("kernels.cpu.upsampling")

CUDA_KERNELS = (
    "upsample_nearest",
    "upsample_nearest_grad",
    "upsample_linear",
    "upsample_linear_grad",
)

#: Rows of what is written that one task of a loop writes, and that share its scratch memory.
ROWS = 8


# Which pixels -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Line:
    """Samples along one axis of `size` pixels, between `low` and `high`."""

    size: int
    low: np.ndarray  # uint32: numba need not look for negative indices
    high: np.ndarray
    weights: np.ndarray  # (samples, 2) float32: of low and of high
    #: (size, 2) int64: samples first, ..., last - 1 are those that a pixel is in
    inverse: np.ndarray
    #: Pixels a sample, and are the outermost pixels' centres at the borders? For CUDA.
    scale: float
    corners: bool

    @property
    def samples(self) -> int:
        return len(self.low)


@dataclass(frozen=True, eq=False)
class Sampling:
    """Samples of the last `dims` axes of an image (N, C, *)."""

    dims: int
    lines: tuple[Line, Line, Line]
    #: The samples that are nearest to each pixel, as windows over the samples.
    nearest: Windows
    options: dict[str, Any]

    @property
    def sizes(self) -> Sizes:
        return tuple(a.size for a in self.lines[3 - self.dims :])

    @property
    def outputs(self) -> Sizes:
        return tuple(a.samples for a in self.lines[3 - self.dims :])

    def check(self, name: str, argument: str, x: Array, sizes: Sizes) -> None:
        """ValueError unless x is (N, C, *sizes)."""
        self.nearest.check(name, argument, x, sizes)


@lru_cache(256)
def sampling(
    sizes: Sizes, outputs: Sizes, scales: tuple[float | None, ...], linear: bool, corners: bool
) -> Sampling:
    """`outputs` samples of axes of `sizes` pixels, at a distance of 1 / scale pixels (None: as the
    sizes say).

    Sample o of the nearest is pixel floor(o d), for a distance d. A linear one is at (o + 1/2) d -
    1/2, centre to centre; with `corners` at o (size - 1) / (samples - 1).
    """
    lines = [_line(*given, linear, corners) for given in zip(sizes, outputs, scales, strict=True)]
    windows = Windows(
        len(sizes), in_three_axes([_window(line) for line in lines], _window(_ONE)), {}
    )
    options = {"linear": linear, "align_corners": corners}
    return Sampling(len(sizes), in_three_axes(lines, _ONE), windows, options)


def _line(size: int, samples: int, scale: float | None, linear: bool, corners: bool) -> Line:
    o = np.arange(samples)
    if corners:
        distance = (size - 1) / (samples - 1) if samples > 1 else 0.0
        at = o * distance
    elif linear:
        distance = 1 / scale if scale else size / samples
        at = np.maximum((o + 0.5) * distance - 0.5, 0)
    else:  # float32, as on CUDA: there is no rounding to argue about
        distance = np.float32(1 / scale if scale else size / samples)
        at = np.floor(o.astype(np.float32) * distance)
    low = np.minimum(at.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1) if linear else low
    weight = np.minimum(at, size - 1) - low
    weights = np.stack([1 - weight, weight], axis=1).astype(np.float32)
    pixels = np.arange(size)
    first, last = np.searchsorted(high, pixels, "left"), np.searchsorted(low, pixels, "right")
    inverse = np.ascontiguousarray(np.stack([first, last], axis=1), np.int64)
    low, high = low.astype(np.uint32), high.astype(np.uint32)
    return Line(size, low, high, weights, inverse, float(distance), corners)


_ONE = _line(1, 1, None, False, False)


def _window(line: Line) -> Axis:
    """What of `line` is nearest, as windows over its samples."""
    table = np.concatenate([line.inverse, np.ones((line.size, 1), np.int64)], axis=1)
    inverse = np.stack([line.low, line.low + 1], axis=1).astype(np.int64)
    even = line.samples == 2 * line.size and (table[:, 0] == 2 * np.arange(line.size)).all()
    slide = {"stride": 2, "kernel": 2} if even else {}
    return Axis(line.samples, table, inverse, **slide)


# Nearest ------------------------------------------------------------------------------------------


@kernel
def upsample_nearest(x: Array, sampling: Sampling) -> Array:
    """Every sample is the pixel of x that it lies in."""
    sampling.check("upsample_nearest", "x", x, sampling.sizes)
    xp, x5 = array_module(x), deep(x, sampling.dims)
    d, h, w = (xp.asarray(a.low.astype(np.int64)) for a in sampling.lines)
    return x5[:, :, d[:, None, None], h[:, None], w].reshape(*x.shape[:2], *sampling.outputs)


@upsample_nearest.cpu
def _(x: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_nearest", "x", x, sampling.sizes)
    return spread(x, sampling.nearest)


@upsample_nearest.cuda
def _(x: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_nearest", "x", x, sampling.sizes)
    return _launch("upsample_nearest", x, sampling, sampling.outputs)


@kernel
def upsample_nearest_grad(dy: Array, sampling: Sampling) -> Array:
    """dx of `upsample_nearest`: a pixel's sum of dy over the samples that are it."""
    sampling.check("upsample_nearest_grad", "dy", dy, sampling.outputs)
    return _scattered(dy, sampling, [(a.low, None) for a in sampling.lines])


@upsample_nearest_grad.cpu
def _(dy: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_nearest_grad", "dy", dy, sampling.outputs)
    return window_sums(dy, sampling.nearest)


@upsample_nearest_grad.cuda
def _(dy: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_nearest_grad", "dy", dy, sampling.outputs)
    return _launch("upsample_nearest_grad", dy, sampling, sampling.sizes)


def _scattered(dy: Array, sampling: Sampling, *corners: Any) -> Array:
    """Sum of dy times weights at places: each of `corners` is (places, weights or None) an axis."""
    xp, dy5 = array_module(dy), deep(dy, sampling.dims)
    dx = xp.zeros((*dy.shape[:2], *(a.size for a in sampling.lines)), np.float64)
    for axes in corners:
        part = dy5.astype(np.float64)
        for axis, (_, weight) in enumerate(axes):
            if weight is not None:
                weight = xp.asarray(weight).reshape([-1 if i == axis else 1 for i in range(3)])
                part = xp.where(weight != 0, part * weight, 0)
        d, h, w = (xp.asarray(place.astype(np.int64)) for place, _ in axes)
        xp.add.at(dx, (slice(None), slice(None), d[:, None, None], h[:, None], w), part)
    return dx.astype(dy.dtype).reshape(*dy.shape[:2], *sampling.sizes)


def _launch(name: str, x: Array, sampling: Sampling, sizes: Sizes) -> Array:
    """The (N, C, *sizes) that <name> of upsampling.cu makes of x."""
    from kernels.cuda import launch

    columns = is_columns(x)
    y = empty_images(x, sizes, columns)
    if y.size:
        axes: list[Any] = []
        for a in sampling.lines:
            axes += np.int32(a.samples), np.int32(a.size), np.int32(a.corners), np.float32(a.scale)
        dense = [as_images(a, columns) for a in (x, y)]
        args = (*dense, np.int64(y.size), np.int64(x.shape[1]), np.int32(columns), *axes)
        expression = f"{name}<{launch.type_name(x.dtype)}>"
        launch.run("upsampling", expression, launch.grid_stride(y.size, y), launch.BLOCK, args)
    return y


# Linear -------------------------------------------------------------------------------------------


def _corners(sampling: Sampling) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """(places, weights) along each axis of the pixels around a sample, of one after the other."""
    corners: list[list[tuple[np.ndarray, np.ndarray]]] = [[]]
    for a in sampling.lines:
        weight = a.weights[:, 1].astype(np.float64)
        pair = [(a.low, 1 - weight), (a.high, weight)] if weight.any() else [(a.low, 1 - weight)]
        corners = [[*before, one] for before in corners for one in pair]
    return corners


@kernel
def upsample_linear(x: Array, sampling: Sampling) -> Array:
    """Every sample is linear between the pixels of x around it, along one axis after the other."""
    sampling.check("upsample_linear", "x", x, sampling.sizes)
    xp, x5 = array_module(x), deep(x, sampling.dims)
    y = xp.zeros((*x.shape[:2], *(a.samples for a in sampling.lines)), np.float64)
    for (d, wd), (h, wh), (w, ww) in _corners(sampling):
        d, h, w = (xp.asarray(a.astype(np.int64)) for a in (d, h, w))
        weight = xp.asarray(wd[:, None, None] * wh[:, None] * ww)
        y += xp.where(weight != 0, x5[:, :, d[:, None, None], h[:, None], w], 0) * weight
    return y.astype(x.dtype).reshape(*x.shape[:2], *sampling.outputs)


@upsample_linear.cpu
def _(x: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_linear", "x", x, sampling.sizes)
    columns = is_columns(x)
    y = empty_images(x, sampling.outputs, columns)
    if y.size:
        _by_rows(loops.upsample_linear, columns, x, y, sampling, [])
    return y


def _by_rows(
    loop: Any, columns: bool, x: Array, y: Array, sampling: Sampling, more: list[Array]
) -> None:
    """Run a loop over blocks of rows of y, each with scratch memory for a row of x."""
    from kernels.cpu.engine import numbers

    a, b = (as_images(i, columns) for i in (x, y))
    C = a.shape[-1] if columns else 1
    tasks = numbers(-(-math.prod(b.shape[:3]) // ROWS))
    scratch = np.empty((tasks.size, math.prod(a.shape[3:])), np.float32)
    tables = [t for line in sampling.lines for t in (line.low, line.high, line.weights)]
    sizes = (*a.shape[1:4], C)
    loop(tasks, scratch, a.reshape(-1), b.reshape(-1), sizes, *tables, *more, work=y.size)


@upsample_linear.cuda
def _(x: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_linear", "x", x, sampling.sizes)
    return _launch("upsample_linear", x, sampling, sampling.outputs)


@kernel
def upsample_linear_grad(dy: Array, sampling: Sampling) -> Array:
    """dx of `upsample_linear`: a pixel's sum of dy over the samples around it, by their weights."""
    sampling.check("upsample_linear_grad", "dy", dy, sampling.outputs)
    return _scattered(dy, sampling, *_corners(sampling))


@upsample_linear_grad.cpu
def _(dy: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_linear_grad", "dy", dy, sampling.outputs)
    columns = is_columns(dy)
    dx = empty_images(dy, sampling.sizes, columns)
    if dx.size:
        inverse = [a.inverse for a in sampling.lines]
        _by_rows(loops.upsample_linear_grad, columns, dy, dx, sampling, inverse)
    return dx


@upsample_linear_grad.cuda
def _(dy: Array, sampling: Sampling) -> Array:
    sampling.check("upsample_linear_grad", "dy", dy, sampling.outputs)
    return _launch("upsample_linear_grad", dy, sampling, sampling.sizes)


# Samples ------------------------------------------------------------------------------------------

#: Twice the size, another factor, smaller, corners, one and three axes.
SAMPLINGS = {
    "_": lambda linear: sampling((4, 5), (8, 10), (None, None), linear, False),
    "factor": lambda linear: sampling((5, 4), (8, 10), (1.7, None), linear, False),
    "smaller": lambda linear: sampling((9, 4), (4, 1), (None, None), linear, False),
    "line": lambda linear: sampling((7,), (19,), (None,), linear, linear),
    "volume": lambda linear: sampling((2, 3, 4), (4, 3, 7), (None,) * 3, linear, linear),
}


def _sample(make: Any, linear: bool, columns: bool, backward: bool) -> Any:
    def sample(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
        made = make(linear)
        return images(draw, shape, made.outputs if backward else made.sizes, columns), made

    return sample


for _kernel, _linear, _backward in (
    (upsample_nearest, False, False),
    (upsample_nearest_grad, False, True),
    (upsample_linear, True, False),
    (upsample_linear_grad, True, True),
):
    for _name, _make in SAMPLINGS.items():
        _kernel.samples[_name] = _sample(_make, _linear, False, _backward)
        _last = "channels_last" if _name == "_" else f"{_name}_last"
        _kernel.samples[_last] = _sample(_make, _linear, True, _backward)
