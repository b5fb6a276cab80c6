"""What the normalisations share: moments, checks, task
lists.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module

Triple = tuple[Array, Array, Array]


# For the references -------------------------------------------------------------------------------


def total(x: Array, axes: tuple[int, ...]) -> Array:
    """Sum along `axes`, kept as 1, accumulated in float64."""
    return x.sum(axis=axes, keepdims=True, dtype=np.float64)


def average(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean along `axes`, kept as 1, in x's dtype; NaN over nothing."""
    count = math.prod(x.shape[axis] for axis in axes)
    return (total(x, axes) / (count or math.nan)).astype(x.dtype)


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance along `axes`, in two passes."""
    mean = average(x, axes)
    return mean, average(array_module(x).square(x - mean), axes)


def affine(n: Array, weight: Array | None, bias: Array | None) -> Array:
    """n * weight + bias in n's dtype."""
    n = n if weight is None else n * weight
    return n if bias is None else n + bias


# Checks: these run at every call, so they only compare shapes -------------------------------------


def check_parameters(
    name: str, size: int, what: str, x: Array, /, **parameters: Array | None
) -> None:
    for key, value in parameters.items():
        if value is not None and value.shape != (size,):
            raise ValueError(
                f"{name}: {key} has shape {value.shape}, x has shape {x.shape}: "
                f"expected ({size},), one per {what}"
            )


def check_dy(name: str, dy: Array, x: Array) -> None:
    if dy.shape != x.shape:
        raise ValueError(
            f"{name}: dy has shape {dy.shape}, x has shape {x.shape}: expected the same"
        )


# Shared by the CPU versions -----------------------------------------------------------------------


def vector(parameter: Array | None, size: int, value: float) -> Array:
    """A float32 vector (size,), filled with `value` for None."""
    if parameter is None:
        return np.full(size, value, np.float32)
    return np.ascontiguousarray(parameter, np.float32)


def dense(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)


@lru_cache(256)
def row_blocks(rows: int, size: int) -> Any:
    """The task list of a loop over blocks of `size` rows."""
    from kernels.cpu.engine import numbers

    return numbers(-(-rows // size))


def added(partials: Array, columns: int) -> list[Array]:
    """Partials (parts, k columns) summed over the parts, cut into vectors of `columns`."""
    from kernels.cpu.summation import add_partials

    out = np.empty(partials.shape[1], np.float32)
    add_partials(partials, out)
    return list(out.reshape(-1, columns)) if columns else [out, out]


# Shared by the CUDA versions ----------------------------------------------------------------------


def like(parameter: Array | None, x: Array) -> Array:
    """A parameter vector as the kernels take it: dense, in x's dtype; a null pointer for None."""
    if parameter is None:
        return np.uintp(0)
    return array_module(x).ascontiguousarray(parameter, x.dtype)


def float32(statistic: Array) -> Array:
    """Statistics as the kernels take them."""
    return array_module(statistic).ascontiguousarray(statistic, np.float32)


def parts_of(items: int, blocks_each: int, least: int) -> tuple[int, int]:
    """(parts, chunk): into how many parts a reduction of `items` is cut, each of at most `chunk`.

    About 1,024 blocks fill any GPU; a part has at least `least` items. The shape alone decides, so
    the sums have one order on all devices.
    """
    parts = max(1, min(-(-items // least), 1024 // max(blocks_each, 1)))
    chunk = max(1, -(-items // parts))
    return -(-items // chunk) if items else 1, chunk
