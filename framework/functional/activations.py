"""Differentiable activation functions: each a kernel and its derivative."""

from __future__ import annotations

from framework.autograd import Tensor, record
from framework.autograd.casting import lowered, state
from framework.functional.check import floating, number, tensor_argument
from kernels import activations as kernels
from kernels.elementwise import Elementwise

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "swiglu",
    "tanh",
]


def _activate(forward: Elementwise, grad: Elementwise, x: Tensor, *options: float) -> Tensor:
    """Record ``forward(x, *options)``."""
    a = floating(forward.name, x).data
    return record(forward(a, *options), [x], lambda dy: [grad(dy, a, *options)])


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return _activate(kernels.sigmoid, kernels.sigmoid_grad, x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return _activate(kernels.tanh, kernels.tanh_grad, x)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return _activate(kernels.relu, kernels.relu_grad, x)


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return _activate(kernels.relu6, kernels.relu6_grad, x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where positive, else negative_slope * x."""
    number("leaky_relu", "negative_slope", negative_slope)
    return _activate(kernels.leaky_relu, kernels.leaky_relu_grad, x, negative_slope)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x where positive, else weight * x; `weight` is (1,) or (C,), C the size of axis 1 of x."""
    floating("prelu", x), tensor_argument("prelu", "weight", weight)
    if state.dtype is not None:
        x, weight = lowered(x, weight)
    a, w = x.data, weight.data
    return record(kernels.prelu(a, w), [x, weight], lambda dy: kernels.prelu_grad(dy, a, w))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where positive, else alpha * (e^x - 1)."""
    number("elu", "alpha", alpha)
    return _activate(kernels.elu, kernels.elu_grad, x, alpha)


def selu(x: Tensor) -> Tensor:
    """Scaled ELU, whose fixed point is mean 0 and variance 1."""
    return _activate(kernels.selu, kernels.selu_grad, x)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """max(x, 0) + min(alpha * (e^(x / alpha) - 1), 0)."""
    if number("celu", "alpha", alpha) == 0:
        raise ValueError("celu: alpha=0, expected a number other than 0")
    return _activate(kernels.celu, kernels.celu_grad, x, alpha)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function: exact ("none"), or through tanh ("tanh")."""
    if approximate == "none":
        return _activate(kernels.gelu, kernels.gelu_grad, x)
    if approximate == "tanh":
        return _activate(kernels.gelu_tanh, kernels.gelu_tanh_grad, x)
    raise ValueError(f"gelu: approximate={approximate!r}, expected 'none' or 'tanh'")


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish."""
    return _activate(kernels.silu, kernels.silu_grad, x)


def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x))."""
    return _activate(kernels.mish, kernels.mish_grad, x)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta; x itself where beta * x is above `threshold`."""
    number("softplus", "threshold", threshold)
    if number("softplus", "beta", beta) == 0:
        raise ValueError("softplus: beta=0, expected a number other than 0")
    return _activate(kernels.softplus, kernels.softplus_grad, x, beta, threshold)


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return _activate(kernels.softsign, kernels.softsign_grad, x)


def hardsigmoid(x: Tensor) -> Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    return _activate(kernels.hardsigmoid, kernels.hardsigmoid_grad, x)


def hardswish(x: Tensor) -> Tensor:
    """x * hardsigmoid(x)."""
    return _activate(kernels.hardswish, kernels.hardswish_grad, x)


def hardtanh(x: Tensor, min_value: float = -1.0, max_value: float = 1.0) -> Tensor:
    """x limited to [min_value, max_value]."""
    number("hardtanh", "min_value", min_value), number("hardtanh", "max_value", max_value)
    if not min_value < max_value:  # NaN is not below anything
        raise ValueError(f"hardtanh: min_value={min_value} is not below max_value={max_value}")
    return _activate(kernels.hardtanh, kernels.hardtanh_grad, x, min_value, max_value)


def logsigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    return _activate(kernels.logsigmoid, kernels.logsigmoid_grad, x)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b), a and b the halves of x along `dim` (Dauphin et al. 2017)."""
    return _gated("glu", x, dim)


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """silu(a) * b, a and b the halves of x along `dim` (Shazeer 2020)."""
    return _gated("swiglu", x, dim)


def _gated(name: str, x: Tensor, dim: int) -> Tensor:
    a = floating(name, x).data
    if not -x.ndim <= dim < x.ndim or x.shape[dim] % 2:
        raise ValueError(
            f"{name}: cannot halve shape {x.shape} along dim {dim}; its size must be even"
        )
    forward, grad = getattr(kernels, name), getattr(kernels, f"{name}_grad")
    return record(forward(a, dim), [x], lambda dy: [grad(dy, a, dim)])
