"""Activation functions and their derivatives: one element in, one element out.

Each is a reference in array maths and a scalar formula, from which the CPU loop and the CUDA kernel
are made. In the gradients dy is the incoming gradient and x the input of the forward function.
Derivatives at a kink are PyTorch's.

Activations that multiply x by a gate (GELU, SiLU, GLU, ...) are in kernels/gates.py, PReLU is in
kernels/prelu.py; all can be imported from here.
"""

# ruff: noqa: F821  (the functions in a formula are text: see kernels/elementwise.py)

from __future__ import annotations

from typing import Any

from kernels.arrays import Array, array_module
from kernels.elementwise import Elementwise, elementwise
from kernels.gates import (
    gelu as gelu,
    gelu_grad as gelu_grad,
    gelu_tanh as gelu_tanh,
    gelu_tanh_grad as gelu_tanh_grad,
    glu as glu,
    glu_grad as glu_grad,
    mish as mish,
    mish_grad as mish_grad,
    silu as silu,
    silu_grad as silu_grad,
    swiglu as swiglu,
    swiglu_grad as swiglu_grad,
)
from kernels.prelu import prelu as prelu, prelu_grad as prelu_grad
from kernels.registry import Draw
from kernels.special import sigmoid_array, sigmoid_slope

# Klambauer et al. 2017, to double precision; the formulas repeat the digits, since they may hold no
# names.
_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772


# --- rectifiers -----------------------------------------------------------------------------------


@elementwise
def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN."""
    return array_module(x).where(x <= 0, 0, x)


@relu.formula
def _(x):
    return 0.0 if x <= 0.0 else x


@elementwise
def relu_grad(dy: Array, x: Array) -> Array:
    """dy where x > 0, else 0."""
    return array_module(x).where(x <= 0, 0, dy)


@relu_grad.formula
def _(dy, x):
    return 0.0 if x <= 0.0 else dy


@elementwise
def hardtanh(x: Array, min_value: float = -1.0, max_value: float = 1.0) -> Array:
    """x limited to [min_value, max_value]; NaN stays NaN."""
    xp = array_module(x)
    return xp.where(x < min_value, min_value, xp.where(x > max_value, max_value, x))


@hardtanh.formula
def _(x, min_value, max_value):
    return min_value if x < min_value else (max_value if x > max_value else x)


@elementwise
def hardtanh_grad(dy: Array, x: Array, min_value: float = -1.0, max_value: float = 1.0) -> Array:
    """dy strictly between the limits, 0 elsewhere."""
    return array_module(x).where((x <= min_value) | (x >= max_value), 0, dy)


@hardtanh_grad.formula
def _(dy, x, min_value, max_value):
    return 0.0 if x <= min_value or x >= max_value else dy


@elementwise
def relu6(x: Array) -> Array:
    """x limited to [0, 6] (Krizhevsky 2010)."""
    return hardtanh.reference(x, 0.0, 6.0)


@relu6.formula
def _(x):
    return 0.0 if x < 0.0 else (6.0 if x > 6.0 else x)


@elementwise
def relu6_grad(dy: Array, x: Array) -> Array:
    """dy where 0 < x < 6, else 0."""
    return hardtanh_grad.reference(dy, x, 0.0, 6.0)


@relu6_grad.formula
def _(dy, x):
    return 0.0 if x <= 0.0 or x >= 6.0 else dy


@elementwise
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where x > 0, else negative_slope * x (Maas et al. 2013)."""
    return array_module(x).where(x > 0, x, negative_slope * x)


@leaky_relu.formula
def _(x, negative_slope):
    return x if x > 0.0 else negative_slope * x


@elementwise
def leaky_relu_grad(dy: Array, x: Array, negative_slope: float = 0.01) -> Array:
    """dy where x > 0, else negative_slope * dy."""
    return array_module(x).where(x > 0, dy, negative_slope * dy)


@leaky_relu_grad.formula
def _(dy, x, negative_slope):
    return dy if x > 0.0 else negative_slope * dy


@elementwise
def hardsigmoid(x: Array) -> Array:
    """x + 3 limited to [0, 6], divided by 6."""
    xp = array_module(x)
    return xp.where(x <= -3, 0, xp.where(x >= 3, 1, (x + 3) / 6))


