"""Data sets: samples that can be counted and read by index."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from framework.data.draws import permutation

Task = Literal["classification", "regression", "language"]

#: Read for a fingerprint: few enough for a data set of large files.
FINGERPRINT_SAMPLES = 16


class Dataset(ABC):
    """Samples 0..len-1. A sample is a tuple of arrays or numbers, usually (input, target).

    Subclasses give ``__len__`` and ``__getitem__``. With ``batched = False`` (the default)
    ``__getitem__`` takes one int and returns one sample; with ``batched = True`` it takes an int64
    array (n,) and returns a tuple of arrays with n rows each, which is far faster. `batch` reads n
    samples of either kind.

    `classes` (the classes' names) and `task` ("classification" or "regression") say what the
    targets are, where known.
    """

    batched: bool = False
    classes: tuple[str, ...] | None = None
    task: Task | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Any) -> Any: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} samples)"

    def batch(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, ...]:
        """The samples at `indices` (n,), stacked: a tuple of arrays with n rows each.

        Raises:
            TypeError: `indices` are not integers, or samples cannot be stacked.
            IndexError: an index outside 0..len-1.
        """
        rows = _as_indices(indices, len(self))
        if self.batched:
            return self[rows]
        samples = []
        for row in rows.tolist():
            try:
                samples.append(self[row])
            except Exception as error:
                error.add_note(f"sample {row} of {type(self).__name__}")
                raise
        return collate(samples)

    def fingerprint(self) -> str | None:
        """A hash of its length and of samples spread over it, by which a resumed run knows its
        data; None where samples cannot be read, or are others at each reading.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, FINGERPRINT_SAMPLES).astype(np.int64))
        found = {self._digest(rows) for _ in range(2)}
        return found.pop() if len(found) == 1 else None

    def _digest(self, rows: np.ndarray) -> str | None:
        try:
            arrays = self.batch(rows)
        except Exception:  # whatever a user's data set raises: reading batches will say it
            return None
        digest = hashlib.blake2b(f"{len(self)}".encode(), digest_size=16)
        for array in map(np.ascontiguousarray, arrays):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


class ArrayDataset(Dataset):
    """Arrays with one row per sample, sliced together.

    Args:
        arrays: NumPy arrays with equal first dimensions, usually inputs (N, ...) and targets (N,
            ...). Not copied.
        classes: names of the classes; the last array's labels are then checked to be
            0..len(classes)-1.
        task: "classification" or "regression"; "classification" where `classes` are given.

    >>> data = ArrayDataset(np.arange(6).reshape(3, 2), np.array([0, 1, 0]))
    >>> data.batch([2, 0])
    (array([[4, 5],
           [0, 1]]), array([0, 0]))
    """

    batched = True

    def __init__(
        self, *arrays: Any, classes: Sequence[str] | None = None, task: Task | None = None
    ) -> None:
        if not arrays:
            raise TypeError("ArrayDataset needs at least one array")
        self.arrays = tuple(np.asarray(array) for array in arrays)
        shapes = [array.shape for array in self.arrays]
        if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                f"arrays need equal first dimensions, got shapes {', '.join(map(str, shapes))}"
            )
        self.classes = tuple(classes) if classes is not None else None
        self.task = task or ("classification" if classes is not None else None)
        if self.task not in (None, "classification", "regression"):
            raise ValueError(f"task is {task!r}, expected 'classification' or 'regression'")
        if self.classes is not None:
            check_labels(self.arrays[-1], len(self.classes))

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(array[index] for array in self.arrays)


class ImageDataset(Dataset):
    """Images kept as uint8, a quarter of the memory, and read as float32 from 0 to 1.

    Args:
        images: uint8 (N, C, H, W).
        labels: integers (N,), 0..len(classes)-1.
        classes: names of the classes.
        maximum: the pixel value that becomes 1.
    """

    batched = True
    task = "classification"

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], maximum: int = 255
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape}, expected uint8 (N, C, H, W)"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels have shape {labels.shape}, expected {images.shape[:1]}: one per image"
            )
        check_labels(labels, len(classes))
        self.images, self.labels = images, labels.astype(np.int64)
        self.classes, self.maximum = tuple(classes), maximum

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return np.divide(
            self.images[index], np.float32(self.maximum), dtype=np.float32
        ), self.labels[index]


