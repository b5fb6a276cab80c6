"""`python -m bench kernels`: every kernel against its reference and torch, correctness first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from bench.cases import TOLERANCE, Case, size_text
from bench.measure import Spread, Turns, measure
from bench.peer import PeerError, Worker

SIDES = ("reference", "torch")

#: torch computes in float32 as well, so its result may be this far from the float64 reference
#: before it counts as another function.
PEER_TOLERANCE = 1e-4


@dataclass
class Row:
    """A measured case, or the reason why it was not."""

    case: Case
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: Turns | None = None
    problem: str = ""

    @property
    def seconds(self) -> Spread:
        """An iteration of ours."""
        assert self.turns is not None
        return self.turns.seconds("ours")

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the least traffic there could be."""
        return float(self.facts["ours"]["bytes"] / self.seconds.median)

    def speedup(self, side: str) -> Spread | None:
        """Time of `side` over ours; None where that side did not run."""
        timed = self.turns is not None and side in self.turns.laps
        return self.turns.speedup(side) if timed and self.turns is not None else None

    def as_dict(self, copy_bandwidth: float) -> dict[str, Any]:
        """Every figure, for JSON."""
        row: dict[str, Any] = {
            "kernel": self.case.kernel,
            "variant": self.case.variant,
            "shape": list(self.case.shape),
            "sides": self.facts,
            "problem": self.problem or None,
        }
        if self.turns is not None:
            sides = list(self.turns.laps)
            row["seconds"] = {s: self.turns.seconds(s).as_dict() for s in sides}
            row["speedup"] = {s: self.turns.speedup(s).as_dict() for s in sides if s != "ours"}
            row["best_seconds"] = self.turns.best
            row["bandwidth"] = self.bandwidth
            row["share_of_copy"] = self.bandwidth / copy_bandwidth
            row["disturbed"] = self.turns.disturbed
            row["turns"] = {s: self.turns.totals(s) for s in sides}
        return row


class KernelBench:
    """The workers of a run; `copy_bandwidth` (bytes a second) is measured when it starts."""

    def __init__(
        self, against: Sequence[str], seconds: float, turns: int, threads: int | None = None
    ) -> None:
        self._threads = threads
        self.seconds = seconds
        self.turns = turns
        self._stack = ExitStack()
        self._against = list(against)
        self._workers: dict[str, Worker] = {}
        with Worker("copy", "bench.sides:copy", threads) as copy:
            self._start()
            moved = copy.call("prepare")["bytes"]
            times = measure({"copy": copy}, 15 * 0.03, 15)
            self.copy_bandwidth = moved / times.seconds("copy").median

    def __enter__(self) -> KernelBench:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        """Start the sides that are not running: all at first, later those that died."""
        for side in ("ours", *self._against):
            if side not in self._workers:
                worker = Worker(side, f"bench.sides:{side}", self._threads)
                self._workers[side] = self._stack.enter_context(worker)

    def run(self, case: Case) -> Row:
        """Check and time one case. A side that fails is left out of the row, which says so."""
        self._start()
        row = Row(case)
        for side in self._workers:
            self._workers[side].send("prepare", case)
        problems = []
        for side in list(self._workers):
            try:
                row.facts[side] = self._workers[side].receive()
            except PeerError as error:
                problems.append(str(error))
                self._replace(side)
        row.problem = "; ".join(problems)
        if "ours" not in row.facts:
            return row
        wrong = row.facts["ours"]["error"]
        if wrong > TOLERANCE:
            row.problem = (
                f"WRONG: off by {wrong:.2g} from float64 (allowed {TOLERANCE:g}), not timed"
            )
            return row
        sides = ["ours", *(s for s in self._against if s in row.facts and self._takes_part(s, row))]
        try:
            row.turns = measure({s: self._workers[s] for s in sides}, self.seconds, self.turns)
        except PeerError as error:
            row.problem = str(error)
            for side in sides:
                self._replace(side)
        return row

    def _takes_part(self, side: str, row: Row) -> bool:
        facts = row.facts[side]
        if side == "reference":  # where there is no tuned version, ours is the reference itself
            return bool(row.facts["ours"]["version"] == "tuned")
        if facts.get("peer") is None:
            return False
        if facts["error"] is not None and facts["error"] > PEER_TOLERANCE:
            row.problem = f"{side} computes something else (off by {facts['error']:.2g}), not timed"
            return False
        return True

    def _replace(self, side: str) -> None:
        self._workers.pop(side).close()


