"""Embedding: rows by index, their summed gradient, the padding row, errors that show the index."""

import numpy as np
import pytest

from kernels.embedding import embedding, embedding_grad

WEIGHT = np.random.default_rng(0).standard_normal((11, 20)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("shape", [(), (4,), (3, 5), (2, 0), (300, 40)])
def test_rows_by_index(shape, dtype):
    indices = np.random.default_rng(1).integers(0, 11, shape).astype(dtype)
    y = embedding(WEIGHT, np.asarray(indices))
    assert y.shape == (*shape, 20)
    np.testing.assert_array_equal(y, WEIGHT[indices])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes_are_copied(dtype):
    weight = WEIGHT.astype(dtype)
    y = embedding(weight, np.array([3, 3, 0]))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, weight[[3, 3, 0]])


@pytest.mark.parametrize("D", [1, 16, 33, 100])
@pytest.mark.parametrize("padding", [None, 0, 4, -1])
def test_gradient_adds_the_rows_of_each_index(D, padding):
    rng = np.random.default_rng(2)
    indices, dy = rng.integers(0, 11, (60, 9)), rng.standard_normal((60, 9, D))
    wanted = np.zeros((11, D))
    for k in range(11):
        wanted[k] = dy[indices == k].sum(axis=0)
    if padding is not None:
        wanted[padding] = 0
    got = embedding_grad(dy.astype(np.float32), indices, 11, padding)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embedding_grad(dy, indices, 11, padding), wanted, rtol=1e-12)


def test_gradient_is_the_transpose_of_the_lookup():
    rng = np.random.default_rng(3)
    indices, dy = rng.integers(0, 11, 50), rng.standard_normal((50, 20)).astype(np.float32)
    # <embedding(W), dy> = <W, embedding_grad(dy)>
    left = (embedding(WEIGHT, indices) * dy).sum(dtype=np.float64)
    right = (WEIGHT * embedding_grad(dy, indices, 11)).sum(dtype=np.float64)
    np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(("bad", "where"), [(11, "1, 2"), (-1, "0, 0")])
def test_an_index_out_of_range_is_shown(bad, where, dtype):
    indices = np.zeros((2, 3), np.int64)
    indices[tuple(int(i) for i in where.split(", "))] = bad
    words = rf"indices\[{where}\] is {bad}, expected 0 <= index < 11"
    with pytest.raises(IndexError, match=words):
        embedding(WEIGHT.astype(dtype), indices)
    with pytest.raises(IndexError, match=words):
        embedding_grad(np.zeros((2, 3, 4), dtype), indices, 11)


def test_other_errors():
    with pytest.raises(TypeError, match="indices are float64"):
        embedding(WEIGHT, np.zeros(3))
    with pytest.raises(ValueError, match=r"weight has shape \(4,\)"):
        embedding(np.zeros(4, np.float32), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"dy has shape \(3, 4\), indices have shape \(2,\)"):
        embedding_grad(np.zeros((3, 4), np.float32), np.zeros(2, np.int64), 5)
