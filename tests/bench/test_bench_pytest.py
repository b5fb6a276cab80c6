"""`pytest bench/`: the cases under pytest-benchmark, and only when they are asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cases

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path, *args):
    # a worker of pytest-xdist says so in the environment, and pytest-benchmark listens
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, args)]
    return subprocess.run(
        [*command, "--benchmark-storage", str(tmp_path)],
        cwd=ROOT,
        env=alone,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_case_is_timed_saved_and_compared(tmp_path):
    pytest.importorskip("pytest_benchmark")
    name = next(str(c) for c in cases.find(["relu"], quick=True))
    out = tmp_path / "out.json"
    test = f"bench/test_kernels.py::test_kernel[{name}-ours]"
    quick = ["--bench-quick", "--bench-seconds", "0.01", "--bench-threads", "1"]
    found = run(tmp_path, test, *quick, "--benchmark-json", out)
    assert found.returncode == 0, found.stdout + found.stderr
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    assert benchmark["group"] == name
    assert benchmark["extra_info"]["kernel"] == "relu"
    assert benchmark["extra_info"]["error"] <= cases.TOLERANCE
    stats = benchmark["stats"]
    # the times are those of the worker, turn by turn
    assert 0 < benchmark["extra_info"]["best_seconds"] <= stats["min"] * (1 + 1e-6)
    assert stats["rounds"] >= 3
    again = run(tmp_path, test, *quick, f"--benchmark-compare={out}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(NOW)" in again.stdout


def test_there_is_a_test_of_every_case_and_side(tmp_path):
    pytest.importorskip("pytest_benchmark")
    args = ["bench", "--collect-only", "--bench-quick", "--bench-against", "torch"]
    found = run(tmp_path, *args)
    names = {line for line in found.stdout.splitlines() if "::test_kernel[" in line}
    assert len(names) == 2 * len(cases.find(quick=True))


def test_an_unknown_side_lists_those_there_are(tmp_path):
    pytest.importorskip("pytest_benchmark")
    found = run(tmp_path, "bench", "--collect-only", "--bench-against", "jax")
    assert found.returncode != 0
    assert (
        "--bench-against jax: there are reference, torch, torch.compile, none"
        in found.stdout + found.stderr
    )


def test_a_plain_run_has_no_benchmarks(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]
