"""Reductions: every axis and layout against float64 NumPy, ties, NaN, nothing to reduce, gradients,
accuracy.
"""

import itertools

import numpy as np
import pytest

from kernels import reductions as r

CUBE = np.random.default_rng(0).standard_normal((5, 7, 6)).astype(np.float32)

AXES = [None, 0, 1, 2, -1, (0, 1), (1, 2), (0, 2), (0, 1, 2), ()]

LAYOUTS = {
    "contiguous": lambda x: x,
    "turned": np.asfortranarray,
    "swapped": lambda x: np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1),
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
}

REDUCTIONS = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "norm": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
    "var": lambda x, axis, keepdims: np.var(x, axis=axis, ddof=0, keepdims=keepdims),
}


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_every_axis_and_layout(name, layout, keepdims):
    x = LAYOUTS[layout](CUBE)
    options = {"correction": 0} if name == "var" else {}
    for axis in AXES:
        got = getattr(r, name)(x, axis=axis, keepdims=keepdims, **options)
        wanted = REDUCTIONS[name](x.astype(np.float64), axis=axis, keepdims=keepdims)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6, err_msg=f"axis {axis}")


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions(name, layout, keepdims):
    x = LAYOUTS[layout](np.round(CUBE))  # many ties: the first counts
    for axis in (None, 0, 1, 2, -1):
        got = getattr(r, name)(x, axis=axis, keepdims=keepdims)
        wanted = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, wanted)


def test_positions_in_long_rows():
    x = np.zeros((3, 3000), np.float32)
    x[0, [1700, 2900]] = 1
    x[1, [2048, 2999]] = np.nan
    x[2] = -np.inf
    assert r.argmax(x, axis=1).tolist() == [1700, 2048, 0]
    assert r.argmin(x, axis=1).tolist() == [0, 2048, 0]
    assert r.argmax(x).item() == 3000 + 2048


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("name", ["max", "min", "sum", "mean", "var", "norm"])
def test_nan_propagates(name, axis):
    x = np.ones((40, 9000), np.float32)
    x[3, 5] = np.nan
    got = getattr(r, name)(x, axis=axis)
    assert np.isnan(got[() if axis is None else (5, 3)[axis]])
    assert np.isnan(got).sum() == 1


@pytest.mark.parametrize("shape", [(1, 1_000_003), (1_000_003, 1), (1000, 1003), (70_000, 17)])
def test_long_sums_are_accurate(shape):
    x = np.random.default_rng(1).random(shape).astype(np.float32)
    for axis in (None, 0, 1):
        wide = x.sum(axis=axis, dtype=np.float64)
        np.testing.assert_allclose(r.sum(x, axis=axis), wide, rtol=1e-6)
    np.testing.assert_allclose(r.sum_of_squares(x), np.square(x.astype(float)).sum(), rtol=1e-6)
    np.testing.assert_allclose(r.var(x), x.var(dtype=np.float64, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 20_011), (600, 700), (5, 4096)])
def test_extremes_of_many_elements(shape):
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    for axis in (None, 0, 1):
        np.testing.assert_array_equal(r.max(x, axis=axis), x.max(axis=axis))
        np.testing.assert_array_equal(r.min(x, axis=axis), x.min(axis=axis))


def test_nothing_to_reduce():
    x = np.empty((0, 3), np.float32)
    assert r.sum(x).item() == 0
    assert r.sum(x, axis=0).tolist() == [0, 0, 0]
    assert r.norm(x).item() == 0
    assert np.isnan(r.mean(x))
    assert np.isnan(r.mean(x, axis=0)).tolist() == [True] * 3
    assert np.isnan(r.var(np.ones(1, np.float32)))  # one element, correction 1
    assert r.max(x, axis=1).shape == (0,)
    for name in ("max", "min", "argmax", "argmin"):
        with pytest.raises(ValueError, match=r"x of shape \(0, 3\) has no elements along axis"):
            getattr(r, name)(x, axis=0)


