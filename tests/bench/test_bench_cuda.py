"""The sides on CUDA, on the emulator: prepared, checked, timed by events; what breaks is said."""

import pytest

from bench import cases, cuda_sides
from bench.cases import Case
from bench.kernel_bench import KernelBench
from bench.peer import PeerError
from bench.pools import Together

RELU = Case("relu", "_sample", (33, 65))


@pytest.fixture
def bench(local):
    """A run over the emulator with short turns."""
    with KernelBench(["reference"], 0.01, 3, device="cuda", start=local) as made:
        yield made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernel", "variant", "shape"),
    [
        ("relu", "_sample", (33, 65)),
        ("gelu_grad", "_sample", (33, 65)),
        ("softmax", "_", (5, 33)),
        ("cross_entropy", "_", (7, 33)),
        ("layer_norm_grad", "_", (7, 33)),
        ("batch_norm", "channels_last", (2, 3, 4, 5)),
        ("adam_step", "adamw", (1001, 5)),
    ],
)
def test_a_case_is_checked_and_timed(bench, kernel, variant, shape, dtype):
    row = bench.run(Case(kernel, variant, shape, dtype))
    assert row.problem == ""
    assert row.facts["ours"]["version"] == "tuned"
    assert row.facts["ours"]["dtype"] == dtype
    assert 0 <= row.facts["ours"]["error"] <= cases.TOLERANCES[dtype]
    assert row.facts["ours"]["truth"] == "CuPy"
    assert set(row.turns.laps) == {"ours", "reference"}
    figures = row.as_dict(bench.copy_bandwidth)
    assert figures["seconds"]["ours"]["median"] > 0
    assert figures["share_of_copy"] > 0
    assert figures["dtype"] == dtype


def test_large_calls_are_timed_by_events_with_the_cache_flushed(bench, monkeypatch, cupy):
    monkeypatch.setattr(cuda_sides, "SMALL_BYTES", 0)
    filled = []
    monkeypatch.setattr(cuda_sides, "_flush_buffer", lambda: cupy.empty(8, "uint8"))
    monkeypatch.setattr(cupy.ndarray, "fill", lambda self, value: filled.append(value))
    row = bench.run(RELU)
    assert row.facts["ours"]["timing"] == "events, L2 flushed"
    assert len(filled) >= 2 * 3  # once before every call that is timed


def test_products_have_operations_a_second(bench):
    row = bench.run(Case("matmul", "nn", (8, 16, 4)))
    assert row.problem == ""
    assert row.flops == pytest.approx(2 * 8 * 16 * 4 / row.seconds.median)
    assert bench.run(RELU).flops is None


def test_layouts_come_over_as_they_are(cupy):
    drawn = cases.arguments(Case("batch_norm", "channels_last", (2, 3, 4, 5)))[0]
    moved = cuda_sides.to_device(drawn)
    assert moved.strides == drawn.strides
    assert moved.get().tobytes() == drawn.tobytes()
    assert moved.shape == drawn.shape


def test_a_wrong_kernel_is_not_timed(bench, monkeypatch):
    kernel = cases.load()["relu"]
    versions = {key: lambda x: x * 2 for key in kernel._versions}
    monkeypatch.setattr(kernel, "_versions", versions)
    row = bench.run(RELU)
    assert row.turns is None
    assert "WRONG: off by" in row.problem


def test_a_side_that_fails_is_left_out_and_named(local, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operation\nsecond line")

    monkeypatch.setitem(cuda_sides._PREPARE, "reference", fail)
    with KernelBench(["reference"], 0.01, 3, device="cuda", start=local) as bench:
        row = bench.run(RELU)
    assert row.problem == "reference: RuntimeError: no such operation"
    assert list(row.turns.laps) == ["ours"]


def test_a_truth_that_cupy_cannot_compute_is_numpys_and_says_so(bench, monkeypatch):
    computed = cases.truth
    monkeypatch.setattr(
        cases, "truth", lambda case, args=None: computed(case) if args is None else 1 / 0
    )
    facts = bench.run(RELU).facts["ours"]
    assert facts["truth"] == "NumPy, for CuPy said ZeroDivisionError"
    assert facts["error"] == 0


class Dies:
    """A worker that a side other than ours ends."""

    started = 0

    def __init__(self, *_, **__):
        Dies.started += 1

    def call(self, request, *args):
        if request == "prepare" and args[1] != ["ours"]:
            raise PeerError("the worker of cuda ended with exit code -6 during 'prepare'")
        return {"ours": {"error": 0.0, "bytes": 1, "version": "tuned"}}

    def close(self):
        pass


def test_a_side_that_ends_the_process_costs_the_others_nothing():
    pool = Together(["ours", "torch"], Dies)
    facts, problems = pool.prepare(RELU)
    assert list(facts) == ["ours"]
    assert problems == ["the worker of cuda ended with exit code -6 during 'prepare'"]
    assert Dies.started == 2
