"""`python -m bench compare`: what it flags, what it does not, and what it refuses."""

import copy
import json
import re
import time

import pytest
from typer.testing import CliRunner

from bench import compare, kernel_bench, machine, result_file
from bench.__main__ import app
from bench.cases import Case
from bench.measure import Spread
from kernels.registry import Kernel
from tests.bench.results import KERNELS, TRAINING, kernel_row, spread


@pytest.fixture
def files(tmp_path):
    """Write results; returns their paths."""

    def write(*results):
        paths = [tmp_path / f"{name}.json" for name in "abcdef"[: len(results)]]
        for path, result in zip(paths, results, strict=True):
            path.write_text(result if isinstance(result, str) else json.dumps(result))
        return paths

    return write


def run(*args):
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def changed(result, factor, width=0.01, **other):
    """A copy whose first kernel takes `factor` times as long."""
    new = copy.deepcopy(result)
    row = new["rows"][0]
    seconds = row["seconds"]["ours"]["median"] * factor
    row["seconds"]["ours"] = spread(seconds, width)
    row["best_seconds"]["ours"] *= factor
    row["speedup"]["torch"] = spread(row["seconds"]["torch"]["median"] / seconds, width)
    return new | other


# What is flagged ----------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [KERNELS, TRAINING], ids=["kernels", "training"])
def test_a_run_and_itself_are_the_same(files, result):
    found = run(*files(result, result))
    assert found.exit_code == 0, found.output
    assert "slower" not in found.output.splitlines()[-1]
    assert "1.000" in found.output


def test_a_slower_kernel_is_flagged_with_code_1(files):
    found = run(*files(KERNELS, changed(KERNELS, 1.5)))
    assert found.exit_code == 1
    assert "1 became worse: softmax[768x65] 1.50x" in found.output
    lines = [line.split() for line in found.output.splitlines() if "768x65" in line]
    assert lines[0][-5:] == ["1.500", "1.500", "1.500", "1.500", "slower"]


def test_the_table_is_sorted_by_change(files):
    found = run(*files(KERNELS, changed(KERNELS, 0.5)))
    assert found.exit_code == 0
    verdicts = re.findall(r"(same|faster) *$", found.output, re.MULTILINE)
    assert verdicts[:4] == ["same", "same", "same", "faster"]


def test_a_change_below_the_threshold_is_none(files):
    paths = files(KERNELS, changed(KERNELS, 1.15))
    assert run(*paths).exit_code == 1
    assert run(*paths, "--threshold", "1.2").exit_code == 0


def test_a_change_within_the_spread_is_none(files):
    wide = changed(KERNELS, 1.0, width=0.6)
    assert run(*files(wide, changed(KERNELS, 1.5, width=0.6))).exit_code == 0


def test_medians_without_the_fastest_iteration_are_unclear():
    before, after = Spread(1.0, 0.9, 1.1), Spread(2.0, 1.8, 2.2)
    assert compare.judge(before, after, 2.0, 1.1) == "slower"
    assert compare.judge(before, after, None, 1.1) == "slower"
    assert compare.judge(before, after, 1.0, 1.1) == "unclear"
    assert compare.judge(after, before, 0.5, 1.1) == "faster"
    assert compare.judge(after, before, 1.0, 1.1) == "unclear"


def test_a_disturbed_run_proves_nothing(files):
    new = changed(KERNELS, 3.0)
    new["rows"][0]["disturbed"] = True
    found = run(*files(KERNELS, new))
    assert found.exit_code == 0
    assert "1 unclear" in found.output


def test_a_slower_machine_shows_in_the_columns_beside(files):
    """All of it 1.5 times slower, the copy and torch too: those ratios stay at 1."""
    new = changed(KERNELS, 1.5, copy_bandwidth=KERNELS["copy_bandwidth"] / 1.5)
    new["rows"][0]["speedup"] = KERNELS["rows"][0]["speedup"]
    a, b = files(KERNELS, new)
    change = compare.compare(result_file.read(a), result_file.read(b)).changes[0]
    assert change.ratio == pytest.approx(1.5)
    assert change.to_copy == pytest.approx(1.0)
    assert change.to_torch == pytest.approx(1.0)


