"""Sixteen numbers at a time: kernels/cpu/lanes.py and rows.py against NumPy."""

import numpy as np
import pytest

from kernels.registry import has_numba

if not has_numba():
    pytest.skip("numba is not installed", allow_module_level=True)

from kernels.cpu.blas import address
from kernels.cpu.engine import jit
from kernels.cpu.lanes import (
    LANES,
    bytes_at,
    each,
    floats_at,
    load,
    load_ints,
    longs_at,
    peak,
    same,
    select,
    spread,
    store,
    total,
    totals,
    turn,
    whole,
)
from kernels.cpu.rows import row_dot, row_exp_sum, row_max, row_softmax
from kernels.cpu.summation import add_partials

SIZES = [1, 2, 15, 16, 17, 31, 64, 65, 130, 1000]
TWO = np.float32(2)
MINUS_ONE = np.float32(-1)


@jit
def arithmetic(a, b, out):
    for i in range(0, a.shape[0], LANES):
        n = min(LANES, a.shape[0] - i)
        x, y = load(a, i, n), load(b, i, n)
        store(out, i, n, -(x + y) * TWO - (TWO - x) / y)


@jit
def reductions(a, fill, out):
    x = load(a, 0, a.shape[0], fill)
    out[0] = total(x)
    out[1] = peak(x)


@jit
def four_totals(a, out):
    sums = totals(load(a, 0, 16), load(a, 16, 16), load(a, 32, 16), load(a, 48, 16))
    for i in range(4):
        out[i] = sums[i]


@jit
def choice(a, out):
    for i in range(0, whole(a.shape[0]), LANES):
        x = load(a, i, LANES)
        store(out, i, LANES, select(x < MINUS_ONE, each(TWO), select(x > MINUS_ONE, x, MINUS_ONE)))


@jit
def integers(a, wanted, out):
    for i in range(0, a.shape[0], LANES):
        n = min(LANES, a.shape[0] - i)
        x = load_ints(a, i, n)
        store(out, i, n, select(same(x, each(wanted)), each(np.int32(-7)), x))


@jit
def apply(name, x, out):
    m = row_max(x)
    if name == 0:
        out[0] = m
    elif name == 1:
        out[0] = row_exp_sum(x, m)
    elif name == 3:
        out[0] = row_dot(x, x)
    else:
        row_softmax(x, m, out)


def framed(size):
    """An array of NaN, and a view of `size` elements inside."""
    frame = np.full(size + 2 * LANES, np.nan, np.float32)
    return frame, frame[LANES : LANES + size]


def untouched(frame, size):
    return np.isnan(frame[:LANES]).all() and np.isnan(frame[LANES + size :]).all()


@pytest.mark.parametrize("size", SIZES)
def test_arithmetic_and_nothing_beyond_the_end(size):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, (2, size)).astype(np.float32)
    frame, out = framed(size)
    arithmetic(a, b, out)
    wide = a.astype(np.float64)
    np.testing.assert_allclose(out, -(wide + b) * 2 - (2 - wide) / b, rtol=1e-6)
    assert untouched(frame, size)


@pytest.mark.parametrize("size", [1, 7, 16])
def test_lanes_beyond_count_hold_the_fill(size):
    a = -np.arange(1, size + 1, dtype=np.float32)
    out = np.empty(2, np.float32)
    reductions(a, np.float32(-100), out)
    assert out[0] == a.sum() - 100 * (LANES - size)
    assert out[1] == -1


def test_four_totals_together():
    a = np.random.default_rng(3).integers(-99, 99, 64).astype(np.float32)  # sums without rounding
    out = np.empty(4, np.float32)
    four_totals(a, out)
    np.testing.assert_array_equal(out, a.reshape(4, 16).sum(1))


def test_select_takes_lane_by_lane_and_nan_is_neither_larger_nor_smaller():
    a = np.float32([-2, -1, 0, 1, np.nan, np.inf, -np.inf, -0.0] * 2)
    out = np.empty_like(a)
    choice(a, out)
    np.testing.assert_array_equal(out, np.float32([2, -1, 0, 1, -1, np.inf, 2, -0.0] * 2))


