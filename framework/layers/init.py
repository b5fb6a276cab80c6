"""Initial values of parameters: drawn or set in place, under PyTorch's names.

Draws come from the Philox kernels, so one seed gives the same weights on every device. Each
function takes `generator` (by default the one that `framework.manual_seed` restarts) and returns
the tensor it was given.
"""

from __future__ import annotations

import math

import numpy as np

from framework.autograd import Tensor
from framework.backend.device import to_device
from framework.backend.random import Generator, default_generator
from kernels import random as kernels
from kernels.arrays import Array, array_module, is_floating

#: Factors that keep the variance of the signal from layer to layer, for activations without a
#: parameter. tanh's 5/3 and SELU's 3/4 are PyTorch's conventions; ReLU's is He et al. (2015),
#: equation 10.
GAINS = {
    "linear": 1.0,
    "identity": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The gain for an activation by name; `param` is the negative slope of "leaky_relu" (0.01)."""
    if nonlinearity == "leaky_relu":  # He et al. (2015), equation 15
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in GAINS:
        known = ", ".join([*GAINS, "leaky_relu"])
        raise ValueError(f"nonlinearity={nonlinearity!r}, expected one of {known}")
    return GAINS[nonlinearity]


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *): inputs of an output, and outputs of an input."""
    if tensor.ndim < 2:
        raise ValueError(f"fan in and out need a weight (out, in, ...), got shape {tensor.shape}")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


# Draws -------------------------------------------------------------------------------------------


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from [a, b)."""
    kernels.uniform(_array(tensor), *_take(tensor.size, generator), a, b)
    return tensor


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from the normal distribution."""
    kernels.normal(_array(tensor), *_take(tensor.size, generator), mean, std)
    return tensor


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill with draws from the normal distribution on [a, b] (absolute limits, as in PyTorch).

    What falls outside is drawn again. ValueError where less than 1% of the distribution lies
    inside.
    """
    if not a < b:
        raise ValueError(f"trunc_normal_: a={a} is not below b={b}")
    inside = (
        _below((b - mean) / std) - _below((a - mean) / std) if std > 0 else float(a <= mean <= b)
    )
    if inside < 0.01:
        raise ValueError(
            f"trunc_normal_: [{a}, {b}] holds {inside:.2g} of the normal distribution "
            f"of mean {mean} and std {std}, expected at least 0.01"
        )
    x = _array(normal_(tensor, mean, std, generator))
    xp = array_module(x)
    flat = x.reshape(-1)
    while (outside := xp.flatnonzero((flat < a) | (flat > b))).size:
        again = xp.empty(outside.size, x.dtype)
        flat[outside] = kernels.normal(again, *_take(again.size, generator), mean, std)
    if not x.flags.c_contiguous:  # the reshape was a copy
        x[...] = flat.reshape(x.shape)
    return tensor


def _below(z: float) -> float:
    """The share of the standard normal distribution below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """U(-l, l), l = gain sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    limit = gain * math.sqrt(6 / max(1, sum(fans(tensor))))
    return uniform_(tensor, -limit, limit, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / max(1, sum(fans(tensor)))), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """U(-l, l), l = gain sqrt(3 / fan) (He et al. 2015); `a` is leaky ReLU's negative slope."""
    limit = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -limit, limit, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """N(0, s^2), s = gain / sqrt(fan) (He et al. 2015); `a` is leaky ReLU's negative slope."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode={mode!r}, expected fan_in or fan_out")
    fan = fans(tensor)[0 if mode == "fan_in" else 1]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Orthonormal rows or columns (whichever are fewer) times `gain` (Saxe et al. 2013).

    A weight (out, in, *) counts as a matrix of `out` rows. Decomposed in float64 on the CPU.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_ needs at least 2 axes, got shape {tensor.shape}")
    x = _array(tensor)
    rows = tensor.shape[0]
    draws = kernels.normal(np.empty(tensor.size, np.float64), *_take(tensor.size, generator))
    if not tensor.size:
        return tensor
    matrix = draws.reshape(rows, -1)
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = np.linalg.qr(matrix.T if wide else matrix)
    q = q * np.where(
        np.diagonal(r) < 0, -1.0, 1.0
    )  # signs fixed: uniform over the orthogonal group
    result = ((q.T if wide else q) * gain).reshape(tensor.shape).astype(x.dtype)
    x[...] = to_device(np.ascontiguousarray(result), tensor.device)
    return tensor


# Constants ---------------------------------------------------------------------------------------


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one value."""
    tensor.data[...] = val
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix, as far as it fits a matrix that is not square."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_ needs a matrix, got shape {tensor.shape}")
    x = tensor.data
    x[...] = array_module(x).eye(*x.shape, dtype=x.dtype)
    return tensor


def _array(tensor: Tensor) -> Array:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a Tensor to initialise, got a {type(tensor).__name__}")
    if not is_floating(tensor.dtype):
        raise TypeError(f"random draws need a floating-point tensor, got {tensor.dtype.name}")
    return tensor.data


def _take(n: int, generator: Generator | None) -> tuple[int, int]:
    """(seed, offset) for a draw of `n` elements."""
    return (default_generator if generator is None else generator).advance(kernels.counters(n))
