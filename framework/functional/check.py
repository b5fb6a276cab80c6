"""Argument checks that all functions share."""

from __future__ import annotations

from typing import Any

from framework.autograd import Tensor
from kernels.arrays import Array, is_floating


def floating(name: str, x: Any) -> Tensor:
    """`x`, if it is a floating-point tensor; else TypeError naming function and dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name}: expected a Tensor, got a {type(x).__name__}; make one with framework.tensor"
        )
    if not is_floating(x.dtype):
        raise TypeError(
            f"{name}: expected floating-point values, got {x.dtype.name}; use .to('float32')"
        )
    return x


def axis_of(name: str, x: Tensor, dim: int) -> int:
    """`dim`, if x has such an axis."""
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"{name}: dim {dim} does not exist in shape {x.shape}")
    return dim


def probability(name: str, p: float) -> float:
    """`p`, if it is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p={p}, expected a probability from 0 to 1")
    return p


def same_shape(name: str, x: Tensor, target: Tensor) -> None:
    """ValueError unless both have one shape; broadcasting a loss is nearly always a mistake."""
    if x.shape != target.shape:
        raise ValueError(
            f"{name}: input has shape {x.shape}, target {target.shape}; they must be equal"
        )


def array_of(x: Tensor | None) -> Array | None:
    """The array of an optional tensor."""
    return None if x is None else x.data