@pytest.mark.parametrize("size", SIZES)
def test_rows(size):
    rng = np.random.default_rng(1)
    x = rng.normal(scale=5, size=size).astype(np.float32)
    e = np.exp(x.astype(np.float64) - x.max())
    out = np.empty(1, np.float32)
    apply(0, x, out)
    assert out[0] == x.max()
    apply(1, x, out)
    np.testing.assert_allclose(out[0], e.sum(), rtol=1e-6)
    apply(3, x, out)
    np.testing.assert_allclose(out[0], (x.astype(np.float64) ** 2).sum(), rtol=1e-6)
    frame, y = framed(size)
    apply(2, x, y)
    np.testing.assert_allclose(y, e / e.sum(), rtol=1e-5)  # x - max is rounded
    assert untouched(frame, size)


def test_a_nan_reaches_the_whole_softmax():
    for position in (0, 20, 64):
        x = np.zeros(65, np.float32)
        x[position] = np.nan
        out = np.zeros(65, np.float32)
        apply(2, x, out)
        assert np.isnan(out).all()


def test_partials_add_up_as_in_float64():
    rng = np.random.default_rng(2)
    # in float32 alone, 1 is lost beside 1e8
    partials = np.float32([[1e8] * 20, [1] * 20, [-1e8] * 20])
    out = np.empty(20, np.float32)
    add_partials(partials, out)
    np.testing.assert_array_equal(out, 1)
    partials = rng.normal(size=(2000, 37)).astype(np.float32)
    out = np.empty(37, np.float32)
    add_partials(partials, out)
    np.testing.assert_array_equal(out, partials.sum(0, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("values", [[np.inf, 1, 2], [1, np.inf, np.inf], [np.inf, -np.inf], []])
def test_partials_may_be_infinite_or_none(values):
    partials = np.repeat(np.float32(values).reshape(-1, 1), 3, 1)
    out = np.empty(3, np.float32)
    add_partials(partials, out)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(out, partials.sum(0))


@pytest.mark.parametrize("size", SIZES)
def test_integers_are_chosen_and_nothing_beyond_is_touched(size):
    a = np.random.default_rng(size).integers(-3, 3, size).astype(np.int32)
    frame = np.full(size + 2 * LANES, 99, np.int32)
    integers(a, np.int32(2), frame[LANES : LANES + size])
    np.testing.assert_array_equal(frame[LANES:-LANES], np.where(a == 2, -7, a))
    assert (frame[:LANES] == 99).all()
    assert (frame[-LANES:] == 99).all()


@jit
def turned(x, i, step, rows, y, j, y_step, lines):
    turn(x, i, step, rows, y, j, y_step, lines)


@pytest.mark.parametrize(("rows", "lines"), [(16, 16), (3, 16), (16, 5), (20, 20), (0, 1)])
def test_a_tile_is_turned_and_nothing_else_is_touched(rows, lines):
    x = np.arange(20 * 24, dtype=np.float32)
    y = np.full(20 * 32, np.nan, np.float32)
    x.reshape(20, 24)[rows:] = np.nan  # not to be read
    turned(x, 2, 24, rows, y, 7, 32, lines)
    expected = np.full((20, 32), np.nan, np.float32)
    tile = np.zeros((16, 16), np.float32)
    tile[: min(rows, 16)] = x.reshape(20, 24)[: min(rows, 16), 2:18]
    expected[: min(lines, 16), 7:23] = tile.T[: min(lines, 16)]
    np.testing.assert_array_equal(y.reshape(20, 32), expected)


@jit
def at_addresses(floats, bytes_, longs, out):
    store(out, 0, LANES, spread(floats_at(floats), 2))
    out[1] = bytes_at(bytes_)[3]
    out[2] = longs_at(longs)[1]


def test_memory_by_its_address():
    out = np.zeros(16, np.float32)
    x, b, n = np.arange(9, dtype=np.float32)[3:], np.arange(5) > 2, np.array([4, -7])
    at_addresses(address(x), address(b), address(n), out)
    assert out.tolist() == [5, 1, -7, *[5] * 13]
