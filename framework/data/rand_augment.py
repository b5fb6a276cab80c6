"""RandAugment: a few operations drawn for each image, all of one strength (Cubuk et al. 2020).

The operations of the paper but for those that need histograms or blurring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.augmentation import warp
from framework.data.transforms import Transform

#: What luma is made of, red, green and blue (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

#: An operation: images (n, C, H, W), float32 from 0 to 1, and strengths (n,) from -1 to 1.
Operation = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class RandAugment(Transform):
    """`operations` of `OPERATIONS` after each other, each with a strength from -magnitude to
    magnitude, drawn for each image.

    Integers are taken to go up to their type's largest number, floats from 0 to 1.
    """

    operations: int = 2
    magnitude: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.operations, int) or self.operations < 1:
            raise ValueError(
                f"operations is {self.operations!r}, expected an integer of at least 1"
            )
        if not 0 <= self.magnitude <= 1:
            raise ValueError(f"magnitude is {self.magnitude}, expected 0 to 1")
        self.draws = 2 * self.operations

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        if x.ndim not in (3, 4):
            raise ValueError(f"x has shape {x.shape}, expected images (N, C, H, W) or (N, H, W)")
        top = np.iinfo(x.dtype).max if x.dtype.kind in "iu" else 1
        images = (x if x.ndim == 4 else x[:, None]) / np.float32(top)
        known = list(OPERATIONS.values())
        for chosen, strength in u.reshape(len(x), self.operations, 2).transpose(1, 2, 0):
            number = (chosen * len(known)).astype(np.int64)
            strength = (2 * strength - 1) * np.float32(self.magnitude)
            for i, operation in enumerate(known):
                rows = np.flatnonzero(number == i)
                if rows.size:
                    images[rows] = operation(images[rows], strength[rows])
        out = images * top
        if x.dtype.kind in "iu":
            out = np.rint(out)
        return out.astype(x.dtype).reshape(x.shape)


def _rotate(x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """By up to 30 degrees."""
    cos, sin = np.cos(s * np.pi / 6), np.sin(s * np.pi / 6)
    return warp(x, np.stack([cos, sin, -sin, cos], axis=-1).reshape(-1, 2, 2))


def _shear(axis: int) -> Operation:
    """Rows (or columns) moved along themselves, by up to 0.3 pixels a pixel from the centre."""

    def shear(x: np.ndarray, s: np.ndarray) -> np.ndarray:
        matrices = np.tile(np.eye(2), (len(x), 1, 1))
        matrices[:, axis, 1 - axis] = 0.3 * s
        return warp(x, matrices)

    return shear


def _translate(axis: int) -> Operation:
    """By up to 0.45 of the image's size."""

    def translate(x: np.ndarray, s: np.ndarray) -> np.ndarray:
        shifts = np.zeros((len(x), 2))
        shifts[:, axis] = np.rint(0.45 * s * x.shape[2 + axis])  # whole pixels: nothing is blurred
        return warp(x, np.tile(np.eye(2), (len(x), 1, 1)), shifts)

    return translate


def _blend(base: Callable[[np.ndarray], Any]) -> Operation:
    """From 0.1 to 1.9 parts of the image, the rest of 1 of `base`."""

    def blend(x: np.ndarray, s: np.ndarray) -> np.ndarray:
        share = (1 + 0.9 * s)[:, None, None, None]
        return np.clip(share * x + (1 - share) * base(x), 0, 1)

    return blend


def _grey(x: np.ndarray) -> np.ndarray:
    """(n, 1, H, W); images that are no RGB as they are."""
    if x.shape[1] != 3:
        return x
    return np.tensordot(np.float32(LUMA), x, (0, 1))[:, None]


def _posterise(x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """To 8 down to 4 bits."""
    levels = np.exp2(np.rint(8 - 4 * np.abs(s))).astype(np.float32)[:, None, None, None]
    return np.minimum(np.floor(x * levels), levels - 1) / (levels - 1)


def _solarise(x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """What is brighter than 1 down to 0 becomes its negative."""
    return np.where(x > 1 - np.abs(s)[:, None, None, None], 1 - x, x)


#: Operations by name; "identity" is one, as in the paper.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda x, s: x,
    "rotate": _rotate,
    "shear_x": _shear(1),
    "shear_y": _shear(0),
    "translate_x": _translate(1),
    "translate_y": _translate(0),
    "brightness": _blend(lambda x: 0),
    "contrast": _blend(lambda x: _grey(x).mean(axis=(1, 2, 3), keepdims=True)),
    "colour": _blend(_grey),
    "posterise": _posterise,
    "solarise": _solarise,
}
