"""Text as data sets: windows of a token stream with the tokens that follow, padded sequences.

ids = tokenizer.encode(text)
windows = Windows(ids, 64)
sampler = RandomSampler(len(windows), 12 * 250, seed=0)
loader = DataLoader(windows, batch_size=12, sampler=sampler)      # 250 batches an epoch
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.data.dataset import Dataset
from framework.data.errors import DataError

#: The target at padded places, which `cross_entropy` leaves out.
IGNORED = -100


class Windows(Dataset):
    """Every window of `window` tokens: sample i is ids[i : i + window] and, one token later, its
    target.

    With `stream`, the length of the parts that a `StreamSampler` reads side by side
    (``sampler.length``), a sample is (ids, fresh, target), `fresh` being true where a part begins:
    there a model starts with a new state, elsewhere it goes on with the one it has (see
    `framework.layers.Carry`).

    Raises:
        DataError: the text is empty, or shorter than a window and the token after it.

    >>> Windows(np.arange(10), 4).batch([0, 5])
    (array([[0, 1, 2, 3],
           [5, 6, 7, 8]]), array([[1, 2, 3, 4],
           [6, 7, 8, 9]]))
    """

    batched = True

    def __init__(self, ids: np.ndarray, window: int, stream: int | None = None) -> None:
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(f"ids are {ids.dtype} {ids.shape}, expected integers (n,)")
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ValueError(f"window is {window!r}, expected an integer of at least 1")
        if not len(ids):
            raise DataError("the text is empty")
        if window >= len(ids):
            tokens = "1 token" if len(ids) == 1 else f"{len(ids):,} tokens"
            raise DataError(
                f"window is {window}, but the text has {tokens}: it is too short, expected at "
                f"least {window + 1:,} tokens, as the token after the window is needed too"
                + (f", or a window of at most {len(ids) - 1:,}" if len(ids) > 1 else "")
            )
        self.ids, self.window, self.stream = ids, window, stream

    def __len__(self) -> int:
        return len(self.ids) - self.window

    def __getitem__(self, index: Any) -> tuple[np.ndarray, ...]:
        rows = self.ids[index[:, None] + np.arange(self.window + 1)].astype(np.int64)  # (n, T + 1)
        x, target = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
        if self.stream is None:
            return x, target
        return x, index % self.stream == 0, target

    def fingerprint(self) -> str:
        """A hash of the whole text: another one may differ in a word only."""
        digest = hashlib.blake2b(f"{self.window} {self.ids.dtype}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.ids))
        return digest.hexdigest()

    @property
    def starts(self) -> np.ndarray:
        """The windows that follow each other without a gap, for evaluation."""
        return np.arange(0, len(self), self.window)


class Sequences(Dataset):
    """Sequences of tokens that differ in length; a batch is padded to its longest.

    A sample is (ids, length, target) where `targets` is an array with one row per sequence; where
    they are sequences too (what a decoder is to write, with its marks of beginning and end), it is
    (ids, length, previous, target): the target without its last token, which the decoder reads, and
    without its first, which it has to say; padded places of it are -100, which `cross_entropy`
    leaves out.

    >>> words = [np.array([3, 1, 2]), np.array([5])]
    >>> Sequences(words, np.array([1, 0])).batch([0, 1])
    (array([[3, 1, 2],
           [5, 0, 0]]), array([3, 1]), array([1, 0]))
    """

    batched = True

    def __init__(
        self,
        ids: Sequence[np.ndarray],
        targets: np.ndarray | Sequence[np.ndarray],
        padding: int = 0,
    ) -> None:
        if len(ids) != len(targets):
            raise ValueError(f"there are {len(ids)} sequences and {len(targets)} targets")
        self.ids, self.targets, self.padding = list(ids), targets, padding
        self.lengths = _lengths("sequence", self.ids, 1)
        self.decoded = not isinstance(targets, np.ndarray)
        if self.decoded:
            _lengths("target", targets, 2)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, ...]:
        x = _padded([self.ids[i] for i in index], self.padding), self.lengths[index]
        if not self.decoded:
            return *x, self.targets[index]
        targets = [self.targets[i] for i in index]
        previous = _padded([target[:-1] for target in targets], self.padding)
        return *x, previous, _padded([target[1:] for target in targets], IGNORED)


def _lengths(name: str, sequences: Sequence[np.ndarray], least: int) -> np.ndarray:
    for i, ids in enumerate(sequences):
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) < least:
            raise ValueError(
                f"{name} {i} is {ids.dtype} {ids.shape}, expected at least {least} integers (n,)"
            )
    return np.array([len(ids) for ids in sequences], np.int64)


def _padded(rows: list[np.ndarray], padding: int) -> np.ndarray:
    """int64 (n, longest)."""
    out = np.full((len(rows), max(map(len, rows))), padding, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
