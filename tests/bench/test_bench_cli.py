"""The commands: what they say about wrong arguments, and one short run of each."""

import io
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import machine, training
from bench.__main__ import app


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Call the command line; without torch, so that runs are short and alike everywhere."""
    monkeypatch.setattr(machine, "has_torch", lambda: False)

    def call(*args):
        return CliRunner().invoke(app, [str(a) for a in args])

    return call


def test_without_a_command_it_prints_help(bench):
    result = bench()
    assert result.exit_code == 0
    assert "kernels" in result.output
    assert "training" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["kernels", "sofmax"], r"unknown kernel 'sofmax': did you mean .*softmax"),
        (["kernels", "--against", "jax"], r"unknown peer 'jax' in --against: there are reference"),
        (["training", "--against", "reference"], r"unknown peer 'reference'.*: there are torch"),
        (["training", "--model", "yolo"], r"unknown model 'yolo': there are mlp"),
        (["training", "--set", "batch"], r"--set batch: expected a name and a value"),
        (["training", "--set", "batch=x"], r"--set batch=x: expected a value like 128"),
        (["kernels", "relu", "--sizes", "12by3"], r"--sizes 12by3: expected positive numbers"),
        (["kernels", "relu", "--sizes", "2x3x4"], r"no case of relu takes --sizes 2x3x4"),
    ],
)
def test_a_wrong_argument_is_one_line_and_code_2(bench, args, message):
    result = bench(*args)
    assert result.exit_code == 2
    assert re.search(message, result.output)
    assert len(result.output.strip().splitlines()) == 1


def test_a_json_path_that_cannot_be_written_fails_before_measuring(bench, tmp_path):
    path = tmp_path / "missing" / "out.json"
    for command in (["kernels", "relu", "--against", "none"], ["training", "--against", "none"]):
        result = bench(*command, "--json", path)
        assert result.exit_code == 2
        assert re.search(r"--json .*out\.json: cannot be written \(No such file", result.output)
        assert len(result.output.strip().splitlines()) == 1


def test_missing_torch_is_said_once_with_the_command(bench, tmp_path):
    out = tmp_path / "out.json"
    sizes = ["--sizes", "8x16", "--sizes", "4x4"]
    result = bench("kernels", "relu", *sizes, "--quick", "--json", out)
    assert result.exit_code == 0, result.output
    assert result.output.count("torch is not installed") == 1
    assert "pip install torch" in result.output
    facts = json.loads(out.read_text())
    assert facts["format"] == machine.FORMAT
    assert facts["kind"] == "kernels"
    assert facts["cores"] >= 1
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["copy_bandwidth"] > 0
    assert [row["shape"] for row in facts["rows"]] == [[8, 16], [4, 4]]
    row = facts["rows"][0]
    assert row["sides"]["ours"]["error"] == 0
    assert row["seconds"]["ours"]["p20"] <= row["seconds"]["ours"]["median"]
    assert set(row["turns"]) >= {"ours"}


def test_training_runs_and_writes_its_figures(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STEPS", 10)
    out = tmp_path / "out.json"
    options = ["--seconds", "0.05", "--turns", "3", "--against", "none", "--json", out]
    result = bench("training", *options)
    assert result.exit_code == 0, result.output
    assert "784-512-256-10" in result.output
    figures = json.loads(out.read_text())["results"][0]
    step = figures["seconds"]["ours"]
    assert set(step) == {"step", "input", "forward", "backward", "optimizer"}
    losses = figures["losses"]["ours"]
    assert losses[-1] < losses[0] / 2  # it learns: a step that does nothing would be fast
    assert figures["loss_difference"] == 0


def test_settings_and_several_models_on_the_command_line(bench, tmp_path, monkeypatch):
    from bench import training_tasks

    monkeypatch.setitem(training_tasks.TASKS, "small", training_tasks.TASKS["mlp"])
    monkeypatch.setattr(training, "STEPS", 2)
    out = tmp_path / "out.json"
    options = ["--set", "batch=8", "--set", "widths=16-8-4", "--against", "none", "--json", out]
    result = bench("training", "--model", "mlp,small", "--quick", "--turns", 3, *options)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())["results"]
    assert [f["model"] for f in figures] == ["mlp", "small"]
    assert {f["title"] for f in figures} == {"MLP 16-8-4"}
    assert {f["settings"]["batch"] for f in figures} == {8}


def test_torch_compile_without_a_compiler_is_said_once(bench, monkeypatch):
    from bench import __main__ as command, machine

    monkeypatch.setattr(machine, "has_torch", lambda: True)
    monkeypatch.setattr(machine, "has_compiler", lambda: False)
    said = []
    monkeypatch.setattr(command.typer, "echo", lambda text, err=False: said.append(text))
    assert command._sides("torch,torch.compile", training.SIDES, "cpu") == ["torch"]
    assert said == [machine.COMPILER_IS_MISSING]


def test_peers_of_cuda_are_left_out_on_the_cpu_with_a_word(monkeypatch):
    from bench import __main__ as command, kernel_bench, machine

    monkeypatch.setattr(machine, "has_torch", lambda: True)
    monkeypatch.setattr(machine, "has_triton", lambda: False)
    said = []
    monkeypatch.setattr(command.typer, "echo", lambda text, err=False: said.append(text))
    sides = kernel_bench.SIDES
    assert command._sides("torch,cupy,triton", sides, "cpu") == ["torch"]
    assert command._sides("cupy,reference,torch,triton", sides, "cuda") == ["reference", "torch"]
    assert said == ["compared on cuda only, so not here: cupy, triton", machine.TRITON_IS_MISSING]


def test_json_has_no_nan(tmp_path):
    machine.write(tmp_path / "a.json", {"a": [1.0, float("nan")], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.0, None], "b": {"c": None}}


# A wrong result is not timed ----------------------------------------------------------------------


class Answers:
    """A worker that gives canned answers."""

    def __init__(self, facts):
        self.facts = facts
        self.runs = 0

    def send(self, request, *args):
        assert request == "prepare"

    def receive(self):
        return self.facts

    def call(self, request, *args):
        if request == "warm":
            return 1e-4
        if request == "extra_memory":
            return 5000
        self.runs += 1
        return [(1e-4,)] * args[0]


def rows_of(ours, **peers):
    """A row measured with canned workers."""
    from bench.cases import Case
    from bench.kernel_bench import KernelBench
    from bench.pools import Separate

    workers = {"ours": Answers(ours)} | {name: Answers(facts) for name, facts in peers.items()}
    pool = object.__new__(Separate)
    pool._sides, pool._workers = list(workers), workers
    run = object.__new__(KernelBench)
    run.seconds, run.turns, run.pool = 0.01, 3, pool
    return run.run(Case("relu", "_sample", (2, 2))), workers


GOOD = {"version": "tuned", "dtype": "float32", "error": 1e-7, "bytes": 32}


def test_a_wrong_result_is_not_timed():
    row, workers = rows_of(GOOD | {"error": 0.5}, reference={})
    assert row.turns is None
    assert "WRONG: off by 0.5" in row.problem
    assert workers["ours"].runs == 0


def test_a_peer_that_computes_something_else_is_not_timed():
    row, workers = rows_of(GOOD, torch={"peer": "F.relu", "error": 0.3})
    assert list(row.turns.laps) == ["ours"]
    assert "torch computes something else (off by 0.3)" in row.problem
    assert workers["torch"].runs == 0


def test_a_kernel_without_a_tuned_version_is_not_compared_with_itself():
    row, _ = rows_of(GOOD | {"version": "reference"}, reference={}, torch={"peer": None})
    assert list(row.turns.laps) == ["ours"]


def test_the_table_and_the_json_have_every_side():
    from rich.console import Console

    from bench.kernel_table import table

    row, _ = rows_of(GOOD, reference={}, torch={"peer": "F.relu", "error": None})
    facts = row.as_dict(1e9)
    assert facts["speedup"]["torch"]["median"] == 1.0
    assert facts["share_of_copy"] == pytest.approx(32 / 1e-4 / 1e9)
    assert facts["share_of_roof"] == facts["share_of_copy"]
    assert facts["sides"]["torch"]["extra_memory"] == 5000
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table([row], 1e9, ["reference", "torch"]))
    text = console.export_text()
    for part in ("relu", "2x2", "F.relu", "1.00 (1.00-1.00)", "x torch", "5 KiB (5 KiB)"):
        assert part in text


def test_passes_add_up_and_begin_with_other_processes(monkeypatch):
    from bench import kernel_bench
    from bench.cases import Case
    from bench.kernel_bench import KernelBench, Row
    from bench.measure import Turns

    relu = Case("relu", "_sample", (2, 2))
    restarted, shown = [], []

    class Pool:
        def restart_all(self):
            restarted.append(True)

    def run(self, case):
        turns = Turns(["ours", "torch"])
        for _ in range(self.turns):
            turns.add("ours", [(1.0 + len(restarted),)])
            turns.add("torch", [(2.0,)])
        turns.add("torch", [(9.0,)])  # without a turn of ours beside it
        return Row(case, turns=turns)

    monkeypatch.setattr(KernelBench, "run", run)
    monkeypatch.setattr(kernel_bench, "copy_bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(kernel_bench, "Separate", lambda *_: Pool())
    bench = KernelBench(["torch"], 0.3, 15)
    (row,) = bench.run_all([relu], 3, shown.append)
    assert len(restarted) == 2
    assert shown == [relu] * 3
    assert row.turns.totals("ours") == [1.0] * 5 + [2.0] * 5 + [3.0] * 5
    assert row.turns.totals("torch") == [2.0] * 15
    assert (row.turns.best["ours"], bench.turns) == (1.0, 15)
    failed = Row(relu, problem="WRONG")
    assert row.joined(failed) is failed
    assert failed.joined(row) is failed


def test_losses_that_differ_are_found():
    from bench.measure import Turns
    from bench.training import Result
    from bench.training_tasks import TASKS

    turns = Turns(["ours", "torch"])
    same = Result("mlp", TASKS["mlp"], turns, {"ours": [2.0, 1.0], "torch": [2.0, 1.001]}, {})
    assert same.agrees
    assert same.loss_difference == pytest.approx(5e-4)
    assert not Result(
        "mlp", TASKS["mlp"], turns, {"ours": [2.0, 1.9], "torch": [2.0, 1.0]}, {}
    ).agrees
    nan = float("nan")
    assert not Result(
        "mlp", TASKS["mlp"], turns, {"ours": [2.0, nan], "torch": [2.0, nan]}, {}
    ).agrees
