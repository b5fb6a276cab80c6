"""Softmax family: values by hand, masks, infinities, every axis, central differences."""

import numpy as np
import pytest

from kernels import softmax as family
from kernels.registry import has_numba

softmax, softmax_grad = family.softmax, family.softmax_grad
log_softmax, log_softmax_grad = family.log_softmax, family.log_softmax_grad
logsumexp, logsumexp_grad = family.logsumexp, family.logsumexp_grad

DTYPES = [np.float32, np.float64]
INF, NAN = np.inf, np.nan
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def slope(f, x, dy, step=1e-6):
    """Central differences of sum(dy * f(x)) in float64."""
    dx = np.empty_like(x)
    for i in range(x.size):
        up, down = x.copy(), x.copy()
        up.flat[i] += step
        down.flat[i] -= step
        dx.flat[i] = np.sum(dy * (f(up) - f(down))) / (2 * step)
    return dx


@each_dtype
def test_known_values(dtype):
    x = np.log(np.array([[1, 2, 5], [1, 1, 2]], dtype))
    p = [[0.125, 0.25, 0.625], [0.25, 0.25, 0.5]]
    np.testing.assert_allclose(softmax(x), p, rtol=1e-6)
    np.testing.assert_allclose(log_softmax(x), np.log(p), rtol=2e-6)
    np.testing.assert_allclose(logsumexp(x), np.log([8, 4]), rtol=1e-6)
    assert logsumexp(x, keepdims=True).shape == (2, 1)


@each_dtype
def test_large_inputs_do_not_overflow(dtype):
    x = np.array([[1000, 1000, -1000], [-3e38, -3e38, -3e38]], dtype)
    np.testing.assert_allclose(softmax(x), [[0.5, 0.5, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(logsumexp(x)[0], 1000 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        log_softmax(x)[0], [-np.log(2), -np.log(2), -2000 - np.log(2)], rtol=1e-6
    )


@each_dtype
def test_infinities_without_a_mask_are_ieee(dtype):
    x = np.array([[-INF, 0, 0], [-INF, -INF, -INF], [INF, 0, 1], [NAN, 0, 1], [NAN, INF, 0]], dtype)
    np.testing.assert_array_equal(softmax(x)[0], [0, 0.5, 0.5])
    assert np.isnan(softmax(x)[1:]).all()
    np.testing.assert_allclose(log_softmax(x)[0], [-INF, -np.log(2), -np.log(2)], rtol=1e-6)
    assert np.isnan(log_softmax(x)[1:]).all()
    np.testing.assert_allclose(logsumexp(x), [np.log(2), -INF, INF, NAN, NAN], rtol=1e-6)


@each_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_mask_is_a_shorter_axis(dtype, axis):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 50)).astype(dtype)
    keep = draw.random((40, 50)) < 0.6
    y, log_y, z = softmax(x, axis, keep), log_softmax(x, axis, keep), logsumexp(x, axis, mask=keep)
    for r in range(x.shape[0 if axis == -1 else 1]):
        row, kept = (x[r], keep[r]) if axis == -1 else (x[:, r], keep[:, r])
        got, log_got = (y[r], log_y[r]) if axis == -1 else (y[:, r], log_y[:, r])
        e = np.exp(row[kept].astype(np.float64))
        np.testing.assert_allclose(got[kept], e / e.sum(), rtol=1e-5)
        np.testing.assert_allclose(log_got[kept], np.log(e / e.sum()), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(z[r], np.log(e.sum()), rtol=1e-5)
        assert (got[~kept] == 0).all()
        assert (log_got[~kept] == -INF).all()


@each_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_nothing_left_in_is_zero_not_nan(dtype, axis):
    x = np.zeros((20, 20), dtype)
    x[3, 3] = NAN  # what is masked out does not matter
    keep = np.zeros((20, 20), bool)
    y, log_y, z = softmax(x, axis, keep), log_softmax(x, axis, keep), logsumexp(x, axis, mask=keep)
    assert (y == 0).all()
    assert (log_y == -INF).all()
    assert (z == -INF).all()
    dy = np.ones_like(x)
    assert (softmax_grad(dy, y, axis) == 0).all()
    assert (log_softmax_grad(dy, log_y, axis) == 0).all()
    assert (logsumexp_grad(np.ones_like(z), x, z, axis, mask=keep) == 0).all()


@each_dtype
def test_a_mask_broadcasts(dtype):
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(dtype)
    keep = np.array([True, False, True, True])
    np.testing.assert_array_equal(
        softmax(x, -1, keep), softmax(x, -1, np.broadcast_to(keep, x.shape))
    )


@each_dtype
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 9, 130), (130, 33), (4, 3, 20, 17), (6,)])
def test_every_axis_equals_the_last_one_moved(dtype, shape):
    draw = np.random.default_rng(2)
    x, dy = draw.normal(size=(2, *shape)).astype(dtype)
    keep = draw.random(shape) < 0.7
    for axis in range(-len(shape), len(shape)):

        def last(a, axis=axis):
            return np.ascontiguousarray(np.moveaxis(a, axis, -1))

        for f in (softmax, log_softmax):
            for mask in (None, keep):
                y = f(x, axis, mask)
                assert y.shape == x.shape
                wanted = f(last(x), -1, None if mask is None else last(mask))
                np.testing.assert_allclose(last(y), wanted, rtol=1e-5, atol=1e-6)
        y, log_y, z = softmax(x, axis), log_softmax(x, axis), logsumexp(x, axis)
        np.testing.assert_allclose(z, logsumexp(last(x)), rtol=1e-5, atol=1e-6)
        assert logsumexp(x, axis, keepdims=True).shape == np.max(x, axis, keepdims=True).shape
        for f, out in ((softmax_grad, y), (log_softmax_grad, log_y)):
            np.testing.assert_allclose(
                last(f(dy, out, axis)), f(last(dy), last(out)), rtol=1e-5, atol=1e-5
            )
        dz = np.asarray(dy.max(axis))
        dx = logsumexp_grad(dz, x, z, axis)
        np.testing.assert_allclose(last(dx), logsumexp_grad(dz, last(x), z), rtol=1e-5, atol=1e-6)
        again = logsumexp_grad(np.expand_dims(dz, axis), x, np.expand_dims(z, axis), axis, True)
        np.testing.assert_array_equal(dx, again)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_slopes(axis, masked):
    draw = np.random.default_rng(3)
    x, dy = draw.normal(size=(2, 4, 5))
    keep = draw.random(x.shape) < 0.7 if masked else np.ones(x.shape, bool)
    keep[0, 0] = keep[1, 0] = keep[0, 1] = True
    mask = keep if masked else None
    close = {"rtol": 1e-7, "atol": 1e-8}
    got = softmax_grad(dy, softmax(x, axis, mask), axis)
    np.testing.assert_allclose(got, slope(lambda x: softmax(x, axis, mask), x, dy), **close)
    got = log_softmax_grad(dy, log_softmax(x, axis, mask), axis)
    wanted = slope(lambda x: np.where(keep, log_softmax(x, axis, mask), 0), x, dy)
    np.testing.assert_allclose(got, wanted, **close)
    z = logsumexp(x, axis, mask=mask)
    dz = dy.max(axis)
    got = logsumexp_grad(dz, x, z, axis, mask=mask)
    np.testing.assert_allclose(got, slope(lambda x: logsumexp(x, axis, mask=mask), x, dz), **close)


