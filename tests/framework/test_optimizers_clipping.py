"""Clipping by norm and by value, with and without flat buffers."""

import math

import numpy as np
import pytest

import framework as fw
from framework.layers import Linear, Sequential
from framework.optimizers import SGD, clip_factor, clip_grad_norm_, clip_grad_value_, grad_norm
from kernels.reductions import sum_of_squares

GRADIENTS = [np.random.default_rng(0).standard_normal(s) for s in ((3, 4), (5,), (2, 2))]
NORM = math.sqrt(sum((g**2).sum() for g in GRADIENTS))


def parameters(dtype="float64"):
    out = []
    for g in GRADIENTS:
        p = fw.Parameter(np.zeros(g.shape, dtype))
        p.grad = fw.Tensor(g.astype(dtype))
        out.append(p)
    return [*out, fw.Parameter(np.zeros(3, dtype))]  # one without a gradient


def plain():
    ps = parameters()
    return ps, ps


def flat():
    ps = parameters()
    SGD(ps)  # makes the gradients views
    return ps, ps


def through_the_optimizer():
    ps = parameters()
    return ps, SGD(ps)


SOURCES = [plain, flat, through_the_optimizer]


@pytest.mark.parametrize("source", SOURCES)
def test_norm_and_scaling(source):
    ps, given = source()
    norm = clip_grad_norm_(given, 0.5)
    assert norm.shape == ()
    assert float(norm) == pytest.approx(NORM, rel=1e-12)
    for p, g in zip(ps, GRADIENTS, strict=False):
        np.testing.assert_allclose(p.grad.data, g * 0.5 / (NORM + 1e-6), rtol=1e-12)
    assert float(grad_norm(given)) == pytest.approx(0.5, rel=1e-5)
    assert ps[3].grad is None


@pytest.mark.parametrize("source", SOURCES)
def test_small_gradients_stay_bit_for_bit(source):
    ps, given = source()
    clip_grad_norm_(given, 1e3)
    for p, g in zip(ps, GRADIENTS, strict=False):
        np.testing.assert_array_equal(p.grad.data, g)


@pytest.mark.parametrize("source", SOURCES)
def test_clipping_values(source):
    ps, given = source()
    ps[0].grad.data[0, 0] = float("nan")
    clip_grad_value_(given, 0.3)
    for p, g in zip(ps[1:], GRADIENTS[1:], strict=False):
        np.testing.assert_array_equal(p.grad.data, np.clip(g, -0.3, 0.3))
    assert np.isnan(ps[0].grad.data).sum() == 1


def test_clipping_within_the_step():
    ps, other = parameters(), parameters()
    a, b = SGD(ps, lr=1.0), SGD(other, lr=1.0)
    clip_grad_norm_(a, 0.5)
    a.step()
    b.step(scale=clip_factor(grad_norm(b), 0.5))
    for p, q in zip(ps, other, strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12)


def test_float32_and_single_tensors():
    p = parameters("float32")[0]
    assert clip_grad_norm_(p, 1.0).dtype == np.float32
    assert float(grad_norm([p])) == pytest.approx(1, rel=1e-5)


def test_no_gradients_at_all():
    p = fw.Parameter(np.zeros(3, "float32"))
    assert float(clip_grad_norm_([p], 1.0)) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_norms(bad):
    ps = parameters()
    ps[1].grad.data[0] = bad
    before = [p.grad.data.copy() for p in ps[:3]]
    with pytest.raises(RuntimeError, match=f"norm of the gradients is {bad}, nothing was clipped"):
        clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)
    for p, g in zip(ps, before, strict=False):
        np.testing.assert_array_equal(p.grad.data, g)
    norm = clip_grad_norm_(ps, 1.0)
    assert not math.isfinite(float(norm))
    if math.isnan(bad):
        assert all(np.isnan(p.grad.data).all() for p in ps[:3])
    else:
        assert (ps[0].grad.data == 0).all()
        assert np.isnan(ps[1].grad.data[0])


@pytest.mark.parametrize("through", [False, True])
def test_a_nan_gradient_leaves_nothing_behind(through):
    model = Sequential(Linear(3, 5), Linear(5, 2))  # 15, 5 and 10 elements: gaps of alignment
    optimizer = SGD(model.parameters(), lr=0.1)
    for value in (math.nan, 1.0):
        optimizer.zero_grad()
        model(fw.tensor([[value] * 3])).sum().backward()
        norm = clip_grad_norm_(optimizer if through else model.parameters(), 1.0)
        assert math.isfinite(float(norm)) == (value == 1.0)
    exact = math.sqrt(sum((p.grad.data.astype("f8") ** 2).sum() for p in model.parameters()))
    assert exact == pytest.approx(1, rel=1e-5)
    optimizer.step()
    assert all(np.isfinite(p.data).all() for p in model.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="max_norm=-1, expected a number of at least 0"):
        clip_grad_norm_(parameters(), -1)
    with pytest.raises(ValueError, match="clip_value=nan"):
        clip_grad_value_(parameters(), float("nan"))
    with pytest.raises(TypeError, match="parameter 0 is a str"):
        clip_grad_norm_("ab", 1.0)


@pytest.mark.cuda
def test_both_devices_agree():
    ps = [fw.Parameter(np.zeros(g.shape, "float32")) for g in GRADIENTS]
    there = [fw.Parameter(fw.zeros(*g.shape, device="cuda")) for g in GRADIENTS]
    for p, q, g in zip(ps, there, GRADIENTS, strict=True):
        p.grad = fw.tensor(g.astype("float32"))
        q.grad = fw.tensor(g.astype("float32"), device="cuda")
    assert float(clip_grad_norm_(ps, 0.5)) == pytest.approx(float(clip_grad_norm_(there, 0.5)))
    for p, q in zip(ps, there, strict=True):
        np.testing.assert_allclose(p.grad.data, q.grad.data.get(), rtol=1e-5)


@pytest.mark.parametrize("count", [2, 8, 9, 300])
def test_the_norm_of_many_arrays_has_the_same_bits_however_they_are_put_together(count):
    draw = np.random.default_rng(count)
    ps = []
    for _ in range(count):
        p = fw.Parameter(np.zeros(7, np.float32))
        p.grad = fw.Tensor(draw.standard_normal(7).astype(np.float32))
        ps.append(p)
    squares = np.stack([sum_of_squares(p.grad.data) for p in ps])
    want = np.sqrt(squares.sum(dtype=np.float64)).astype(np.float32)
    assert grad_norm(ps).data.tobytes() == want.tobytes()
