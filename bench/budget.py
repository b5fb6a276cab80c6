"""Minutes dealt out to the parts of a run, the most important first."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """`seconds` from now on; what is asked for is cut to what is left."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin = clock()
        self.seconds = seconds

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self.begin

    @property
    def left(self) -> float:
        """Seconds to the end; 0 after it."""
        return max(0.0, self.seconds - self.spent)

    def part(self, most: float, keep: float = 0.0) -> Budget:
        """At most `most` seconds, with `keep` left over for what comes after."""
        return Budget(max(0.0, min(most, self.left - keep)), self._clock)

    def allows(self, seconds: float) -> bool:
        """Is there time for something that takes this long?"""
        return self.left >= seconds
