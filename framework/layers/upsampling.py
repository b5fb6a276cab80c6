"""Upsample, PixelShuffle, PixelUnshuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.upsampling import MODES
from framework.layers.checks import one_of, positive_integer
from framework.layers.module import Module


class Upsample(Module):
    """x (N, C, *) at another `size`, or `scale_factor` times its own: the nearest pixel, or linear
    between those around (`mode` linear, bilinear, trilinear).
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool = False,
    ) -> None:
        super().__init__()
        if (size is None) == (scale_factor is None):
            raise ValueError(
                f"Upsample: size={size}, scale_factor={scale_factor}: expected one of the two"
            )
        self.size, self.scale_factor = size, scale_factor
        self.mode = one_of("Upsample", "mode", mode, tuple(MODES))
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) -> (N, C, *size)."""
        return F.interpolate(
            x,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            self.recompute_scale_factor,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        name = "size" if self.scale_factor is None else "scale_factor"
        return f"{name}={getattr(self, name)}, mode={self.mode!r}"


class PixelShuffle(Module):
    """(N, C r^2, H, W) -> (N, C, H r, W r), r the `upscale_factor` (Shi et al. 2016)."""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = positive_integer("PixelShuffle", "upscale_factor", upscale_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel's channels become r x r pixels."""
        return F.pixel_shuffle(x, self.upscale_factor)

    def extra_repr(self) -> str:
        """The argument."""
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(Module):
    """(N, C, H r, W r) -> (N, C r^2, H, W), r the `downscale_factor`: undoes PixelShuffle."""

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        self.downscale_factor: Any = positive_integer(
            "PixelUnshuffle", "downscale_factor", downscale_factor
        )

    def forward(self, x: Tensor) -> Tensor:
        """r x r pixels become channels of one."""
        return F.pixel_unshuffle(x, self.downscale_factor)

    def extra_repr(self) -> str:
        """The argument."""
        return f"downscale_factor={self.downscale_factor}"
