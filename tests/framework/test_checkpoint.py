"""Activations computed again: whatever way a tensor comes in, the gradients of a plain call."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers

X = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)

#: How a layer that takes x and an other tensor is called, by `call`: fw.checkpoint or a plain call.
WAYS = {
    "arguments": lambda call, layer, x, y: call(lambda x, y: layer(x) * y, x, y),
    "keyword": lambda call, layer, x, y: call(lambda x, *, y: layer(x) * y, x, y=y),
    "tuple": lambda call, layer, x, y: call(lambda xy: layer(xy[0]) * xy[1], (x, y)),
    "nested": lambda call, layer, x, y: call(
        lambda x, d: layer(x) * d["a"][0][0], x, {"a": [(y,)], "b": 3}
    ),
    "captured": lambda call, layer, x, y: call(lambda x: layer(x) * y, x),
    "partial": lambda call, layer, x, y: call(partial(lambda y, x: layer(x) * y, y), x),
    "all captured": lambda call, layer, x, y: call(lambda: layer(x) * y),
}


def plain(function, *args, **options):
    return function(*args, **options)


def gradients(call, way, inner=plain):
    """Of two layers in a row that share a tensor, which is no leaf, and use it once more."""
    fw.manual_seed(3)
    first, second = (
        layers.Sequential(layers.Linear(8, 8), layers.Tanh(), layers.Dropout(0.3)) for _ in "ab"
    )
    x, leaf = (fw.tensor(a, requires_grad=True) for a in (X, X[:1] + 1))
    shared = leaf * 2.0
    shared.retain_grad()
    h = WAYS[way](call, partial(inner, first), x * 1.5, shared)
    y = WAYS[way](call, partial(inner, second), h + shared, shared)
    draw = fw.rand(3).data
    (y * shared).sum().backward()
    after = fw.rand(3).data
    parameters = [p.grad.data for m in (first, second) for p in m.parameters()]
    return [y.data, draw, after, x.grad.data, leaf.grad.data, shared.grad.data, *parameters]


@pytest.mark.parametrize("inner", [plain, fw.checkpoint], ids=["one", "nested"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_a_plain_call_bit_for_bit(way, inner):
    for a, b in zip(gradients(plain, way), gradients(fw.checkpoint, way, inner), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_result_wants_a_gradient_only_where_something_in_it_does():
    x, w = fw.tensor(X), fw.tensor(X[0], requires_grad=True)
    assert not fw.checkpoint(lambda x: x * 2.0, x).requires_grad
    assert not fw.checkpoint(lambda x: x * w.detach(), x).requires_grad
    assert fw.checkpoint(lambda x: x * w, x).requires_grad
    layer = layers.Linear(8, 2)
    assert fw.checkpoint(layer, x).requires_grad
    for p in layer.parameters():
        p.requires_grad = False
    assert not fw.checkpoint(layer, x).requires_grad
    assert fw.checkpoint(lambda: w).requires_grad
    fw.checkpoint(lambda: w).sum().backward()
    assert (w.grad.data == 1).all()


def test_twice_through_a_graph_that_is_kept():
    x = fw.tensor(X, requires_grad=True)
    shared = x * 2.0
    y = fw.checkpoint(lambda: F.tanh(shared) * shared).sum()
    y.backward(retain_graph=True)
    once = x.grad.data.copy()
    y.backward()
    np.testing.assert_allclose(x.grad.data, 2 * once, rtol=1e-6)
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()


@pytest.mark.parametrize("way", ["keyword", "nested", "captured"])
def test_what_was_changed_since_is_noticed(way):
    x, y = (fw.tensor(X, requires_grad=True) * 1.0 for _ in "xy")
    out = WAYS[way](fw.checkpoint, layers.Identity(), x, y)
    with fw.no_grad():
        y += 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


def test_an_error_on_the_way_leaves_nothing_behind():
    x, calls = fw.tensor(X, requires_grad=True), []

    def fails_the_second_time(x):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return x * 2.0

    y = fw.checkpoint(fails_the_second_time, x * 1.0)
    state = fw.rand(1), fw.backend.random.default_generator.state()
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    assert fw.backend.random.default_generator.state() == state[1]
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad.data, np.full_like(X, 3))


def test_activations_are_not_kept():
    part = layers.Sequential(*(layers.Tanh() for _ in range(20)))
    x = fw.tensor(np.ones((256, 256), np.float32), requires_grad=True)

    def held(call):
        tracemalloc.start()
        try:
            y = x
            for _ in range(4):
                y = call(part, y)
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    kept, again = held(plain), held(fw.checkpoint)
    assert kept > 80 * x.data.nbytes
    assert again < 6 * x.data.nbytes


@pytest.mark.parametrize("used", ["both", "first", "second"])
def test_a_tuple_of_results(used):
    """Each with its gradient, whichever are used; what needs none has none."""

    def several(call):
        fw.manual_seed(3)
        layer, drop = layers.Linear(8, 8), layers.Dropout(0.3)
        x = fw.tensor(X, requires_grad=True)

        def part(x):
            h = drop(layer(x))
            return h, None, x.detach() * 2.0, F.tanh(h) * x

        first, nothing, constant, second = call(part, x * 1.5)
        assert nothing is None and not constant.requires_grad
        sums = {"first": (first * constant).sum(), "second": (second * second).sum()}
        (sums["first"] + sums["second"] if used == "both" else sums[used]).backward()
        return [first.data, second.data, x.grad.data, layer.weight.grad.data]

    for a, b in zip(several(plain), several(fw.checkpoint), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_several_results_go_back_in_one_pass():
    def both(**options):
        x = fw.tensor(X, requires_grad=True)
        first, second = fw.checkpoint(lambda x: (x.exp(), x * x), x)
        first.sum().backward(**options)
        second.sum().backward()
        return x

    with pytest.raises(RuntimeError, match="retain_graph=True"):
        both()
    x = both(retain_graph=True)
    np.testing.assert_allclose(x.grad.data, np.exp(X) + 2 * X, rtol=1e-6)


def test_another_result_is_no_tensor():
    x = fw.tensor(X, requires_grad=True)
    with pytest.raises(TypeError, match=r"returned a list, expected a Tensor or one tuple of them"):
        fw.checkpoint(lambda: [x])
    with pytest.raises(TypeError, match=r"returned a tuple within a tuple, .* none nested"):
        fw.checkpoint(lambda: (x, (x, x)))
    with pytest.raises(TypeError, match=r"returned a NoneType, expected"):
        fw.checkpoint(lambda: None)
