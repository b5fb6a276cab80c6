"""Argument checks that all functions share."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.autograd import Tensor
from kernels.arrays import Array, is_floating


def tensor_argument(function: str, argument: str, value: Any) -> Tensor:
    """`value`, if it is a tensor; else TypeError naming function, argument, type and cure."""
    if not isinstance(value, Tensor):
        what = f"{argument} must be" if argument else "expected"
        raise TypeError(
            f"{function}: {what} a Tensor, got a {type(value).__name__}; "
            "make one with framework.tensor"
        )
    return value


def optional_tensor(function: str, argument: str, value: Any) -> Tensor | None:
    """`value`, if it is a tensor or None; else TypeError."""
    return None if value is None else tensor_argument(function, argument, value)


def number(function: str, argument: str, value: Any) -> float:
    """`value`, if it is a Python or NumPy number; else TypeError."""
    if not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{function}: {argument}={value!r}, expected a number")
    return value  # type: ignore[return-value]


def at_least_zero(function: str, argument: str, value: float) -> float:
    """`value`, unless it is negative or NaN."""
    if not number(function, argument, value) >= 0:
        raise ValueError(f"{function}: {argument}={value}, expected at least 0")
    return value


def broadcasts_to(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `whole` without enlarging it."""
    if len(shape) > len(whole):
        return False
    return all(m in (1, n) for m, n in zip(shape[::-1], whole[::-1], strict=False))


def floating(name: str, x: Any) -> Tensor:
    """`x`, if it is a floating-point tensor; else TypeError naming function and dtype."""
    tensor_argument(name, "", x)
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
    if not 0 <= number(name, "p", p) <= 1:
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
