"""SinusoidalPositions, LearnedPositions, RotaryPositions."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.checks import positive_integer
from framework.layers.module import Module
from framework.layers.storage import new_buffer, new_parameter


class _Table(Module):
    """A row for each position up to `max_length`."""

    def __init__(self, max_length: int, dim: int) -> None:
        super().__init__()
        name = type(self).__name__
        self.max_length = positive_integer(name, "max_length", max_length)
        self.dim = positive_integer(name, "dim", dim)

    def _span(self, x: Tensor, start: int) -> slice:
        """The positions of x (..., T, dim) from `start` on."""
        name = type(self).__name__
        if x.ndim < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"{name}: input has shape {x.shape}, expected (..., T, {self.dim})")
        stop = start + x.shape[-2]
        if start < 0 or stop > self.max_length:
            raise ValueError(
                f"{name}: positions {start} to {stop - 1} do not fit max_length={self.max_length}"
            )
        return slice(start, stop)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.max_length}, {self.dim}"


class SinusoidalPositions(_Table):
    """Adds sines and cosines of the position (Vaswani et al. 2017): column 2 i is the sine, 2 i + 1
    the cosine of position / 10000^(2 i / dim).
    """

    def __init__(self, max_length: int, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(max_length, dim)
        angles = np.arange(max_length)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)
        table = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(max_length, -1)[:, :dim]
        weight = new_buffer((max_length, dim), device, dtype)
        weight.data[...] = weight.device.module.asarray(table.astype(weight.dtype))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (..., T, dim) plus the rows of its positions, the first at `start`."""
        return x + self.weight[self._span(x, start)]


class LearnedPositions(_Table):
    """Adds a learned row for each position; `weight` (max_length, dim) starts as N(0, 0.02)."""

    def __init__(self, max_length: int, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(max_length, dim)
        self.weight = new_parameter((max_length, dim), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new rows."""
        init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (..., T, dim) plus the rows of its positions, the first at `start`."""
        return x + self.weight[self._span(x, start)]


class RotaryPositions(_Table):
    """Turns queries and keys (B, H, T, dim) by their positions (Su et al. 2021); see `F.rotary`."""

    def __init__(
        self,
        max_length: int,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        device: Any = None,
    ) -> None:
        super().__init__(max_length, dim)
        self.base, self.interleaved = base, interleaved
        buffers = [new_buffer((max_length, dim // 2), device) for _ in ("cos", "sin")]
        tables = F.rotary_angles(max_length, dim, base)
        for name, buffer, table in zip(("cos", "sin"), buffers, tables, strict=True):
            buffer.data[...] = buffer.device.module.asarray(table.data)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, H, T, dim), its first position at `start`, turned."""
        span = self._span(x, start)
        return F.rotary(x, self.cos[span], self.sin[span], self.interleaved)
