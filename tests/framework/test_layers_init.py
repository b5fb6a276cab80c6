"""Initialisers: ranges, moments, orthogonality, reproducibility, errors."""

import math

import numpy as np
import pytest

import framework as fw
from framework.layers import Bilinear, Embedding, Linear, PReLU, init

DRAWS = [
    init.uniform_,
    init.normal_,
    init.trunc_normal_,
    init.xavier_uniform_,
    init.xavier_normal_,
    init.kaiming_uniform_,
    init.kaiming_normal_,
    init.orthogonal_,
]


@pytest.mark.parametrize(
    ("name", "param", "gain"),
    [
        ("linear", None, 1),
        ("sigmoid", None, 1),
        ("tanh", None, 5 / 3),
        ("relu", None, math.sqrt(2)),
        ("selu", None, 0.75),
        ("leaky_relu", None, math.sqrt(2 / 1.0001)),
        ("leaky_relu", 0.2, math.sqrt(2 / 1.04)),
    ],
)
def test_gains(name, param, gain):
    assert init.calculate_gain(name, param) == pytest.approx(gain, rel=1e-12)


def test_unknown_gain():
    with pytest.raises(ValueError, match="nonlinearity='swoosh', expected one of linear"):
        init.calculate_gain("swoosh")


def test_fans():
    assert init.fans(fw.zeros(5, 3)) == (3, 5)
    assert init.fans(fw.zeros(8, 4, 3, 3)) == (36, 72)
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        init.fans(fw.zeros(4))


SHAPE = (200, 300)


@pytest.mark.parametrize(
    ("draw", "limit"),
    [
        (lambda t: init.uniform_(t, -0.5, 0.5), 0.5),
        (lambda t: init.xavier_uniform_(t, 2.0), 2 * math.sqrt(6 / 500)),
        (lambda t: init.kaiming_uniform_(t, nonlinearity="relu"), math.sqrt(6 / 300)),
        (lambda t: init.kaiming_uniform_(t, a=math.sqrt(5)), math.sqrt(1 / 300)),
        (lambda t: init.kaiming_uniform_(t, mode="fan_out"), math.sqrt(6 / 200)),
    ],
)
def test_uniform_limits_and_moments(draw, limit):
    x = draw(fw.zeros(*SHAPE)).data
    assert np.abs(x).max() <= limit
    assert np.abs(x).max() > 0.999 * limit
    assert abs(x.mean()) < 5 * limit / math.sqrt(3 * x.size)
    assert x.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("draw", "mean", "std"),
    [
        (lambda t: init.normal_(t, 3.0, 0.1), 3, 0.1),
        (lambda t: init.xavier_normal_(t), 0, math.sqrt(2 / 500)),
        (lambda t: init.kaiming_normal_(t, nonlinearity="relu"), 0, math.sqrt(2 / 300)),
        (lambda t: init.trunc_normal_(t, 1.0, 0.5, -99, 99), 1, 0.5),
    ],
)
def test_normal_moments(draw, mean, std):
    x = draw(fw.zeros(*SHAPE)).data
    assert x.mean() == pytest.approx(mean, abs=5 * std / math.sqrt(x.size))
    assert x.std() == pytest.approx(std, rel=0.02)


def test_truncated_normal():
    x = init.trunc_normal_(fw.zeros(*SHAPE), std=1.0, a=-1.0, b=0.5).data
    assert x.min() >= -1
    assert x.max() <= 0.5
    assert x.min() < -0.99
    assert x.max() > 0.49
    # mean of the truncated distribution: (phi(a) - phi(b)) / (Phi(b) - Phi(a))
    phi = [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in (-1, 0.5)]
    mass = 0.5 * (math.erf(0.5 / math.sqrt(2)) + math.erf(1 / math.sqrt(2)))
    assert x.mean() == pytest.approx((phi[0] - phi[1]) / mass, abs=0.01)


def test_truncated_normal_of_a_strided_tensor():
    whole = np.zeros((6, 8), "float32")
    init.trunc_normal_(fw.Tensor(whole[:, ::2]), std=5.0)
    assert np.abs(whole).max() <= 2
    assert (whole[:, ::2] != 0).all()
    assert (whole[:, 1::2] == 0).all()


def test_truncated_normal_errors():
    with pytest.raises(ValueError, match="a=2 is not below b=1"):
        init.trunc_normal_(fw.zeros(3), a=2, b=1)
    with pytest.raises(ValueError, match=r"\[8.0, 9.0\] holds 6.*e-16 of the normal distribution"):
        init.trunc_normal_(fw.zeros(3), a=8.0, b=9.0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (4, 2, 3)])
def test_orthogonal(shape):
    x = init.orthogonal_(fw.zeros(*shape, dtype="float64"), gain=2.0).data.reshape(shape[0], -1)
    product = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_constants():
    assert (init.constant_(fw.zeros(2, 2), 3.5).data == 3.5).all()
    assert (init.ones_(fw.zeros(2)).data == 1).all()
    assert (init.zeros_(fw.ones(2)).data == 0).all()
    np.testing.assert_array_equal(init.eye_(fw.ones(2, 3)).data, np.eye(2, 3))
    with pytest.raises(ValueError, match=r"eye_ needs a matrix, got shape \(2,\)"):
        init.eye_(fw.ones(2))


@pytest.mark.parametrize("draw", DRAWS)
def test_same_seed_same_numbers(draw):
    a = draw(fw.zeros(7, 5), generator=fw.Generator(3)).data
    b = draw(fw.zeros(7, 5), generator=fw.Generator(3)).data
    c = draw(fw.zeros(7, 5), generator=fw.Generator(4)).data
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    fw.manual_seed(3)
    np.testing.assert_array_equal(draw(fw.zeros(7, 5)).data, a)
    assert (draw(fw.zeros(7, 5)).data != a).any()  # the generator has moved on


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_refuse_integers_and_other_things(draw):
    with pytest.raises(TypeError, match="floating-point tensor, got int64"):
        draw(fw.zeros(2, 2, dtype="int64"))


def test_draws_refuse_bad_options():
    with pytest.raises(TypeError, match="expected a Tensor to initialise, got a list"):
        init.normal_([1.0, 2.0])
    with pytest.raises(ValueError, match="mode='fan', expected fan_in or fan_out"):
        init.kaiming_normal_(fw.zeros(2, 2), mode="fan")
    with pytest.raises(ValueError, match=r"at least 2 axes, got shape \(3,\)"):
        init.orthogonal_(fw.zeros(3))


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: Linear(400, 50), 1 / 20),
        (lambda: Bilinear(100, 7, 30), 1 / 10),
    ],
)
def test_layers_start_like_pytorchs(make, limit):
    layer = make()
    for p in layer.parameters():
        assert np.abs(p.data).max() <= limit
        assert np.abs(p.data).max() > 0.9 * limit


def test_more_defaults():
    assert Embedding(1000, 50).weight.data.std() == pytest.approx(1, rel=0.02)
    padded = Embedding(5, 3, padding_idx=-1)
    assert padded.padding_idx == 4
    assert (padded.weight.data[4] == 0).all()
    assert (PReLU(3).weight.data == 0.25).all()


@pytest.mark.cuda
@pytest.mark.parametrize("draw", DRAWS)
def test_both_devices_draw_the_same(draw):
    a = draw(fw.zeros(31, 17, device="cpu"), generator=fw.Generator(3)).data
    b = draw(fw.zeros(31, 17, device="cuda"), generator=fw.Generator(3)).data.get()
    np.testing.assert_array_equal(a, b)
