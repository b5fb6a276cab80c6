"""Samplers: which samples an epoch has, and in which order, where a shuffle is not what is wanted.

A sampler is a function of the epoch, so that a DataLoader resumes exactly: nothing has been drawn
that would have to be remembered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from framework.data.draws import integers, permutation
from framework.data.errors import DataError


class Sampler(ABC):
    """``sampler(epoch)``: the samples of an epoch in their order, int64 (len,).

    `batch_size`: that of the batches for which the order is laid out; None: any will do.
    """

    batch_size: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __call__(self, epoch: int) -> np.ndarray: ...

    @abstractmethod
    def settings(self) -> dict[str, int]:
        """What a saved position belongs to: a loader with other settings refuses it."""


class RandomSampler(Sampler):
    """`count` samples an epoch, each drawn from 0..samples-1 with all others put back.

    >>> sampler = RandomSampler(1000, 4, seed=0)
    >>> sampler(0).shape, bool((sampler(0) == sampler(1)).all())
    ((4,), False)
    """

    def __init__(self, samples: int, count: int, seed: int = 0) -> None:
        _at_least_one(samples=samples, count=count)
        self.samples, self.count, self.seed = samples, count, seed

    def __len__(self) -> int:
        return self.count

    def __call__(self, epoch: int) -> np.ndarray:
        return integers(self.samples, self.count, self.seed, "random sampler", epoch)

    def settings(self) -> dict[str, int]:
        return {"random": self.count}


class StreamSampler(Sampler):
    """Starts of windows, such that row b of every batch goes on where row b of the last one ended.

    The text of `tokens` tokens is cut into `streams` parts of equal length, which are read side by
    side, `window` tokens a batch: what a recurrent model needs to carry its state from batch to
    batch (truncated back-propagation). After the last window all begin again. What does not fill a
    window is left out.

    `batches` of an epoch: None: one pass. The next epoch goes on where this one stops.

    >>> StreamSampler(tokens=13, window=3, streams=2)(0).reshape(-1, 2)
    array([[0, 6],
           [3, 9]])
    """

    def __init__(self, tokens: int, window: int, streams: int, batches: int | None = None) -> None:
        _at_least_one(window=window, streams=streams)
        self.length = (tokens - 1) // streams  # the last token is a target only
        self.windows = self.length // window  # of one pass
        if self.windows < 1:
            raise DataError(
                f"{streams} streams of a text of {tokens:,} tokens have {max(self.length, 0):,} "
                f"each, too few for a window of {window}: lower the window or the batch size"
            )
        self.window, self.streams, self.batch_size = window, streams, streams
        self.batches = self.windows if batches is None else batches
        _at_least_one(batches=self.batches)

    def __len__(self) -> int:
        return self.batches * self.streams

    def __call__(self, epoch: int) -> np.ndarray:
        numbers = np.arange(epoch * self.batches, (epoch + 1) * self.batches) % self.windows
        starts = np.arange(self.streams) * self.length
        return (numbers[:, None] * self.window + starts).reshape(-1)

    def settings(self) -> dict[str, int]:
        return {"streams": self.streams, "window": self.window, "batches": self.batches}


class BucketSampler(Sampler):
    """All samples once, in batches of similar length: less padding, still a new order each epoch.

    A shuffle is cut into pools of `pool` batches; a pool is sorted by length and cut into batches;
    the batches are shuffled (but a smaller one stays last). Pool 1 is a plain shuffle.
    """

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0, pool: int = 50
    ) -> None:
        self.lengths = np.asarray(lengths)
        if self.lengths.ndim != 1 or self.lengths.dtype.kind not in "iu":
            raise TypeError(
                f"lengths are {self.lengths.dtype} {self.lengths.shape}, expected integers (n,)"
            )
        _at_least_one(batch_size=batch_size, pool=pool)
        self.batch_size, self.seed, self.pool = batch_size, seed, pool

    def __len__(self) -> int:
        return len(self.lengths)

    def __call__(self, epoch: int) -> np.ndarray:
        order = permutation(len(self), self.seed, "buckets", epoch)
        size = self.batch_size * self.pool
        pools = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([p[self.lengths[p].argsort(kind="stable")] for p in pools])
        full = len(order) // self.batch_size
        batches = order[: full * self.batch_size].reshape(full, self.batch_size)
        shuffled = permutation(full, self.seed, "bucket order", epoch)
        return np.concatenate([batches[shuffled].reshape(-1), order[full * self.batch_size :]])

    def settings(self) -> dict[str, int]:
        return {"pool": self.pool}


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")
