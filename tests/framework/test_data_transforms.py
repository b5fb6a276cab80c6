"""Scalings, one-hot, Compose, and saving them."""

import json

import numpy as np
import pytest

from framework.data import (
    ArrayDataset,
    Compose,
    ImageDataset,
    MinMax,
    OneHot,
    RandomCrop,
    RandomHorizontalFlip,
    Standardise,
    from_state,
)

TABLE = np.random.default_rng(0).normal(5, 3, (300, 4))
TABLE[:, 2] = 0.1  # constant, and not exact in binary


def test_standardise_gives_mean_0_and_deviation_1():
    scaled = Standardise().fit(TABLE)(TABLE)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0, 1], atol=1e-12)


def test_standardise_survives_a_large_mean():
    x = np.random.default_rng(1).normal(1e8, 1.0, (10_000, 1))
    np.testing.assert_allclose(Standardise().fit(x).scale, x.std(0), rtol=1e-9)


def test_min_max_gives_0_to_1_and_constants_0():
    scaled = MinMax().fit(TABLE)(TABLE)
    assert scaled.min(0).tolist() == [0, 0, 0, 0] and scaled.max(0).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("kind", [MinMax, Standardise])
@pytest.mark.parametrize(
    ("per", "shape"), [("feature", (3, 4, 4)), ("channel", (3, 1, 1)), ("all", (1, 1, 1))]
)
def test_statistics_per_feature_channel_or_all(kind, per, shape):
    x = (
        np.random.default_rng(0).normal(size=(9000, 3, 4, 4))
        * np.array([1, 10, 100])[:, None, None]
    )
    scaling = kind(per).fit(x)  # more rows than a chunk
    assert scaling.shift.shape == shape == scaling.scale.shape
    axes = {"feature": 0, "channel": (0, 2, 3), "all": None}[per]
    want = (x.mean(axes), x.std(axes)) if kind is Standardise else (x.min(axes), np.ptp(x, axes))
    np.testing.assert_allclose(np.squeeze(scaling.shift), want[0], atol=1e-10)
    np.testing.assert_allclose(np.squeeze(scaling.scale), want[1], rtol=1e-10)


def test_fit_on_a_dataset_uses_its_inputs():
    images = np.random.default_rng(0).integers(0, 255, (50, 1, 3, 3)).astype(np.uint8)
    data = ImageDataset(images, np.zeros(50, np.int64), ("a",))
    a, b = Standardise().fit(data), Standardise().fit(images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(a.shift, b.shift)
    np.testing.assert_array_equal(a.scale, b.scale)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("uint8", "float32"), ("int64", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_scaling_dtypes(given, expected):
    x = np.arange(6).reshape(3, 2).astype(given)
    before = x.copy()
    assert Standardise().fit(x)(x).dtype == expected
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("kind", [MinMax, Standardise])
def test_scaling_says_what_is_wrong(kind):
    with pytest.raises(RuntimeError, match=f"{kind.__name__} is not fitted"):
        kind()(TABLE)
    with pytest.raises(ValueError, match="on no samples"):
        kind().fit(TABLE[:0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        kind().fit(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        kind().fit(np.array([[1.0], [np.inf]]))
    with pytest.raises(ValueError, match=r"x has samples \(5,\), .* was fitted for \(4,\)"):
        kind().fit(TABLE)(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="per is 'row'"):
        kind("row")
    with pytest.raises(ValueError, match=r"needs samples \(C, ...\), got samples \(4,\)"):
        kind("channel").fit(TABLE)
    with pytest.raises(TypeError, match="expected numbers"):
        kind().fit(np.array(["a", "b"]))


def test_one_hot():
    out = OneHot(3)(np.array([2, 0]))
    assert out.dtype == np.float32 and out.tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"label 3 of sample 1 is outside 0\.\.2"):
        OneHot(3)(np.array([0, 3]))
    with pytest.raises(ValueError, match=r"label -1"):
        OneHot(3)(np.array([-1]))
    with pytest.raises(ValueError, match="labels are float64"):
        OneHot(3)(np.array([1.0]))
    with pytest.raises(ValueError, match=r"labels have shape \(2, 1\)"):
        OneHot(3)(np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="classes is 0"):
        OneHot(0)


def test_compose_runs_in_order_and_flattens():
    double = lambda x: x * 2  # noqa: E731
    both = Compose(double, Compose(Standardise().fit(TABLE), double))
    assert len(both.transforms) == 3 and both.draws == 0
    np.testing.assert_array_equal(both(TABLE), Standardise().fit(TABLE)(TABLE * 2) * 2)


def test_compose_gives_each_random_transform_its_own_draws():
    x = np.arange(2 * 6 * 6, dtype=np.float32).reshape(2, 6, 6)
    flip, crop = RandomHorizontalFlip(), RandomCrop(4)
    both = Compose(flip, crop)
    assert both.draws == 3
    u = np.array([[0.1, 0.99, 0.0], [0.9, 0.0, 0.99]], np.float32)
    np.testing.assert_array_equal(both(x, u), crop(flip(x, u[:, :1]), u[:, 1:]))
    with pytest.raises(ValueError, match=r"Compose needs draws u \(2, 3\), got none"):
        both(x)
    with pytest.raises(ValueError, match=r"got \(2, 2\)"):
        both(x, u[:, :2])


def test_a_pipeline_survives_json_and_arrays():
    images = np.random.default_rng(0).random((20, 1, 8, 8)).astype(np.float32)
    pipeline = Compose(Standardise("channel").fit(images), RandomCrop((6, 5), padding=1), OneHot(3))
    config = json.loads(json.dumps(pipeline.config()))
    arrays = pipeline.state_dict()
    assert sorted(arrays) == ["0.scale", "0.shift"]
    same = from_state(config, arrays)
    assert same.transforms[1] == RandomCrop((6, 5), padding=1) and same.transforms[2] == OneHot(3)
    np.testing.assert_array_equal(same.transforms[0](images), pipeline.transforms[0](images))


def test_saving_and_loading_say_what_is_wrong():
    with pytest.raises(TypeError, match="no Transform"):
        Compose(lambda x: x).config()
    with pytest.raises(
        ValueError, match=r"unknown transform 'Blur'; there are: Compose, CutOut, Min"
    ) as caught:
        from_state({"type": "Blur"}, {})
    assert "Scaling" not in str(caught.value)
    fitted = MinMax().fit(TABLE)
    with pytest.raises(ValueError, match=r"needs shift and scale of one shape, got shift \(4,\)"):
        from_state(fitted.config(), {"shift": fitted.shift})
    with pytest.raises(ValueError, match="OneHot has no fitted arrays, got mean"):
        OneHot(2).load_state_dict({"mean": TABLE})
    with pytest.raises(ValueError, match="no transform at positions 4 of 1"):
        Compose(MinMax()).load_state_dict({"4.shift": TABLE})


def test_an_unfitted_scaling_stays_unfitted():
    assert MinMax().state_dict() == {}
    assert from_state(MinMax("all").config(), {}) == MinMax("all")
    assert ArrayDataset(TABLE).batch([0])[0].shape == (1, 4)
