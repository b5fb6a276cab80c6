"""The gradient of indexing with arrays on the device: what is named twice adds up, and no more."""

import numpy as np
import pytest

from framework.autograd import graph


def added(cupy, full, positions, dy):
    on_device = cupy.asarray(full)
    index = cupy.asarray(np.array(positions))
    graph.add_at(on_device, graph.Partial(full.shape, index, cupy.asarray(dy)))
    return on_device.get()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_infinity_or_nan_stays_in_its_own_element(cupy, value, dtype):
    dy = np.array([value, 1, 2, 3], dtype)
    got = added(cupy, np.zeros(4, dtype), [0, 1, 1, 3], dy)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array([value, 3, 0, 3], dtype))


def test_a_large_gradient_takes_no_digits_from_others(cupy):
    dy = np.array([1e30, 1, 2, 3, 4], np.float32)
    got = added(cupy, np.zeros(4, np.float32), [0, 1, 1, 3, 3], dy)
    np.testing.assert_array_equal(got, np.array([1e30, 3, 0, 7], np.float32))


@pytest.mark.parametrize("n", [2, 3, 7, 64, 1000])
@pytest.mark.parametrize("rows", [1, 2, 5, 300])
def test_runs_of_any_length_add_up_as_numpy_adds_them(cupy, n, rows):
    rng = np.random.default_rng(n * rows)
    positions, dy = rng.integers(-rows, rows, n), rng.normal(size=(n, 3))
    full = rng.normal(size=(rows, 3))
    expected = full.copy()
    np.add.at(expected, positions, dy)
    np.testing.assert_allclose(added(cupy, full, positions, dy), expected, rtol=1e-12, atol=1e-12)
