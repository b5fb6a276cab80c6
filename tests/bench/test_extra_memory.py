"""Memory of a call beyond its inputs and results, and the machine's arithmetic."""

import numpy as np
import pytest

from bench import extra_memory, peak
from bench.cases import Case
from bench.kernel_bench import Row
from bench.kernel_table import size_of
from bench.measure import Turns
from kernels.cpu.alignment import align_arrays

MB = 1 << 20


def step():
    """A temporary of 3 MB, another of 2 MB after it, a result of 1 MB."""
    first = np.zeros(3 * MB, np.uint8)
    out = first[:MB].copy()
    del first
    second = np.zeros(2 * MB, np.uint8)
    del second
    return out


def test_temporaries_count_and_results_do_not():
    align_arrays()  # the allocator that kernels run with reports its arrays as well
    assert 3 * MB <= extra_memory.of_numpy(step) < 3 * MB + 10_000
    assert extra_memory.of_numpy(lambda: np.zeros(MB)) < 10_000
    target = np.zeros(MB, np.uint8)
    assert extra_memory.of_numpy(lambda: target.fill(1)) < 10_000


def test_so_it_is_with_torch():
    torch = pytest.importorskip("torch")
    x = torch.ones(MB)
    assert 0 <= extra_memory.of_torch(lambda: (x + 1) * (x + 2)) - 2 * 4 * MB < 100  # numbers, too
    assert extra_memory.of_torch(lambda: x + 1) < 100


def test_sizes_are_short():
    sizes = (None, 700, 5000, 3 * MB)
    assert [size_of(n) for n in sizes] == ["-", "0", "5 KiB", "3.0 MiB"]


def test_multiply_adds_are_counted_and_computed():
    out = np.zeros((4, peak.LANES), np.float32)
    assert peak.run(out) == 2 * 4 * peak.LANES * peak.CHAINS * peak.ROUNDS
    # a = a/2 + 1/4 comes to 1/2 in each of the chains
    np.testing.assert_allclose(out, peak.CHAINS / 2, rtol=1e-5)


def test_the_roof_is_the_lower_of_copying_and_arithmetic():
    turns = Turns(["ours"])
    turns.add("ours", [(1e-3,)])
    facts = {"ours": {"bytes": 1_000_000}}  # 1 GB/s
    row = Row(Case("matmul", "nn", (100, 100, 100)), facts, turns, peak_flops=4e9)  # 2 GFLOP/s
    assert row.share_of_roof(copy_bandwidth=10e9) == pytest.approx(0.5)
    assert row.share_of_roof(copy_bandwidth=1.25e9) == pytest.approx(0.8)
