"""Known values of the activations, their limits, and PReLU, GLU and SwiGLU by hand.

The contract tests hold every version against its reference; these hold the references.
"""

import math

import numpy as np
import pytest

from kernels import activations as act
from kernels.special import erf, erf_grad

INF = math.inf


def call(kernel, *values, **options):
    """The kernel of float64 numbers, as a list."""
    return kernel(np.array(values, np.float64), **options).tolist()


def phi(x):
    """The normal distribution function, by the standard library."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def logistic(x):
    return 1 / (1 + math.exp(-x))


# name -> (the definition as one would write it down, options)
BY_HAND = {
    "relu": (lambda x: max(x, 0.0), {}),
    "relu6": (lambda x: min(max(x, 0.0), 6.0), {}),
    "hardtanh": (lambda x: min(max(x, -2.0), 0.5), {"min_value": -2.0, "max_value": 0.5}),
    "leaky_relu": (lambda x: x if x > 0 else 0.2 * x, {"negative_slope": 0.2}),
    "hardsigmoid": (lambda x: min(max(x + 3, 0), 6) / 6, {}),
    "hardswish": (lambda x: x * min(max(x + 3, 0), 6) / 6, {}),
    "elu": (lambda x: x if x > 0 else 0.7 * math.expm1(x), {"alpha": 0.7}),
    "selu": (
        lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
        {},
    ),
    "celu": (lambda x: x if x > 0 else 0.7 * math.expm1(x / 0.7), {"alpha": 0.7}),
    "sigmoid": (logistic, {}),
    "tanh": (math.tanh, {}),
    "softsign": (lambda x: x / (1 + abs(x)), {}),
    "softplus": (lambda x: math.log1p(math.exp(2 * x)) / 2, {"beta": 2.0, "threshold": 40.0}),
    "logsigmoid": (lambda x: -math.log1p(math.exp(-x)), {}),
    "gelu": (lambda x: x * phi(x), {}),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        {},
    ),
    "silu": (lambda x: x * logistic(x), {}),
    "mish": (lambda x: x * math.tanh(math.log1p(math.exp(x))), {}),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_equals_its_definition(name):
    definition, options = BY_HAND[name]
    x = [-7.5, -3.0, -1.25, -0.5, 0.0, 1e-3, 0.3, 1.0, 2.5, 3.0, 6.0, 9.0]
    y = call(getattr(act, name), *x, **options)
    np.testing.assert_allclose(y, [definition(v) for v in x], rtol=1e-13, atol=1e-15)


# The limits at -inf and inf: of the value, then of the derivative.
LIMITS = {
    "relu": (0, INF, 0, 1),
    "relu6": (0, 6, 0, 0),
    "hardtanh": (-1, 1, 0, 0),
    "leaky_relu": (-INF, INF, 0.01, 1),
    "hardsigmoid": (0, 1, 0, 0),
    "hardswish": (0, INF, 0, 1),
    "elu": (-1, INF, 0, 1),
    "celu": (-1, INF, 0, 1),
    "sigmoid": (0, 1, 0, 0),
    "tanh": (-1, 1, 0, 0),
    "softsign": (-1, 1, 0, 0),
    "softplus": (0, INF, 0, 1),
    "logsigmoid": (-INF, 0, 1, 0),
    "gelu": (0, INF, 0, 1),
    "gelu_tanh": (0, INF, 0, 1),
    "silu": (0, INF, 0, 1),
    "mish": (0, INF, 0, 1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_infinities_give_the_limit_and_nan_gives_nan(name, dtype):
    x = np.array([-INF, INF], dtype)
    assert getattr(act, name)(x).tolist() == list(LIMITS[name][:2])
    slope = getattr(act, f"{name}_grad")(np.ones_like(x), x)
    np.testing.assert_allclose(slope, LIMITS[name][2:], rtol=1e-6)
    assert np.isnan(getattr(act, name)(np.array([math.nan], dtype))).all()


# PyTorch 2's derivative at each kink.
KINKS = {
    "relu": {0.0: 0.0},
    "relu6": {0.0: 0.0, 6.0: 0.0},
    "hardtanh": {-1.0: 0.0, 1.0: 0.0},
    "leaky_relu": {0.0: 0.01},
    "hardsigmoid": {-3.0: 0.0, 3.0: 0.0},
    "hardswish": {-3.0: 0.0, 3.0: 1.0},
    "elu": {0.0: 1.0},
    "selu": {0.0: 1.0507009873554805 * 1.6732632423543772},
    "celu": {0.0: 1.0},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KINKS)
def test_derivative_at_a_kink(name, dtype):
    x = np.array(list(KINKS[name]), dtype)
    slope = getattr(act, f"{name}_grad")(np.ones_like(x), x)
    np.testing.assert_allclose(slope, list(KINKS[name].values()), rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid_grad", "tanh_grad", "silu_grad", "mish", "logsigmoid"])
def test_small_results_keep_their_digits_in_float32(name):
    # s (1 - s) and 1 - tanh^2 would be 0 or off by percents here
    x = np.array([-15.0, -12.0, -9.5, 9.5], np.float32)
    args = [np.ones_like(x), x] if name.endswith("_grad") else [x]
    got = getattr(act, name)(*args)
    np.testing.assert_allclose(got, getattr(act, name)(*(a.astype(float) for a in args)), rtol=3e-6)


def test_softplus_is_x_above_its_threshold():
    assert call(act.softplus, 21.0) == [21.0]
    assert call(act.softplus, 19.0) == [19 + math.log1p(math.exp(-19))]
    assert call(act.softplus, 2.1, beta=10.0) == [2.1]


def test_a_gradient_of_infinity_is_not_masked_to_nan():
    dy, x = np.array([INF, INF], np.float32), np.array([-1.0, 1.0], np.float32)
    assert act.relu_grad(dy, x).tolist() == [0.0, INF]


def test_erf_against_the_standard_library():
    x = np.concatenate([np.linspace(-7, 7, 20001), 10.0 ** np.linspace(-300, 0, 301)])
    truth = [math.erf(v) for v in x]
    np.testing.assert_allclose(erf(x), truth, rtol=1e-15, atol=0)
    np.testing.assert_allclose(erf(x.astype(np.float32)), truth, rtol=1e-6, atol=1e-37)
    assert call(erf, -INF, -0.0, INF) == [-1.0, 0.0, 1.0]
    assert math.copysign(1, call(erf, -0.0)[0]) == -1
    assert np.isnan(call(erf, math.nan)).all()
    np.testing.assert_allclose(
        erf_grad(np.array([3.0]), np.array([0.5])), 6 / math.sqrt(math.pi) * math.exp(-0.25)
    )


# --- PReLU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prelu_has_one_slope_for_each_channel(dtype):
    x = np.array([[[1.0, -2.0], [-3.0, 4.0]]], dtype)  # (1, 2, 2)
    weight = np.array([0.5, 0.1], dtype)
    np.testing.assert_allclose(act.prelu(x, weight), [[[1, -1], [-0.3, 4]]], rtol=1e-6)
    dy = np.full_like(x, 2)
    dx, dweight = act.prelu_grad(dy, x, weight)
    np.testing.assert_allclose(dx, [[[2, 1], [0.2, 2]]], rtol=1e-6)
    np.testing.assert_allclose(dweight, [-4, -6], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (2, 3, 4)])
def test_prelu_has_one_slope_for_all(shape, dtype):
    x = np.full(shape, -2, dtype)
    weight = np.array([0.25], dtype)
    y = act.prelu(x, weight)
    dx, dweight = act.prelu_grad(np.ones_like(x), x, weight)
    assert y.shape == dx.shape == shape
    assert np.all(y == -0.5)
    assert np.all(dx == 0.25)
    assert dweight.tolist() == [-2.0 * x.size]


def test_prelu_in_channels_last_layout_agrees_and_keeps_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 6, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    weight = np.array([0.1, 0.2, 0.3], np.float32)
    y, (dx, dweight) = act.prelu(x, weight), act.prelu_grad(dy, x, weight)
    first = np.ascontiguousarray(x)
    np.testing.assert_array_equal(y, act.prelu(first, weight))
    np.testing.assert_array_equal(dx, act.prelu_grad(dy, first, weight)[0])
    np.testing.assert_allclose(dweight, act.prelu_grad(dy, first, weight)[1], rtol=1e-5)
    assert y.strides == dx.strides == x.strides


def test_prelu_gradient_is_the_slope():
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, 4, 3, 5))
    weight = rng.uniform(0.1, 0.5, 3)
    x, dy = x[..., :3], dy[..., :3]
    dx, dweight = act.prelu_grad(dy, x, weight)
    step = 1e-6
    for target, slope in ((x, dx), (weight, dweight)):
        for at in np.ndindex(target.shape):
            kept, losses = target[at], []
            for moved in (kept + step, kept - step):
                target[at] = moved
                losses.append((act.prelu(x, weight) * dy).sum())
            target[at] = kept
            assert slope[at] == pytest.approx(
                (losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-8
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "weights"), [((2, 3), (2,)), ((4,), (4,)), ((2, 3), (3, 1)), ((2, 3), (0,))]
)
def test_prelu_refuses_a_weight_of_another_size(shape, weights, dtype):
    with pytest.raises(ValueError, match="weight is .*one slope for each channel"):
        act.prelu(np.ones(shape, dtype), np.ones(weights, dtype))
    with pytest.raises(ValueError, match="weight is .*one slope for each channel"):
        act.prelu_grad(np.ones(shape, dtype), np.ones(shape, dtype), np.ones(weights, dtype))


# --- GLU and SwiGLU -------------------------------------------------------------------------------


def test_glu_and_swiglu_by_hand():
    x = np.array([[2.0, -1.0, 0.5, 3.0]])
    np.testing.assert_allclose(act.glu(x), [[2 * logistic(0.5), -logistic(3.0)]], rtol=1e-14)
    np.testing.assert_allclose(
        act.swiglu(x), [[2 * logistic(2.0) * 0.5, -logistic(-1.0) * 3]], rtol=1e-14
    )


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize(
    ("forward", "gradient"), [(act.glu, act.glu_grad), (act.swiglu, act.swiglu_grad)]
)
def test_gate_gradient_is_the_slope_along_any_axis(forward, gradient, axis):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 2, 6))
    dy = rng.standard_normal(forward(x, axis).shape)
    dx = gradient(dy, x, axis)
    assert dx.shape == x.shape
    step = 1e-6
    for at in np.ndindex(x.shape):
        kept, losses = x[at], []
        for moved in (kept + step, kept - step):
            x[at] = moved
            losses.append((forward(x, axis) * dy).sum())
        x[at] = kept
        assert dx[at] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-8)
    narrow = gradient(dy.astype(np.float32), x.astype(np.float32), axis)
    np.testing.assert_allclose(narrow, dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("forward", "gradient"), [(act.glu, act.glu_grad), (act.swiglu, act.swiglu_grad)]
)
def test_gates_refuse_what_has_no_halves(forward, gradient, dtype):
    x = np.ones((2, 5), dtype)
    with pytest.raises(ValueError, match="x has 5 elements along axis -1: expected an even number"):
        forward(x)
    with pytest.raises(ValueError, match=r"dy is \(2, 3\), x \(2, 4\): expected one half of x"):
        gradient(np.ones((2, 3), dtype), np.ones((2, 4), dtype))
