"""Every case of `python -m bench kernels` as a benchmark of pytest-benchmark: conftest.py."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import Case
from bench.kernel_bench import Row

_now = 0.0


def worker_clock() -> float:
    """Stands still but for what a worker's turn took."""
    return _now


@pytest.mark.benchmark(timer=worker_clock)
def test_kernel(case: Case, side: str, row: Row, benchmark: Any) -> None:
    """Checked against float64 and timed; a round is a turn, the median of its iterations."""
    if row.turns is None:
        pytest.fail(row.problem)
    if side not in row.turns.laps:
        pytest.skip(row.problem or f"{case}: {side} is not installed, the same or has no such call")
    seconds = iter(row.turns.totals(side))

    def turn() -> None:
        global _now
        _now += next(seconds)

    benchmark.group = str(case)
    benchmark.extra_info |= row.facts.get(side, {}) | {
        "kernel": case.kernel,
        "variant": case.variant,
        "shape": list(case.shape),
        "side": side,
        "best_seconds": row.turns.best[side],
        "disturbed": row.turns.disturbed,
    }
    benchmark.pedantic(turn, rounds=len(row.turns.laps[side]))
