"""Dropout: in training, each element is zeroed with probability p and the rest scaled up
(Srivastava et al. 2014).
"""

from __future__ import annotations

from framework.autograd import Tensor, record
from framework.backend.random import Generator, default_generator
from framework.functional.check import floating, probability
from kernels import random as kernels


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None
) -> Tensor:
    """Zero each element with probability `p`, divide the others by 1 - p; nothing at all unless
    `training`.

    Only (seed, counter) is kept for the backward pass, which draws the same mask again.
    """
    floating("dropout", x)
    probability("dropout", p)
    if not training or p == 0:
        return x
    seed, offset = (generator or default_generator).advance(kernels.counters(x.size))
    y = kernels.dropout(x.data, p, seed, offset)
    return record(y, [x], lambda dy: [kernels.dropout_grad(dy, p, seed, offset)])