def test_integers_and_booleans():
    x = np.arange(6).reshape(2, 3)
    assert r.sum(x).dtype == np.int64
    assert r.sum(x > 2).item() == 3
    assert r.mean(x).item() == 2.5
    assert r.max(x, axis=0).tolist() == [3, 4, 5]
    assert r.argmin(x, axis=1).tolist() == [0, 0]
    assert r.cumsum(x, 1).tolist() == [[0, 1, 3], [3, 7, 12]]


def test_a_sum_over_no_axis_is_a_copy():
    x = np.ones((2, 2), np.float32)
    y = r.sum(x, axis=())
    y[:] = 5
    assert (x == 1).all()


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_running_sums(axis):
    wanted = CUBE.cumsum(axis=axis, dtype=np.float64)
    np.testing.assert_allclose(r.cumsum(CUBE, axis), wanted, rtol=1e-6, atol=1e-6)
    reverse = np.flip(np.flip(CUBE, axis).cumsum(axis=axis, dtype=np.float64), axis)
    np.testing.assert_allclose(r.cumsum_grad(CUBE, axis), reverse, rtol=1e-6, atol=1e-6)


# --- gradients ------------------------------------------------------------------------------------


def slope(f, x, dy, step=1e-6):
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        out[i] = ((f(up) - f(down)) * dy).sum() / (2 * step)
    return out


GRADIENTS = {
    "max": lambda dy, x, y, axis, keepdims: r.max_grad(dy, x, y, axis, keepdims),
    "min": lambda dy, x, y, axis, keepdims: r.max_grad(dy, x, y, axis, keepdims),
    "norm": lambda dy, x, y, axis, keepdims: r.norm_grad(dy, x, y, axis, keepdims),
    "var": lambda dy, x, y, axis, keepdims: r.var_grad(dy, x, axis, 1, keepdims),
}


@pytest.mark.parametrize(
    ("name", "axis", "keepdims"),
    [*itertools.product(GRADIENTS, [None, 0, -1, (0, 2)], [False, True])],
)
def test_gradient_is_the_slope(name, axis, keepdims):
    x = np.random.default_rng(3).standard_normal((3, 2, 4))
    y = getattr(r, name)(x, axis=axis, keepdims=keepdims)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    got = GRADIENTS[name](dy, x, y, axis, keepdims)
    wanted = slope(lambda a: getattr(r, name)(a, axis=axis, keepdims=keepdims), x, dy)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)


def test_running_sum_gradient_is_the_slope():
    x, dy = np.random.default_rng(3).standard_normal((2, 3, 4))
    np.testing.assert_allclose(
        r.cumsum_grad(dy, 0), slope(lambda a: r.cumsum(a, 0), x, dy), rtol=1e-6, atol=1e-8
    )


def test_ties_share_the_gradient():
    x = np.array([[1, 3, 3, 2], [np.nan, 0, np.nan, 1]], np.float32)
    dx = r.max_grad(np.array([4, 6], np.float32), x, r.max(x, axis=1), axis=1)
    assert dx.tolist() == [[0, 2, 2, 0], [3, 0, 3, 0]]


def test_norm_gradient_at_the_origin_is_zero():
    x = np.zeros((2, 3), np.float32)
    dx = r.norm_grad(np.ones(2, np.float32), x, r.norm(x, axis=1), axis=1)
    assert (dx == 0).all()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [3, -4, (0, 0), (0, -3)])
def test_wrong_axes_are_named(axis):
    for name in ("sum", "mean", "max", "norm", "var"):
        with pytest.raises(ValueError, match=r"axis=.* for x of shape \(5, 7, 6\)"):
            getattr(r, name)(CUBE, axis=axis)


@pytest.mark.parametrize("name", ["argmax", "cumsum"])
def test_one_axis_only(name):
    with pytest.raises(ValueError, match=r"expected an int from -3 to 2"):
        getattr(r, name)(CUBE, axis=(0, 1))
