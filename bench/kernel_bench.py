"""`python -m bench kernels`: every kernel against its reference and torch, correctness first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bench.cases import TOLERANCES, Case, flops
from bench.measure import Spread, Turns, measure
from bench.peer import PeerError, Worker
from bench.pools import Pool, Separate, Start, Together, copy_bandwidth, peak_flops
from bench.sizes import Device

#: What --against chooses from.
SIDES: dict[Device, tuple[str, ...]] = {
    "cpu": ("reference", "torch", "torch.compile"),
    "cuda": ("reference", "own", "torch", "torch.compile", "triton"),
}

#: torch computes in the same precision, so its result may be this far from the float64 reference
#: before it counts as another function.
PEER_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass
class Row:
    """A measured case, or the reason why it was not."""

    case: Case
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: Turns | None = None
    problem: str = ""
    #: Operations a second of the machine's arithmetic, for cases that have operations to count.
    peak_flops: float | None = None

    @property
    def seconds(self) -> Spread:
        """An iteration of ours."""
        assert self.turns is not None
        return self.turns.seconds("ours")

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the least traffic there could be."""
        return float(self.facts["ours"]["bytes"] / self.seconds.median)

    @property
    def flops(self) -> float | None:
        """Operations a second of a matrix product; None for other kernels."""
        count = flops(self.case)
        return None if count is None else count / self.seconds.median

    def joined(self, later: Row) -> Row:
        """With the turns of a later pass; a pass that failed fails the row."""
        if self.turns is None or later.turns is None:
            return self if self.turns is None else later
        self.turns.join(later.turns)
        self.problem = self.problem or later.problem
        return self

    def share_of_roof(self, copy_bandwidth: float) -> float:
        """Of what copying and arithmetic allow, the lower of the two (Williams et al. 2009)."""
        shares = [self.bandwidth / copy_bandwidth]
        if self.flops is not None and self.peak_flops:
            shares.append(self.flops / self.peak_flops)
        return max(shares)

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
            "dtype": self.case.dtype,
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
            row["flops"] = self.flops
            row["peak_flops"] = self.peak_flops
            row["share_of_roof"] = self.share_of_roof(copy_bandwidth)
            row["disturbed"] = self.turns.disturbed
            row["turns"] = {s: self.turns.totals(s) for s in sides}
        return row


class KernelBench:
    """The workers of a run; `copy_bandwidth` (bytes a second) is measured when it starts."""

    def __init__(
        self,
        against: Sequence[str],
        seconds: float,
        turns: int,
        threads: int | None = None,
        device: Device = "cpu",
        start: Start = Worker,
    ) -> None:
        self.seconds = seconds
        self.turns = turns
        sides = ["ours", *against]
        self.pool: Pool = (
            Separate(sides, threads, start) if device == "cpu" else Together(sides, start)
        )
        self.copy_bandwidth = copy_bandwidth(device, threads, start)
        self._peak = cache(lambda dtype: peak_flops(device, threads, dtype, start))

    def run_all(
        self, chosen: Sequence[Case], passes: int, after_case: Callable[[Case], object]
    ) -> list[Row]:
        """All cases, `passes` times, each time in new processes and with a part of the time.

        Where the system happens to put a process's arrays, and what the machine's other guests do
        to the caches meanwhile, changes some kernels by a fifth and more, for as long as the
        process lives: turns of one process alone do not show that spread.
        """
        rows: dict[Case, Row] = {}
        whole = self.seconds, self.turns
        self.seconds, self.turns = whole[0] / passes, max(1, round(whole[1] / passes))
        for number in range(passes):
            if number:
                self.pool.restart_all()
            for case in chosen:
                row = self.run(case)
                rows[case] = rows[case].joined(row) if case in rows else row
                after_case(case)
        self.seconds, self.turns = whole
        return list(rows.values())

    def __enter__(self) -> KernelBench:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.close()

    def run(self, case: Case, without: Collection[str] = ()) -> Row:
        """Check and time one case. A side that fails is left out of the row, which says so; the
        sides in `without` are not asked.
        """
        row = Row(case, peak_flops=self._peak(case.dtype) if flops(case) else None)
        row.facts, problems = self.pool.prepare(case, without)
        row.problem = "; ".join(problems)
        if "ours" not in row.facts:
            return row
        wrong, allowed = row.facts["ours"]["error"], TOLERANCES[case.dtype]
        if wrong > allowed:
            row.problem = f"WRONG: off by {wrong:.2g} from float64 (allowed {allowed:g}), not timed"
            return row
        sides = [side for side in row.facts if side == "ours" or self._takes_part(side, row)]
        try:
            runners = self.pool.runners(sides)
            turns = measure(runners, self.seconds, self.turns)
            for side, runner in runners.items():
                row.facts[side]["extra_memory"] = runner.call("extra_memory")
            row.turns = turns
        except PeerError as error:
            row.problem = str(error)
            self.pool.restart(sides)
        return row

    def _takes_part(self, side: str, row: Row) -> bool:
        facts = row.facts[side]
        if side == "reference":  # where there is no tuned version, ours is the reference itself
            return bool(row.facts["ours"]["version"] == "tuned")
        if facts.get("peer") is None:
            return False
        if facts["error"] is not None and facts["error"] > PEER_TOLERANCES[row.case.dtype]:
            row.problem = f"{side} computes something else (off by {facts['error']:.2g}), not timed"
            return False
        return True
