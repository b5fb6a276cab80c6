"""Matrix products in every combination of transposes, memory layouts and batches, and the BLAS
behind them."""

import itertools

import numpy as np
import pytest

from kernels.matmul import matmul
from kernels.registry import has_numba, reference_kernels

rng = np.random.default_rng()

#: (m, k, n): tiny ones go to NumPy, the others to our threads; vectors, odd sizes, several pieces.
SIZES = [(1, 1, 1), (3, 5, 7), (128, 784, 10), (1, 300, 400), (300, 400, 1), (129, 257, 65)]
LARGE = [(600, 30, 500), (40, 500, 1100), (1, 70_000, 1)]

LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "slice of wider rows": lambda x: np.concatenate([x, x], -1)[..., : x.shape[-1]],
    "every second element": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, :],
}


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    global rng
    rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def exact(a, b, transpose_a=False, transpose_b=False, bias=None):
    a, b = a.astype(np.float64), b.astype(np.float64)
    a = a.swapaxes(-1, -2) if transpose_a else a
    b = b.swapaxes(-1, -2) if transpose_b else b
    return np.einsum("...mk,...kn->...mn", a, b) + (0 if bias is None else bias)


def check(y, expected, k):
    assert y.shape == expected.shape
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=4e-6 * max(k, 1) ** 0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_transpose_layout_and_batch(size, lead, layout):
    m, k, n = size
    for ta, tb, biased in itertools.product((False, True), repeat=3):
        a = LAYOUTS[layout](normal(*lead, *((k, m) if ta else (m, k))))
        b = LAYOUTS[layout](normal(*lead, *((n, k) if tb else (k, n))))
        bias = normal(n) if biased else None
        check(matmul(a, b, ta, tb, bias), exact(a, b, ta, tb, bias), k)


@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_products(size):
    m, k, n = size
    a, b, bias = normal(m, k), normal(k, n), normal(n)
    check(matmul(a, b, bias=bias), exact(a, b, bias=bias), k)
    check(matmul(a.T.copy(), b.T, True, True), exact(a, b), k)


def test_attention_heads_are_multiplied_where_they_lie():
    q = normal(4, 64, 8, 32).transpose(0, 2, 1, 3)  # (B, H, T, D) in the memory of (B, T, H, D)
    check(matmul(q, q, transpose_b=True), exact(q, q, transpose_b=True), 32)


def test_a_broadcast_batch_axis_is_read_again():
    a, b = normal(6, 100, 90), np.broadcast_to(normal(90, 80), (6, 90, 80))
    check(matmul(a, b), exact(a, b), 90)


def test_read_only_arrays_are_fine():
    a, b = normal(200, 100), normal(100, 90)
    a.flags.writeable = b.flags.writeable = False
    check(matmul(a, b), exact(a, b), 100)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 4, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_empty_products(shape, lead):
    m, k, n = shape
    assert matmul(normal(*lead, m, k), normal(*lead, k, n), bias=normal(n)).shape == (*lead, m, n)


def test_an_empty_sum_is_zero():
    bias = normal(4)
    assert (matmul(normal(3, 0), normal(0, 4)) == 0).all()
    np.testing.assert_array_equal(matmul(normal(3, 0), normal(0, 4), bias=bias), [bias] * 3)
    assert matmul(np.empty((0, 3, 5), np.float32), np.empty((0, 5, 2), np.float32)).shape == (
        0,
        3,
        2,
    )


@pytest.mark.parametrize("size", [4, 200])
def test_out_is_filled_and_returned_whatever_was_in_it(size):
    a, b, bias = normal(size, size), normal(size, size), normal(size)
    expected = matmul(a, b, bias=bias)
    for out in (
        np.full((size, size), np.nan, np.float32),
        np.full((size, size), np.nan, np.float32).T,
        np.full((size, 2 * size), np.nan, np.float32)[:, ::2],
    ):
        assert matmul(a, b, bias=bias, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_float16_out_is_filled_too():
    a, b = normal(20, 30).astype(np.float16), normal(30, 10).astype(np.float16)
    out = np.empty((20, 10), np.float16)
    assert matmul(a, b, out=out) is out
    np.testing.assert_array_equal(out, matmul(a, b))
    np.testing.assert_allclose(out, exact(a, b), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [8, 150])
def test_nan_and_infinity_reach_only_their_row(size):
    a, b = normal(size, size), normal(size, size)
    a[1, 2], a[3, 4] = np.nan, np.inf
    y = matmul(a, b)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[3], np.copysign(np.inf, b[4]))
    assert np.isfinite(np.delete(y, (1, 3), axis=0)).all()


def test_the_same_bits_every_time():
    a, b = normal(200, 300), normal(300, 250)
    first = matmul(a, b).tobytes()
    assert all(matmul(a, b).tobytes() == first for _ in range(10))


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_without_openblas_numpy_multiplies(monkeypatch):
    from kernels.cpu import blas

    monkeypatch.setattr(blas, "_ADDRESSES", {})
    a, b, bias = normal(200, 100)[::-1], normal(90, 100), normal(90)
    check(matmul(a, b, False, True, bias), exact(a, b, False, True, bias), 100)


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_openblas_keeps_the_users_number_of_threads():
    import ctypes

    from kernels.cpu import blas

    if not blas.has_openblas():
        pytest.skip("NumPy was built without OpenBLAS")
    get = ctypes.CFUNCTYPE(ctypes.c_int)(blas._ADDRESSES["get_threads"])
    before = get()
    matmul(normal(200, 300), normal(300, 250))
    assert get() == before


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
@pytest.mark.parametrize(
    "work", [(1, 1, 1, 1), (128, 512, 784, 1), (4096, 4096, 4096, 1), (9, 9, 9, 500)]
)
def test_pieces_are_no_more_than_the_work_deserves(work):
    from kernels.cpu.blas import _grid

    m, n, k, batch = work
    for threads in (1, 2, 6, 64):
        rows, columns = _grid(m, n, k, batch, threads)
        pieces = rows * columns * batch
        assert pieces <= max(batch, 2 * threads, 1)
        assert pieces == batch or m * n * k // (rows * columns) >= 120_000


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ((2, 3), (4, 5), {}, r"a is \(2, 3\) \(transpose_a=False\) and b is \(4, 5\)"),
        ((2, 3), (3, 5), {"transpose_b": True}, r"b is \(3, 5\) \(transpose_b=True\).* 3 and 5"),
        ((3,), (3, 5), {}, r"a is \(3,\), b is \(3, 5\)"),
        ((2, 4, 3), (3, 5), {}, "equal leading axes"),
        ((2, 4, 3), (3, 3, 5), {}, "equal leading axes"),
        ((2, 3), (3, 5), {"bias": np.ones(4, np.float32)}, r"bias is float32\(4,\).*\(5,\)"),
        ((2, 3), (3, 5), {"bias": np.ones(5)}, "bias is float64"),
        ((2, 3), (3, 5), {"out": np.ones((5, 2), np.float32)}, r"out is float32\(5, 2\).*\(2, 5\)"),
    ],
)
def test_what_does_not_fit_is_shown(a, b, options, message):
    for reference in (False, True):
        with pytest.raises(ValueError, match=message):
            if reference:
                with reference_kernels():
                    matmul(normal(*a), normal(*b), **options)
            else:
                matmul(normal(*a), normal(*b), **options)


def test_dtypes_are_not_mixed():
    with pytest.raises(ValueError, match="a is float32, b is float64"):
        matmul(normal(2, 3), np.ones((3, 2)))
