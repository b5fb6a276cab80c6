"""Activations that multiply by a gate.

GELU, SiLU and Mish multiply x by a function of x itself, GLU and SwiGLU one half of x by one of the
other.

At an infinite x the value is the limit: gelu(-inf) is 0, not -inf * 0 = NaN. Hence the selects on a
gate that has vanished, here and in the formulas.
"""

# ruff: noqa: F821  (the functions in a formula are text: see kernels/elementwise.py)

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.elementwise import elementwise
from kernels.registry import Draw, kernel
from kernels.special import erf, sigmoid_array, sigmoid_slope

#: Templates of kernels/cuda/gates.cu over the element type.
CUDA_KERNELS = ("glu_forward", "glu_backward", "swiglu_forward", "swiglu_backward")


def _times(x: Array, p: Array) -> Array:
    """x p, and 0 where p has vanished, even if x is infinite."""
    return array_module(x).where(p == 0, 0, x * p)


@elementwise
def gelu(x: Array) -> Array:
    """x P(x), P(x) = (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016)."""
    return _times(x, 0.5 + 0.5 * erf.reference(x * math.sqrt(0.5)))


@gelu.formula
def _(x):
    p = 0.5 + 0.5 * erf(x * 0.7071067811865476)
    return 0.0 if p == 0.0 else x * p


@elementwise
def gelu_grad(dy: Array, x: Array) -> Array:
    """dy (P(x) + x p(x)) with the normal distribution function P and density p."""
    p = 0.5 + 0.5 * erf.reference(x * math.sqrt(0.5))
    density = math.sqrt(0.5 / math.pi) * array_module(x).exp(-0.5 * (x * x))
    return dy * (p + _times(x, density))


@gelu_grad.formula
def _(dy, x):
    p = 0.5 + 0.5 * erf(x * 0.7071067811865476)
    density = 0.3989422804014327 * exp_nonpositive(-0.5 * (x * x))
    return dy * (p + (0.0 if density == 0.0 else x * density))


@elementwise
def gelu_tanh(x: Array) -> Array:
    """x (1 + tanh z) / 2 = x sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3); close to gelu."""
    return _times(x, sigmoid_array(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * (x * x))))


@gelu_tanh.formula
def _(x):
    z = 1.5957691216057308 * x * (1.0 + 0.044715 * (x * x))
    e = exp_nonpositive(-absolute(z))
    p = (e if z < 0.0 else 1.0) / (1.0 + e)
    return 0.0 if p == 0.0 else x * p


@elementwise
def gelu_tanh_grad(dy: Array, x: Array) -> Array:
    """dy (s(2z) + x s'(2z) d(2z)/dx) with the sigmoid s and z as in `gelu_tanh`."""
    scale = 2 * math.sqrt(2 / math.pi)
    z = scale * x * (1 + 0.044715 * (x * x))
    return dy * (
        sigmoid_array(z) + _times(scale * x * (1 + 3 * 0.044715 * (x * x)), sigmoid_slope(z))
    )


@gelu_tanh_grad.formula
def _(dy, x):
    z = 1.5957691216057308 * x * (1.0 + 0.044715 * (x * x))
    e = exp_nonpositive(-absolute(z))
    r = 1.0 / (1.0 + e)
    slope = e * r * r
    rise = 1.5957691216057308 * x * (1.0 + 0.134145 * (x * x))
    return dy * ((e * r if z < 0.0 else r) + (0.0 if slope == 0.0 else rise * slope))


@elementwise
def silu(x: Array) -> Array:
    """x sigmoid(x), also called swish (Elfwing et al. 2017)."""
    return _times(x, sigmoid_array(x))


@silu.formula
def _(x):
    p = sigmoid(x)
    return 0.0 if p == 0.0 else x * p


@elementwise
def silu_grad(dy: Array, x: Array) -> Array:
    """dy (s + x s (1 - s)) for s = sigmoid(x)."""
    return dy * (sigmoid_array(x) + _times(x, sigmoid_slope(x)))


