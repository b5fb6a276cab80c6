"""Losses of one element: a reference and a scalar formula each; kernels/losses.py offers them too.

x is the prediction and gradients are with respect to x. Nothing is reduced. Definitions are
PyTorch's.
"""

# ruff: noqa: F811, F821  (samples are told apart by name; the functions in a formula are text)

from __future__ import annotations

from kernels.arrays import Array, array_module
from kernels.elementwise import elementwise


@elementwise
def mse(x: Array, target: Array) -> Array:
    """(x - target)^2."""
    d = x - target
    return d * d


@mse.formula
def _(x, target):
    d = x - target
    return d * d


@elementwise
def mse_grad(dy: Array, x: Array, target: Array) -> Array:
    """dy * 2 (x - target)."""
    return dy * 2 * (x - target)


@mse_grad.formula
def _(dy, x, target):
    return dy * 2.0 * (x - target)


@elementwise
def l1(x: Array, target: Array) -> Array:
    """|x - target|."""
    return abs(x - target)


@l1.formula
def _(x, target):
    return absolute(x - target)


@elementwise
def l1_grad(dy: Array, x: Array, target: Array) -> Array:
    """dy * sign(x - target), 0 where they are equal."""
    return dy * array_module(x).sign(x - target)


@l1_grad.formula
def _(dy, x, target):
    return dy * sign(x - target)


@elementwise
def huber(x: Array, target: Array, delta: float = 1.0) -> Array:
    """d^2 / 2 where d = |x - target| < delta, delta (d - delta / 2) beyond (Huber 1964)."""
    d = abs(x - target)
    return array_module(x).where(d < delta, 0.5 * d * d, delta * (d - 0.5 * delta))


@huber.formula
def _(x, target, delta):
    d = absolute(x - target)
    return 0.5 * d * d if d < delta else delta * (d - 0.5 * delta)


@elementwise
def huber_grad(dy: Array, x: Array, target: Array, delta: float = 1.0) -> Array:
    """dy * (x - target), the difference clipped to [-delta, delta]."""
    xp = array_module(x)
    return dy * xp.minimum(xp.maximum(x - target, -delta), delta)


@huber_grad.formula
def _(dy, x, target, delta):
    return dy * minimum(maximum(x - target, -delta), delta)


@elementwise
def smooth_l1(x: Array, target: Array, beta: float = 1.0) -> Array:
    """d^2 / (2 beta) where d = |x - target| < beta, d - beta / 2 beyond; `l1` for beta = 0."""
    d = abs(x - target)
    return array_module(x).where(d < beta, 0.5 * d * d / (beta or 1.0), d - 0.5 * beta)


@smooth_l1.formula
def _(x, target, beta):
    d = absolute(x - target)
    return 0.5 * d * d / beta if d < beta else d - 0.5 * beta


@elementwise
def smooth_l1_grad(dy: Array, x: Array, target: Array, beta: float = 1.0) -> Array:
    """dy * (x - target) / beta, and dy * sign(x - target) where |x - target| >= beta."""
    xp = array_module(x)
    d = x - target
    return dy * xp.where(abs(d) >= beta, xp.sign(d), d / (beta or 1.0))


@smooth_l1_grad.formula
def _(dy, x, target, beta):
    d = x - target
    return dy * (sign(d) if absolute(d) >= beta else d / beta)


@elementwise
def binary_cross_entropy_with_logits(x: Array, target: Array, pos_weight: float = 1.0) -> Array:
    """-pos_weight * target * log(sigmoid(x)) - (1 - target) * log(1 - sigmoid(x)).

    The two logarithms are -softplus(-x) and -softplus(x), which share log1p(e^-|x|): nothing
    overflows or cancels.
    """
    xp = array_module(x)
    tail = xp.log1p(xp.exp(-abs(x)))
    return pos_weight * target * (xp.maximum(-x, 0) + tail) + (1 - target) * (
        xp.maximum(x, 0) + tail
    )


@binary_cross_entropy_with_logits.formula
def _(x, target, pos_weight):
    tail = log1p(exp(-absolute(x)))
    return pos_weight * target * (maximum(-x, 0.0) + tail) + (1.0 - target) * (
        maximum(x, 0.0) + tail
    )


@elementwise
def binary_cross_entropy_with_logits_grad(
    dy: Array, x: Array, target: Array, pos_weight: float = 1.0
) -> Array:
    """dy * ((1 - target) * sigmoid(x) - pos_weight * target * sigmoid(-x))."""
    xp = array_module(x)
    e = xp.exp(-abs(x))
    large, small = 1 / (1 + e), e / (1 + e)  # sigmoid(|x|) and sigmoid(-|x|)
    p, rest = xp.where(x < 0, small, large), xp.where(x < 0, large, small)
    return dy * ((1 - target) * p - pos_weight * target * rest)


