"""Layer, RMS, batch and group norm: known values, float64 formulas, central differences, layouts,
errors.
"""

import numpy as np
import pytest

from kernels.normalization import (
    batch_norm,
    batch_norm_grad,
    batch_norm_inference,
    batch_norm_inference_grad,
    group_norm,
    group_norm_grad,
    layer_norm,
    layer_norm_grad,
    rms_norm,
    rms_norm_grad,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def float32(*shape, seed=0):
    return normal(*shape, seed=seed).astype(np.float32)


def slope(f, a, dy, step=1e-6):
    """Central differences of sum(f(a) * dy) by each element of a, in float64."""
    out = np.zeros_like(a)
    for i in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[i] += step
        down[i] -= step
        out[i] = ((f(up) - f(down)) * dy).sum() / (2 * step)
    return out


def assert_slopes(got, wanted):
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-7)


# --- known values ---------------------------------------------------------------------------------


def test_layer_norm_of_a_row_by_hand():
    x = np.array([[1, 2, 3, 4]], np.float32)
    y, mean, rstd = layer_norm(x, np.full(4, 2, np.float32), np.ones(4, np.float32), 0.0)
    assert mean == 2.5
    assert rstd == np.float32(1 / np.sqrt(1.25))
    np.testing.assert_allclose(y[0], 1 + 2 * np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25), 1e-6)


def test_rms_norm_of_a_row_by_hand():
    y, rstd = rms_norm(np.array([[3, 4]], np.float32), None, 0.0)
    np.testing.assert_allclose(y, [[3 / np.sqrt(12.5), 4 / np.sqrt(12.5)]], 1e-6)
    np.testing.assert_allclose(rstd, [1 / np.sqrt(12.5)], 1e-6)