def run_all(bench: KernelBench, cases: Iterable[Case], done: Callable[[Row], object]) -> list[Row]:
    """All cases in turn; `done` is told after each."""
    rows = []
    for case in cases:
        rows.append(bench.run(case))
        done(rows[-1])
    return rows


# The table ----------------------------------------------------------------------------------------


_CAPTION = """\
us: median time of an iteration, with p20-p80 over the turns.
x side: its time / ours, turn by turn: median (p20-p80); above 1 ours is faster. best: the ratio of
the fastest iterations, for a machine that is busy.
GB/s: the least traffic, each argument read once and each result written once. copy: its share of
{:.1f} GB/s, which a plain copy of 128 MB reached in this run; above 100% the arrays
stay in caches. error: against float64, relative to the largest element or 1.
r: there is no tuned version, the reference is what runs."""


def table(rows: Sequence[Row], copy_bandwidth: float, against: Sequence[str]) -> Table:
    """Times in microseconds, ratios as "median (p20-p80)"."""
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        title_justify="left",
        caption_justify="left",
        caption=_CAPTION.format(copy_bandwidth / 1e9),
    )
    result.add_column("kernel", no_wrap=True)
    result.add_column("size", no_wrap=True)
    ratios = [name for side in against for name in (f"x {side}", "best")]
    for name in ("us", "p20-p80", *ratios, "GB/s", "copy", "error"):
        result.add_column(name, justify="right", no_wrap=True)
    if "torch" in against:
        result.add_column("torch is", overflow="fold", style="dim", ratio=1)
    for row in rows:
        _add(result, row, copy_bandwidth, against)
    return result


def _add(result: Table, row: Row, copy_bandwidth: float, against: Sequence[str]) -> None:
    name, size = row.case.label, size_text(row.case.shape)
    if row.turns is None:
        result.add_row(name, size, f"[red]{row.problem}")
        return
    ours, t = row.facts["ours"], row.seconds
    cells = [
        name + (" [dim]r[/]" if ours["version"] == "reference" else ""),
        size,
        microseconds(t.median),
        f"{microseconds(t.p20)}-{microseconds(t.p80)}",
        *(cell for side in against for cell in _ratios(row, side)),
        f"{row.bandwidth / 1e9:.1f}",
        f"{row.bandwidth / copy_bandwidth:.0%}",
        f"{ours['error']:.0e}" if ours["error"] else "0",
    ]
    if "torch" in against:
        peer = row.facts.get("torch", {}).get("peer") or "-"
        cells.append(f"[red]{row.problem}" if row.problem else peer)
    result.add_row(*cells)


def _ratios(row: Row, side: str) -> tuple[str, str]:
    """Turn by turn, and of the fastest iterations."""
    spread = row.speedup(side)
    if spread is None or row.turns is None:
        return "-", ""
    return ratio(spread), f"{row.turns.best_speedup(side):.3g}"


def microseconds(seconds: float) -> str:
    """Three significant digits or all before the point."""
    us = seconds * 1e6
    return f"{us:.0f}" if us >= 100 else f"{us:.3g}"


def ratio(spread: Spread) -> str:
    """Median (p20-p80); green where all of it is above 1, red where all is below."""
    median, p20, p80 = (
        f"{v:.0f}" if v >= 100 else f"{v:.2f}" for v in (spread.median, spread.p20, spread.p80)
    )
    colour = "green" if spread.p20 > 1 else "red" if spread.p80 < 1 else "yellow"
    return f"[{colour}]{median}[/] [dim]({p20}-{p80})[/]"
