"""Dropout: of single elements, of channels, of the same elements at every step."""

from __future__ import annotations

from framework import functional as F
from framework.autograd import Tensor
from framework.layers.checks import in_range
from framework.layers.module import Module


class Dropout(Module):
    """In training, zero each element with probability `p` and divide the others by 1 - p
    (Srivastava et al. 2014).

    In evaluation the input itself. Draws come from the default generator (`framework.manual_seed`).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = in_range("Dropout", "p", p, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """The argument."""
        return f"p={self.p}"


class _ChannelDropout(Module):
    _axes: tuple[str, ...]

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = in_range(type(self).__name__, "p", p, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        if x.ndim != 2 + len(self._axes):
            raise ValueError(
                f"{type(self).__name__}: input has shape {x.shape}, expected (N, C, "
                f"{', '.join(self._axes)})"
            )
        return F.channel_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """The argument."""
        return f"p={self.p}"


class Dropout1d(_ChannelDropout):
    """`Dropout` of whole channels of x (N, C, L)."""

    _axes = ("L",)


class Dropout2d(_ChannelDropout):
    """`Dropout` of whole channels of x (N, C, H, W): neighbouring pixels are too alike for single
    ones (Tompson et al. 2015).
    """

    _axes = ("H", "W")


class Dropout3d(_ChannelDropout):
    """`Dropout` of whole channels of x (N, C, D, H, W)."""

    _axes = ("D", "H", "W")


class LockedDropout(Module):
    """In training, `Dropout` with one mask for all steps of a sequence, which are axis `dim`
    (Gal and Ghahramani 2016): 0, or 1 where the batch comes first.
    """

    def __init__(self, p: float = 0.5, dim: int = 0) -> None:
        super().__init__()
        self.p, self.dim = in_range("LockedDropout", "p", p, 0, 1), dim

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.locked_dropout(x, self.p, self.training, self.dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}, dim={self.dim}"
