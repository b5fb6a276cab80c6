"""Checks of constructor arguments that several layers share; every error shows the value."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any


def positive_integer(layer: str, argument: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{layer}: {argument}={value!r}, expected an integer of at least 1")
    return number


def positive_integers(layer: str, argument: str, value: Any) -> tuple[int, ...]:
    """One positive integer, or several, as a tuple."""
    values = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    numbers = tuple(positive_integer(layer, argument, v) for v in values)
    if not numbers:
        raise ValueError(f"{layer}: {argument}={value!r}, expected at least one size")
    return numbers


def one_of(layer: str, argument: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` if it is among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{layer}: {argument}={value!r}, expected one of {', '.join(allowed)}")
    return str(value)


def in_range(
    layer: str, argument: str, value: Any, low: float = 0.0, high: float = float("inf")
) -> float:
    """`value` as a float with low <= value <= high."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not low <= number <= high:
        limits = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ValueError(f"{layer}: {argument}={value!r}, expected a number {limits}")
    return number