@hardsigmoid.formula
def _(x):
    return 0.0 if x <= -3.0 else (1.0 if x >= 3.0 else (x + 3.0) / 6.0)


@elementwise
def hardsigmoid_grad(dy: Array, x: Array) -> Array:
    """dy / 6 where -3 < x < 3, else 0."""
    return array_module(x).where((x <= -3) | (x >= 3), 0, dy / 6)


@hardsigmoid_grad.formula
def _(dy, x):
    return 0.0 if x <= -3.0 or x >= 3.0 else dy / 6.0


@elementwise
def hardswish(x: Array) -> Array:
    """x hardsigmoid(x) (Howard et al. 2019)."""
    xp = array_module(x)
    return xp.where(x <= -3, 0, xp.where(x >= 3, x, x * (x + 3) / 6))


@hardswish.formula
def _(x):
    return 0.0 if x <= -3.0 else (x if x >= 3.0 else x * (x + 3.0) / 6.0)


@elementwise
def hardswish_grad(dy: Array, x: Array) -> Array:
    """0 up to -3, dy from 3 on, dy (x/3 + 1/2) between them."""
    xp = array_module(x)
    return xp.where(x <= -3, 0, xp.where(x < 3, dy * (x / 3 + 0.5), dy))


@hardswish_grad.formula
def _(dy, x):
    return 0.0 if x <= -3.0 else (dy * (x / 3.0 + 0.5) if x < 3.0 else dy)


# --- exponential below zero -----------------------------------------------------------------------


@elementwise
def elu(x: Array, alpha: float = 1.0) -> Array:
    """x where x > 0, else alpha (e^x - 1) (Clevert et al. 2015)."""
    xp = array_module(x)
    return xp.where(x <= 0, alpha * xp.expm1(xp.minimum(x, 0)), x)


@elu.formula
def _(x, alpha):
    below = alpha * expm1(x)
    return below if x <= 0.0 else x


@elementwise
def elu_grad(dy: Array, x: Array, alpha: float = 1.0) -> Array:
    """dy where x > 0, else dy alpha e^x."""
    xp = array_module(x)
    return xp.where(x <= 0, dy * (alpha * xp.exp(xp.minimum(x, 0))), dy)


@elu_grad.formula
def _(dy, x, alpha):
    below = dy * (alpha * exp(x))
    return below if x <= 0.0 else dy


@elementwise
def selu(x: Array) -> Array:
    """1.0507 times elu(x, 1.6733), which keeps mean 0 and variance 1 (Klambauer et al. 2017)."""
    return _SELU_SCALE * elu.reference(x, _SELU_ALPHA)


@selu.formula
def _(x):
    below = 1.7580993408473768 * expm1(x)
    return below if x <= 0.0 else 1.0507009873554805 * x


@elementwise
def selu_grad(dy: Array, x: Array) -> Array:
    """1.0507 dy where x > 0, else 1.7581 dy e^x."""
    return _SELU_SCALE * elu_grad.reference(dy, x, _SELU_ALPHA)


@selu_grad.formula
def _(dy, x):
    below = dy * (1.7580993408473768 * exp(x))
    return below if x <= 0.0 else 1.0507009873554805 * dy


@elementwise
def celu(x: Array, alpha: float = 1.0) -> Array:
    """x where x > 0, else alpha (e^(x / alpha) - 1); alpha > 0 (Barron 2017)."""
    xp = array_module(x)
    return xp.where(x <= 0, alpha * xp.expm1(xp.minimum(x, 0) / alpha), x)


@celu.formula
def _(x, alpha):
    below = alpha * expm1(x / alpha)
    return below if x <= 0.0 else x


@elementwise
def celu_grad(dy: Array, x: Array, alpha: float = 1.0) -> Array:
    """dy where x > 0, else dy e^(x / alpha)."""
    xp = array_module(x)
    return xp.where(x <= 0, dy * xp.exp(xp.minimum(x, 0) / alpha), dy)


@celu_grad.formula
def _(dy, x, alpha):
    below = dy * exp(x / alpha)
    return below if x <= 0.0 else dy


