"""The data sets that the framework knows by name: ``load("mnist")``."""

from __future__ import annotations

import difflib
import inspect
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from framework.data import cifar, synthetic
from framework.data.dataset import (
    ArrayDataset,
    Dataset,
    ImageDataset,
    Task,
    check_labels,
    random_split,
)
from framework.data.errors import DataError
from framework.data.files import RemoteFile, data_folder, fetch, locate
from framework.data.idx import read_idx


@dataclass(frozen=True)
class Splits:
    """A data set, cut for training.

    `shape` is that of one input: (C, H, W) for images, (features,) otherwise. `description` is one
    line for people, which says where the data is from and how it was split.
    """

    name: str
    train: Dataset
    test: Dataset
    classes: tuple[str, ...] | None
    task: Task
    shape: tuple[int, ...]
    description: str


@dataclass(frozen=True)
class Entry:
    """A data set of the catalog: `load(seed, **options)` makes it, `summary` is one line.

    `augmentation`: what may happen to its images at random without changing their classes, as
    settings of a training recipe.
    """

    load: Callable[..., Splits]
    summary: str
    options: tuple[str, ...]
    augmentation: Mapping[str, Any] = field(default_factory=dict)


CATALOG: dict[str, Entry] = {}

DIGITS = tuple("0123456789")


def names() -> list[str]:
    """The names that `load` knows."""
    return sorted(CATALOG)