def test_what_torch_went_along_with_was_the_machine():
    before, after = Spread(1.0, 0.98, 1.02), Spread(1.5, 1.48, 1.52)
    assert compare.judge(before, after, 1.5, 1.1, to_torch=1.5) == "slower"
    assert compare.judge(before, after, 1.5, 1.1, to_torch=1.01) == "unclear"
    assert compare.judge(after, before, 1 / 1.5, 1.1, to_torch=1 / 1.5) == "faster"
    assert compare.judge(after, before, 1 / 1.5, 1.1, to_torch=0.99) == "unclear"


def test_training_steps_are_compared_by_part(files):
    new = copy.deepcopy(TRAINING)
    new["results"][0]["seconds"]["ours"]["backward"] = spread(2e-3)
    found = run(*files(TRAINING, new))
    assert found.exit_code == 1
    assert "mlp backward[MLP 784-10, batch 128] 2.00x" in found.output


def test_cases_of_one_file_are_listed_and_no_longer_timed_is_worse(files):
    new = copy.deepcopy(KERNELS)
    new["rows"][0] = kernel_row("softmax", (768, 65)) | {"problem": "WRONG: off by 0.5"}
    del new["rows"][0]["seconds"]
    new["rows"][1]["kernel"] = "silu"
    found = run(*files(KERNELS, new))
    assert found.exit_code == 1
    assert "only in the file before: gelu[4096x1024]" in found.output
    assert "only in the file after: silu[4096x1024]" in found.output
    assert "softmax[768x65] is not timed: WRONG: off by 0.5" in found.output


def test_real_runs(tmp_path, monkeypatch):
    """Two runs of a kernel flag nothing; with its call made longer, it is flagged."""
    from tests.bench.conftest import Local

    call = Kernel.__call__
    delay = [0.004]

    def slowed(self, *args, **kwargs):
        time.sleep(delay[0])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Kernel, "__call__", slowed)
    monkeypatch.setattr("bench.peer.gc.freeze", lambda: None)
    monkeypatch.setattr("bench.sides.COPY_BYTES", 1 << 16)
    facts = machine.describe(1) | {"kind": "kernels", "threads": 1}

    def measured(name):
        with kernel_bench.KernelBench([], 0.1, 5, 1, start=Starts) as bench:
            row = bench.run(Case("relu", "_sample", (8, 16)))
            rows = [row.as_dict(bench.copy_bandwidth)]
        path = tmp_path / f"{name}.json"
        machine.write(path, facts | {"copy_bandwidth": bench.copy_bandwidth, "rows": rows})
        return path

    class Starts(Local):
        def send(self, request, *args):
            self.answer = self.call(request, *args)

        def receive(self):
            return self.answer

    first, second = measured("first"), measured("second")
    same = run(first, second, "--threshold", "3")
    assert same.exit_code == 0, same.output
    delay[0] = 0.04
    slower = run(first, measured("slower"), "--threshold", "2")
    assert slower.exit_code == 1, slower.output
    assert "1 became worse: relu[8x16]" in slower.output


# What is refused ----------------------------------------------------------------------------------


def test_different_machines_need_force(files):
    paths = files(KERNELS, KERNELS | {"cpu": "Other CPU", "threads": 1})
    found = run(*paths)
    assert found.exit_code == 2
    assert "cpu Some CPU and Other CPU; threads 2 and 1" in found.output
    assert len(found.output.strip().splitlines()) == 1
    forced = run(*paths, "--force")
    assert forced.exit_code == 0
    assert "threads 2 and 1" in forced.output


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", r"b\.json: no result of python -m bench \(Expecting"),
        ("[]", r"b\.json: no result of python -m bench"),
        ({"kind": "kernels"}, r"b\.json: no result of python -m bench \(no 'format'\)"),
        (KERNELS | {"format": 99}, r"b\.json: format 99, expected 1"),
        (KERNELS | {"kind": "recipe"}, r"b\.json: kind 'recipe', expected kernels, training, gpu"),
        (KERNELS | {"rows": [{}]}, r"b\.json: expected figures of .* kernels \(no 'shape'\)"),
        (KERNELS | {"rows": 3}, r"b\.json: expected figures of python -m bench kernels"),
        (TRAINING, r"b\.json: kind 'training', expected 'kernels' as in .*a\.json"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(files, broken, message):
    a, b = files(KERNELS, broken)
    found = run(a, b)
    assert found.exit_code == 2
    assert len(found.output.strip().splitlines()) == 1
    assert re.search(message, found.output), found.output


def test_a_missing_file_is_named(tmp_path):
    found = run(tmp_path / "none.json", tmp_path / "none.json")
    assert found.exit_code == 2
    assert "none.json: No such file or directory; expected a file of --json" in found.output