@binary_cross_entropy_with_logits_grad.formula
def _(dy, x, target, pos_weight):
    e = exp(-absolute(x))
    large = 1.0 / (1.0 + e)
    small = e / (1.0 + e)
    p = small if x < 0.0 else large
    rest = large if x < 0.0 else small
    return dy * ((1.0 - target) * p - pos_weight * target * rest)


@elementwise
def kl_div(x: Array, target: Array) -> Array:
    """target * (log(target) - x) for x = log-probabilities; 0 where target is 0, whatever x is."""
    xp = array_module(x)
    zero = x.dtype.type(0)
    return xp.where(target == 0, zero, target * (xp.log(target) - x))


@kl_div.formula
def _(x, target):
    return 0.0 if target == 0.0 else target * (log(target) - x)


@elementwise
def kl_div_grad(dy: Array, x: Array, target: Array) -> Array:
    """-target * dy."""
    return -target * dy


@kl_div_grad.formula
def _(dy, x, target):
    return -target * dy


@elementwise
def kl_div_log_target(x: Array, target: Array) -> Array:
    """e^target * (target - x), both log-probabilities; 0 where e^target is 0, whatever x is."""
    xp = array_module(x)
    p = xp.exp(target)
    return xp.where(p == 0, x.dtype.type(0), p * (target - x))


@kl_div_log_target.formula
def _(x, target):
    p = exp(target)
    return 0.0 if p == 0.0 else p * (target - x)


@elementwise
def kl_div_log_target_grad(dy: Array, x: Array, target: Array) -> Array:
    """-e^target * dy."""
    return -array_module(x).exp(target) * dy


@kl_div_log_target_grad.formula
def _(dy, x, target):
    return -exp(target) * dy


@elementwise
def hinge(x: Array, target: Array, margin: float = 1.0) -> Array:
    """max(0, margin - target * x), target -1 or 1."""
    return array_module(x).maximum(margin - target * x, 0)


@hinge.formula
def _(x, target, margin):
    return maximum(margin - target * x, 0.0)


@elementwise
def hinge_grad(dy: Array, x: Array, target: Array, margin: float = 1.0) -> Array:
    """-target * dy where margin - target * x > 0, else 0."""
    return array_module(x).where(margin - target * x <= 0, dy.dtype.type(0), -target * dy)


@hinge_grad.formula
def _(dy, x, target, margin):
    return 0.0 if margin - target * x <= 0.0 else -target * dy


# The plain sample (normal numbers for every array) is no use where a target is a probability or a
# sign; "_sample" is its name.


@binary_cross_entropy_with_logits.sample
def _sample(draw, shape):
    return draw.normal(shape, scale=3.0), draw.uniform(shape)


@binary_cross_entropy_with_logits.sample
def positive_weight(draw, shape):
    return draw.normal(shape, scale=3.0), draw.uniform(shape), 2.5


@binary_cross_entropy_with_logits_grad.sample
def _sample(draw, shape):
    return draw.normal(shape), draw.normal(shape, scale=3.0), draw.uniform(shape)


@binary_cross_entropy_with_logits_grad.sample
def positive_weight(draw, shape):
    return draw.normal(shape), draw.normal(shape, scale=3.0), draw.uniform(shape), 2.5


@kl_div.sample
def _sample(draw, shape):
    return -draw.uniform(shape, high=6.0), draw.uniform(shape) * draw.mask(shape)


@kl_div_grad.sample
def _sample(draw, shape):
    return draw.normal(shape), -draw.uniform(shape, high=6.0), draw.uniform(shape)


@kl_div_log_target.sample
def _sample(draw, shape):
    return -draw.uniform(shape, high=6.0), -draw.uniform(shape, high=6.0)


@kl_div_log_target_grad.sample
def _sample(draw, shape):
    return draw.normal(shape), -draw.uniform(shape, high=6.0), -draw.uniform(shape, high=6.0)


@hinge.sample
def _sample(draw, shape):
    return draw.normal(shape, scale=2.0), 2.0 * draw.mask(shape, keep=0.5) - 1.0


@hinge_grad.sample
def _sample(draw, shape):
    return draw.normal(shape), draw.normal(shape, scale=2.0), 2.0 * draw.mask(shape, keep=0.5) - 1.0
