"""Random numbers of the data pipeline, each keyed by what it is for.

A draw depends on (seed, purpose, epoch, sample) and on nothing else: not on threads, not on the
order in which batches are made, not on other draws. So a pipeline can be resumed or run with other
workers, and gives the same bytes.
"""

from __future__ import annotations

import hashlib

import numpy as np

import kernels.random


def derive_seed(seed: int, purpose: str, *keys: int) -> int:
    """An independent 63-bit seed for one purpose: BLAKE2b of (seed, purpose, keys)."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected an integer of at least 0")
    text = ":".join([purpose, str(int(seed)), *(str(int(key)) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def permutation(count: int, seed: int, purpose: str, *keys: int) -> np.ndarray:
    """0..count-1 in a random order, int64 (count,)."""
    out = np.empty(count, np.int64)
    kernels.random.permutation(out, derive_seed(seed, purpose, *keys), 0)
    return out


def integers(high: int, count: int, seed: int, purpose: str, *keys: int) -> np.ndarray:
    """Draws from 0..high-1, int64 (count,)."""
    out = np.empty(count, np.int64)
    kernels.random.randint(out, derive_seed(seed, purpose, *keys), 0, 0, high)
    return out


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *keys: int) -> np.ndarray:
    """float32 draws from [0, 1). Row i is the same however many rows there are."""
    out = np.empty(shape, np.float32)
    kernels.random.uniform(out.reshape(-1), derive_seed(seed, purpose, *keys), 0, 0.0, 1.0)
    return out


def normal(shape: tuple[int, ...], seed: int, purpose: str, *keys: int) -> np.ndarray:
    """float32 draws from N(0, 1). Row i is the same however many rows there are."""
    out = np.empty(shape, np.float32)
    kernels.random.normal(out.reshape(-1), derive_seed(seed, purpose, *keys), 0, 0.0, 1.0)
    return out


def augmentation_draws(samples: int, columns: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers that decide the random transforms of an epoch: float32 (samples, columns), row i
    for sample i.

    >>> from framework.data import RandomCrop, augmentation_draws
    >>> crop = RandomCrop(4)
    >>> x = np.zeros((10, 8, 8), np.float32)
    >>> crop(x, augmentation_draws(10, crop.draws, seed=0, epoch=0)).shape
    (10, 4, 4)
    """
    return uniform((samples, columns), seed, "augmentation", epoch)
