"""Autocast: which functions compute in 16 bits, where gradients go, when weights are cast."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.autograd import casting
from framework.autograd.casting import compute_copy, state

RNG = np.random.default_rng(0)
HALVES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
#: Half a unit in the last place of a number near 1.
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
each_half = pytest.mark.parametrize("half", HALVES)


def normal(*shape, dtype="float32", grad=True):
    return fw.tensor(RNG.normal(size=shape).astype("float32"), dtype, requires_grad=grad)


def params(*shapes):
    return [normal(*shape) for shape in shapes]


#: Functions of one input (4, 6), and what becomes of a 16-bit input.
POLICY = {
    "linear": (lambda x: F.linear(x, *params((3, 6), (3,))), "half"),
    "linear without a bias": (lambda x: F.linear(x, *params((3, 6))), "half"),
    "feed_forward": (lambda x: F.feed_forward(x, *params((8, 6), (8,), (3, 8), (3,))), "half"),
    "bilinear": (lambda x: F.bilinear(x, x, *params((3, 6, 6), (3,))), "half"),
    "matmul": (lambda x: x @ normal(6, 3), "half"),
    "matmul with an array": (lambda x: x @ np.ones((6, 3), np.float32), "half"),
    "matmul with a list": (lambda x: x @ [[1.0]] * 6 if x.shape == (4, 1) else x[:, :1] @ [[2.0]],
                           "half"),
    "matmul from the left": (lambda x: np.ones((2, 4), np.float32) @ x, "half"),
    "prelu": (lambda x: F.prelu(x, normal(1)), "half"),
    "relu": (F.relu, "half"),
    "gelu": (F.gelu, "half"),
    "times a number": (lambda x: 0.5 * x + 1.5, "half"),
    "dropout": (F.dropout, "half"),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, *params((6,), (6,))), "half"),
    "with a float32 tensor": (lambda x: x * normal(6), "float32"),
    "concatenate": (lambda x: fw.concatenate([x, normal(4, 6)]), "float32"),
    "stack": (lambda x: fw.stack([x, normal(4, 6)]), "float32"),
    "layer_norm": (lambda x: F.layer_norm(x, 6, *params((6,), (6,))), "float32"),
    "rms_norm": (lambda x: F.rms_norm(x, 6, *params((6,))), "float32"),
    "group_norm": (lambda x: F.group_norm(x, 2, *params((6,), (6,))), "float32"),
    "softmax": (F.softmax, "float32"),
    "log_softmax": (F.log_softmax, "float32"),
    "logsumexp": (F.logsumexp, "float32"),
    "cross_entropy": (lambda x: F.cross_entropy(x, fw.tensor([0, 1, 2, 3])), "float32"),
    "nll_loss": (lambda x: F.nll_loss(x, fw.tensor([0, 1, 2, 3])), "float32"),
    "mse_loss": (lambda x: F.mse_loss(x, normal(4, 6, grad=False)), "float32"),
    "kl_div": (lambda x: F.kl_div(x, fw.full((4, 6), 0.1)), "float32"),
    "sum": (lambda x: x.sum(), "float32"),
    "mean": (lambda x: x.mean(1), "float32"),
    "var": (lambda x: x.var(1), "float32"),
    "norm": (lambda x: x.norm(), "float32"),
    "cumsum": (lambda x: x.cumsum(1), "float32"),
    "exp": (lambda x: x.exp(), "float32"),
    "log": (lambda x: (x * x).log(), "float32"),
    "power": (lambda x: x**2, "float32"),
    "number to the power": (lambda x: 2.0**x, "float32"),
}  # fmt: skip

PRODUCTS = ("linear", "feed_forward", "bilinear", "matmul", "prelu")


@each_half
@pytest.mark.parametrize("name", POLICY)
def test_the_policy(name, half):
    function, kind = POLICY[name]
    fw.manual_seed(0)
    for given in ("float32", half):  # a product's result has 16 bits; products lower float32 too
        x = normal(4, 6, dtype=given)
        with fw.autocast(half):
            y = function(x)
        lowers = kind == "half" and (given == half or name.startswith(PRODUCTS))
        assert y.dtype == (HALVES[half] if lowers else np.float32)
        y.sum().backward()
        assert x.grad.dtype == x.dtype
        assert np.isfinite(x.grad.data.astype("float32")).all()


def test_outside_nothing_changes():
    w, x = params((3, 4), (2, 4))
    with fw.autocast():
        pass
    assert F.linear(x, w).dtype == np.float32
    assert F.softmax(x.to("bfloat16")).dtype == HALVES["bfloat16"]
    assert F.linear(x.to("bfloat16"), w.to("bfloat16")).dtype == HALVES["bfloat16"]
    with pytest.raises(TypeError, match="input is bfloat16, weight float32"):
        F.linear(x.to("bfloat16"), w)


class Net(layers.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = layers.Linear(10, 32), layers.LayerNorm(32)
        # no bias: before batch norm its gradient is 0, and what comes of it all error
        self.second, self.batch = layers.Linear(32, 32, bias=False), layers.BatchNorm1d(32)
        self.last = layers.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.last(F.gelu(self.batch(self.second(x))) + x)


@each_half
@pytest.mark.parametrize("flat", [False, True], ids=["alone", "in an optimizer"])
def test_gradients_are_close_to_float32s(half, flat):
    fw.manual_seed(0)
    net = Net()
    optimizer = optimizers.SGD(net.parameters(), lr=0.1) if flat else None
    draw = np.random.default_rng(0)
    x, y = fw.tensor(draw.standard_normal((64, 10)).astype("f")), fw.tensor(draw.integers(0, 5, 64))
    F.cross_entropy(net(x), y).backward()
    expected = {name: p.grad.data.copy() for name, p in net.named_parameters()}
    net.zero_grad()
    with fw.autocast(half):
        loss = F.cross_entropy(net(x), y)
    loss.backward()
    for name, p in net.named_parameters():
        assert p.dtype == p.grad.dtype == np.float32
        assert not flat or p.grad.data is p.slot
        error = np.linalg.norm(p.grad.data - expected[name]) / np.linalg.norm(expected[name])
        # roundings of a chain of products; where signs change at a ReLU, whole terms
        assert 0 < error < 32 * EPS[half], name
    assert optimizer is None or len(optimizer.flat_gradients()) == 1


@each_half
@pytest.mark.parametrize("flat", [False, True], ids=["alone", "in an optimizer"])
def test_gradients_of_weights_are_not_rounded(half, flat):
    x, w, v = params((16, 8), (4, 8), (4,))
    if flat:
        optimizers.SGD([w, v], lr=0.1)
    dy = RNG.normal(size=(16, 4)).astype("float32")
    with fw.autocast(half):
        y = F.linear(x, w, v)
    y.backward(dy)
    low = [a.astype(HALVES[half]).astype("float32") for a in (dy, x.data)]
    np.testing.assert_allclose(w.grad.data, low[0].T @ low[1], rtol=1e-5, atol=1e-5)
    rounded = w.grad.data.astype(HALVES[half]).astype("float32")
    assert (rounded != w.grad.data).mean() > 0.5
    assert x.grad.dtype == np.float32


def test_gradients_add_up_over_uses_and_batches():
    w = normal(6, 6)
    optimizers.SGD([w], lr=0.1)
    x = normal(3, 6, grad=False)
    for _ in range(2):
        with fw.autocast():
            (F.linear(F.linear(x, w), w)).sum().backward()
    twice = w.grad.data.copy()
    w.zero_grad()
    with fw.autocast():
        F.linear(F.linear(x, w), w).sum().backward()
    np.testing.assert_allclose(twice, 2 * w.grad.data, rtol=1e-6)
    exact = fw.tensor(w.data, requires_grad=True)
    F.linear(F.linear(x, exact), exact).sum().backward()
    np.testing.assert_allclose(w.grad.data, exact.grad.data, rtol=0.05, atol=0.05)


# Copies of the weights ----------------------------------------------------------------------------


def test_one_cast_serves_all_parameters_of_an_optimizer():
    net = Net()
    optimizers.AdamW(net.parameters())
    half = HALVES["bfloat16"]
    with fw.autocast():
        net(normal(4, 10, grad=False))
        copies = [compute_copy(p, half) for p in net.parameters()]
        whole = copies[0].base
        assert all(c.base is whole for c in copies)
        assert all(
            compute_copy(p, half) is c for p, c in zip(net.parameters(), copies, strict=True)
        )
        for p, c in zip(net.parameters(), copies, strict=True):
            np.testing.assert_array_equal(c, p.data.astype(half))
    assert not state.copies


def test_copies_last_until_the_outermost_block_ends():
    w = normal(3, 4)
    with fw.autocast(enabled=False):
        assert F.linear(normal(2, 4), w).dtype == np.float32
        with fw.autocast():
            first = compute_copy(w, HALVES["bfloat16"])
        with fw.autocast():
            assert compute_copy(w, HALVES["bfloat16"]) is first
    assert not state.copies


def step(net, optimizer):
    for p in net.parameters():
        p.grad = fw.tensor(np.ones_like(p.data))
    optimizer.step()


def load(net, optimizer):
    net.load_state_dict({name: x.data + 1 for name, x in net.state_dict().items()})


def average(net, optimizer):
    ema = optimizers.EMA(net, decay=0.0)
    load(net, optimizer)
    with ema.swap():
        net(normal(2, 4, grad=False))  # makes copies of the averages


def in_place(net, optimizer):
    with fw.no_grad():
        for p in net.parameters():
            p -= 0.5 * p


@pytest.mark.parametrize("change", [step, load, average, in_place])
def test_changed_weights_are_cast_again(change):
    net = layers.Linear(4, 3)
    optimizer = optimizers.SGD(net.parameters(), lr=0.5)
    x = normal(2, 4, grad=False)
    with fw.autocast():
        before = net(x).data.copy()
        change(net, optimizer)
        after = net(x).data.copy()
    assert (before != after).all()
    with fw.autocast():
        np.testing.assert_array_equal(net(x).data, after)


# The block ----------------------------------------------------------------------------------------


def test_blocks_nest_and_end_with_errors():
    with fw.autocast("float16"):
        with fw.autocast("bfloat16"):
            assert state.dtype == HALVES["bfloat16"]
        assert state.dtype == HALVES["float16"]
        with pytest.raises(KeyError), fw.autocast("bfloat16", enabled=False):
            assert state.dtype is None
            raise KeyError
        assert state.dtype == HALVES["float16"]
    assert state.dtype is None
    assert state.previous == []


def test_it_decorates():
    @fw.autocast(np.float16)
    def function(x):
        return x @ x

    assert function(normal(3, 3)).dtype == np.float16
    assert casting.autocast is fw.autocast


def test_it_belongs_to_the_thread():
    seen = []
    with fw.autocast():
        thread = threading.Thread(target=lambda: seen.append((normal(2, 2) @ normal(2, 2)).dtype))
        thread.start()
        thread.join()
    assert seen == [np.float32]


def test_one_object_in_two_threads():
    block, entered, left = fw.autocast(), threading.Event(), threading.Event()
    seen = []

    def other():
        with fw.autocast("float16"), block:
            entered.set()
            left.wait(10)
        seen.append(casting.state.dtype)

    thread = threading.Thread(target=other)
    with block:
        thread.start()
        assert entered.wait(10)
    mine = casting.state.dtype  # this thread entered first and leaves first
    left.set()
    thread.join()
    assert mine is None
    assert seen == [None]


@pytest.mark.parametrize("dtype", ["float32", None, int, "bf16"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="expected one of bfloat16, float16"):
        fw.autocast(dtype)


def test_float64_is_left_alone():
    x = fw.tensor(RNG.normal(size=(3, 4)), requires_grad=True)
    w = fw.tensor(RNG.normal(size=(2, 4)), requires_grad=True)
    with fw.autocast():
        assert fw.gradcheck(F.linear, [x, w])
        assert fw.gradcheck(lambda a, b: a @ b.T, [x, w])
        with pytest.raises(TypeError, match="input is float64, weight float32"):
            F.linear(x, normal(2, 4))


def test_beyond_float16_is_infinite_without_a_warning():
    x = fw.tensor([[1e5, 1.0]], requires_grad=True)
    with fw.autocast("float16"):
        y = F.linear(x, fw.tensor([[1.0, 1.0]]))
    assert np.isinf(y.data).all()
    y.float().backward(np.float32([[1e6]]))
    assert np.isinf(x.grad.data).all()


@each_half
@pytest.mark.parametrize(
    "function",
    [
        lambda x: 0.5 * x + 0.25,
        lambda x: 1.0 / x - x / 3.0,
        lambda x: x**1.5,
        lambda x: x.clip(0.2, 0.7),
        lambda x: fw.where(x > 0.3, x, 0.5),
        lambda x: fw.maximum(0.4, x),
        lambda x: x.mean(1),
        lambda x: x.std(0),
    ],
)
def test_python_numbers_leave_sixteen_bits_alone(function, half):
    """Outside of a block too: a gradient of another dtype than its tensor would reach a kernel."""
    wide = fw.tensor(np.linspace(0.1, 0.9, 12).reshape(3, 4), requires_grad=True)
    x = fw.tensor(wide.data, half, requires_grad=True)
    inner, seen = x * 1, []
    inner.register_hook(lambda dy: seen.append(dy.dtype))
    y, expected = function(inner), function(wide)
    assert y.dtype == HALVES[half]
    np.testing.assert_allclose(y.data.astype("float64"), expected.data, rtol=4 * EPS[half])
    y.backward(np.ones(y.shape))
    expected.backward(np.ones(y.shape))
    assert seen == [HALVES[half]]
    got = x.grad.data.astype("float64")
    np.testing.assert_allclose(got, wide.grad.data, rtol=4 * EPS[half], atol=4 * EPS[half])


def test_einsum_of_sixteen_bits():
    a, b = normal(2, 3, 4), normal(2, 4, 5)
    low = [fw.tensor(t.data, "bfloat16", requires_grad=True) for t in (a, b)]
    y = fw.einsum("bij,bjk->bik", *low)
    assert y.dtype == HALVES["bfloat16"]
    np.testing.assert_allclose(y.data.astype("float32"), (a @ b).data, rtol=0.03, atol=0.03)
    mixed = fw.einsum("bij,bjk->bik", low[0], b)
    assert mixed.dtype == np.float32
    (y.sum() + mixed.sum()).backward()
    assert low[0].grad.dtype == HALVES["bfloat16"]
    assert b.grad.dtype == np.float32


@each_half
def test_linear_cross_entropy_does_not_round_the_gradient_of_the_weight(half):
    x, w, b = normal(40, 16), normal(9, 16), normal(9)
    target = fw.tensor(RNG.integers(0, 9, 40))
    F.cross_entropy(F.linear(x, w, b), target).backward()
    exact = [t.grad.data.copy() for t in (x, w, b)]
    for t in (x, w, b):
        t.grad = None
    with fw.autocast(half):
        loss = F.linear_cross_entropy(x, w, target, b)
    loss.backward()
    assert loss.dtype == np.float32
    for t, right in zip((x, w, b), exact, strict=True):
        assert t.grad.dtype == np.float32
        np.testing.assert_allclose(t.grad.data, right, rtol=0.05, atol=20 * EPS[half] / 40)
    g = w.grad.data
    assert (g.astype(HALVES[half]).astype(np.float32) != g).mean() > 0.5
