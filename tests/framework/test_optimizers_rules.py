"""Every rule against an independent NumPy formula in float64, over ten steps."""

import numpy as np
import pytest

import framework as fw
from framework.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop

on_each_device = pytest.mark.usefixtures("device")

STEPS = 10
RNG = np.random.default_rng(1)
START = [RNG.standard_normal(s) for s in ((3, 4), (4,), (2, 2, 2))]
GRADIENTS = [[RNG.standard_normal(p.shape) for p in START] for _ in range(STEPS)]


def train(make, dtype="float64", scale=1.0):
    """Parameters after STEPS steps."""
    parameters = [fw.Parameter(moved(p.astype(dtype))) for p in START]
    optimizer = make(parameters)
    for gradients in GRADIENTS:
        optimizer.zero_grad()
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = moved((g / scale).astype(dtype))
        optimizer.step(scale)
    return [values(p) for p in parameters]


def moved(array):
    """A tensor of its own on the device of the test."""
    return fw.tensor(array, device=fw.default_device())


def values(p):
    return p.detach().numpy().copy()


def follow(rule):
    """The same by ``rule(p, g, state, step) -> p``, a parameter at a time."""
    out = []
    for i, start in enumerate(START):
        p, state = start.copy(), {}
        for step, gradients in enumerate(GRADIENTS, start=1):
            p = rule(p, gradients[i].copy(), state, step)
        out.append(p)
    return out


