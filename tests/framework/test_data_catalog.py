"""The catalog: digits, IDX sets, CIFAR-10, synthetic sets; unknown names and corrupt files."""

import gzip
import io
import os
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from framework.data import CATALOG, DataError, cifar, load, names
from framework.data.catalog import CLOTHES, DIGITS
from framework.data.synthetic import moons

# The published files, if there are any: FRAMEWORK_DATA, else a folder beside the checkout.
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FRAMEWORK_DATA") or ROOT.parent / "shared" / "data")
needs_mnist = pytest.mark.skipif(
    not (DATA / "mnist" / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="needs MNIST's test files; set FRAMEWORK_DATA to their folder",
)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FRAMEWORK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("framework.data.download.download", refuse)


def everything(dataset):
    return dataset.batch(np.arange(len(dataset)))


def test_names_and_summaries():
    assert names() == [
        "cifar10",
        "circles",
        "digits",
        "fashion-mnist",
        "mnist",
        "moons",
        "regression",
        "spirals",
    ]
    assert all("\n" not in entry.summary and entry.summary for entry in CATALOG.values())


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(
        DataError,
        match=r"unknown dataset 'mnits' \(did you mean mnist\?\); there are: cifar10, .*moons",
    ):
        load("mnits")
    with pytest.raises(DataError, match="unknown dataset 'zzz'; there are"):
        load("zzz")
    with pytest.raises(TypeError, match="digits has no option 'samples'; it has: none"):
        load("digits", samples=3)
    with pytest.raises(TypeError, match="moons has no option 'noize'; it has: samples, noise"):
        load("moons", noize=3)


def test_digits(offline):
    splits = load("digits", seed=1)
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert (
        splits.shape == (1, 8, 8) and splits.classes == DIGITS and splits.task == "classification"
    )
    assert "80/20 split with seed 1" in splits.description
    x, y = everything(splits.train)
    assert x.dtype == np.float32 and x.shape == (1438, 1, 8, 8) and y.dtype == np.int64
    assert x.min() == 0 and x.max() == 1
    assert sorted(set(y.tolist())) == list(range(10))
    both = np.concatenate([x, everything(splits.test)[0]])
    assert int((both * 16).sum()) == 561718  # the published file's sum of pixels
    np.testing.assert_array_equal(x, everything(load("digits", seed=1).train)[0])
    assert (x != everything(load("digits", seed=2).train)[0]).any()


def test_digits_come_with_their_attribution():
    text = (Path(cifar.__file__).parent / "digits.LICENSE.txt").read_text()
    for part in ("E. Alpaydin", "C. Kaynak", "CC BY 4.0", "UCI", "1998"):
        assert part in text


@needs_mnist
def test_mnist_test_set_alone_is_split(offline, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_DATA", str(DATA))
    if (DATA / "mnist" / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("the training files are there, too")
    splits = load("mnist")
    assert (len(splits.train), len(splits.test)) == (8000, 2000)
    assert splits.shape == (1, 28, 28) and splits.classes == DIGITS
    assert "lacks the training files" in splits.description
    assert "first 8,000 train, last 2,000 test" in splits.description
    x, y = splits.train.batch(np.arange(5))
    assert y.tolist() == [7, 2, 1, 0, 4]  # how the published test set begins
    assert x.dtype == np.float32 and x.max() == 1
    labels = np.concatenate([splits.train.labels, splits.test.labels])
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx_set(folder, name, parts=("train", "t10k"), zipped=True, side=28):
    (folder / name).mkdir()
    for part, count in zip(("train", "t10k"), (10, 5), strict=True):
        if part in parts:
            images = np.arange(count * side * side).reshape(count, side, side) % 256
            for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
                path = folder / name / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
                path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("name", "classes"), [("mnist", DIGITS), ("fashion-mnist", CLOTHES)])
def test_idx_sets_with_all_files(offline, folders, name, classes, zipped):
    write_idx_set(folders, name, zipped=zipped)
    splits = load(name)
    assert (len(splits.train), len(splits.test)) == (10, 5) and splits.classes == classes
    assert splits.description.endswith("10 train, 5 test")
    assert everything(splits.train)[0].shape == (10, 1, 28, 28)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_files_in_the_cache_go_with_test_files_of_the_user(
    offline, folders, tmp_path, zipped
):
    write_idx_set(folders, "mnist", parts=("t10k",))
    (tmp_path / "cache" / "data").mkdir(parents=True)
    write_idx_set(tmp_path / "cache" / "data", "mnist", parts=("train",), zipped=zipped)
    splits = load("mnist")
    assert (len(splits.train), len(splits.test)) == (10, 5)
    assert splits.description.endswith("10 train, 5 test")


def test_test_files_in_the_cache_alone_are_not_split(offline, tmp_path):
    (tmp_path / "cache" / "data").mkdir(parents=True)
    write_idx_set(tmp_path / "cache" / "data", "mnist", parts=("t10k",))
    with pytest.raises(AssertionError, match="a download was tried"):
        load("mnist")


def test_a_set_with_only_test_files_is_split_and_says_so(offline, folders):
    write_idx_set(folders, "fashion-mnist", parts=("t10k",))
    splits = load("fashion-mnist")
    assert (len(splits.train), len(splits.test)) == (4, 1)
    assert "first 4 train, last 1 test" in splits.description
    assert everything(splits.test)[1].tolist() == [4]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("train-images-idx3-ubyte.gz", b"<html>", "not an IDX file"),
        (
            "train-images-idx3-ubyte.gz",
            idx(np.zeros((10, 4))),
            r"uint8 \(10, 4\), expected uint8 images",
        ),
        (
            "train-images-idx3-ubyte.gz",
            idx(np.zeros((10, 4, 4))),
            r"are \(1, 4, 4\), test images \(1, 28",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            idx(np.zeros(9)),
            r"holds uint8 \(9,\), expected uint8 \(10,\)",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            idx(np.full(10, 10)),
            r"label 10 of sample 0 is outside 0\.\.9",
        ),
    ],
)
def test_a_corrupt_idx_set_names_the_file(offline, folders, file, content, reason):
    write_idx_set(folders, "mnist")
    (folders / "mnist" / file).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load("mnist")
    assert "\n" not in str(caught.value)
    if "test images" not in reason:
        assert file in str(caught.value)


