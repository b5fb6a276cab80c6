"""Data sets: reading by index, stacking, splitting, and the checks on what comes in."""

import numpy as np
import pytest

from framework.data import ArrayDataset, Dataset, ImageDataset, Subset, collate, random_split


class Squares(Dataset):
    """Item-wise: (i, i^2 as a vector)."""

    task = "regression"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 7:
            raise OSError("disk on fire")
        return index, np.full(3, index * index, np.float32)


def test_array_dataset_slices_all_arrays_together():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    data = ArrayDataset(x, y)
    a, b = data.batch([4, 0, 4])
    np.testing.assert_array_equal(a, x[[4, 0, 4]])
    np.testing.assert_array_equal(b, [4, 0, 4])
    assert len(data) == 6 and data[2][1] == 2 and data[1:3][0].shape == (2, 2)
    assert data.task is None and data.classes is None


def test_classes_make_it_a_classification_and_check_the_labels():
    assert ArrayDataset(np.zeros((2, 1)), np.array([0, 1]), classes="ab").task == "classification"
    with pytest.raises(ValueError, match=r"label 2 of sample 1 is outside 0\.\.1"):
        ArrayDataset(np.zeros((2, 1)), np.array([0, 2]), classes="ab")
    with pytest.raises(ValueError, match="labels are float64, expected integers"):
        ArrayDataset(np.zeros((2, 1)), np.array([0.0, 1.0]), classes="ab")


def test_array_dataset_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"equal first dimensions, got shapes \(3, 2\), \(4,\)"):
        ArrayDataset(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="equal first dimensions"):
        ArrayDataset(np.float32(3))
    with pytest.raises(TypeError, match="at least one array"):
        ArrayDataset()
    with pytest.raises(ValueError, match="task is 'clustering'"):
        ArrayDataset(np.zeros(3), task="clustering")


def test_image_dataset_reads_bytes_as_floats_from_0_to_1():
    images = np.array([0, 8, 16], np.uint8).reshape(3, 1, 1, 1)
    data = ImageDataset(images, np.array([0, 1, 1], np.uint8), ("a", "b"), maximum=16)
    x, y = data.batch([2, 1, 0])
    assert x.dtype == np.float32 and y.dtype == np.int64
    assert x.ravel().tolist() == [1, 0.5, 0] and y.tolist() == [1, 1, 0]
    assert data.task == "classification" and data.classes == ("a", "b")


def test_image_dataset_refuses_wrong_arrays():
    good = np.zeros((2, 1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"images.*float64 \(2, 1, 4, 4\), expected uint8"):
        ImageDataset(good.astype(float), np.zeros(2, int), "ab")
    with pytest.raises(ValueError, match=r"expected uint8 \(N, C, H, W\)"):
        ImageDataset(good[0], np.zeros(2, int), "ab")
    with pytest.raises(ValueError, match=r"labels have shape \(3,\)"):
        ImageDataset(good, np.zeros(3, int), "ab")
    with pytest.raises(ValueError, match="label 5 of sample 1"):
        ImageDataset(good, np.array([0, 5]), "ab")


def test_item_wise_datasets_are_stacked():
    i, squares = Squares().batch(np.array([3, 1]))
    assert i.dtype == np.int64 and i.tolist() == [3, 1]
    assert squares.dtype == np.float32 and squares[:, 0].tolist() == [9, 1]


def test_a_failing_sample_is_named():
    with pytest.raises(OSError, match="disk on fire") as caught:
        Squares().batch([1, 7])
    assert caught.value.__notes__ == ["sample 7 of Squares"]


def test_batch_checks_its_indices():
    data = ArrayDataset(np.arange(5))
    for wrong in ([5], [-1]):
        with pytest.raises(IndexError, match=f"index {wrong[0]} is outside the data set of 5"):
            data.batch(wrong)
    with pytest.raises(TypeError, match="indices are float64"):
        data.batch([1.0])
    with pytest.raises(TypeError, match="expected integers"):
        data.batch(np.zeros((2, 2), int))
    assert data.batch([])[0].shape == (0,)


def test_collate():
    (numbers,) = collate([1.5, 2.5])
    assert numbers.dtype == np.float32
    with pytest.raises(ValueError, match=r"differ in shape: .*\(2,\).* and .*\(3,\)"):
        collate([(np.zeros(3), 1), (np.zeros(2), 1)])
    with pytest.raises(ValueError, match="no samples"):
        collate([])
    with pytest.raises(TypeError, match="a sample holds dict"):
        collate([{"a": 1}])


@pytest.mark.parametrize("source", [Squares(), ArrayDataset(np.arange(10) * 2, task="regression")])
def test_subset_keeps_order_and_meaning(source):
    part = Subset(source, [6, 2, 4])
    assert len(part) == 3 and part.task == "regression"
    np.testing.assert_array_equal(part.batch([2, 0])[0], source.batch([4, 6])[0])
    nested = Subset(part, [1])
    np.testing.assert_array_equal(nested.batch([0])[0], source.batch([2])[0])
    with pytest.raises(IndexError, match="index 10"):
        Subset(source, [10])


def test_random_split_shares_nothing_and_repeats_by_seed():
    data = ArrayDataset(np.arange(1797))
    parts = random_split(data, [0.8, 0.2], seed=3)
    assert [len(part) for part in parts] == [1438, 359]
    together = np.concatenate([part.indices for part in parts])
    assert sorted(together.tolist()) == list(range(1797)) and together.tolist() != list(range(1797))
    again, other = random_split(data, [0.8, 0.2], seed=3), random_split(data, [0.8, 0.2], seed=4)
    np.testing.assert_array_equal(parts[0].indices, again[0].indices)
    assert (parts[0].indices != other[0].indices).any()


def test_random_split_by_sizes_and_fractions():
    data = ArrayDataset(np.arange(10))
    assert [len(p) for p in random_split(data, [3, 7])] == [3, 7]
    assert [len(p) for p in random_split(data, [0.1] * 10)] == [1] * 10
    assert [len(p) for p in random_split(data, [0.33, 0.33, 0.34])] == [4, 3, 3]
    for lengths, message in (
        ([3, 8], "sum to 11, the data set has 10"),
        ([0.5, 0.6], "sum to 1.1, expected 1"),
        ([-1, 11], "expected positive"),
        ([], "expected positive"),
    ):
        with pytest.raises(ValueError, match=message):
            random_split(data, lengths)
    with pytest.raises(ValueError, match="seed is 1.5, expected an integer"):
        random_split(data, [3, 7], seed=1.5)