def sgd(lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    def rule(p, g, state, step):
        g = g + weight_decay * p
        if momentum:
            b = g if step == 1 else momentum * state["b"] + (1 - dampening) * g
            state["b"] = b
            g = g + momentum * b if nesterov else b
        return p - lr * g

    return rule


def adam(lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False, amsgrad=False):
    def rule(p, g, state, step):
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
        v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
        if amsgrad:
            v = state["largest"] = np.maximum(state.get("largest", 0), v)
        m_hat = m / (1 - betas[0] ** step)
        return p - lr * m_hat / (np.sqrt(v / (1 - betas[1] ** step)) + eps)

    return rule


def rmsprop(lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    def rule(p, g, state, step):
        g = g + weight_decay * p
        v = state["v"] = alpha * state.get("v", 0) + (1 - alpha) * g**2
        if centered:
            mean = state["mean"] = alpha * state.get("mean", 0) + (1 - alpha) * g
            v = v - mean**2
        d = g / (np.sqrt(v) + eps)
        if momentum:
            d = state["b"] = momentum * state.get("b", 0) + d
        return p - lr * d

    return rule


def adagrad(lr, lr_decay=0.0, weight_decay=0.0, initial=0.0, eps=1e-10):
    def rule(p, g, state, step):
        g = g + weight_decay * p
        v = state["v"] = state.get("v", initial) + g**2
        return p - lr / (1 + (step - 1) * lr_decay) * g / (np.sqrt(v) + eps)

    return rule


CASES = {
    "sgd": (lambda ps: SGD(ps, lr=0.1), sgd(0.1)),
    "sgd decay": (lambda ps: SGD(ps, lr=0.1, weight_decay=0.1), sgd(0.1, weight_decay=0.1)),
    "momentum": (
        lambda ps: SGD(ps, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
        sgd(0.1, 0.9, 0.3, 0.01),
    ),
    "nesterov": (
        lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        sgd(0.1, 0.9, 0.0, 0.01, True),
    ),
    "adam": (lambda ps: Adam(ps, lr=0.1), adam(0.1)),
    "adam decay": (
        lambda ps: Adam(ps, 0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
        adam(0.1, (0.8, 0.9), 1e-3, 0.1),
    ),
    "amsgrad": (
        lambda ps: Adam(ps, 0.1, betas=(0.5, 0.5), amsgrad=True),
        adam(0.1, (0.5, 0.5), amsgrad=True),
    ),
    "adamw": (lambda ps: AdamW(ps, 0.1), adam(0.1, weight_decay=0.01, decoupled=True)),
    "adamw amsgrad": (
        lambda ps: AdamW(ps, 0.1, betas=(0.5, 0.5), weight_decay=0.2, amsgrad=True),
        adam(0.1, (0.5, 0.5), weight_decay=0.2, decoupled=True, amsgrad=True),
    ),
    "rmsprop": (lambda ps: RMSprop(ps, 0.1), rmsprop(0.1)),
    "rmsprop everything": (
        lambda ps: RMSprop(ps, 0.1, 0.9, 1e-3, 0.1, momentum=0.5, centered=True),
        rmsprop(0.1, 0.9, 1e-3, 0.1, 0.5, True),
    ),
    "adagrad": (lambda ps: Adagrad(ps, 0.1), adagrad(0.1)),
    "adagrad everything": (
        lambda ps: Adagrad(
            ps, 0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-3
        ),
        adagrad(0.1, 0.1, 0.1, 0.5, 1e-3),
    ),
}


@pytest.mark.parametrize("name", CASES)
@on_each_device
def test_trajectory_in_float64(name):
    make, rule = CASES[name]
    for got, expected in zip(train(make), follow(rule), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@on_each_device
def test_trajectory_in_float32(name):
    make, rule = CASES[name]
    for got, expected in zip(train(make, "float32"), follow(rule), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["nesterov", "adam", "rmsprop everything", "adagrad"])
@on_each_device
def test_scaled_gradients(name):
    make, rule = CASES[name]
    for got, expected in zip(train(make, scale=4.0), follow(rule), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@on_each_device
def test_a_kept_gradient_is_not_changed_by_the_step(name):
    p = fw.Parameter(moved(START[0].astype("float32")))
    optimizer = CASES[name][0]([p])
    (p * 3.0).sum().backward()
    optimizer.step()
    assert (p.grad.numpy() == 3).all()


@pytest.mark.parametrize("name", CASES)
@on_each_device
def test_skipping_a_parameter_leaves_it_and_its_state(name):
    """A parameter without gradient does not move, nor does its step count."""
    make, rule = CASES[name]
    parameters = [fw.Parameter(moved(p)) for p in START]
    optimizer = make(parameters)
    for step, gradients in enumerate(GRADIENTS):
        optimizer.zero_grad()
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            if i != 1 or step >= 5:
                p.grad = moved(g)
        before = values(parameters[1])
        optimizer.step()
        if step < 5:
            np.testing.assert_array_equal(values(parameters[1]), before)
    expected = follow(rule)
    np.testing.assert_allclose(values(parameters[0]), expected[0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(values(parameters[2]), expected[2], rtol=1e-9, atol=1e-11)
    p, state = START[1].copy(), {}
    for step, gradients in enumerate(GRADIENTS[5:], start=1):
        p = rule(p, gradients[1], state, step)
    np.testing.assert_allclose(values(parameters[1]), p, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ps: SGD(ps, lr=-0.1), "lr=-0.1, expected a finite number of at least 0"),
        (lambda ps: SGD(ps, lr=float("nan")), "lr=nan"),
        (lambda ps: SGD(ps, lr="fast"), "lr='fast'"),
        (lambda ps: SGD(ps, momentum=-1), "momentum=-1"),
        (lambda ps: SGD(ps, momentum=True), "momentum=True"),
        (lambda ps: SGD(ps, dampening=float("nan")), "dampening=nan, expected a finite number"),
        (lambda ps: SGD(ps, lr=np.float32("nan")), "lr=nan"),
        (lambda ps: SGD([{"params": ps, "initial_lr": float("nan")}]), "initial_lr=nan"),
        (lambda ps: SGD(ps, weight_decay=-1), "weight_decay=-1"),
        (lambda ps: SGD(ps, nesterov=True), "nesterov=True with momentum=0.0"),
        (lambda ps: Adam(ps, betas=(1.0, 0.9)), r"betas\[0\]=1.0, expected .* 0 to below 1"),
        (lambda ps: Adam(ps, betas=(0.9, -0.1)), r"betas\[1\]=-0.1"),
        (lambda ps: Adam(ps, betas=0.9), "betas=0.9, expected two numbers"),
        (lambda ps: AdamW(ps, eps=-1), "eps=-1"),
        (lambda ps: RMSprop(ps, alpha=1), "alpha=1"),
        (lambda ps: RMSprop(ps, momentum=-0.5), "momentum=-0.5"),
        (lambda ps: Adagrad(ps, lr_decay=-1), "lr_decay=-1"),
    ],
)
def test_bad_options_show_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make([fw.Parameter(np.ones(2, "float32"))])


@on_each_device
@pytest.mark.parametrize("other", [0.0, 0.5])
@pytest.mark.parametrize("changed", [0.9, 0.0])
def test_options_that_were_changed_are_saved_and_loaded(changed, other):
    """The loading optimizer was made with other options, and so with other buffers."""

    def made(momentum):
        p = fw.Parameter(moved(np.ones(3)))
        return p, SGD([p], lr=0.1, momentum=momentum)

    def step(p, optimizer):
        p.grad = moved(np.arange(3.0))
        optimizer.step()

    p, optimizer = made(0.0)
    optimizer.param_groups[0]["momentum"] = changed
    step(p, optimizer)
    q, fresh = made(other)
    fresh.load_state_dict(optimizer.state_dict())
    q.data[...] = p.data
    assert fresh.param_groups[0]["momentum"] == changed
    step(p, optimizer), step(q, fresh)
    np.testing.assert_array_equal(values(p), values(q))


def test_options_out_of_range_are_not_loaded():
    optimizer = SGD([fw.Parameter(moved(np.ones(3)))], lr=0.1)
    state = optimizer.state_dict()
    state["groups"][0]["momentum"] = -1.0
    with pytest.raises(ValueError, match="momentum=-1"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["momentum"] == 0
