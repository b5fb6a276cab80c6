"""A residual sum and its norm together: what the two give one after the other, in every use."""

import numpy as np
import pytest

import framework as fw
from framework import functional as F

RNG = np.random.default_rng(2)


def leaf(*shape):
    return fw.tensor(RNG.standard_normal(shape), requires_grad=True)


def layer(x, r, w, b):
    return F.add_layer_norm(x, r, 6, w, b)


def rms(x, r, w, b):
    s, y = F.add_rms_norm(x, r, 6, w)
    return s, y + b


def plain(which):
    def apply(x, r, w, b):
        s = x + r
        return s, F.layer_norm(s, 6, w, b) if which is layer else F.rms_norm(s, 6, w) + b

    return apply


USES = {
    "both": lambda s, y: (s * y.exp()).sum(),
    "norm": lambda s, y: (y * y).sum(),
    "sum": lambda s, y: (s * s).sum(),
    "twice": lambda s, y: (s * 2.0).sum() + (y.exp() * s).sum() + (s.exp() + y).sum(),
}


def gradients(both, use, inputs):
    for x in inputs:
        x.grad = None
    s, y = both(*inputs)
    loss = use(s, y)
    loss.backward(retain_graph=True)
    once = [x.grad.data.copy() if x.grad is not None else None for x in inputs]
    loss.backward()  # a second time: nothing is left from the first
    for x, g in zip(inputs, once, strict=True):
        if g is not None:
            np.testing.assert_allclose(x.grad.data, 2 * g, rtol=1e-12)
    return [s.data, y.data, *once]


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("both", [layer, rms])
def test_equals_one_after_the_other(both, use):
    inputs = [leaf(2, 5, 6), leaf(2, 5, 6), leaf(6), leaf(6)]
    for a, b in zip(gradients(both, use, inputs), gradients(plain(both), use, inputs), strict=True):
        if b is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_sums_own_gradient_is_whole_where_it_is_kept():
    x, r, w, b = leaf(3, 6), leaf(3, 6), leaf(6), leaf(6)
    s, y = layer(x, r, w, b)
    s.retain_grad()
    (s * y).sum().backward()
    np.testing.assert_allclose(s.grad.data, x.grad.data, rtol=1e-12)


def test_bad_input_is_named():
    x = fw.tensor(np.zeros((2, 6), "float32"))
    with pytest.raises(ValueError, match=r"residual has shape \(2, 5\), the input \(2, 6\)"):
        F.add_layer_norm(x, fw.tensor(np.zeros((2, 5), "float32")), 6)
    with pytest.raises(TypeError, match="input is float32, residual float64"):
        F.add_rms_norm(x, x.to("float64"), 6)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_cross_entropy_equals_the_two(monkeypatch, reduction, dtype, with_bias):
    from kernels import linear_cross_entropy as kernels

    monkeypatch.setattr(kernels, "CHUNK", 40)  # 3 rows at a time
    arrays = (
        RNG.standard_normal((4, 5, 8)).astype(dtype),
        RNG.standard_normal((13, 8)).astype(dtype),
        *([RNG.standard_normal(13).astype(dtype)] if with_bias else []),
    )
    target = RNG.integers(0, 13, (4, 5))
    target[0, :2] = -100
    results = []
    for fused in (True, False):
        x, w, *b = inputs = [fw.tensor(a, requires_grad=True) for a in arrays]
        t = fw.tensor(target)
        if fused:
            loss = F.linear_cross_entropy(x, w, t, *b, reduction=reduction, label_smoothing=0.1)
        else:
            logits = F.linear(x, w, *b).reshape(20, 13)
            loss = F.cross_entropy(logits, t.reshape(20), reduction=reduction, label_smoothing=0.1)
        (loss * 3.0).backward()
        results.append([loss.data, *(i.grad.data for i in inputs)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert a.dtype == b.dtype == dtype


@pytest.mark.parametrize("autocast", [False, True])
def test_linear_cross_entropy_sums_beyond_float16(monkeypatch, autocast):
    monkeypatch.setattr(F.losses, "PART", 8)  # 2 rows at a time
    N = 100_000  # sums of gradients are -80,000 and -640,000
    dtype = "float32" if autocast else "float16"
    x = fw.tensor(np.full((N, 4), 8, dtype), requires_grad=True)
    w, b = (fw.tensor(np.zeros(s, dtype), requires_grad=True) for s in ((5, 4), 5))
    with fw.autocast("float16", enabled=autocast):
        loss = F.linear_cross_entropy(x, w, fw.tensor(np.zeros(N, "int64")), b)
    loss.backward()
    right = np.array([-0.8, 0.2, 0.2, 0.2, 0.2])
    assert w.grad.dtype == b.grad.dtype == x.grad.dtype == dtype
    np.testing.assert_allclose(b.grad.data, right, rtol=2e-3)
    np.testing.assert_allclose(w.grad.data, 8 * right[:, None].repeat(4, 1), rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_where_all_targets_are_ignored_gradients_are_zeros(dtype):
    """PyTorch too: the loss is NaN, the mean of nothing, and nothing is to be learnt from it."""
    t = fw.tensor(np.full(3, -100))

    def loss_of(name, x, w, b):
        if name == "linear":
            return F.linear_cross_entropy(x, w, t, b)
        if name == "smoothed":
            return F.cross_entropy(F.linear(x, w, b), t, label_smoothing=0.1)
        return getattr(F, name)(F.linear(x, w, b), t)

    for name in ("linear", "cross_entropy", "smoothed", "nll_loss"):
        inputs = [
            fw.tensor(RNG.standard_normal(s).astype(dtype), requires_grad=True)
            for s in ((3, 4), (5, 4), 5)
        ]
        loss = loss_of(name, *inputs)
        loss.backward()
        assert np.isnan(loss.item())
        assert [np.abs(i.grad.data).max() for i in inputs] == [0, 0, 0], name


def test_linear_cross_entropy_names_bad_input():
    x, w = fw.tensor(np.zeros((3, 4), "float32")), fw.tensor(np.zeros((5, 4), "float32"))
    t = fw.tensor(np.array([0, 5, 1]))
    with pytest.raises(IndexError, match=r"target 5 at row 1 is outside \[0, 5\)"):
        F.linear_cross_entropy(x, w, t)
    with pytest.raises(ValueError, match=r"x \(3, 4\), weight \(4, 5\)"):
        F.linear_cross_entropy(x, w.T, t)
    with pytest.raises(ValueError, match=r"target is int64 \(2,\), expected integers \(3,\)"):
        F.linear_cross_entropy(x, w, t[:2])
    with pytest.raises(ValueError, match=r"bias \(4,\), weight \(5, 4\)"):
        F.linear_cross_entropy(x, w, t, x[0])
    with pytest.raises(ValueError, match="reduction='none'"):
        F.linear_cross_entropy(x, w, t, reduction="none")