@silu_grad.formula
def _(dy, x):
    e = exp(-absolute(x))
    r = 1.0 / (1.0 + e)
    slope = e * r * r
    return dy * ((e * r if x < 0.0 else r) + (0.0 if slope == 0.0 else x * slope))


def _mish_parts(x: Array) -> tuple[Array, Array, Array]:
    """Numerator n and denominator d = n + r of tanh(log(1 + e^x)) in powers of e^-|x|, and r."""
    xp = array_module(x)
    e = xp.exp(-xp.absolute(x))
    n = xp.where(x < 0, e * (e + 2), 1 + 2 * e)
    r = xp.where(x < 0, 2, 2 * e * e)
    return n, n + r, r


@elementwise
def mish(x: Array) -> Array:
    """x tanh(log(1 + e^x)) (Misra 2019)."""
    n, d, _ = _mish_parts(x)
    return _times(x, n / d)


@mish.formula
def _(x):
    e = exp(-absolute(x))
    n = e * (e + 2.0) if x < 0.0 else 1.0 + 2.0 * e
    r = 2.0 if x < 0.0 else 2.0 * e * e
    p = n / (n + r)
    return 0.0 if p == 0.0 else x * p


@elementwise
def mish_grad(dy: Array, x: Array) -> Array:
    """dy (t + x (1 - t^2) sigmoid(x)) for t = tanh(log(1 + e^x))."""
    n, d, r = _mish_parts(x)
    slope = r / d * ((n + d) / d) * sigmoid_array(x)
    return dy * (n / d + _times(x, slope))


@mish_grad.formula
def _(dy, x):
    e = exp(-absolute(x))
    n = e * (e + 2.0) if x < 0.0 else 1.0 + 2.0 * e
    r = 2.0 if x < 0.0 else 2.0 * e * e
    q = 1.0 / (n + r)
    slope = (r * q) * ((n + n + r) * q) * ((e if x < 0.0 else 1.0) / (1.0 + e))
    return dy * (n * q + (0.0 if slope == 0.0 else x * slope))


# --- one half of x gates the other ----------------------------------------------------------------


def _halves(x: Array, axis: int) -> tuple[Array, Array]:
    """The two halves of `x` along `axis`."""
    size = x.shape[axis]
    if size % 2:
        raise ValueError(
            f"x has {size} elements along axis {axis}: expected an even number, to be halved"
        )
    return tuple(array_module(x).split(x, 2, axis=axis))


def _check_halves(dy: Array, x: Array, axis: int) -> None:
    expected = list(x.shape)
    expected[axis] //= 2
    if x.shape[axis] % 2 or dy.shape != tuple(expected):
        raise ValueError(f"dy is {dy.shape}, x {x.shape}: expected one half of x along axis {axis}")


@kernel
def glu(x: Array, axis: int = -1) -> Array:
    """a sigmoid(b) for the halves a, b of `x` along `axis` (Dauphin et al. 2016)."""
    a, b = _halves(x, axis)
    return a * sigmoid_array(b)


@kernel
def glu_grad(dy: Array, x: Array, axis: int = -1) -> Array:
    """The halves dy sigmoid(b) and dy a sigmoid'(b)."""
    _check_halves(dy, x, axis)
    a, b = _halves(x, axis)
    return array_module(x).concatenate(
        [dy * sigmoid_array(b), dy * a * sigmoid_slope(b)], axis=axis
    )


@kernel
def swiglu(x: Array, axis: int = -1) -> Array:
    """silu(a) b for the halves a, b of `x` along `axis` (Shazeer 2020)."""
    a, b = _halves(x, axis)
    return silu.reference(a) * b


@kernel
def swiglu_grad(dy: Array, x: Array, axis: int = -1) -> Array:
    """The halves dy b silu'(a) and dy silu(a)."""
    _check_halves(dy, x, axis)
    a, b = _halves(x, axis)
    return array_module(x).concatenate(
        [silu_grad.reference(dy, a) * b, dy * silu.reference(a)], axis=axis
    )


