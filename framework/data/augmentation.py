"""Random transforms of images, vectorised over the batch: flips, crops, rotations, cut-out. More:
framework/data/rand_augment.py, mixing.py.

Images are (N, C, H, W) or (N, H, W), of any dtype, and keep both. What happens to sample i is
decided by row i of u, the uniform draws of `framework.data.transforms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.transforms import Transform


@dataclass
class RandomHorizontalFlip(Transform):
    """Left to right with the given probability."""

    probability: float = 0.5
    draws = 1

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        return _flip(x, u, self.probability, axis=-1)


@dataclass
class RandomVerticalFlip(Transform):
    """Upside down with the given probability."""

    probability: float = 0.5
    draws = 1

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        return _flip(x, u, self.probability, axis=-2)


@dataclass
class RandomCrop(Transform):
    """A window of `size` pixels, an int or (height, width), anywhere in the image.

    The image has a border of `padding` zeros first.
    """

    size: int | tuple[int, int]
    padding: int = 0
    draws = 2

    def __post_init__(self) -> None:
        if min(_pair(self.size)) < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 pixel")
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding}, expected 0 or more")

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        images, p = _as_images(x), self.padding
        height, width = _pair(self.size)
        padded = np.pad(images, ((0, 0), (0, 0), (p, p), (p, p)))
        rooms = padded.shape[2] - height + 1, padded.shape[3] - width + 1
        if min(rooms) < 1:
            raise ValueError(
                f"size {(height, width)} does not fit into {images.shape[2:]} with padding {p}"
            )
        top, left = np.floor(u.astype(np.float64) * rooms).astype(np.int64).T
        rows = (top[:, None] + np.arange(height))[:, None, :, None]  # (N, 1, h, 1)
        columns = (left[:, None] + np.arange(width))[:, None, None, :]  # (N, 1, 1, w)
        sample = np.arange(len(x))[:, None, None, None]
        channel = np.arange(padded.shape[1])[None, :, None, None]
        out = padded[sample, channel, rows, columns]  # (N, C, h, w)
        return out.reshape(*x.shape[:-2], height, width)


@dataclass
class RandomRotation(Transform):
    """Turned about the centre by an angle from [-degrees, degrees], bilinearly; zero comes in from
    outside.

    A positive angle turns counter-clockwise, as the image is seen with row 0 at the top.
    """

    degrees: float
    draws = 1

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"degrees is {self.degrees}, expected 0 to 180")

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        angles = np.deg2rad((2.0 * u[:, 0].astype(np.float64) - 1.0) * self.degrees)
        return rotate(x, angles)


@dataclass
class CutOut(Transform):
    """A square of `size` pixels set to zero, its centre anywhere in the image, so that it may reach
    over the edge.

    T. DeVries, G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    2017.
    """

    size: int
    draws = 2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 pixel")

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        height, width = _as_images(x).shape[2:]
        first = (
            np.floor(u.astype(np.float64) * (height, width)).astype(np.int64) - self.size // 2
        )  # (N, 2)
        row, column = np.arange(height), np.arange(width)
        rows = (row >= first[:, :1]) & (row < first[:, :1] + self.size)  # (N, H)
        columns = (column >= first[:, 1:]) & (column < first[:, 1:] + self.size)  # (N, W)
        hole = rows[:, :, None] & columns[:, None, :]  # (N, H, W)
        return np.where(
            hole.reshape(len(x), *[1] * (x.ndim - 3), height, width), x.dtype.type(0), x
        )


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) or (N, H, W) turned by `angles` (N,) in radians, counter-clockwise about
    the centre. See `warp`.
    """
    cos, sin = np.cos(angles), np.sin(angles)
    return warp(x, np.stack([cos, sin, -sin, cos], axis=-1).reshape(-1, 2, 2))


def warp(x: np.ndarray, matrices: np.ndarray, shifts: np.ndarray | None = None) -> np.ndarray:
    """Images (N, C, H, W) or (N, H, W) whose pixel at (row, column), counted from the centre, comes
    from ``matrices[i] @ (row, column) + shifts[i]``, (N, 2, 2) and (N, 2).

    Bilinear: an output pixel is the average of the four input pixels around the place it comes
    from, weighted by nearness; pixels outside count as zero. Integers are rounded to the nearest.
    """
    images = _as_images(x)
    N, C, H, W = images.shape
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    shifts = np.zeros((N, 2)) if shifts is None else shifts

    y = (np.arange(H) - (H - 1) / 2)[None, :, None]
    z = (np.arange(W) - (W - 1) / 2)[None, None, :]
    m, s = matrices[:, :, :, None, None], shifts[:, :, None, None]
    from_row = m[:, 0, 1] * z + m[:, 0, 0] * y + (H - 1) / 2 + s[:, 0]  # (N, H, W)
    from_column = m[:, 1, 1] * z + m[:, 1, 0] * y + (W - 1) / 2 + s[:, 1]

    top, left = np.floor(from_row).astype(np.int64), np.floor(from_column).astype(np.int64)
    down, right = from_row - top, from_column - left  # in [0, 1): how far towards the next pixel
    sample, channel = np.arange(N)[:, None, None, None], np.arange(C)[None, :, None, None]
    out = np.zeros((N, C, H, W), dtype)
    for dy, weight_y in ((0, 1 - down), (1, down)):
        for dx, weight_x in ((0, 1 - right), (1, right)):
            row, column = top + dy, left + dx
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            weight = np.where(inside, weight_y * weight_x, 0)[:, None].astype(dtype)  # (N, 1, H, W)
            pixel = images[
                sample, channel, row.clip(0, H - 1)[:, None], column.clip(0, W - 1)[:, None]
            ]
            # Select: a weight of 0 times an infinite pixel would be NaN.
            out += weight * np.where(weight > 0, pixel, 0).astype(dtype)
    if x.dtype.kind in "iu":
        out = np.rint(out)
    return out.astype(x.dtype, copy=False).reshape(x.shape)


def _flip(x: np.ndarray, u: np.ndarray, probability: float, axis: int) -> np.ndarray:
    _as_images(x)
    chosen = (u[:, 0] < probability).reshape(-1, *[1] * (x.ndim - 1))
    return np.where(chosen, np.flip(x, axis), x)


def _as_images(x: np.ndarray) -> np.ndarray:
    """`x` as (N, C, H, W); images without channels get one."""
    if x.ndim not in (3, 4):
        raise ValueError(f"x has shape {x.shape}, expected images (N, C, H, W) or (N, H, W)")
    return x if x.ndim == 4 else x[:, None]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int | np.integer):
        return int(size), int(size)
    height, width = size
    return height, width


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}, expected 0 to 1")
