"""Every case of `python -m bench kernels` as a benchmark of pytest-benchmark: conftest.py."""

from __future__ import annotations

from typing import Any

import pytest

from bench import cases, machine, sides
from bench.cases import Case
from bench.kernel_bench import PEER_TOLERANCES


def test_kernel(case: Case, side: str, benchmark: Any) -> None:
    """Checked against float64, then timed."""
    if side == "torch" and not machine.has_torch():
        pytest.skip(machine.TORCH_IS_MISSING)
    work = getattr(sides, side)(case)
    if side == "torch" and work.facts["peer"] is None:
        pytest.skip("torch has no such operation")
    if side == "reference" and cases.load()[case.kernel].version("cpu", case.dtype) is None:
        pytest.skip("there is no tuned version: the reference is what runs")
    error = work.facts.get("error")
    tolerances = cases.TOLERANCES if side == "ours" else PEER_TOLERANCES
    assert error is None or error <= tolerances[case.dtype], f"off by {error:.2g} from float64"
    benchmark.group = str(case)
    benchmark.extra_info.update(
        work.facts, kernel=case.kernel, variant=case.variant, shape=list(case.shape), side=side
    )
    benchmark(work.step)