class Subset(Dataset):
    """The samples of `dataset` at `indices` (n,), in that order. Keeps its classes and task."""

    def __init__(self, dataset: Dataset, indices: np.ndarray | Sequence[int]) -> None:
        self.dataset, self.indices = dataset, _as_indices(indices, len(dataset))
        self.batched, self.classes, self.task = dataset.batched, dataset.classes, dataset.task

    def __repr__(self) -> str:
        return f"Subset({len(self):,} samples of {self.dataset!r})"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[self.indices[index] if self.batched else int(self.indices[index])]


def random_split(dataset: Dataset, lengths: Sequence[float], seed: int = 0) -> list[Subset]:
    """Cut `dataset` at random into parts that share no sample. The same `seed` gives the same
    parts.

    Args:
        lengths: sizes in samples (ints, in sum the whole data set), or fractions (floats, in sum 1;
            samples left over by rounding down go to the first parts).

    >>> [len(part) for part in random_split(ArrayDataset(np.zeros(10)), [0.75, 0.25])]
    [8, 2]
    """
    total = len(dataset)
    if not lengths or any(length <= 0 for length in lengths):
        raise ValueError(f"lengths are {list(lengths)}, expected positive sizes or fractions")
    if all(isinstance(length, int | np.integer) for length in lengths):
        sizes = [int(length) for length in lengths]
    elif abs(sum(lengths) - 1) < 1e-6:
        sizes = [int(total * length + 1e-9) for length in lengths]
        for part in range(total - sum(sizes)):
            sizes[part] += 1
    else:
        raise ValueError(f"fractions {list(lengths)} sum to {sum(lengths):g}, expected 1")
    if sum(sizes) != total:
        raise ValueError(f"lengths {sizes} sum to {sum(sizes)}, the data set has {total} samples")
    order = permutation(total, seed, "split")
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def collate(samples: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Stack samples into a batch: a tuple of arrays with one row per sample.

    A sample is a tuple, or one array or number, which counts as a tuple of one. Python floats
    become float32 and ints int64.

    >>> collate([(np.zeros(3), 1), (np.ones(3), 0)])[1]
    array([1, 0])
    """
    if not samples:
        raise ValueError("cannot make a batch of no samples")
    rows = [
        tuple(map(_as_array, sample if isinstance(sample, tuple) else (sample,)))
        for sample in samples
    ]
    kinds = {tuple(part.shape for part in row) for row in rows}
    if len(kinds) > 1:
        raise ValueError(
            f"samples of a batch differ in shape: {' and '.join(map(str, sorted(kinds)[:3]))}"
        )
    return tuple(np.stack(parts) for parts in zip(*rows, strict=True))


def check_labels(labels: np.ndarray, classes: int) -> None:
    """ValueError unless `labels` are integers within 0..classes-1; shows the first which is not."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}, expected integers")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"label {labels.flat[wrong[0]]} of sample {wrong[0]} is outside 0..{classes - 1}"
        )


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, float) and not isinstance(value, np.generic):
        return np.asarray(value, np.float32)
    if isinstance(value, int) and not isinstance(value, bool):
        return np.asarray(value, np.int64)
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"a sample holds {type(value).__name__}, expected arrays or numbers")
    return array


def _as_indices(indices: np.ndarray | Sequence[int], length: int) -> np.ndarray:
    rows = np.asarray(indices)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise TypeError(f"indices are {rows.dtype} {rows.shape}, expected integers (n,)")
    rows = rows.astype(np.int64, copy=False)
    if rows.size and (rows.min() < 0 or rows.max() >= length):
        bad = rows[(rows < 0) | (rows >= length)][0]
        raise IndexError(f"index {bad} is outside the data set of {length} samples")
    return rows
