"""Triton's side computes what the kernels do, in Triton's own interpreter."""

import subprocess
import sys

import pytest

SCRIPT = """
from bench import cases, torch_peers, triton_peers
from bench.torch_calls import prepare

for name in triton_peers.KERNELS:
    for shape in ((5, 33), (7, 1024)):
        case = next(c for c in cases.find([name], [shape]) if c.label == name)
        call = triton_peers.in_triton(prepare(case, cases.arguments(case)), case)
        error = cases.error(call.results(), cases.truth(case))
        assert error < cases.TOLERANCE, f"{case}: off by {error}"
    print(name)
"""


def test_kernels_in_triton_compute_the_same(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when a kernel is defined: a fresh process
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["softmax", "layer_norm", "gelu"]