@each_dtype
def test_empty(dtype):
    for shape in ((0, 3), (3, 0), (0, 0), (2, 0, 40)):
        x = np.empty(shape, dtype)
        for axis in (0, -1, -2):
            assert softmax(x, axis).shape == shape
            assert log_softmax(x, axis).shape == shape
            assert softmax_grad(x, x, axis).shape == shape
            assert log_softmax_grad(x, x, axis).shape == shape
    assert (logsumexp(np.empty((3, 0), dtype)) == [-INF] * 3).all()
    assert logsumexp(np.empty((3, 0), dtype), 0, True).shape == (1, 0)


@each_dtype
def test_half_precision_is_rounded_once(dtype):
    x = np.random.default_rng(4).normal(size=(5, 33)).astype(np.float16)
    y = softmax(x)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, softmax(x.astype(np.float32)).astype(np.float16))


@each_dtype
def test_errors_name_the_argument(dtype):
    x = np.zeros((2, 3), dtype)
    with pytest.raises(TypeError, match="mask is float32"):
        softmax(x, -1, np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"mask has shape \(4, 3\).*\(2, 3\)"):
        log_softmax(x, -1, np.ones((4, 3), bool))
    with pytest.raises(ValueError, match=r"mask has shape \(5, 2, 3\)"):
        logsumexp(x, mask=np.ones((5, 2, 3), bool))
    if dtype == np.float32 and has_numba():
        with pytest.raises(ValueError, match=r"dy has shape \(3,\), y \(2, 3\)"):
            softmax_grad(np.zeros(3, dtype), x)


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_the_exponential_of_the_shifted_row():
    from kernels.cpu.engine import jit
    from kernels.cpu.vectormath import exp_nonpositive

    @jit(cache=False)
    def over(x, out):
        for i in range(x.shape[0]):
            out[i] = exp_nonpositive(x[i])

    x = np.linspace(-87, 0, 1_000_003, dtype=np.float32)
    out = np.empty_like(x)
    over(x, out)
    truth = np.exp(x.astype(np.float64))
    assert np.max(np.abs(out - truth) / np.spacing(truth.astype(np.float32))) < 1.5
    edges = np.array([0, -0.0, -87.1, -1e30, -INF, NAN], np.float32)
    out = np.empty_like(edges)
    over(edges, out)
    np.testing.assert_array_equal(out, np.array([1, 1, 0, 0, 0, NAN], np.float32))
