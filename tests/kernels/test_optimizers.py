"""Optimizer steps against the formulas written out in float64 here, several steps long."""

import math

import numpy as np
import pytest

from kernels import optimizers
from kernels.registry import reference_kernels

rng = np.random.default_rng()

STEPS = 5
SIZES = [1, 7, 1000, 100_003]


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    global rng
    rng = np.random.default_rng(0)


class Run:
    """Parameters and gradients of a few steps, in float32 for the kernel and float64 for the
    formula."""

    def __init__(self, n):
        self.start = rng.standard_normal(n).astype(np.float32)
        self.gradients = [rng.standard_normal(n).astype(np.float32) for _ in range(STEPS)]
        self.p = self.start.copy()

    def zeros(self):
        return np.zeros_like(self.start)

    def check(self, update):
        """`update(p, g, step)` is one step in float64."""
        p = self.start.astype(np.float64)
        for step, g in enumerate(self.gradients, 1):
            p = update(p, g.astype(np.float64), step)
        np.testing.assert_allclose(self.p, p, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_sgd(n, momentum, nesterov, decoupled, dampening):
    run, lr, decay, scale = Run(n), 0.1, 0.02, 0.5
    buf = run.zeros() + 77  # must not be read at the first step
    for i, g in enumerate(run.gradients):
        result = optimizers.sgd_step(
            run.p, g, buf if momentum else None, lr, momentum, dampening, decay, nesterov,
            decoupled, scale, first=i == 0,
        )  # fmt: skip
        assert result is run.p
    b = None

    def update(p, g, step):
        nonlocal b
        g = g * scale + (0 if decoupled else decay * p)
        p = p * (1 - lr * decay) if decoupled else p
        if momentum:
            b = g if b is None else momentum * b + (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        return p - lr * g

    run.check(update)
    if momentum:
        np.testing.assert_allclose(buf, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam(n, decay, decoupled, amsgrad):
    run, lr, beta1, beta2, eps, scale = Run(n), 0.01, 0.9, 0.99, 1e-8, 0.25
    m, v, vmax = run.zeros(), run.zeros(), run.zeros() if amsgrad else None
    for step, g in enumerate(run.gradients, 1):
        # gradients shrink, so that AMSGrad's maximum is not simply the last v
        g *= 0.5**step
        optimizers.adam_step(
            run.p, g, m, v, lr, beta1, beta2, eps, decay, step, decoupled, vmax, scale
        )
    means, squares, largest = (np.zeros(n) for _ in range(3))

    def update(p, g, step):
        nonlocal means, squares, largest
        g = g * scale
        if decoupled:
            p = p - lr * decay * p
        else:
            g = g + decay * p
        means = beta1 * means + (1 - beta1) * g
        squares = beta2 * squares + (1 - beta2) * g**2
        largest = np.maximum(largest, squares)
        mean = means / (1 - beta1**step)
        square = (largest if amsgrad else squares) / (1 - beta2**step)
        return p - lr * mean / (np.sqrt(square) + eps)

    run.check(update)
    np.testing.assert_allclose(m, means, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(v, squares, rtol=2e-5, atol=1e-9)
    if amsgrad:
        np.testing.assert_allclose(vmax, largest, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop(n, momentum, centered):
    run, lr, alpha, eps, decay, scale = Run(n), 0.01, 0.9, 1e-3, 0.1, 0.5
    v = run.zeros()
    buf = run.zeros() if momentum else None
    mean_g = run.zeros() if centered else None
    for g in run.gradients:
        optimizers.rmsprop_step(
            run.p, g, v, buf, mean_g, lr, alpha, eps, decay, momentum, centered, scale
        )
    squares, means, b = (np.zeros(n) for _ in range(3))

    def update(p, g, step):
        nonlocal squares, means, b
        g = g * scale + decay * p
        squares = alpha * squares + (1 - alpha) * g**2
        means = alpha * means + (1 - alpha) * g
        variance = squares - means**2 if centered else squares
        b = momentum * b + g / (np.sqrt(variance) + eps)
        return p - lr * b

    run.check(update)
    np.testing.assert_allclose(v, squares, rtol=2e-5)


def test_centered_rmsprop_survives_a_constant_gradient():
    # v and mean_g^2 become equal, and rounding may put v below
    g = rng.standard_normal(5000).astype(np.float32)
    p, v, mean_g = np.zeros_like(g), np.zeros_like(g), np.zeros_like(g)
    for _ in range(300):
        optimizers.rmsprop_step(p, g, v, None, mean_g, 1e-3, 0.9, 1e-8, 0.0, 0.0, True)
    assert np.isfinite(p).all()


@pytest.mark.parametrize("n", SIZES)
def test_adagrad(n):
    run, lr, lr_decay, eps, decay, scale = Run(n), 0.1, 0.05, 1e-10, 0.1, 0.5
    v = run.zeros() + np.float32(0.1)
    for step, g in enumerate(run.gradients, 1):
        optimizers.adagrad_step(run.p, g, v, lr, lr_decay, eps, decay, step, scale)
    squares = np.full(n, 0.1)

    def update(p, g, step):
        nonlocal squares
        g = g * scale + decay * p
        squares = squares + g**2
        return p - lr / (1 + (step - 1) * lr_decay) * g / (np.sqrt(squares) + eps)

    run.check(update)
    np.testing.assert_allclose(v, squares, rtol=2e-5)


def test_adams_first_step_is_the_learning_rate():
    p, g = np.zeros(4, np.float32), np.float32([1e-3, -5, 2e4, -1e-2])
    optimizers.adam_step(p, g, np.zeros_like(p), np.zeros_like(p), 0.1)
    np.testing.assert_allclose(p, -0.1 * np.sign(g), rtol=1e-4)


@pytest.mark.parametrize(
    "scale", [np.float32(0.5), np.array(0.5, np.float32), np.array([0.5], np.float32)]
)
def test_the_scale_may_be_an_array_of_one(scale):
    start, g = rng.standard_normal((2, 100)).astype(np.float32)
    a, b, c = start.copy(), start.copy(), start.copy()
    optimizers.sgd_step(a, g, None, 0.1, scale=scale)
    optimizers.sgd_step(b, g, None, 0.1, scale=0.5)
    with reference_kernels():
        optimizers.sgd_step(c, g, None, 0.1, scale=scale)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, c, rtol=1e-6)
    np.testing.assert_array_equal(optimizers.scale_(start.copy(), scale), start / 2)


def test_scale_and_lerp_work_in_place():
    x = rng.standard_normal((300, 200)).astype(np.float32)
    y = x.copy()
    assert optimizers.scale_(y, 0.25) is y
    np.testing.assert_array_equal(y, x / 4)
    view = y[:, ::2]
    assert optimizers.scale_(view, 4.0) is view
    np.testing.assert_array_equal(y[:, ::2], x[:, ::2])
    np.testing.assert_array_equal(y[:, 1::2], x[:, 1::2] / 4)
    a, b = x.ravel().copy(), x[::-1].ravel()
    assert optimizers.lerp_(a, b, 0.01) is a
    np.testing.assert_allclose(a, x.ravel() * 0.99 + b * 0.01, rtol=1e-5, atol=1e-6)


def test_a_gradient_is_not_changed_and_may_be_strided():
    p, wide = np.zeros(1000, np.float32), rng.standard_normal(2000).astype(np.float32)
    before = wide.copy()
    optimizers.sgd_step(p, wide[::2], None, 1.0)
    np.testing.assert_array_equal(p, -wide[::2])
    np.testing.assert_array_equal(wide, before)


def test_nan_stays_in_its_element():
    p, g = np.ones(100, np.float32), np.ones(100, np.float32)
    m, v, vmax = (np.zeros(100, np.float32) for _ in range(3))
    g[3] = np.nan
    optimizers.adam_step(p, g, m, v, 0.1, vmax=vmax)
    for x in (p, m, v, vmax):
        assert np.isnan(x[3])
        assert np.isfinite(np.delete(x, 3)).all()


def test_two_runs_give_the_same_bits():
    start, g = rng.standard_normal((2, 100_003)).astype(np.float32)
    results = set()
    for _ in range(3):
        p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        for step in (1, 2, 3):
            optimizers.adam_step(p, g, m, v, 0.01, step=step, weight_decay=0.1, decoupled=True)
        results.add(p.tobytes())
    assert len(results) == 1


FLAT = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: optimizers.sgd_step(p, p[:3], None, 0.1),
            r"g is float32\(3,\), p is float32\(4,\)",
        ),
        (lambda p: optimizers.sgd_step(p, p.astype(np.float64), None, 0.1), "g is float64"),
        (lambda p: optimizers.sgd_step(p.reshape(2, 2), p, None, 0.1), r"p has shape \(2, 2\)"),
        (lambda p: optimizers.sgd_step(p[::2], p[::2], None, 0.1), "contiguous"),
        (lambda p: optimizers.sgd_step(p, p, None, 0.1, 0.9), "momentum is 0.9, so buf is needed"),
        (lambda p: optimizers.adam_step(p, p, p, p, 0.1, step=0), "step is 0"),
        (lambda p: optimizers.adam_step(p, p, p, np.ones(8, "f4")[::2], 0.1), "v has strides"),
        (
            lambda p: optimizers.rmsprop_step(p, p, p, None, None, 0.1, momentum=0.9),
            "buf is needed",
        ),
        (lambda p: optimizers.rmsprop_step(p, p, p, None, None, 0.1, centered=True), "mean_g is"),
        (lambda p: optimizers.adagrad_step(p, p, p, 0.1, step=0), "step is 0"),
        (lambda p: optimizers.lerp_(p, p[:2], 0.1), r"b is float32\(2,\)"),
    ],
)
def test_what_does_not_fit_is_shown(call, message):
    with pytest.raises(ValueError, match=message):
        call(FLAT.copy())
    with reference_kernels(), pytest.raises(ValueError, match=message):
        call(FLAT.copy())


def test_schedules_of_the_bias_correction():
    size, correction = optimizers._adam_constants(0.1, 0.9, 0.99, 2)
    assert math.isclose(size, 0.1 / (1 - 0.81))
    assert math.isclose(correction, 1 / math.sqrt(1 - 0.99**2))
