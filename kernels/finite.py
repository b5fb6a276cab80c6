"""Is every number finite? What a training step asks of its losses and gradients, the answer left on
the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, memory_order
from kernels.lazy import Lazy
from kernels.registry import kernel

loops = Lazy("kernels.cpu.finite")

CUDA_KERNELS = ("mark_nonfinite",)


_INT32 = np.dtype("int32")


def _check(name: str, found: Array) -> None:
    if found.shape != (1,) or found.dtype != _INT32:
        raise ValueError(f"{name}: found is {found.dtype}{found.shape}, expected int32 (1,)")


def _flat(x: Array) -> Array:
    """All elements, in the order they have in memory."""
    return memory_order(x).reshape(-1)


@kernel(inplace=("found",))
def mark_nonfinite_(x: Array, found: Array) -> Array:
    """found[0] = 1 if x (any shape) holds a NaN or an infinity; else it stays as it is. Returns
    found, int32 (1,): zero it once, mark many arrays, look once.
    """
    _check("mark_nonfinite_", found)
    found |= ~array_module(x).isfinite(x).all()
    return found


@mark_nonfinite_.cpu
def _(x: Array, found: Array) -> Array:
    _check("mark_nonfinite_", found)
    loops.mark_nonfinite(x if x.ndim == 1 and x.flags.c_contiguous else _flat(x), found)
    return found


@mark_nonfinite_.cuda
def _(x: Array, found: Array) -> Array:
    from kernels.cuda import launch

    _check("mark_nonfinite_", found)
    if x.size:
        x = _flat(x)
        name = f"mark_nonfinite<{launch.type_name(x.dtype)}>"
        args = (x, found, np.int64(x.size))
        launch.run("finite", name, launch.grid_stride(x.size, x), launch.BLOCK, args)
    return found


@mark_nonfinite_.sample
def _(draw: Any, shape: tuple[int, ...]) -> Any:
    return draw.normal(shape), np.zeros(1, np.int32)


@mark_nonfinite_.sample
def one_is_infinite(draw: Any, shape: tuple[int, ...]) -> Any:
    x = draw.normal(shape)
    x.flat[-1:] = np.inf
    return x, np.zeros(1, np.int32)


@mark_nonfinite_.sample
def found_before(draw: Any, shape: tuple[int, ...]) -> Any:
    return draw.normal(shape), np.ones(1, np.int32)
