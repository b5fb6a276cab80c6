"""Loss scaling: what survives, what is skipped, how the scale moves, what is saved."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.optimizers import LossScaler, clip_grad_norm_

RULES = {
    "SGD": lambda p: optimizers.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: optimizers.AdamW(p, lr=0.1),
    "RMSprop": lambda p: optimizers.RMSprop(p, lr=0.1),
    "Adagrad": lambda p: optimizers.Adagrad(p, lr=0.1),
}


def model():
    fw.manual_seed(0)
    return layers.Sequential(layers.Linear(4, 8), layers.ReLU(), layers.Linear(8, 2))


def backward(net, scaler, factor=1.0):
    """Gradients of a scaled loss; with a `factor` of infinity they overflow."""
    x = fw.tensor(np.linspace(-1, 1, 20, dtype="float32").reshape(5, 4))
    net.zero_grad()
    scaler.scale((net(x) * factor).sum()).backward()


def everything(net, optimizer):
    state = optimizer.state_dict()
    arrays = [*(p.data for p in net.parameters()), *(a.data for a in state["arrays"].values())]
    return [a.tobytes() for a in arrays], state["steps"], state["groups"]


def test_the_defaults_are_pytorchs():
    # torch.amp.GradScaler(init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5,
    # growth_interval=2000)
    state = LossScaler().state_dict()
    assert state == {
        "scale": 65536.0,
        "good_steps": 0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "min_scale": 2.0**-13,
    }


@pytest.mark.parametrize("rule", RULES)
def test_good_steps_are_those_without_a_scaler(rule):
    nets, scaler = [model(), model()], LossScaler()
    for net, scaled in zip(nets, (True, False), strict=True):
        optimizer = RULES[rule](net.parameters())
        for _ in range(3):
            if scaled:
                backward(net, scaler)
                assert scaler.step(optimizer)
                scaler.update()
            else:
                net.zero_grad()
                x = fw.tensor(np.linspace(-1, 1, 20, dtype="float32").reshape(5, 4))
                net(x).sum().backward()
                optimizer.step()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        np.testing.assert_array_equal(a.data, b.data)  # a power of two costs no bits


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_skipped_step_changes_nothing(rule, bad):
    net = model()
    optimizer, scaler = RULES[rule](net.parameters()), LossScaler()
    backward(net, scaler)
    assert scaler.step(optimizer)
    scaler.update()
    before = everything(net, optimizer)
    for parameter in net.parameters():
        for at in (0, -1):
            backward(net, scaler)
            parameter.grad.data.reshape(-1)[at] = bad
            assert scaler.step(optimizer) is False
            assert scaler.overflowed()
            scaler.update()
    assert everything(net, optimizer) == before
    assert scaler.get_scale() == 2.0 ** (16 - 2 * 4)
    backward(net, scaler)
    assert scaler.step(optimizer)
    assert set(optimizer.state_dict()["steps"]) == {2}


def test_the_scale_grows_and_falls():
    net = model()
    optimizer = optimizers.SGD(net.parameters(), lr=0.0)
    scaler = LossScaler(init_scale=8.0, growth_interval=3, min_scale=2.0)
    seen = []
    for factor in (1, 1, 1, 1, 1, np.inf, 1, 1, np.inf, np.inf, np.inf, np.inf, 1, 1, 1):
        backward(net, scaler, factor)
        scaler.step(optimizer)
        assert scaler.exhausted == (factor == np.inf and scaler.get_scale() == 2)
        scaler.update()
        seen.append((scaler.get_scale(), scaler.state_dict()["good_steps"]))
    assert seen == [
        (8, 1), (8, 2), (16, 0), (16, 1), (16, 2), (8, 0), (8, 1), (8, 2), (4, 0), (2, 0), (2, 0),
        (2, 0), (2, 1), (2, 2), (4, 0),
    ]  # fmt: skip


def test_the_scale_stays_finite():
    net = model()
    optimizer = optimizers.SGD(net.parameters(), lr=0.0)
    scaler = LossScaler(init_scale=2.0**127, growth_interval=1)
    net.zero_grad()
    scaler.scale((net(fw.ones((1, 4))) * 1e-9).sum()).backward()
    assert scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_small_gradients_survive_in_float16():
    gradients = []
    for scaler in (LossScaler(init_scale=1.0), LossScaler()):
        net = layers.Linear(4, 2)
        optimizer = optimizers.SGD(net.parameters(), lr=1.0)
        with fw.autocast("float16"):
            y = net(fw.ones((1, 4)))
            loss = y.sum() * 1e-8  # below the smallest float16, 6e-8
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients.append(net.weight.grad.data.copy())
    np.testing.assert_array_equal(gradients[0], 0)
    np.testing.assert_allclose(gradients[1], 1e-8, rtol=1e-3)


def test_a_loop_by_hand_with_clipping_learns():
    fw.manual_seed(0)
    x = fw.tensor(np.float32([[0, 0], [0, 1], [1, 0], [1, 1]]))
    y = fw.tensor([0, 1, 1, 0])
    net = layers.Sequential(layers.Linear(2, 16), layers.Tanh(), layers.Linear(16, 2))
    optimizer = optimizers.AdamW(net.parameters(), lr=0.05)
    scaler = LossScaler(init_scale=2.0**30, growth_interval=20)  # overflows at first
    taken = 0
    for _ in range(80):
        optimizer.zero_grad()
        with fw.autocast("float16"):
            loss = F.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(optimizer, 1.0)
        taken += scaler.step(optimizer)
        assert scaler.overflowed() == (not np.isfinite(norm.item()))
        scaler.update()
    assert 50 < taken < 80
    assert loss.item() < 0.05
    assert net[0].weight.dtype == np.float32


def test_unscaling_is_looked_at_once():
    net = model()
    optimizer, scaler = optimizers.SGD(net.parameters(), lr=0.1), LossScaler()
    with pytest.raises(RuntimeError, match="without a step"):
        scaler.update()
    backward(net, scaler)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="a second time"):
        scaler.unscale_(optimizer)
    gradient = net[0].weight.grad.data.copy()
    assert scaler.step(optimizer)
    np.testing.assert_array_equal(net[0].weight.grad.data, gradient)
    scaler.update()


def test_several_optimizers_and_groups_skip_together():
    one, two, scaler = model(), model().to("float64"), LossScaler()
    first = optimizers.AdamW([{"params": [p]} for p in one.parameters()], lr=0.1)
    second = optimizers.SGD(two.parameters(), lr=0.1)
    before = everything(one, first), everything(two, second)
    x = np.ones((3, 4))
    loss = one(fw.tensor(x, "float32")).sum() + two(fw.tensor(x)).sum().float()
    scaler.scale(loss).backward()
    two[2].bias.grad.data[1] = np.inf
    scaler.unscale_(first)
    scaler.unscale_(second)
    assert not scaler.step(first)
    assert not scaler.step(second)
    assert (everything(one, first), everything(two, second)) == before
    assert one[2].bias.grad.data.tolist() == [3, 3]
    assert two[2].bias.grad.data.tolist() == [3, np.inf]


def test_its_state_comes_back():
    net = model()
    optimizer = optimizers.SGD(net.parameters(), lr=0.1)
    scaler = LossScaler(init_scale=2.0, growth_interval=5, min_scale=2.0)
    for factor in (np.inf, 1, 1):
        backward(net, scaler, factor)
        scaler.step(optimizer)
        scaler.update()
    fresh = LossScaler()
    fresh.load_state_dict(scaler.state_dict())
    assert fresh.state_dict() == scaler.state_dict()
    assert fresh.state_dict()["good_steps"] == 2
    assert fresh.min_scale == fresh.get_scale() == 2.0
    with pytest.raises(ValueError, match=r"has backoff_factor, .*; got scale$"):
        fresh.load_state_dict({"scale": 1.0})


class Foreign:
    def step(self):
        raise AssertionError("not to be called")


def test_a_foreign_optimizer_is_named():
    with pytest.raises(TypeError, match=r"got a Foreign, expected an optimizer of framework\.opt"):
        LossScaler().step(Foreign())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_scale": 0.0}, "init_scale is 0.0"),
        ({"init_scale": np.inf}, "init_scale is inf"),
        ({"growth_factor": 1.0}, "growth_factor is 1.0, expected a number above 1"),
        ({"backoff_factor": 1.0}, "backoff_factor is 1.0"),
        ({"growth_interval": 0}, "growth_interval is 0"),
        ({"growth_interval": 2.5}, "growth_interval is 2.5"),
        ({"min_scale": 2.0**17}, "min_scale is 131072.0"),
        ({"min_scale": float("nan")}, "min_scale is nan"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LossScaler(**options)
