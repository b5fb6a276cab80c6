"""`python -m bench gpu` without a GPU: its parts on fakes, its budget, its file, its errors."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

from bench import gpu, gpu_tests, machine, overlap, sanitizer, training
from bench.__main__ import app
from bench.budget import Budget
from bench.cases import Case
from bench.kernel_bench import KernelBench
from bench.measure import Turns
from bench.peer import PeerError
from bench.training_tasks import TASKS
from framework.backend import device
from framework.backend.device import Probe

FACTS = {
    "format": machine.FORMAT,
    "device": "cuda",
    "date": "2026-01-02T03:04:05+00:00",
    "gpu": {"name": "Fake GPU", "driver": "1.2", "cuda_runtime": "13.0"},
    "versions": {"cupy": "14.2"},
    "commit": "0123456789abcdef",
}
TESTED = {
    "passed": 3,
    "failed": 1,
    "not_reached": 0,
    "seconds": 1.0,
    "problem": None,
    "failures": [{"test": "tests/a.py::test_b", "reason": "AssertionError: off by 1"}],
}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def said():
    return []


@pytest.fixture
def run(tmp_path, said, monkeypatch):
    """A run into a file, on a clock of its own; torch counts as missing."""
    monkeypatch.setattr(machine, "has_torch", lambda: False)

    def make(minutes=8.0, clock=None, **options):
        budget = Budget(minutes * 60, clock or Clock())
        return gpu.Run(tmp_path / "gpu.json", budget, said.append, dict(FACTS), **options)

    return make


def written(made):
    return json.loads(made.path.read_text())


# Budget -------------------------------------------------------------------------------------------


def test_a_budget_deals_out_what_is_left():
    clock = Clock()
    budget = Budget(100, clock)
    tests = budget.part(180, keep=10)
    assert (tests.seconds, budget.left) == (90, 100)
    clock.now = 95
    assert (budget.left, tests.left, budget.spent) == (5, 0, 95)
    assert budget.part(50, keep=10).seconds == 0
    assert budget.allows(5) and not budget.allows(5.1)
    clock.now = 200
    assert budget.left == 0


# The whole, on the emulator -----------------------------------------------------------------------


def test_kernels_run_end_to_end(run, local, monkeypatch, said):
    main = [Case("relu", "_sample", (9, 33)), Case("softmax", "_", (3, 65), "bfloat16")]
    others = [Case("matmul", "nn", (4, 8, 2))]
    monkeypatch.setattr(gpu, "kernel_cases", lambda: (main, others))
    made = run(bench=partial(KernelBench, start=local))
    made.all(["kernels"])
    figures = written(made)
    assert figures["finished"] is True
    assert figures["kind"] == "gpu"
    assert figures["gpu"]["name"] == "Fake GPU"
    rows = figures["kernels"]["rows"]
    assert [(r["kernel"], r["dtype"], r["problem"]) for r in rows] == [
        ("relu", "float32", None),
        ("softmax", "bfloat16", None),
        ("matmul", "float32", None),
    ]
    for row in rows:
        ours = row["seconds"]["ours"]
        assert 0 < ours["p20"] <= ours["median"] <= ours["p80"]
        assert row["share_of_copy"] > 0
    assert figures["kernels"]["copy_bandwidth"] > 0
    assert made.failures == []
    assert any(machine.TORCH_IS_MISSING in line for line in said)
    assert any("relu[9x33]: " in line and "GB/s" in line for line in said)


class Bench:
    """Stands in for KernelBench; each case takes ten seconds of the clock."""

    copy_bandwidth = 1e12

    def __init__(self, clock, fails=None):
        self.clock, self.fails, self.asked = clock, fails, []

    def __call__(self, *_, **__):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, case, without=()):
        from bench.kernel_bench import Row

        self.asked.append((str(case), without))
        self.clock.now += 10
        if str(case) == self.fails:
            raise KeyboardInterrupt
        turns = Turns(["ours"])
        turns.add("ours", [(1e-5,)])
        facts = {"ours": {"bytes": 100, "error": 0.0, "version": "tuned"}}
        return Row(case, facts, turns)


def test_a_kill_keeps_what_was_measured(run, monkeypatch):
    clock = Clock()
    main, others = gpu.kernel_cases()
    made = run(clock=clock, bench=Bench(clock, fails=str(main[3])))
    with pytest.raises(KeyboardInterrupt):
        made.all(["kernels"])
    figures = written(made)
    assert len(figures["kernels"]["rows"]) == 3
    assert "finished" not in figures
    assert figures["spent"] == 30


def test_the_time_is_kept_and_what_was_not_reached_is_named(run):
    clock = Clock()
    bench = Bench(clock)
    made = run(minutes=1.0, clock=clock, bench=bench)
    made.all(["kernels"])
    assert clock.now <= 60
    figures = written(made)
    main, others = gpu.kernel_cases()
    assert [name for name, _ in bench.asked] == [str(c) for c in main[: len(bench.asked)]]
    assert len(figures["kernels"]["rows"]) + len(figures["kernels"]["not_reached"]) >= len(main)


def test_torch_compile_is_asked_once_for_each_kernel_and_dtype(run):
    clock = Clock()
    bench = Bench(clock)
    run(minutes=60, clock=clock, bench=bench).all(["kernels"])
    asked = [name for name, without in bench.asked if not without]
    assert "softmax[16384x1024]" in asked and "softmax[32768x1024] bfloat16" in asked
    assert "softmax[512x32768]" not in asked


def test_parts_come_in_order_and_a_failing_one_stops_nothing(run, monkeypatch, said):
    clock, order = Clock(), []

    def tests(seconds):
        order.append("tests")
        assert seconds == gpu.TESTS
        clock.now += 100
        return TESTED

    def train(*_, **__):
        order.append("training")
        raise PeerError("ours: OutOfMemoryError: no")

    monkeypatch.setattr(gpu_tests, "run", tests)
    monkeypatch.setattr(training, "run", train)
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    monkeypatch.setattr(overlap, "measure_overlap", lambda device: {"hidden": 0.9})
    made = run(clock=clock, bench=Bench(clock))
    made.all()
    figures = written(made)
    assert order == ["tests", "training"]
    assert figures["training"] == {
        "results": [],
        "not_reached": [],
        "problem": "PeerError: ours: OutOfMemoryError: no",
    }
    assert figures["sanitizer"] == {"problem": sanitizer.MISSING}
    assert sum(sanitizer.MISSING in line for line in said) == 1
    assert figures["tests"]["failures"][0]["reason"] == "AssertionError: off by 1"
    assert figures["kernels"]["rows"]
    assert made.failures == ["training: PeerError: ours: OutOfMemoryError: no", "1 tests failed"]
    assert clock.now <= 8 * 60


def test_without_time_a_part_says_so(run):
    clock = Clock()
    made = run(minutes=0.1, clock=clock, bench=Bench(clock))
    made.all(["tests"])
    assert written(made)["tests"] == {"problem": "no time left"}


def test_training_is_written_with_what_is_missing(run, monkeypatch):
    turns = Turns(["ours"])
    turns.add("ours", [(1e-3,)])
    memory = {"ours": {"device": 5}}
    missing = {"captured": "captured: CaptureError: no"}
    result = training.Result(
        "mlp", TASKS["mlp"], turns, {"ours": [2.0, 1.0]}, memory, missing, device="cuda"
    )
    monkeypatch.setattr(training, "run", lambda *_, **__: result)
    made = run()
    made.all(["training"])
    figures, *others = written(made)["training"]["results"]
    assert len(others) == len(TASKS) - 1
    assert figures["steps_per_second"]["ours"]["median"] == pytest.approx(1000)
    assert figures["memory"] == memory
    assert figures["missing"] == missing
    assert figures["agrees"] is True


def test_rounds_time_a_step_and_start_again_for_losses():
    from bench.training_cuda import _Rounds

    made, waits = [], []

    class Loss:
        def __init__(self, value):
            self.value = value

        def detach(self):
            return self

        def item(self):
            return self.value

    def make():
        made.append(steps := [])

        def step(x, y):
            steps.append((x, y))
            return Loss(float(len(steps)))

        return step

    rounds = _Rounds(make, [(1, 2), (3, 4)], lambda: waits.append(1))
    (seconds,) = rounds.round()
    assert seconds > 0
    assert made[0] == [(1, 2), (3, 4)]
    assert waits == [1]
    assert rounds.losses(3) == [1.0, 2.0, 3.0]
    assert made[1] == [(1, 2), (3, 4), (1, 2)]


# The command --------------------------------------------------------------------------------------


def call(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_an_unknown_part_lists_the_right_ones():
    result = call("gpu", "--only", "tests,kernel")
    assert result.exit_code == 2
    message = "unknown part 'kernel' in --only: there are tests, sanitizer, kernels, training"
    assert result.output.strip() == message


@pytest.mark.parametrize(
    "command", [("gpu",), ("kernels", "relu", "--device", "cuda"), ("training", "--device", "cuda")]
)
def test_without_a_gpu_one_line_says_what_is_missing(command, monkeypatch, tmp_path):
    probe = Probe(False, "CuPy is not installed", device.INSTALL_CUPY)
    monkeypatch.setattr(device, "probe_cuda", lambda: probe)
    result = call(*command)
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert "device 'cuda' cannot be used: CuPy is not installed; pip install" in result.output


def test_a_device_and_a_dtype_that_do_not_exist_are_named():
    result = call("kernels", "relu", "--device", "tpu")
    assert (result.exit_code, result.output.strip()) == (2, "--device tpu: expected cpu or cuda")
    result = call("kernels", "relu", "--device", "cpu", "--dtype", "bfloat16")
    assert result.exit_code == 2
    assert result.output.strip() == "--dtype bfloat16: on cpu there is float32"


def test_the_command_writes_a_file_and_fails_when_tests_do(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "probe_cuda", lambda: Probe(True))
    monkeypatch.setattr(machine, "describe", lambda *_: dict(FACTS))
    monkeypatch.setattr(gpu_tests, "run", lambda seconds: TESTED)
    out = tmp_path / "new" / "gpu.json"
    result = call("gpu", "--only", "tests", "--out", out)
    assert result.exit_code == 1
    assert "1 tests failed" in result.output
    assert "FAILED tests/a.py::test_b: AssertionError: off by 1" in result.output
    assert "Tests on the GPU: 3 passed, 1 failed." in result.output
    assert json.loads(out.read_text())["tests"]["passed"] == 3


def test_results_are_named_by_the_machine_and_the_date():
    path = machine.result_path(FACTS | {"gpu": {"name": "NVIDIA H100 80GB HBM3"}})
    assert path.parent.name == "results"
    assert path.name == "nvidia-h100-80gb-hbm3-2026-01-02T030405.json"
