"""A run up the ladder: each step checked, all timed in turns, and the table."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from bench.cases import TOLERANCE
from bench.ladder.steps import Step
from bench.measure import Turns, measure
from bench.peer import PeerError, Worker


@dataclass
class Result:
    """The steps with their figures; those with a problem were not timed."""

    steps: list[Step]
    shape: tuple[int, int]
    copy_bandwidth: float
    turns: Turns | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def seconds(self, step: Step, fastest: bool = False) -> float | None:
        """For the whole array: the median of all turns, or the fastest iteration; None where the
        step was not timed.
        """
        if self.turns is None or str(step) not in self.turns.laps:
            return None
        times = self.turns.laps[str(step)]
        # the first lap is the device's; the fastest turn is the best known where there are two
        spread = self.turns.seconds(str(step), 0).median
        least = self.turns.best[str(step)] if len(times[0]) == 1 else min(t[0] for t in times)
        return float((least if fastest else spread) * self.facts[str(step)]["scale"])

    def gain(self, step: Step, fastest: bool = False) -> float | None:
        """Time of the step before that was timed / time of this one."""
        now = self.seconds(step, fastest)
        before = [self.seconds(s, fastest) for s in self.steps if s.number < step.number]
        known = [seconds for seconds in before if seconds is not None]
        return known[-1] / now if known and now else None

    def share_of_copy(self, step: Step) -> float | None:
        """Bandwidth of one read and one write of each element, over that of a copy."""
        seconds = self.seconds(step)
        rows, columns = self.shape
        return seconds and 8 * rows * columns / seconds / self.copy_bandwidth

    def as_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        rows = [
            {
                "step": step.number,
                "file": step.path.name,
                "idea": step.idea,
                "seconds": self.seconds(step),
                "fastest": self.seconds(step, fastest=True),
                "gain": self.gain(step),
                "share_of_copy": self.share_of_copy(step),
                "error": self.facts.get(str(step), {}).get("error"),
                "problem": self.problems.get(str(step)),
            }
            for step in self.steps
        ]
        first = self.steps[0]
        return {
            "operation": first.operation,
            "device": first.device,
            "shape": list(self.shape),
            "copy_bandwidth": self.copy_bandwidth,
            "disturbed": self.turns is not None and self.turns.disturbed,
            "steps": rows,
        }


def climb(
    steps: list[Step],
    shape: tuple[int, int],
    seconds: float,
    turns: int,
    threads: int | None = None,
) -> Result:
    """Check every step against float64, then time those that are right, `seconds` each."""
    device = steps[0].device
    copy = "bench.sides:copy" if device == "cpu" else "bench.ladder.sides:cuda_copy"
    with Worker("copy", copy, threads) as worker:
        moved = worker.call("prepare")["bytes"]
        copying = measure({"copy": worker}, 0.3, 10).seconds("copy", 0).median
    result = Result(steps, shape, moved / copying)
    with ExitStack() as stack:
        workers = {}
        for step in steps:
            worker = Worker(str(step), f"bench.ladder.sides:{device}", threads)
            workers[str(step)] = stack.enter_context(worker)
        for name, step in zip(list(workers), steps, strict=True):
            # one after the other: checking them side by side would take several times the memory
            try:
                facts = result.facts[name] = workers[name].call("prepare", step, *shape)
            except PeerError as error:
                result.problems[name] = str(error)
            else:
                if facts["error"] > TOLERANCE:
                    wrong = f"WRONG: off by {facts['error']:.2g} from float64, not timed"
                    result.problems[name] = wrong
        right = {name: w for name, w in workers.items() if name not in result.problems}
        if right:
            result.turns = measure(right, seconds, turns)
    return result


# The table ----------------------------------------------------------------------------------------


def legend(result: Result) -> str:
    """What the columns mean."""
    what = "iteration" if result.steps[0].device == "cpu" else "turn"
    return (
        "time: median over the turns; gain: the time of the step before over it. copy: the "
        "bandwidth of one read and one write of each element, as a share of "
        f"{result.copy_bandwidth / 1e9:.4g} GB/s, which a plain copy of arrays beyond all caches "
        f"reached in this run. fastest: the fastest {what}, for a machine that is busy. "
        "~: run on a few rows and scaled up."
    )


def table(result: Result) -> Table:
    """A row for each step."""
    first = result.steps[0]
    grid = Table(
        title=f"{first.operation}, {result.shape[0]} x {result.shape[1]} float32, {first.device}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    grid.add_column("step", justify="right")
    grid.add_column("idea", overflow="fold", min_width=20)
    for name in ("time", "gain", "copy", "fastest", "gain"):
        grid.add_column(name, justify="right", no_wrap=True)
    for step in result.steps:
        seconds, share = result.seconds(step), result.share_of_copy(step)
        if seconds is None or share is None:
            problem = result.problems.get(str(step), "not timed")
            grid.add_row(str(step.number), f"{step.idea}: [red]{problem}[/]")
            continue
        about = "~" if result.facts[str(step)]["scale"] > 1 else ""
        grid.add_row(
            str(step.number),
            step.idea,
            about + _duration(seconds),
            _times(result.gain(step)),
            f"{share:.0%}" if share >= 0.1 else f"{share:.2%}",
            _duration(result.seconds(step, fastest=True) or 0.0),
            _times(result.gain(step, fastest=True)),
        )
    return grid


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _times(gain: float | None) -> str:
    if gain is None:
        return ""
    text = f"{gain:.0f}x" if gain >= 10 else f"{gain:.2f}x"
    return f"[green]{text}[/]" if gain > 1.02 else f"[yellow]{text}[/]"