# --- sigmoids -------------------------------------------------------------------------------------


@elementwise
def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return sigmoid_array(x)


@sigmoid.formula
def _(x):
    return sigmoid(x)


@elementwise
def sigmoid_grad(dy: Array, x: Array) -> Array:
    """dy s (1 - s) for s = sigmoid(x)."""
    return dy * sigmoid_slope(x)


@sigmoid_grad.formula
def _(dy, x):
    e = exp(-absolute(x))
    return dy * (e / ((1.0 + e) * (1.0 + e)))


@elementwise
def tanh(x: Array) -> Array:
    """(e^x - e^-x) / (e^x + e^-x)."""
    return array_module(x).tanh(x)


@tanh.formula
def _(x):
    return tanh(x)


@elementwise
def tanh_grad(dy: Array, x: Array) -> Array:
    """dy / cosh^2 x, which is 4 times the sigmoid's slope at 2x: 1 - tanh^2 x would cancel."""
    return dy * (4 * sigmoid_slope(2 * x))


@tanh_grad.formula
def _(dy, x):
    e = exp(-2.0 * absolute(x))
    return dy * (4.0 * e / ((1.0 + e) * (1.0 + e)))


@elementwise
def softsign(x: Array) -> Array:
    """x / (1 + |x|)."""
    xp = array_module(x)
    return xp.where(xp.isinf(x), xp.sign(x), x / (1 + xp.absolute(x)))


@softsign.formula
def _(x):
    y = x / (1.0 + absolute(x))
    return sign(x) if absolute(x) > 3e38 else y


@elementwise
def softsign_grad(dy: Array, x: Array) -> Array:
    """dy / (1 + |x|)^2."""
    xp = array_module(x)
    return dy / (1 + xp.absolute(x)) ** 2


@softsign_grad.formula
def _(dy, x):
    d = 1.0 + absolute(x)
    return dy / (d * d)


@elementwise
def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """log(1 + e^(beta x)) / beta; x itself where beta x > threshold."""
    xp = array_module(x)
    z = beta * x
    y = (xp.maximum(z, 0) + xp.log1p(xp.exp(-xp.absolute(z)))) / beta
    return xp.where(z > threshold, x, y)


@softplus.formula
def _(x, beta, threshold):
    z = beta * x
    y = (maximum(z, 0.0) + log1p(exp(-absolute(z)))) / beta
    return x if z > threshold else y


@elementwise
def softplus_grad(dy: Array, x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """dy sigmoid(beta x); dy itself where beta x > threshold."""
    return array_module(x).where(beta * x > threshold, dy, dy * sigmoid_array(beta * x))


@softplus_grad.formula
def _(dy, x, beta, threshold):
    below = dy * sigmoid(beta * x)
    return dy if beta * x > threshold else below


@elementwise
def logsigmoid(x: Array) -> Array:
    """log(sigmoid(x)) = min(x, 0) - log(1 + e^-|x|)."""
    xp = array_module(x)
    return xp.minimum(x, 0) - xp.log1p(xp.exp(-xp.absolute(x)))


@logsigmoid.formula
def _(x):
    return minimum(x, 0.0) - log1p(exp(-absolute(x)))


@elementwise
def logsigmoid_grad(dy: Array, x: Array) -> Array:
    """dy sigmoid(-x)."""
    return dy * sigmoid_array(-x)


@logsigmoid_grad.formula
def _(dy, x):
    return dy * sigmoid(-x)


# --- samples with options -------------------------------------------------------------------------


def _with_options(operation: Elementwise, *values: float) -> None:
    def options(draw: Draw, shape: tuple[int, ...]) -> tuple[Any, ...]:
        return *(draw.normal(shape, scale=2.0) for _ in operation.arrays), *values

    operation.sample(options)


for _forward, _gradient, _values in [
    (leaky_relu, leaky_relu_grad, (0.3,)),
    (elu, elu_grad, (1.7,)),
    (celu, celu_grad, (0.6,)),
    (softplus, softplus_grad, (2.5, 4.0)),
    (hardtanh, hardtanh_grad, (-0.5, 2.0)),
]:
    _with_options(_forward, *_values)
    _with_options(_gradient, *_values)
