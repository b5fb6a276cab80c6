"""The ladder: its files, its steps on the CPU, its arithmetic, its command."""

import io
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.cases import TOLERANCE, error
from bench.ladder import sides
from bench.ladder.run import Result, legend, table
from bench.ladder.steps import DEVICES, FOLDER, OPERATIONS, steps
from bench.measure import Turns

ALL = [step for o in OPERATIONS for device in DEVICES for step in steps(o, device)]
CPU = [step for step in ALL if step.device == "cpu"]
NAMES = [f"{step.operation}-{step.path.name}" for step in ALL]

#: One element, one row, one column, odd sizes, several tiles of 16, rows beyond a vector's length.
SHAPES = [(1, 1), (1, 37), (37, 1), (3, 5), (33, 64), (50, 35), (5, 1030)]


def test_every_file_is_a_step_and_numbers_have_no_gap():
    files = {p for o in OPERATIONS for p in (FOLDER / o).iterdir() if p.suffix in (".py", ".cu")}
    assert {step.path for step in ALL} == files
    for operation in OPERATIONS:
        for device in DEVICES:
            numbers = [step.number for step in steps(operation, device)]
            assert numbers == list(range(1, len(numbers) + 1))
            assert 5 <= len(numbers) <= 6


@pytest.mark.parametrize("step", ALL, ids=NAMES)
def test_a_header_says_what_a_reader_wants_to_know(step):
    title = f"{step.operation.replace('_', ' ').capitalize()}, step {step.number}: "
    assert step.header.startswith(title)
    assert 3 < len(step.idea) <= 50
    wanted = ("Idea", "Memory", "Slow" if step.number == 1 else r"Faster(, or not)?")
    for word in wanted:
        assert re.search(rf"^{word}: \S", step.header, re.MULTILINE), word
    assert re.search(r"\b[1-9]\d*( reads?| writes?|\sbytes)|next to none", step.header)


@pytest.mark.parametrize("step", CPU, ids=[n for n in NAMES if "cpu_" in n])
def test_a_step_on_the_cpu_is_right(step):
    operation = OPERATIONS[step.operation]
    for shape in SHAPES:
        args = operation.arguments(*shape)
        before = [a.copy() for a in args]
        got = sides.function(step)(*args)
        truth = operation.truth(*(a.astype(np.float64) for a in args))
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        assert error([got], [truth]) <= TOLERANCE, shape
        for a, b in zip(args, before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_loop_in_python_does_a_few_rows_and_says_so():
    work = sides.cpu(steps("transpose", "cpu")[0], 64, 8)
    assert work.facts == {"error": 0.0, "scale": 4.0}
    assert work.step().shape == (8, 16)


# Figures ------------------------------------------------------------------------------------------


def climbed():
    """Steps 1 to 4 of a ladder: on a tenth of the rows, wrong, twice as fast, three times."""
    found = steps("softmax", "cpu")[:4]
    turns = Turns(["step 1", "step 3", "step 4"])
    for name, seconds in (("step 1", 0.012), ("step 3", 0.06), ("step 4", 0.02)):
        for turn in range(3):
            turns.add(name, [(seconds,), (seconds,), (seconds / 2 if turn == 0 else seconds,)])
    facts = {f"step {i}": {"error": 0.0, "scale": 10.0 if i == 1 else 1.0} for i in range(1, 5)}
    problems = {"step 2": "WRONG: off by 1 from float64, not timed"}
    return Result(found, (1000, 500), 1e9, turns, facts, problems)


def test_gains_are_over_the_last_step_that_was_timed():
    result = climbed()
    one, two, three, four = result.steps
    assert result.seconds(one) == pytest.approx(0.12)
    assert result.seconds(one, fastest=True) == pytest.approx(0.06)
    assert result.seconds(two) is None
    assert result.gain(one) is None
    assert result.gain(two) is None
    assert result.gain(three) == pytest.approx(2.0)
    assert result.gain(four) == pytest.approx(3.0)
    assert result.share_of_copy(four) == pytest.approx(4e6 / 0.02 / 1e9)


def test_the_table_has_the_steps_and_what_went_wrong():
    from rich.console import Console

    result = climbed()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(result))
    console.print(legend(result))
    text = console.export_text()
    for part in ("~120 ms", "2.00x", "3.00x", "20%", "WRONG: off by 1", "1 GB/s"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    rows = result.as_dict()["steps"]
    assert [row["gain"] for row in rows] == [None, None, pytest.approx(2.0), pytest.approx(3.0)]
    assert rows[1]["problem"].startswith("WRONG")


def test_a_wrong_step_is_not_timed(monkeypatch):
    from bench.ladder import run

    class Canned:
        def __init__(self, name, factory, threads):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def call(self, request, *args):
            if request == "prepare":
                wrong = 0.5 if self.name == "step 2" else 0.0
                return {"error": wrong, "scale": 1.0, "bytes": 100}
            assert self.name != "step 2"
            return 1e-4 if request == "warm" else [(1e-4,)] * args[0]

    monkeypatch.setattr(run, "Worker", Canned)
    result = run.climb(steps("softmax", "cpu"), (8, 8), 0.01, 3)
    assert list(result.problems) == ["step 2"]
    assert "WRONG: off by 0.5" in result.problems["step 2"]
    assert "step 2" not in result.turns.laps
    assert len(result.turns.laps) == 5


# The command --------------------------------------------------------------------------------------


def call(*args):
    return CliRunner().invoke(app, ["ladder", *map(str, args)])


def test_it_runs_and_writes_its_figures(tmp_path):
    out = tmp_path / "out.json"
    options = ["--size", "64x32", "--seconds", "0.01", "--turns", "3", "--json", out]
    result = call("layer_norm", *options)
    assert result.exit_code == 0, result.output
    assert "many sums side by side" in result.output
    facts = json.loads(out.read_text())
    assert facts["kind"] == "ladder"
    assert [row["step"] for row in facts["result"]["steps"]] == [1, 2, 3, 4, 5]
    assert all(row["seconds"] > 0 for row in facts["result"]["steps"])
    assert all(row["error"] <= TOLERANCE for row in facts["result"]["steps"])


def test_show_prints_the_source():
    for device in DEVICES:
        step = steps("softmax", device)[2]
        result = call("softmax", "--device", device, "--show", 3)
        assert result.exit_code == 0
        assert result.output == step.source


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gelu"], "unknown operation 'gelu': there are softmax, layer_norm, transpose"),
        (["softmax", "--device", "tpu"], "unknown device 'tpu' in --device: there are cpu, cuda"),
        (["softmax", "--size", "12"], "--size 12: expected rows and columns like 4096x1024"),
        (["softmax", "--size", "0x4"], "--size 0x4: expected rows and columns like 4096x1024"),
        (["softmax", "--show", "9"], "--show 9: softmax on cpu has steps 1 to 6"),
        (["softmax", "--json", "no/such/a.json"], "--json no/such/a.json: cannot be written"),
    ],
)
def test_a_wrong_argument_is_one_line_and_code_2(args, message):
    result = call(*args)
    assert result.exit_code == 2
    assert result.output.startswith(message)
    assert len(result.output.strip().splitlines()) == 1


def test_without_a_gpu_one_line_says_what_is_missing(monkeypatch):
    from framework.backend import cuda
    from framework.backend.device import Probe

    probe = Probe(False, "CuPy is not installed", "pip install it")
    monkeypatch.setattr(cuda, "probe_cuda", lambda: probe)
    result = call("transpose", "--device", "cuda")
    assert result.exit_code == 2
    assert result.output == "--device cuda: CuPy is not installed; pip install it\n"
