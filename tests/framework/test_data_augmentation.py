"""Image transforms against slow, plain loops and against NumPy's exact rotations."""

import math

import numpy as np
import pytest

from framework.data import (
    ArrayDataset,
    CutOut,
    DataLoader,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomVerticalFlip,
    rotate,
    warp,
)
from framework.data.rand_augment import OPERATIONS

RNG = np.random.default_rng(0)
ALL = [
    RandomHorizontalFlip(),
    RandomVerticalFlip(),
    RandomCrop(5, padding=2),
    RandomRotation(30),
    CutOut(3),
    RandAugment(3, 1.0),
]


def draws(transform, samples):
    return np.random.default_rng(1).random((samples, transform.draws), dtype=np.float32)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("shape", [(6, 3, 7, 5), (6, 7, 5), (1, 1, 7, 7), (0, 3, 7, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_shape_dtype_and_input_are_kept(transform, shape, dtype):
    x = (RNG.random(shape) * 200).astype(dtype)
    before = x.copy()
    out = transform(x, draws(transform, len(x)))
    size = (5, 5) if isinstance(transform, RandomCrop) else shape[-2:]
    assert out.dtype == x.dtype and out.shape == (*shape[:-2], *size)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_each_sample_depends_on_its_own_row_of_draws(transform):
    x = RNG.random((8, 2, 9, 9)).astype(np.float32)
    u = draws(transform, 8)
    together = transform(x, u)
    for i in range(8):
        np.testing.assert_array_equal(transform(x[i : i + 1], u[i : i + 1])[0], together[i])


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_what_is_no_image_is_refused(transform):
    with pytest.raises(ValueError, match=r"x has shape \(4, 9\), expected images"):
        transform(np.zeros((4, 9)), draws(transform, 4))
    with pytest.raises(ValueError, match="needs draws u"):
        transform(np.zeros((4, 9, 9)))


def test_flips():
    x = RNG.random((2, 3, 4, 5))
    u = np.array([[0.49], [0.5]])
    across, down = RandomHorizontalFlip()(x, u), RandomVerticalFlip()(x, u)
    np.testing.assert_array_equal(across, np.stack([x[0, :, :, ::-1], x[1]]))
    np.testing.assert_array_equal(down, np.stack([x[0, :, ::-1], x[1]]))
    with pytest.raises(ValueError, match="probability is 1.5"):
        RandomHorizontalFlip(1.5)


def test_crop_is_a_window_of_the_padded_image_and_reaches_all_of_them():
    x = RNG.random((1, 2, 4, 6)).astype(np.float32)
    crop = RandomCrop((3, 5), padding=1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    top_most = np.nextafter(np.float32(1), np.float32(0))
    for a, row in ((0.0, 0), (0.3, 1), (top_most, 3)):
        for b, column in ((0.0, 0), (0.3, 1), (top_most, 3)):
            got = crop(x, np.array([[a, b]], np.float32))
            np.testing.assert_array_equal(got, padded[:, :, row : row + 3, column : column + 5])


def test_crop_refuses_sizes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"size \(9, 9\) does not fit into \(4, 6\) with padding 2"
    ):
        RandomCrop(9, padding=2)(np.zeros((1, 4, 6)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="size is 0"):
        RandomCrop(0)
    with pytest.raises(ValueError, match="padding is -1"):
        RandomCrop(3, padding=-1)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_are_exact(turns, size):
    x = RNG.random((2, 3, size, size))
    got = rotate(x, np.full(2, turns * math.pi / 2))
    np.testing.assert_allclose(got, np.rot90(x, turns, axes=(2, 3)), atol=1e-12)


def test_rotation_against_a_loop():
    x, angle = RNG.random((1, 5, 8)), 0.4
    want = np.zeros((5, 8))
    for row in range(5):
        for column in range(8):
            y, z = row - 2.0, column - 3.5
            r = math.sin(angle) * z + math.cos(angle) * y + 2.0
            c = math.cos(angle) * z - math.sin(angle) * y + 3.5
            for i in (math.floor(r), math.floor(r) + 1):
                for j in (math.floor(c), math.floor(c) + 1):
                    if 0 <= i < 5 and 0 <= j < 8:
                        want[row, column] += x[0, i, j] * (1 - abs(r - i)) * (1 - abs(c - j))
    np.testing.assert_allclose(rotate(x, np.array([angle]))[0], want, atol=1e-12)


def test_rotation_keeps_infinities_where_they_are():
    x = np.zeros((1, 5, 5), np.float32)
    x[0, 2, 2] = np.inf
    got = rotate(x, np.zeros(1))
    np.testing.assert_array_equal(got, x)


def test_rotation_angles_span_the_range():
    x = RNG.random((2, 6, 6))
    u = np.array([[0.0], [0.5]])
    got = RandomRotation(90)(x, u)  # -90 degrees, and none
    np.testing.assert_allclose(got[0], np.rot90(x[0], -1), atol=1e-12)
    np.testing.assert_allclose(got[1], x[1], atol=1e-12)
    with pytest.raises(ValueError, match="degrees is -5"):
        RandomRotation(-5)


def test_cut_out_clears_one_square():
    x = np.ones((3, 2, 8, 8), np.float32)
    u = np.array([[0.5, 0.5], [0.0, 0.0], [0.99, 0.5]], np.float32)
    got = CutOut(4)(x, u)
    want = x.copy()
    want[0, :, 2:6, 2:6] = 0
    want[1, :, 0:2, 0:2] = 0  # over the edge
    want[2, :, 5:8, 2:6] = 0
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="size is 0"):
        CutOut(0)


def test_cut_out_clears_nan():
    assert CutOut(9)(np.full((1, 4, 4), np.nan), np.full((1, 2), 0.5)).tolist() == [[[0.0] * 4] * 4]


def test_warp_moves_shears_and_turns():
    x = RNG.random((2, 1, 5, 5))
    straight = np.tile(np.eye(2), (2, 1, 1))
    moved = warp(x, straight, np.array([[1.0, 0.0], [0.0, -2.0]]))
    np.testing.assert_allclose(moved[0, 0, :4], x[0, 0, 1:], rtol=1e-12)
    np.testing.assert_allclose(moved[1, 0, :, 2:], x[1, 0, :, :3], rtol=1e-12)
    assert not moved[0, 0, 4].any() and not moved[1, 0, :, :2].any()
    sheared = warp(x, np.array([[[1, 0], [1, 1]]] * 2, float))  # column = row + column
    for row in range(5):
        for column in range(5):
            source = column + row - 2
            expected = x[0, 0, row, source] if 0 <= source < 5 else 0
            assert sheared[0, 0, row, column] == pytest.approx(expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_stay_in_range_and_do_nothing_at_strength_0(name):
    x = RNG.random((40, 3, 6, 6)).astype(np.float32)
    strength = np.linspace(-1, 1, 40, dtype=np.float32)
    out = OPERATIONS[name](x, strength)
    assert out.min() >= 0 and out.max() <= 1 and out.shape == x.shape
    tolerance = 1 / 255 if name == "posterise" else 1e-6
    np.testing.assert_allclose(OPERATIONS[name](x, 0 * strength), x, atol=tolerance)
    if name != "identity":
        assert np.abs(out - x)[[0, -1]].max(axis=(1, 2, 3)).max() > 0.02


def test_operations_known_values():
    x = np.float32([[[[0.2, 0.9]], [[0.4, 0.1]], [[0.0, 0.5]]]])  # (1, 3, 1, 2)
    one, half = np.float32([1]), np.float32([0.5])
    brighter = OPERATIONS["brightness"](x, one)
    np.testing.assert_allclose(brighter, np.minimum(1.9 * x, 1), rtol=1e-6)
    np.testing.assert_allclose(
        OPERATIONS["solarise"](x, half)[0, :, 0], [[0.2, 0.1], [0.4, 0.1], [0, 0.5]], rtol=1e-6
    )
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    pale = OPERATIONS["colour"](x, -one)
    np.testing.assert_allclose(pale, 0.1 * x + 0.9 * grey[:, None], rtol=1e-5)
    posters = OPERATIONS["posterise"](x, one)
    assert set(np.round(posters * 15, 4).ravel()) <= set(range(16))


def test_mixup_shares_have_the_beta_distribution():
    u = (np.arange(100_000) + 0.5) / 100_000
    for alpha in (0.2, 1.0, 4.0):
        share = MixUp(3, alpha).shares(u)
        assert (np.diff(share) >= 0).all() and 0 <= share.min() and share.max() <= 1
        assert share.mean() == pytest.approx(0.5, abs=1e-6)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)


def test_mixup_mixes_inputs_and_labels_alike():
    x = np.eye(4, dtype=np.float32)  # sample i is the i-th unit vector, of class i
    mixed, labels = MixUp(4, 1.0)(x, np.arange(4), np.full((4, 1), 0.25, np.float32))
    np.testing.assert_allclose(mixed, labels, rtol=1e-6)
    np.testing.assert_allclose(mixed[0], [0.25, 0.75, 0, 0], atol=1e-3)
    with pytest.raises(TypeError, match="x is uint8"):
        MixUp(4)(x.astype(np.uint8), np.arange(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="alpha is 0"):
        MixUp(4, 0)


def test_loader_mixes_by_seed_and_epoch():
    data = ArrayDataset(RNG.random((20, 1, 4, 4)).astype(np.float32), np.arange(20) % 3)

    def epoch(seed, number, workers=0):
        loader = DataLoader(data, 8, shuffle=True, seed=seed, workers=workers, mix=MixUp(3, 1.0))
        loader.set_epoch(number)
        return np.concatenate([y.numpy() for _, y in loader])

    first = epoch(0, 0)
    assert first.shape == (20, 3) and first.dtype == np.float32
    np.testing.assert_allclose(first.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(first, epoch(0, 0, workers=2))
    assert (first != epoch(0, 1)).any() and (first != epoch(1, 0)).any()
