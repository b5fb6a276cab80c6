"""Softmax, log-softmax and log-sum-exp along any axis, with an optional mask of what counts:
booleans that broadcast to the input's shape. Under `framework.autocast` the results are float32.
"""

from __future__ import annotations

from framework.autograd import Tensor, record
from framework.autograd.casting import state, widened
from framework.functional.check import (
    array_of,
    axis_of,
    broadcasts_to,
    floating,
    optional_tensor,
)
from kernels import softmax as kernels


def _mask(name: str, x: Tensor, mask: Tensor | None) -> None:
    """TypeError or ValueError unless `mask` is None, or booleans that broadcast to x's shape."""
    if optional_tensor(name, "mask", mask) is None:
        return
    if mask.dtype != bool or not broadcasts_to(mask.shape, x.shape):
        raise ValueError(
            f"{name}: mask is {mask.dtype.name}{mask.shape}, expected bool{x.shape} or what "
            "broadcasts to it (True: counts)"
        )


def softmax(x: Tensor, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """e^x over its sum along `dim`: positive and adding up to 1. Where `mask` is False: 0."""
    axis = axis_of("softmax", floating("softmax", x), dim)
    _mask("softmax", x, mask)
    if state.dtype is not None:
        x = widened(x)
    y = kernels.softmax(x.data, axis, array_of(mask))
    return record(y, [x], lambda dy: [kernels.softmax_grad(dy, y, axis)])


def log_softmax(x: Tensor, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """log(softmax(x)), without taking the logarithm of what has underflowed to 0."""
    axis = axis_of("log_softmax", floating("log_softmax", x), dim)
    _mask("log_softmax", x, mask)
    if state.dtype is not None:
        x = widened(x)
    y = kernels.log_softmax(x.data, axis, array_of(mask))
    return record(y, [x], lambda dy: [kernels.log_softmax_grad(dy, y, axis)])


def logsumexp(
    x: Tensor, dim: int = -1, keepdim: bool = False, mask: Tensor | None = None
) -> Tensor:
    """log of the sum of e^x along `dim`, without overflow."""
    axis = axis_of("logsumexp", floating("logsumexp", x), dim)
    _mask("logsumexp", x, mask)
    if state.dtype is not None:
        x = widened(x)
    a, m = x.data, array_of(mask)
    y = kernels.logsumexp(a, axis, keepdim, m)
    return record(y, [x], lambda dy: [kernels.logsumexp_grad(dy, a, y, axis, keepdim, m)])
