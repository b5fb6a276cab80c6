"""Recurrent sweeps: no matter how many threads; sizes on both sides of a tile; bad shapes."""

import numpy as np
import pytest

from kernels.gru import gru
from kernels.lstm import lstm, lstm_grad
from kernels.recurrent import rnn
from kernels.registry import has_numba

needs_numba = pytest.mark.skipif(not has_numba(), reason="numba is not installed")


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@needs_numba
@pytest.mark.parametrize(("rows", "units"), [(33, 70), (64, 64), (17, 48)])
def test_a_sweep_gives_the_same_bits_on_any_number_of_threads(rows, units):
    import numba

    from kernels.cpu import recurrent as loops

    if numba.get_num_threads() == 1:
        pytest.skip("one core")
    rng, steps = np.random.default_rng(0), 5
    weight, gates = normal(rng, 4 * units, units), normal(rng, steps, rows, 4 * units)
    empty, lengths = np.empty((0, 0), np.float32), rng.integers(1, steps + 1, rows)

    def swept():
        states = [np.zeros((rows, units), np.float32) for _ in range(3)]
        cells, y = np.empty((2, steps, rows, units), np.float32)
        args = lengths, True, gates.copy(), cells, y, *states
        loops.lstm(loops.groups(rows), loops.pack(weight, True), empty, empty, *args, work=1 << 30)
        return y

    many, threads = swept(), numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = swept()
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(many, one)


@needs_numba
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 31])
@pytest.mark.parametrize("units", [1, 15, 16, 47, 48, 49, 520])
def test_products_of_any_size(rows, units):
    from kernels.cpu import recurrent as loops

    rng = np.random.default_rng(rows + units)
    a, weight, out = normal(rng, rows, 30), normal(rng, units, 30), normal(rng, rows, units + 3)
    expected = out.astype(np.float64)
    expected[:, 2:-1] += a.astype(np.float64) @ weight.astype(np.float64).T
    for packed in (loops.pack(weight, True), loops.pack(np.ascontiguousarray(weight.T), False)):
        given = out.copy()
        loops.product(a, 0, packed, given, 2, units + 2, 0, rows)
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
    half = out.copy()  # columns 10 to 29 of a meet the lines of a weight with 20 of them
    loops.product(a, 10, loops.pack(weight[:, 10:], True), half, 2, units + 2, 0, rows)
    expected = a[:, 10:].astype(np.float64) @ weight[:, 10:].astype(np.float64).T
    np.testing.assert_allclose(half[:, 2:-1] - out[:, 2:-1], expected, rtol=1e-4, atol=1e-4)


def test_shapes_that_do_not_fit_are_named():
    rng = np.random.default_rng(0)
    x, weight_ih, weight_hh = (rng.standard_normal(s) for s in ((3, 2, 4), (12, 4), (12, 3)))
    y, _, _, gates, cells = lstm(x, weight_ih, weight_hh)
    for call, message in (
        (lambda: lstm(x[0], weight_ih, weight_hh), r"lstm: x has shape \(2, 4\), expected"),
        (lambda: lstm(x[:0], weight_ih, weight_hh), r"lstm: x has shape \(0, 2, 4\), expected"),
        (lambda: lstm(x, weight_ih[:, :2], weight_hh), r"weight_ih has shape \(12, 2\), expected"),
        (lambda: lstm(x, weight_ih, weight_hh, h0=x[0]), r"h0 has shape \(2, 4\), expected \(2, 3"),
        (lambda: lstm_grad(y[1:], None, None, x, weight_ih, weight_hh, None, None, y, gates, cells),
         r"lstm_grad: dy has shape \(2, 2, 3\), expected \(3, 2, 3\)"),
        (lambda: gru(x, weight_ih, weight_hh), r"weight_hh has shape \(12, 3\), expected \(12, 4"),
        (lambda: rnn(x, weight_ih[:3], weight_hh[:3], nonlinearity="sin"), "nonlinearity='sin'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