def load(name: str, seed: int = 0, **options: float) -> Splits:
    """The data set called `name`, read, downloaded or made.

    Inputs are float32 (images from 0 to 1, (C, H, W)), labels int64 (), regression targets float32
    (1,).

    Args:
        name: see `names`.
        seed: decides the split of digits, and the points and split of the synthetic sets; published
            sets have their own split.
        options: of synthetic sets, see `framework.data.synthetic`.

    Raises:
        DataError: unknown name (the message lists the right ones), missing or corrupt files, failed
            download.
        TypeError: an option that this data set does not have.

    >>> digits = load("digits", seed=1)
    >>> digits.shape, len(digits.train), len(digits.test)
    ((1, 8, 8), 1438, 359)
    """
    if name not in CATALOG:
        close = difflib.get_close_matches(name, CATALOG, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise DataError(
            f"unknown dataset {name!r}{hint}; there are: {', '.join(names())}; "
            "texts are read by load_text"
        )
    entry = CATALOG[name]
    for option in options:
        if option not in entry.options:
            raise TypeError(
                f"{name} has no option {option!r}; it has: {', '.join(entry.options) or 'none'}"
            )
    return entry.load(seed=seed, **options)


def _entry(
    name: str, summary: str, *options: str, **augmentation: Any
) -> Callable[[Callable[..., Splits]], Callable[..., Splits]]:
    def register(function: Callable[..., Splits]) -> Callable[..., Splits]:
        CATALOG[name] = Entry(function, summary, options, augmentation)
        return function

    return register


# --- embedded ---------------------------------------------------------------------------


@_entry("digits", "1,797 handwritten digits, 8x8, embedded (UCI)")
def _digits(seed: int) -> Splits:
    path = Path(__file__).with_name("digits.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {error}; reinstall the framework") from error
    data = ImageDataset(images[:, None], labels, DIGITS, maximum=16)
    return _split(
        "digits", data, seed, f"UCI handwritten digits, 8x8; 80/20 split with seed {seed}"
    )


# --- IDX files --------------------------------------------------------------------------


def _idx_files(urls: Sequence[str], *files: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(name, size, digest, tuple(url + name for url in urls))
        for name, size, digest in files
    )


# Training images, training labels, test images, test labels. The publishers give MD5; the two
# sha256 are of files with the published MD5.
MNIST = _idx_files(
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    ("train-images-idx3-ubyte.gz", 9_912_422, "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte.gz", 28_881, "md5:d53e105ee54ea40749a09fcbcd1e9432"),
    (
        "t10k-images-idx3-ubyte.gz",
        1_648_877,
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    (
        "t10k-labels-idx1-ubyte.gz",
        4_542,
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)
FASHION_MNIST = _idx_files(
    ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",),
    ("train-images-idx3-ubyte.gz", 26_421_880, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ("train-labels-idx1-ubyte.gz", 29_515, "md5:25c81989df183df01b3e8a0aad5dffbe"),
    ("t10k-images-idx3-ubyte.gz", 4_422_102, "md5:bef4ecab320f06d8554ea6380940ec79"),
    ("t10k-labels-idx1-ubyte.gz", 5_148, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
)

CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@_entry("mnist", "70,000 handwritten digits, 28x28 (LeCun, Cortes, Burges)", shift=2)
def _mnist(seed: int) -> Splits:
    return _idx_splits("mnist", "MNIST handwritten digits, 28x28", MNIST, DIGITS)


@_entry(
    "fashion-mnist", "70,000 pieces of clothing, 28x28 (Xiao, Rasul, Vollgraf)", shift=2, flip=True
)
def _fashion_mnist(seed: int) -> Splits:
    return _idx_splits("fashion-mnist", "Fashion-MNIST, 28x28", FASHION_MNIST, CLOTHES)


def _idx_splits(
    name: str, title: str, files: tuple[RemoteFile, ...], classes: tuple[str, ...]
) -> Splits:
    """The published split; where FRAMEWORK_DATA has the test files, and neither it nor the cache
    the training files, 80/20 of those.
    """
    folder = data_folder()
    *training, test_images, test_labels = (locate(name, file.name) for file in files)
    if training == [None, None] and _is_in(folder, test_images) and _is_in(folder, test_labels):
        images, labels = _idx_pair(test_images, test_labels, classes)
        cut = len(images) * 4 // 5
        train = ImageDataset(images[:cut], labels[:cut], classes)
        test = ImageDataset(images[cut:], labels[cut:], classes)
        split = f"{folder} lacks the training files, so the test set is split: first {cut:,} train"
        split += f", last {len(test):,} test"
    else:
        paths = [fetch(name, file) for file in files]
        train = ImageDataset(*_idx_pair(*paths[:2], classes), classes)
        test = ImageDataset(*_idx_pair(*paths[2:], classes), classes)
        split = f"{len(train):,} train, {len(test):,} test"
    shape, other = train.images.shape[1:], test.images.shape[1:]
    if shape != other:
        raise DataError(f"{name}: training images are {shape}, test images {other}")
    return Splits(name, train, test, classes, "classification", shape, f"{title}; {split}")


def _is_in(folder: Path | None, file: Path | None) -> TypeGuard[Path]:
    return folder is not None and file is not None and file.is_relative_to(folder)


def _idx_pair(
    images_path: Path, labels_path: Path, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, H, W) and their labels (N,), both uint8."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    found = f"{images.dtype} {images.shape}"
    if images.ndim != 3 or images.dtype != np.uint8 or images.size == 0:
        raise DataError(f"{images_path}: holds {found}, expected uint8 images (N, H, W)")
    found = f"{labels.dtype} {labels.shape}"
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
        raise DataError(f"{labels_path}: holds {found}, expected uint8 ({len(images)},)")
    try:
        check_labels(labels, len(classes))
    except ValueError as error:
        raise DataError(f"{labels_path}: {error}") from error
    return images[:, None], labels


# --- CIFAR-10 ---------------------------------------------------------------------------

CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "md5:c32a1d4ab5d03f1284b67883e8d87530",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)


@_entry("cifar10", "60,000 colour images of ten kinds, 32x32 (Krizhevsky)", shift=4, flip=True)
def _cifar10(seed: int) -> Splits:
    folders = ("cifar10", f"cifar10/{cifar.FOLDER}")  # where the files may lie unpacked
    unpacked = [found.parent for folder in folders if (found := locate(folder, cifar.TEST[0]))]
    path = unpacked[0] if unpacked else fetch("cifar10", CIFAR10)
    *train_arrays, test_images, test_labels = cifar.read_cifar10(path)
    train = ImageDataset(*train_arrays, cifar.CLASSES)
    test = ImageDataset(test_images, test_labels, cifar.CLASSES)
    description = f"CIFAR-10, 32x32 RGB; {len(train):,} train, {len(test):,} test"
    shape = (3, 32, 32)
    return Splits("cifar10", train, test, cifar.CLASSES, "classification", shape, description)


# --- made from a seed -------------------------------------------------------------------


def _add_synthetic(name: str, make: Callable[..., ArrayDataset], summary: str) -> None:
    options = [option for option in inspect.signature(make).parameters if option != "seed"]

    @_entry(name, f"{summary}, made from the seed", *options)
    def _synthetic(seed: int, **options: float) -> Splits:
        data = make(seed=seed, **options)
        description = f"{summary}, {len(data):,} samples from seed {seed}; 80/20 split"
        return _split(name, data, seed, description)


_add_synthetic("moons", synthetic.moons, "two interleaved half circles")
_add_synthetic("circles", synthetic.circles, "a circle inside a circle")
_add_synthetic("spirals", synthetic.spirals, "arms of a spiral")
_add_synthetic("regression", synthetic.regression, "Friedman's regression problem 1")


def _split(name: str, data: ImageDataset | ArrayDataset, seed: int, description: str) -> Splits:
    train, test = random_split(data, [0.8, 0.2], seed)
    shape = data[:1][0].shape[1:]
    assert data.task is not None  # both kinds of data set come with one
    return Splits(name, train, test, data.classes, data.task, shape, description)