def test_batch_norm_of_two_channels_by_hand():
    x = np.array([[1, 10], [3, 30]], np.float32)
    y, mean, var = batch_norm(x, None, np.array([0, 5], np.float32), 0.0)
    assert mean.tolist() == [2, 20]
    assert var.tolist() == [1, 100]  # biased
    assert y.tolist() == [[-1, 4], [1, 6]]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_variance_does_not_cancel_far_from_zero(offset):
    x = (normal(64, 96) + offset).astype(np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(layer_norm(x, None, None, 0.0)[2], 1 / wide.std(axis=1), rtol=2e-6)
    np.testing.assert_allclose(batch_norm(x, None, None)[2], wide.var(axis=0), rtol=2e-6)
    planes = np.ascontiguousarray(x.reshape(8, 8, 96))
    var = batch_norm(planes, None, None)[2]
    np.testing.assert_allclose(var, planes.astype(float).var(axis=(0, 2)), rtol=2e-6)
    rstd = group_norm(planes, 2, None, None, 0.0)[2]
    expected = 1 / planes.astype(float).reshape(8, 2, -1).std(axis=2)
    np.testing.assert_allclose(rstd, expected, rtol=2e-6)


@pytest.mark.parametrize(
    "shape", [(5, 6), (3, 4, 5), (2, 6, 4, 5), (40, 64, 9, 7), (2, 3, 2, 2, 2)]
)
@pytest.mark.parametrize("order", ["planes", "channels last", "strided"])
def test_batch_norm_in_every_layout(shape, order):
    x, dy = float32(*shape), float32(*shape, seed=1)
    if order == "channels last":
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        x = np.moveaxis(last, -1, 1)
    elif order == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    w, b = float32(shape[1], seed=2), float32(shape[1], seed=3)
    y, mean, var = batch_norm(x, w, b)
    dx, dw, db = batch_norm_grad(dy, x, w, mean, var, 1e-5)
    wide = [a.astype(np.float64) for a in (x, w, b)]
    truth = batch_norm(*wide)
    slopes = batch_norm_grad(dy.astype(np.float64), wide[0], wide[1], truth[1], truth[2], 1e-5)
    for got, wanted in zip((y, mean, var, dx, dw, db), (*truth, *slopes), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
    if order != "strided":
        assert y.strides == x.strides
        assert dx.strides == x.strides


def test_groups_of_one_channel_are_instance_norm():
    x = float32(3, 4, 7, 5)
    y, mean, _ = group_norm(x, 4, None, None)
    wide = x.astype(np.float64)
    m, v = wide.mean(axis=(2, 3), keepdims=True), wide.var(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(y, (wide - m) / np.sqrt(v + 1e-5), atol=2e-6)
    np.testing.assert_allclose(mean, m[..., 0, 0], atol=1e-6)


def test_one_group_is_layer_norm():
    x = float32(3, 4, 5)
    y, mean, rstd = group_norm(x, 1, None, None)
    flat, m, r = layer_norm(x.reshape(3, 20), None, None)
    np.testing.assert_allclose(y.reshape(3, 20), flat, atol=1e-6)
    np.testing.assert_allclose(mean[:, 0], m, atol=1e-7)
    np.testing.assert_allclose(rstd[:, 0], r, rtol=1e-6)


def test_inference_with_the_batch_statistics_is_training():
    x, w, b = float32(6, 5, 3), float32(5, seed=1), float32(5, seed=2)
    y, mean, var = batch_norm(x, w, b)
    np.testing.assert_allclose(batch_norm_inference(x, w, b, mean, var), y, atol=1e-6)


def test_an_infinite_input_stays_in_its_element_in_inference():
    x = float32(4, 3)
    x[1, 1] = np.inf
    one = np.ones(3, np.float32)
    dx, _, _ = batch_norm_inference_grad(np.ones_like(x), x, None, 0 * one, one, 0.0)
    assert (dx == 1).all()


# --- gradients: central differences in float64 ----------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
def test_layer_norm_gradient(weighted):
    x, dy, b = normal(3, 5), normal(3, 5, seed=1), normal(5, seed=2)
    w = normal(5, seed=3) if weighted else None
    _, mean, rstd = layer_norm(x, w, b)
    got = layer_norm_grad(dy, x, w, mean, rstd)
    one = np.ones(5) if w is None else w
    assert_slopes(
        got,
        [
            slope(lambda a: layer_norm(a, w, b)[0], x, dy),
            slope(lambda a: layer_norm(x, a, b)[0], one, dy),
            slope(lambda a: layer_norm(x, w, a)[0], b, dy),
        ],
    )


def test_rms_norm_gradient():
    x, dy, w = normal(3, 5), normal(3, 5, seed=1), normal(5, seed=2)
    got = rms_norm_grad(dy, x, w, rms_norm(x, w)[1])
    wanted = [
        slope(lambda a: rms_norm(a, w)[0], x, dy),
        slope(lambda a: rms_norm(x, a)[0], w, dy),
    ]
    assert_slopes(got, wanted)


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 4), (2, 3, 2, 2)])
def test_batch_norm_gradient(shape):
    C = shape[1]
    x, dy, w, b = normal(*shape), normal(*shape, seed=1), normal(C, seed=2), normal(C, seed=3)
    _, mean, var = batch_norm(x, w, b)
    assert_slopes(
        batch_norm_grad(dy, x, w, mean, var, 1e-5),
        [
            slope(lambda a: batch_norm(a, w, b)[0], x, dy),
            slope(lambda a: batch_norm(x, a, b)[0], w, dy),
            slope(lambda a: batch_norm(x, w, a)[0], b, dy),
        ],
    )
    assert_slopes(
        batch_norm_inference_grad(dy, x, w, mean, var, 1e-5),
        [
            slope(lambda a: batch_norm_inference(a, w, b, mean, var), x, dy),
            slope(lambda a: batch_norm_inference(x, a, b, mean, var), w, dy),
            slope(lambda a: batch_norm_inference(x, w, a, mean, var), b, dy),
        ],
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_gradient(groups):
    x, dy, w, b = normal(2, 4, 3), normal(2, 4, 3, seed=1), normal(4, seed=2), normal(4, seed=3)
    _, mean, rstd = group_norm(x, groups, w, b)
    assert_slopes(
        group_norm_grad(dy, x, groups, w, mean, rstd),
        [
            slope(lambda a: group_norm(a, groups, w, b)[0], x, dy),
            slope(lambda a: group_norm(x, groups, a, b)[0], w, dy),
            slope(lambda a: group_norm(x, groups, w, a)[0], b, dy),
        ],
    )


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layer_norm(float32(4), None, None), r"x has shape \(4,\)"),
        (lambda: layer_norm(float32(2, 4), float32(3), None), r"weight has shape \(3,\).*\(4,\)"),
        (lambda: layer_norm(float32(2, 4), None, float32(5)), r"bias has shape \(5,\)"),
        (lambda: rms_norm(float32(2, 4), float32(1, 4)), r"weight has shape \(1, 4\)"),
        (lambda: batch_norm(float32(4), None, None), r"expected \(N, C\)"),
        (lambda: batch_norm(float32(2, 4, 3), float32(3), None), r"one per channel"),
        (lambda: group_norm(float32(2, 4, 3), 3, None, None), r"groups=3 does not divide the 4"),
        (lambda: group_norm(float32(2, 4, 3), 0, None, None), r"groups=0"),
        (
            lambda: layer_norm_grad(float32(2, 3), float32(2, 4), None, float32(2), float32(2)),
            r"dy has shape \(2, 3\)",
        ),
    ],
)
def test_wrong_shapes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