def _in_memory_order(axis: int, *arrays: Array) -> tuple[list[Array], list[int], int]:
    """Views of `arrays` with the axes as they lie in the first one's memory, and where `axis` is.

    C-contiguous afterwards, by a copy only where they were not dense or ordered differently.
    """
    x = arrays[0]
    order = sorted(range(x.ndim), key=lambda k: -abs(x.strides[k]))
    xp = array_module(x)
    dense = [xp.ascontiguousarray(a.transpose(order)) for a in arrays]
    return dense, order, order.index(axis % x.ndim)


def _forward(run: Any, x: Array, axis: int) -> Array:
    """Allocate y and call ``run(rows of x, rows of y)``: a row of x is a half a, then a half b."""
    _halves(x, axis)
    (x,), order, at = _in_memory_order(axis, x)
    shape = list(x.shape)
    shape[at] //= 2
    y = array_module(x).empty(shape, x.dtype)
    if y.size:
        rows = math.prod(shape[:at])
        run(x.reshape(rows, -1), y.reshape(rows, -1))  # (rows, 2 L), (rows, L)
    return y.transpose(np.argsort(order))


def _backward(run: Any, dy: Array, x: Array, axis: int) -> Array:
    """Allocate dx and call ``run(rows of dy, rows of x, rows of dx)``."""
    _check_halves(dy, x, axis)
    (x, dy), order, at = _in_memory_order(axis, x, dy)
    dx = array_module(x).empty(x.shape, x.dtype)
    if dx.size:
        rows = math.prod(x.shape[:at])
        run(*(a.reshape(rows, -1) for a in (dy, x, dx)))  # (rows, L), (rows, 2 L), (rows, 2 L)
    return dx.transpose(np.argsort(order))


def _tuned(forward: Any, gradient: Any) -> None:
    """Attach the tuned versions of a gate and of its gradient."""

    @forward.cpu
    def _(x: Array, axis: int = -1) -> Array:
        from kernels.cpu import gates

        return _forward(getattr(gates, forward.name), x, axis)

    @gradient.cpu
    def _(dy: Array, x: Array, axis: int = -1) -> Array:
        from kernels.cpu import gates

        return _backward(getattr(gates, gradient.name), dy, x, axis)

    @forward.cuda
    def _(x: Array, axis: int = -1) -> Array:
        return _forward(lambda *rows: _launch(f"{forward.name}_forward", *rows), x, axis)

    @gradient.cuda
    def _(dy: Array, x: Array, axis: int = -1) -> Array:
        return _backward(lambda *rows: _launch(f"{forward.name}_backward", *rows), dy, x, axis)

    def middle_axis(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
        rows, columns = shape
        return draw.normal(2, 2 * rows, columns, scale=2.0), 1

    @forward.sample
    def _(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
        rows, columns = shape
        return (draw.normal(rows, 2 * columns, scale=2.0),)

    @gradient.sample
    def _(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
        rows, columns = shape
        return draw.normal(shape), draw.normal(rows, 2 * columns, scale=2.0)

    forward.sample(middle_axis)

    @gradient.sample
    def middle_axis(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
        rows, columns = shape
        return draw.normal(2, rows, columns), draw.normal(2, 2 * rows, columns, scale=2.0), 1


def _launch(name: str, *rows: Array) -> None:
    from kernels.cuda import launch

    y = rows[0] if name.endswith("_backward") else rows[-1]  # (rows, L)
    expression = f"{name}<{launch.type_name(y.dtype)}>"
    sizes = np.int64(y.shape[0]), np.int64(y.shape[1])
    launch.run("gates", expression, launch.grid_stride(y.size, y), launch.BLOCK, [*rows, *sizes])


_tuned(glu, glu_grad)
_tuned(swiglu, swiglu_grad)
