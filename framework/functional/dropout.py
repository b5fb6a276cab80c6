"""Dropout: in training, each element is zeroed with probability p and the rest scaled up
(Srivastava et al. 2014).
"""

from __future__ import annotations

from framework.autograd import Tensor, record
from framework.backend.random import Generator, default_generator
from framework.functional.check import axis_of, floating, probability
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


def locked_dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    dim: int = 0,
    generator: Generator | None = None,
) -> Tensor:
    """`dropout` with the same mask all along `dim`: the steps of a sequence (T, B, *) lose the same
    elements (variational dropout: Gal and Ghahramani 2016).
    """
    floating("locked_dropout", x)
    dim = axis_of("locked_dropout", x, dim)
    if not training or probability("locked_dropout", p) == 0:
        return x
    with x.device.context():
        ones = x.device.module.ones((*x.shape[:dim], 1, *x.shape[dim + 1 :]), x.dtype)
    return x * dropout(Tensor(ones), p, True, generator)
