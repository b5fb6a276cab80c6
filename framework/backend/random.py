"""Random numbers by seed and counter: the same on every device, and saved as two integers.

Every draw takes a range of the counter of a `Generator`; the Philox kernels (kernels/random.py)
turn (seed, counter) into bits. The global generators of NumPy and CuPy are never used.
"""

from __future__ import annotations

import operator
import threading
from typing import Any

from framework.backend.live import recording


class Generator:
    """A seed (64 bits) and the counter of the next draw."""

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self.seed = _checked(seed)
        self.counter = 0

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, counter={self.counter})"

    def manual_seed(self, seed: int) -> Generator:
        """Start again with `seed`."""
        with self._lock:
            self.seed, self.counter = _checked(seed), 0
        return self

    def advance(self, counters: int) -> tuple[Any, int]:
        """Take `counters` counter values; returns (seed, first counter) for a kernel.

        While a step is captured the place is an array on the device, which takes as many at every
        replay: (array, 0).
        """
        captured = recording()
        if captured is None:
            return self._take(counters)
        return captured.numbers(
            "uint64", lambda: self._take(counters), lambda: self._give_back(counters)
        ), 0

    def _take(self, counters: int) -> tuple[int, int]:
        with self._lock:
            offset = self.counter
            self.counter += counters
        return self.seed, offset

    def _give_back(self, counters: int) -> None:
        with self._lock:
            self.counter -= counters

    def state(self) -> dict[str, int]:
        """Two integers, for a checkpoint."""
        return {"seed": self.seed, "counter": self.counter}

    def load_state(self, state: dict[str, int]) -> None:
        """Continue from `state`."""
        with self._lock:
            self.seed, self.counter = _checked(state["seed"]), int(state["counter"])


def _checked(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 1 << 64:
        raise ValueError(f"seed={seed!r}: expected an integer from 0 to 2**64 - 1")
    return number


#: What layers, initialisers and `fw.rand` draw from unless they are given their own.
default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Restart the default generator: same seed, same numbers, on every device."""
    return default_generator.manual_seed(seed)
