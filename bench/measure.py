"""Turns: each side runs a little while the others sleep, again and again, so that what else the
machine does meets all of them alike. Figures are medians over the turns, ratios those of each turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

#: Untimed seconds before the first turn, per side.
WARM_UP = 0.02

#: A turn ends after this many times its share of the time: on a busy machine an iteration may take
#: a hundred times what it takes alone.
PATIENCE = 4

#: A median this many times the fastest iteration was disturbed.
DISTURBED = 3.0

#: A side that has used twice its time (a slow reference, whose single iteration is longer than a
#: turn) stops early, but not before this many turns.
FEWEST_TURNS = 3


@dataclass(frozen=True)
class Spread:
    """A median and the 20th and 80th percentile around it."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        if not ordered:
            raise ValueError("a spread needs at least one value")
        return cls(statistics.median(ordered), _quantile(ordered, 0.2), _quantile(ordered, 0.8))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def _quantile(ordered: list[float], q: float) -> float:
    """Linear between the neighbours, as numpy.quantile."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class Turns:
    """The times of several sides: ``laps[side][turn]`` is a tuple of median seconds a lap.

    ``best[side]`` is the fastest of all its iterations: what is left when a busy machine disturbs
    more than half of them.
    """

    def __init__(self, sides: Iterable[str]) -> None:
        self.laps: dict[str, list[tuple[float, ...]]] = {side: [] for side in sides}
        self.best: dict[str, float] = dict.fromkeys(self.laps, math.inf)

    def join(self, later: Turns) -> None:
        """Add the turns of another pass. Of a side that stopped early in one of the two, turns are
        left out, so that turns of one number are those of one moment.
        """
        known, new = (min(map(len, t.laps.values()), default=0) for t in (self, later))
        for side in list(self.laps):
            if side not in later.laps:  # failed this time
                del self.laps[side], self.best[side]
                continue
            self.laps[side] = self.laps[side][:known] + later.laps[side][:new]
            self.best[side] = min(self.best[side], later.best[side])

    def add(self, side: str, times: list[tuple[float, ...]]) -> None:
        """A turn of `side`: the laps of its iterations."""
        self.laps[side].append(tuple(map(statistics.median, zip(*times, strict=True))))
        self.best[side] = min(self.best[side], *map(sum, times))

    def totals(self, side: str) -> list[float]:
        """Seconds an iteration of `side`, turn by turn."""
        return [sum(laps) for laps in self.laps[side]]

    def seconds(self, side: str, lap: int | None = None) -> Spread:
        """An iteration of `side`, or one lap of it."""
        turns = self.laps[side]
        return Spread.of(sum(t) if lap is None else t[lap] for t in turns)

    def speedup(self, side: str, over: str = "ours") -> Spread:
        """Time of `side` / time of `over`, turn by turn: above 1, `over` is the faster."""
        pairs = zip(self.totals(side), self.totals(over), strict=False)
        return Spread.of(theirs / mine for theirs, mine in pairs)

    @property
    def disturbed(self) -> bool:
        """Was another process in the way? Threads that share a core with one wait out its slices of
        3-4 ms, so that medians of short work say nothing about the work.
        """
        return any(self.seconds(side).median > DISTURBED * self.best[side] for side in self.laps)

    def best_speedup(self, side: str, over: str = "ours") -> float:
        """The fastest iteration of `side` / that of `over`."""
        return self.best[side] / self.best[over]

    def as_dict(self) -> dict[str, Any]:
        """All single turns, for JSON."""
        return {side: [list(laps) for laps in turns] for side, turns in self.laps.items()}


class Runner(Protocol):
    """What a side is asked: "warm" for some seconds, "run" for some iterations (bench/peer.py)."""

    def call(self, request: str, *args: Any) -> Any:
        """The answer."""


def measure(
    workers: Mapping[str, Runner],
    seconds: float,
    turns: int,
    after_turn: Callable[[], object] = lambda: None,
) -> Turns:
    """Time what the `workers` have prepared, `seconds` each, cut into `turns`.

    A turn's figure is the median of its iterations, of which there are as many as fit at the speed
    of an undisturbed one, or fewer if these take PATIENCE times as long. Sides take turns in an
    order that rotates, so that none always follows the same one.
    """
    iterations = {}
    for name, worker in workers.items():
        once = max(worker.call("warm", min(WARM_UP, seconds)), 1e-7)
        iterations[name] = max(1, min(10_000, math.ceil(seconds / turns / once)))
    result = Turns(workers)
    spent = dict.fromkeys(workers, 0.0)
    order = list(workers)
    for turn in range(turns):
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            if spent[name] > 2 * seconds and turn >= FEWEST_TURNS and name != order[0]:
                continue
            times = workers[name].call("run", iterations[name], PATIENCE * seconds / turns)
            spent[name] += sum(map(sum, times))
            result.add(name, times)
        after_turn()
    return result
