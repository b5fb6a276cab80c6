"""Gradient clipping, by the norm of all gradients together or element by element; nothing waits for
the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from framework.autograd import Tensor
from framework.autograd.graph import as_array
from framework.optimizers.flat import joined
from framework.optimizers.optimizer import Optimizer
from kernels.arrays import Array, array_module
from kernels.optimizers import scale_
from kernels.reductions import sum_of_squares

#: Parameters, or the optimizer that has them (its flat buffers save looking for them).
Source = Optimizer | Tensor | Iterable[Tensor]


def grad_norm(parameters: Source) -> Tensor:
    """The Euclidean norm of all gradients as one vector: 0-d, on their device. 0 where there are
    none.
    """
    arrays = _gradients(parameters)
    return _norm(arrays)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What brings gradients of `norm` to at most `max_norm`: min(1, max_norm / (norm + 1e-6)).

    ``optimizer.step(scale=clip_factor(grad_norm(optimizer), 1.0))`` clips without a pass of its
    own.
    """
    _check_limit("max_norm", max_norm)
    xp = array_module(norm.data)
    # minimum keeps NaN: a gradient that is not a number stays visible, as in PyTorch
    return Tensor(as_array(xp.minimum(max_norm / (norm.data + 1e-6), 1).astype(norm.dtype)))


def clip_grad_norm_(
    parameters: Source, max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients in place so that their norm together is at most `max_norm`; returns the
    norm before.

    With `error_if_nonfinite` a norm that is infinite or NaN is a RuntimeError, and nothing is
    changed (on CUDA this waits for the device). Without it an infinite norm makes finite gradients
    0 and a NaN all of them NaN.
    """
    _check_limit("max_norm", max_norm)
    arrays = _gradients(parameters)
    norm = _norm(arrays)
    if error_if_nonfinite and not math.isfinite(float(norm)):
        raise RuntimeError(f"the norm of the gradients is {float(norm)}, nothing was clipped")
    factor = clip_factor(norm, max_norm).data
    for array in arrays:
        scale_(array, factor)
    return norm


def clip_grad_value_(parameters: Source, clip_value: float) -> None:
    """Limit every element of every gradient to [-clip_value, clip_value], in place; NaN stays."""
    _check_limit("clip_value", clip_value)
    for array in _gradients(parameters):
        array_module(array).clip(array, -clip_value, clip_value, out=array)


def _gradients(parameters: Source) -> list[Array]:
    """The gradients as few arrays: flat buffers where an optimizer has made them."""
    if isinstance(parameters, Optimizer):
        return parameters.flat_gradients()
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            raise TypeError(f"parameter {i} is a {type(p).__name__}, expected a tensor")
    return joined(tensors)


def _norm(arrays: list[Array]) -> Tensor:
    if not arrays:
        from framework.autograd.creation import zeros

        return zeros(())
    xp = array_module(arrays[0])
    squares = [sum_of_squares(a) for a in arrays]
    total = squares[0]
    if len(squares) > 1:
        # One by one: CuPy's stack copies the addresses of more than 8 arrays from the host, which
        # cannot be captured.
        together = xp.empty(len(squares), np.result_type(*{a.dtype for a in squares}))
        for i, square in enumerate(squares):
            together[i] = square
        total = together.sum(dtype="float64")
    return Tensor(as_array(xp.sqrt(total).astype(squares[0].dtype)))


def _check_limit(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}={value!r}, expected a number of at least 0")
