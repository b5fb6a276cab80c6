"""`python -m bench training`: whole training steps, ours and torch's, in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from bench.measure import Spread, Turns, measure
from bench.peer import TIMEOUT, PeerError, Worker
from bench.pools import Start
from bench.sizes import Device
from bench.training_cuda import SIDES as CUDA_SIDES
from bench.training_sides import LAPS, Shapes
from bench.training_tasks import Task

#: What --against chooses from.
SIDES: dict[Device, tuple[str, ...]] = {
    "cpu": ("torch", "torch.channels_last", "torch.compile"),
    "cuda": CUDA_SIDES,
}

#: Steps from equal weights whose losses are compared, and with which the peak memory is taken.
STEPS = 50

#: Seconds a side may take to answer: on CUDA a run has few minutes in all.
TIMEOUTS: dict[Device, float] = {"cpu": TIMEOUT, "cuda": 60.0}

#: How far the losses may be apart, relative to the first loss: rounding grows along the steps.
LOSS_TOLERANCE = 5e-3


class ParametersDiffer(ValueError):
    """The two models of a task are not the same network."""


@dataclass
class Result:
    """A run: its turns, the losses of all sides from equal weights, their memory, and why the sides
    that are missing are.
    """

    name: str
    task: Task
    turns: Turns
    losses: dict[str, list[float]]
    memory: dict[str, dict[str, int | None]]
    missing: dict[str, str] = field(default_factory=dict)
    device: Device = "cpu"

    @property
    def laps(self) -> tuple[str, ...]:
        """The parts of a step; on CUDA Python is ahead of the device, so that there are none."""
        return LAPS if self.device == "cpu" else ()

    @property
    def loss_difference(self) -> float:
        """The largest difference of losses at a step, over the first loss; 0 without a peer."""
        mine = self.losses["ours"]
        apart = [
            abs(a - b) / max(abs(mine[0]), 1e-12)
            for side in self.losses
            for a, b in zip(mine, self.losses[side], strict=True)
        ]
        return math.inf if any(map(math.isnan, apart)) else max(apart)

    @property
    def agrees(self) -> bool:
        """Did all sides train the same network?"""
        return self.loss_difference <= LOSS_TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        sides = list(self.turns.laps)
        return {
            "device": self.device,
            "model": self.name,
            "title": self.task.title,
            "settings": asdict(self.task),
            "batch": self.task.batch,
            "optimizer": self.task.optimizer_name,
            "dtype": "float32",
            "missing": self.missing,
            "seconds": {side: self._seconds(side) for side in sides},
            "steps_per_second": {side: self._rate(side, 1).as_dict() for side in sides},
            "unit": self.task.unit,
            "units_per_second": {side: self.rate(side).as_dict() for side in sides},
            "disturbed": self.turns.disturbed,
            "best_seconds": self.turns.best,
            "speedup": {s: self.turns.speedup(s).as_dict() for s in sides if s != "ours"},
            "losses": self.losses,
            "loss_difference": self.loss_difference,
            "agrees": self.agrees,
            "memory": self.memory,
            "turns": self.turns.as_dict(),
        }

    def rate(self, side: str) -> Spread:
        """Samples or tokens a second."""
        return self._rate(side, self.task.per_step)

    def _rate(self, side: str, count: int) -> Spread:
        return Spread.of(count / seconds for seconds in self.turns.totals(side))

    def _seconds(self, side: str) -> dict[str, dict[str, float]]:
        laps = {name: self.turns.seconds(side, i).as_dict() for i, name in enumerate(self.laps)}
        return {"step": self.turns.seconds(side).as_dict(), **laps}


def run(
    name: str,
    task: Task,
    against: Sequence[str],
    seconds: float,
    turns: int,
    after_turn: Callable[[], object] = lambda: None,
    threads: int | None = None,
    device: Device = "cpu",
    start: Start = Worker,
) -> Result:
    """Check that all sides train alike, time them `seconds` each, and take their memory.

    Each side has a process of its own on either device: a small model's step is mostly Python's
    work, and memory is counted by process. On the CPU the memory is that of fresh ones: by then
    every kernel lies compiled in the cache. On CUDA a compiler's memory is not the card's, and what
    is free there is asked before the next side begins. A side other than ours that fails is
    missing, with its reason.
    """
    module = "bench.training_sides" if device == "cpu" else "bench.training_cuda"

    def worker(side: str) -> Worker:
        factory = f"{module}:{side.replace('.', '_')}"
        return start(side, factory, threads, timeout=TIMEOUTS[device])

    losses, missing, memory, shapes = {}, {}, {}, {}
    with ExitStack() as stack:
        workers = {}
        for side in ("ours", *against):
            made = stack.enter_context(worker(side))
            try:
                shapes[side] = made.call("prepare", task).get("parameters")
                _check_alike(shapes["ours"], shapes[side], side)
                losses[side] = made.call("ask", "losses", STEPS)
                if device == "cuda":
                    memory[side] = made.call("ask", "memory")
                workers[side] = made
            except PeerError as error:
                if side == "ours":
                    raise
                missing[side] = str(error)
                made.close()
        timed = measure(workers, seconds, turns, after_turn)
    for side in losses if device == "cpu" else ():
        with worker(side) as fresh:
            fresh.call("prepare", task)
            fresh.call("ask", "losses", STEPS)
            memory[side] = fresh.call("ask", "memory")
    return Result(name, task, timed, losses, memory, missing, device)


def _check_alike(ours: Shapes, theirs: Shapes, side: str) -> None:
    """The same parameters, or their weights and so their losses would not be the same."""
    apart = sorted(n for n in ours | theirs if ours.get(n) != theirs.get(n))
    if apart:
        found = "; ".join(f"{n} {ours.get(n, '-')} and {theirs.get(n, '-')}" for n in apart[:5])
        raise ParametersDiffer(f"ours and {side} have other parameters: {found}")


# The table ----------------------------------------------------------------------------------------


def table(result: Result) -> Table:
    """A row for the whole step and each lap: milliseconds of each side and the ratio."""
    turns = result.turns
    peers = [side for side in turns.laps if side != "ours"]
    task = result.task
    grid = Table(
        title=f"{task.title}, batch {task.batch}, {task.optimizer_name}, float32",
        title_justify="left",
        caption="milliseconds: median (p20-p80) over the turns; x side: its time / ours"
        + "\ninput: a batch out of each side's DataLoader, from memory" * ("input" in result.laps),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    grid.add_column("")
    for column in ("ours", *peers, *(f"x {p}" for p in peers)):
        grid.add_column(column, justify="right", no_wrap=True)
    for i, lap in enumerate((*result.laps, "step")):
        index = i if lap != "step" else None
        cells = [_text(turns.seconds(side, index), 1e3) for side in turns.laps]
        grid.add_row(lap, *cells, *(_text(_ratio(turns, peer, index)) for peer in peers))
    best = [f"{turns.best[side] * 1e3:.3g}" for side in turns.laps]
    grid.add_row("best step", *best, *(f"{turns.best_speedup(peer):.3g}" for peer in peers))
    rates = [f"{result.rate(side).median:,.0f}" for side in turns.laps]
    grid.add_row(f"{result.task.unit}/s", *rates, *[""] * len(peers))
    final = [f"{result.losses[side][-1]:.4f}" for side in turns.laps]
    grid.add_row(f"loss, step {STEPS}", *final, *[""] * len(peers))
    kinds = {
        "cpu": (("peak memory", "peak"), ("  above imports", "growth")),
        "cuda": (("memory on the card", "device"),),
    }
    for label, key in kinds[result.device]:
        cells = [_megabytes(result.memory[side][key]) for side in turns.laps]
        grid.add_row(label, *cells, *[""] * len(peers))
    return grid


def _ratio(turns: Turns, peer: str, lap: int | None) -> Spread:
    if lap is None:
        return turns.speedup(peer)
    pairs = zip(turns.laps[peer], turns.laps["ours"], strict=False)
    return Spread.of(theirs[lap] / ours[lap] for theirs, ours in pairs)


def _text(spread: Spread, unit: float = 1.0) -> str:
    median, p20, p80 = (f"{v * unit:.3g}" for v in (spread.median, spread.p20, spread.p80))
    return f"{median} ({p20}-{p80})"


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:.1f} MiB"
