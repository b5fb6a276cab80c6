"""Dropout, of single elements and of the same ones at every step."""

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
