"""Rotary positions: pairs of columns turned by an angle that grows with the position (Su et al.
2021, "RoFormer").

x (B, H, T, D), cosine and sine (T, D / 2) of the angles -> (B, H, T, D), which lies as (B, T, H, D)
"""

from __future__ import annotations

import numpy as np

from kernels.arrays import Array, array_module
from kernels.lazy import Lazy
from kernels.registry import kernel

loops = Lazy("kernels.cpu.positions")
blas = Lazy("kernels.cpu.blas")
engine = Lazy("kernels.cpu.engine")

CUDA_KERNELS = ("rotate",)


def _check(name: str, x: Array, cos: Array, sin: Array) -> None:
    shape = (*x.shape[2:3], x.shape[-1] // 2) if x.ndim == 4 else None
    if shape is None or x.shape[3] % 2 or cos.shape != shape or sin.shape != shape:
        raise ValueError(
            f"{name}: x {x.shape}, cos {cos.shape}, sin {sin.shape}: expected (B, H, T, D), D "
            "even, and (T, D / 2) twice"
        )


@kernel
def rotary(x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    """Columns i and i + D / 2 of x, or with `interleaved` 2 i and 2 i + 1, turned by angle i:

    a cos - b sin, b cos + a sin.
    """
    _check("rotary", x, cos, sin)
    y = array_module(x).empty_like(x)
    first, second = _halves(interleaved, x.shape[3])
    a, b = x[..., first], x[..., second]
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return y


def _halves(interleaved: bool, D: int) -> tuple[slice, slice]:
    if interleaved:
        return slice(0, D, 2), slice(1, D, 2)
    return slice(0, D // 2), slice(D // 2, D)


@kernel
def rotary_grad(dy: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    """dy turned back: by the opposite angles."""
    _check("rotary_grad", dy, cos, sin)
    return rotary.reference(dy, cos, -sin, interleaved)


def _on_cpu(x: Array, cos: Array, sin: Array, interleaved: bool, sign: float) -> Array:
    if x.strides[3] != 4 or any(step & 3 for step in x.strides):
        x = np.ascontiguousarray(x)
    B, H, T, D = x.shape
    y = np.empty((B, T, H, D), np.float32)
    cos, sin = np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    steps = tuple(step >> 2 for step in x.strides[:3])
    place = blas.address(x), blas.address(y), blas.address(cos), blas.address(sin)
    sizes = H, T, D, int(interleaved)
    loops.rotate(engine.numbers(B * T), place, sizes, steps, np.float32(sign), work=x.size)
    return y.swapaxes(1, 2)


@rotary.cpu
def _(x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    _check("rotary", x, cos, sin)
    return _on_cpu(x, cos, sin, interleaved, 1.0)


@rotary_grad.cpu
def _(dy: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    _check("rotary_grad", dy, cos, sin)
    return _on_cpu(dy, cos, sin, interleaved, -1.0)


def _on_cuda(x: Array, cos: Array, sin: Array, interleaved: bool, sign: float) -> Array:
    from kernels.cuda import launch

    xp = array_module(x)
    B, H, T, D = x.shape
    x = xp.ascontiguousarray(x.swapaxes(1, 2))  # (B, T, H, D)
    y = xp.empty_like(x)
    cos, sin = (xp.ascontiguousarray(a).astype(np.float32, copy=False) for a in (cos, sin))
    sizes = (np.int64(x.size // 2), np.int64(H), np.int64(T), np.int64(D // 2))
    args = (x, cos, sin, y, *sizes, np.int32(interleaved), np.float32(sign))
    name = f"rotate<{launch.type_name(x.dtype)}>"
    launch.run(
        "positions", name, launch.grid_stride(x.size, x) if x.size else 0, launch.BLOCK, args
    )
    return y.swapaxes(1, 2)


@rotary.cuda
def _(x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    _check("rotary", x, cos, sin)
    return _on_cuda(x, cos, sin, interleaved, 1.0)


@rotary_grad.cuda
def _(dy: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    _check("rotary_grad", dy, cos, sin)
    return _on_cuda(dy, cos, sin, interleaved, -1.0)


def _sample(draw, shape, interleaved):  # type: ignore[no-untyped-def]
    T, D = shape[0], 2 * -(-shape[1] // 2)
    angles = draw.uniform(T, D // 2, high=6.0)
    return draw.normal(2, 3, T, D), np.cos(angles), np.sin(angles), interleaved


for _kernel in (rotary, rotary_grad):

    @_kernel.sample
    def _(draw, shape):
        return _sample(draw, shape, False)

    @_kernel.sample
    def interleaved(draw, shape):
        return _sample(draw, shape, True)
