"""Dropout: in training, each element or channel is zeroed with probability p and the rest scaled up
(Srivastava et al. 2014; channels: Tompson et al. 2015).
"""

from __future__ import annotations

import math

from framework.autograd import Tensor, record
from framework.backend.random import Generator, default_generator
from framework.functional.check import axis_of, floating, probability
from kernels import random as kernels
from kernels.arrays import Array, array_module


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


def channel_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None
) -> Tensor:
    """Zero each channel of each sample of x (N, C, *) with probability `p`, divide the others by 1
    - p: PyTorch's dropout1d, dropout2d and dropout3d.
    """
    if floating("channel_dropout", x).ndim < 3:
        raise ValueError(f"channel_dropout: input has shape {x.shape}, expected (N, C, *)")
    shape = (*x.shape[:2], *(1,) * (x.ndim - 2))
    return _shared("channel_dropout", x, shape, p, training, generator)


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
    shape = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    return _shared("locked_dropout", x, shape, p, training, generator)


def _shared(
    name: str,
    x: Tensor,
    shape: tuple[int, ...],
    p: float,
    training: bool,
    generator: Generator | None,
) -> Tensor:
    """x with a mask of `shape`, which is broadcast to x's."""
    probability(name, p)
    if not training or p == 0:
        return x
    xp, count = array_module(x.data), math.prod(shape)
    seed, offset = (generator or default_generator).advance(kernels.counters(count))
    scale = kernels.dropout(xp.ones(shape, x.dtype), p, seed, offset)

    def scaled(a: Array) -> Array:  # infinities are dropped too, where 0 * inf would be NaN
        return xp.where(scale != 0, a * scale, a.dtype.type(0))

    return record(scaled(x.data), [x], lambda dy: [scaled(dy)])