def write_cifar(folder, zipped):
    rng = np.random.default_rng(0)
    records = {}
    for name in cifar.TRAIN + cifar.TEST:
        labels = rng.integers(0, 10, (cifar.IMAGES_PER_FILE, 1))
        pixels = rng.integers(0, 256, (cifar.IMAGES_PER_FILE, cifar.RECORD - 1))
        records[name] = np.hstack([labels, pixels]).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    if not zipped:
        for name, record in records.items():
            (folder / name).write_bytes(record.tobytes())
        return records
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, record in {"readme.html": np.zeros(3, np.uint8), **records}.items():
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = record.nbytes
            tar.addfile(member, io.BytesIO(record.tobytes()))
    return records


@pytest.fixture
def small_cifar(monkeypatch, offline):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", 4)


@pytest.mark.parametrize(
    ("place", "zipped"), [("cifar10", True), ("cifar10", False), (f"cifar10/{cifar.FOLDER}", False)]
)
def test_cifar10_from_archive_or_folder(small_cifar, folders, place, zipped):
    records = write_cifar(folders / place, zipped)
    splits = load("cifar10")
    assert (len(splits.train), len(splits.test)) == (20, 4) and splits.shape == (3, 32, 32)
    x, y = everything(splits.train)
    second = records["data_batch_2.bin"]
    assert y[4:8].tolist() == second[:, 0].tolist()
    np.testing.assert_array_equal(x[5], second[1, 1:].reshape(3, 32, 32) / np.float32(255))
    assert splits.classes[1] == "automobile"


def test_a_corrupt_cifar10_names_the_file(small_cifar, folders):
    write_cifar(folders / "cifar10", zipped=False)
    file = folders / "cifar10" / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin: holds 12291 bytes, expected 4 records"):
        load("cifar10")
    file.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(DataError, match=r"data_batch_3.bin: label 11 is outside 0\.\.9"):
        load("cifar10")
    file.unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin: cannot be read"):
        load("cifar10")


