"""Dynamic loss scaling on the device: the gradients of a scaled loss brought back to size, and the
scale moved by whether they overflowed.

float16 ends at 65504 and loses what is below 6e-8. The loss is multiplied by a large factor, so
that small gradients survive the backward pass; where the factor was too large, gradients come out
infinite, the step is left out and the factor made smaller (Micikevicius et al. 2018, Mixed
Precision Training).

`state` (3,) holds the scale, the good steps since it last changed, and 1 where an overflow was
found since the last `update_scale_` (else 0): one array, so that one small copy tells the host all
of it, and on the device, so that a captured graph can contain both kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.registry import kernel

#: Templates of kernels/cuda/loss_scaling.cu; gradients that an optimizer takes are float32.
CUDA_KERNELS = ("unscale", "update_scale")
CUDA_TYPES = {"unscale": ("float",), "update_scale": ("float",)}

SCALE, GOOD_STEPS, FOUND = 0, 1, 2


def _check(name: str, state: Array, g: Array | None = None) -> None:
    if state.shape != (3,) or not state.flags.c_contiguous:
        raise ValueError(f"{name}: state has shape {state.shape}, expected (3,), contiguous")
    if g is not None and (g.dtype != state.dtype or not g.flags.c_contiguous):
        raise ValueError(
            f"{name}: g is {g.dtype}{g.shape} with strides {g.strides}, expected a contiguous "
            f"buffer of {state.dtype}, as the state is"
        )


@kernel(inplace=("g", "state"))
def unscale_(g: Array, state: Array) -> Array:
    """g /= scale in place, and state[2] = 1 where g then holds a NaN or an infinity. Returns g.

    g (n,) is a flat gradient buffer of the state's dtype. Read and written once, as PyTorch's
    _amp_foreach_non_finite_check_and_unscale_.
    """
    _check("unscale_", state, g)
    xp = array_module(g)
    g *= 1 / state[SCALE]
    state[FOUND] = xp.where(xp.isfinite(g).all(), state[FOUND], 1)
    return g


@unscale_.cpu
def _(g: Array, state: Array) -> Array:
    from kernels.cpu import loss_scaling as loops

    _check("unscale_", state, g)
    with np.errstate(all="ignore"):
        factor = np.float32(1) / state[SCALE]
    loops.unscale(g.reshape(-1), factor, state)
    return g


@unscale_.cuda(dtypes=("float32",))
def _(g: Array, state: Array) -> Array:
    from kernels.cuda import launch

    _check("unscale_", state, g)
    grid = launch.grid_stride(g.size, g) if g.size else 0
    args = (g, state, np.int64(g.size))
    launch.run("loss_scaling", "unscale<float>", grid, launch.BLOCK, args)
    return g


@unscale_.sample
def _(draw: Any, shape: tuple[int, ...]) -> Any:
    rows, columns = shape
    state = draw.uniform(3, low=1.0, high=2.0)
    return draw.normal(rows * columns), state


@kernel(inplace=("state",))
def update_scale_(
    state: Array,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    min_scale: float = 0.0,
) -> Array:
    """The scale for the next step, in place; returns the state.

    After an overflow times `backoff_factor`, but not below `min_scale`; after `growth_interval`
    good steps in a row times `growth_factor`, unless that is infinite. Then nothing is found yet.
    As PyTorch's _amp_update_scale_.
    """
    _check("update_scale_", state)
    xp = array_module(state)
    scale, found = state[SCALE], state[FOUND] != 0
    good = xp.where(found, 0, state[GOOD_STEPS] + 1)
    full = good >= growth_interval
    larger = xp.where(xp.isfinite(scale * growth_factor), scale * growth_factor, scale)
    smaller = xp.maximum(scale * backoff_factor, min_scale)
    state[SCALE] = xp.where(found, smaller, xp.where(full, larger, scale))
    state[GOOD_STEPS] = xp.where(full, 0, good)
    state[FOUND] = 0
    return state


@update_scale_.cuda(dtypes=("float32",))
def _(
    state: Array,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    min_scale: float = 0.0,
) -> Array:
    from kernels.cuda import launch

    _check("update_scale_", state)
    numbers = map(np.float32, (growth_factor, backoff_factor, growth_interval, min_scale))
    launch.run("loss_scaling", "update_scale<float>", 1, 1, (state, *numbers))
    return state


@update_scale_.sample
def grows(draw: Any, shape: tuple[int, ...]) -> Any:
    return np.array([4.0, 6.0, 0.0]), 2.0, 0.5, 7


@update_scale_.sample
def waits(draw: Any, shape: tuple[int, ...]) -> Any:
    return np.array([4.0, 5.0, 0.0]), 2.0, 0.5, 7


@update_scale_.sample
def backs_off(draw: Any, shape: tuple[int, ...]) -> Any:
    return np.array([4.0, 6.0, 1.0]), 2.0, 0.5, 7


@update_scale_.sample
def stays_above_the_least(draw: Any, shape: tuple[int, ...]) -> Any:
    return np.array([4.0, 6.0, 1.0]), 2.0, 0.5, 7, 3.0