def test_a_corrupt_cifar10_archive_is_one_line(small_cifar, folders):
    write_cifar(folders / "cifar10", zipped=True)
    archive = folders / "cifar10" / "cifar-10-binary.tar.gz"
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"hello", b"\x1f\x8b" + bytes(50)):
        archive.write_bytes(content)
        with pytest.raises(DataError, match="cifar-10-binary.tar.gz: "):
            load("cifar10")
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(DataError, match="lacks data_batch_1.bin, .*test_batch.bin"):
        load("cifar10")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_that_unpacks_to_anything_takes_no_memory(tmp_path, monkeypatch, kind):
    """A member, or what is said about one, of 8 GB; there are 16 MB of zeros."""
    monkeypatch.setattr(cifar, "MAX_BYTES", 2**20)
    member = tarfile.TarInfo(f"{cifar.FOLDER}/data_batch_1.bin")
    member.type, member.size = kind, 8 * 2**30 - 1
    archive = tmp_path / "c.tar.gz"
    archive.write_bytes(gzip.compress(member.tobuf() + bytes(2**24)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"c\.tar\.gz: .*unpacks to more than 1,048,576 bytes"):
            cifar.read_cifar10(archive)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "classes"), [("moons", 2), ("circles", 2), ("spirals", 3)])
def test_synthetic_classes(name, classes):
    splits = load(name, seed=4, samples=300)
    x, y = everything(splits.train)
    assert x.shape == (240, 2) and x.dtype == np.float32 and y.dtype == np.int64
    assert splits.shape == (2,) and len(splits.classes) == classes and len(splits.test) == 60
    together = np.concatenate([y, everything(splits.test)[1]])
    assert np.bincount(together).tolist() == [300 // classes] * classes
    np.testing.assert_array_equal(x, everything(load(name, seed=4, samples=300).train)[0])
    assert (x != everything(load(name, seed=5, samples=300).train)[0]).any()


def test_shapes_without_noise():
    x, y = everything(load("circles", samples=200, noise=0.0, factor=0.25).train)
    np.testing.assert_allclose(np.hypot(*x.T), np.where(y == 0, 1, 0.25), rtol=1e-5)
    (upper, lower), labels = moons(200, noise=0.0).batch(np.arange(200))[0].T, np.arange(200) % 2
    assert (lower[labels == 0] >= 0).all() and (lower[labels == 1] <= 0.5).all()
    np.testing.assert_allclose(np.hypot(upper, lower)[labels == 0], 1, rtol=1e-5)


def test_regression_is_friedmans_function():
    splits = load("regression", samples=5000, noise=0.0)
    x, y = everything(splits.train)
    assert splits.task == "regression" and splits.classes is None and splits.shape == (10,)
    assert y.shape == (4000, 1) and y.dtype == np.float32
    want = (
        10 * np.sin(np.pi * x[:, 0] * x[:, 1])
        + 20 * (x[:, 2] - 0.5) ** 2
        + 10 * x[:, 3]
        + 5 * x[:, 4]
    )
    np.testing.assert_allclose(y[:, 0], want, rtol=1e-5)
    assert abs(y.std() - 4.9) < 0.15
    noisy = everything(load("regression", samples=5000, noise=2.0).train)[1]
    assert abs((noisy - y).std() - 2.0) < 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("moons", {"samples": 0}, "samples is 0, expected more than 0"),
        ("moons", {"noise": -1.0}, "noise is -1.0"),
        ("circles", {"factor": 1.0}, "factor is 1.0"),
        ("spirals", {"arms": 0}, "arms is 0"),
        ("regression", {"features": 4}, "features is 4, expected at least 5"),
        ("regression", {"noise": -2.0}, "noise is -2.0"),
    ],
)
def test_synthetic_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_a_damaged_installation_is_one_line(tmp_path, monkeypatch):
    package = Path(cifar.__file__).parent
    shutil.copy(package / "catalog.py", tmp_path / "catalog.py")
    (tmp_path / "digits.npz").write_bytes(b"PK not a zip file")
    monkeypatch.setattr("framework.data.catalog.__file__", str(tmp_path / "catalog.py"))
    with pytest.raises(DataError, match=r"digits.npz: .*; reinstall the framework"):
        load("digits")
