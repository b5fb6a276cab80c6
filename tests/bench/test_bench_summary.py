"""The figures in README are those of the newest results, as the script writes them."""

import json

import pytest
from typer.testing import CliRunner

from bench import machine, summary
from bench.__main__ import app

SPREAD = {"median": 2.0, "p20": 1.9, "p80": 2.1}


def row(kernel, **changes):
    """A row as kernel_bench writes it."""
    made = {
        "kernel": kernel,
        "variant": "_sample",
        "shape": [4096, 1024],
        "dtype": "float32",
        "problem": None,
        "seconds": {"ours": {"median": 1.234e-3, "p20": 1.2e-3, "p80": 1.3e-3}},
        "speedup": {"torch": SPREAD, "reference": {"median": 11.0, "p20": 10.0, "p80": 12.5}},
        "bandwidth": 2.5e10,
        "share_of_copy": 0.873,
        "flops": None,
    }
    return made | changes


FACTS = {
    "format": machine.FORMAT,
    "date": "2026-03-01T10:00:00+00:00",
    "cpu": "Some CPU",
    "threads": 2,
    "versions": {"numpy": "2.4.0", "torch": "2.13.0"},
    "commit": "0123456789abcdef0123",
}
TRAINING = {
    "model": "mlp",
    "title": "MLP 784-512-256-10",
    "batch": 128,
    "dtype": "float32",
    "steps_per_second": {"ours": {"median": 1234.5, "p20": 1200.0, "p80": 1300.0}},
    "unit": "samples",
    "units_per_second": {"ours": {"median": 158016.0, "p20": 153600.0, "p80": 166400.0}},
    "memory": {"ours": {"peak": 105 * 2**20}},
    "losses": {"ours": [2.3, 0.0123]},
}
CPU = FACTS | {
    "kind": "kernels",
    "device": "cpu",
    "rows": [row("gelu"), row("softsign"), row("matmul", variant="nn", flops=1.5e12)],
}
GPU = FACTS | {
    "kind": "gpu",
    "device": "cuda",
    "gpu": {"name": "Some GPU", "driver": "580.1", "cuda_runtime": "13.0"},
    "versions": {"cupy-cuda13x": "14.2.0", "torch": "2.13.0", "triton": "3.5"},
    "tests": {"passed": 900, "failed": 0, "not_reached": 3},
    "sanitizer": {"memcheck": {"tool": "memcheck", "errors": 0, "kernels": 300, "complete": True}},
    "kernels": {"rows": [row("gelu", dtype="bfloat16", speedup={"torch.compile": SPREAD})]},
    "training": {"results": [TRAINING]},
}


@pytest.fixture
def folder(tmp_path):
    """Write results into a folder, which comes back."""

    def write(**files):
        for name, facts in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(facts))
        return tmp_path

    return write


def test_readme_is_what_the_script_would_write():
    assert not summary.update(write=False, ladder=summary.LADDER), "run python -m bench summary"


def test_without_results_it_says_so(folder):
    expected = "No results are committed yet. Nothing has been measured on a GPU yet."
    assert summary.text(folder()) == expected
    assert summary.text(folder() / "not there") == expected


def test_the_cpus_kernels_and_training(folder):
    training = FACTS | {"kind": "training", "device": "cpu", "results": [TRAINING]}
    text = summary.text(folder(a=CPU, b=training))
    lines = text.splitlines()
    assert lines[0] == (
        "Some CPU, 2 threads; numpy 2.4.0, torch 2.13.0; 2026-03-01, commit 0123456789:"
    )
    assert "| kernel | size | us | x torch | x array maths | of roof | TFLOP/s |" in lines
    gelu = "| gelu | 4096x1024 | 1,234 | 2.00 (1.90-2.10) | 11.0 (10.0-12.5) | 87% |  |"
    assert gelu in lines
    assert any(
        line.startswith("| matmul-nn |") and line.endswith("| 87% | 1.50 |") for line in lines
    )
    assert "softsign" not in text
    network = "| MLP 784-512-256-10, batch 128 | ours |"
    assert f"{network} 1,234 (1,200-1,300) | 158,016 samples |  | 105 MiB | 0.0123 |" in lines
    assert lines[-1] == summary.NO_GPU
    assert text.count("Some CPU") == 2


def test_a_gpu_has_its_tests_kernels_and_training(folder):
    text = summary.text(folder(a=CPU, b=GPU))
    assert "Some GPU, driver 580.1, CUDA 13.0; torch 2.13.0, triton 3.5, cupy-cuda13x 14.2" in text
    tests = "Tests on the GPU: 900 passed, 0 failed, 3 not reached."
    assert f"{tests} memcheck: 0 errors in 300 calls of kernels." in text
    assert "| kernel | size | us | x torch.compile | of roof |" in text
    assert "| gelu | 4096x1024 bf16 | 1,234 | 2.00 (1.90-2.10) | 87% |" in text
    assert summary.NO_GPU not in text


def test_a_gpu_run_that_was_cut_short_shows_what_it_has(folder):
    parts = ("tests", "sanitizer", "kernels", "training")
    cut = {k: v for k, v in GPU.items() if k not in parts}
    assert summary.text(folder(a=cut)).startswith("Some GPU, driver 580.1")
    failed = GPU | {"training": {"problem": "PeerError: no"}, "tests": {"problem": "no time left"}}
    text = summary.text(folder(a=failed))
    assert "| gelu |" in text and "| training |" not in text and "Tests" not in text


def test_a_row_that_was_not_timed_says_so(folder):
    broken = {k: v for k, v in row("gelu").items() if k not in ("seconds", "speedup")}
    text = summary.text(folder(a=CPU | {"rows": [broken, row("relu")]}))
    assert "| gelu | 4096x1024 | not timed |  |  |  |" in text


def test_the_newest_of_each_kind_and_device_counts(folder):
    older = CPU | {"date": "2026-02-01T10:00:00+00:00", "cpu": "Old CPU"}
    assert "Old CPU" not in summary.text(folder(z=older, a=CPU))


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "kernels"}', '{"format": 0}'])
def test_a_file_that_is_no_result_is_named(folder, content):
    path = folder() / "broken.json"
    path.write_text(content)
    with pytest.raises(summary.UnreadableResult, match=r"broken\.json: no result of python -m"):
        summary.text(folder())
    path.write_text(json.dumps(CPU | {"format": 99}))
    with pytest.raises(summary.UnreadableResult, match=r"format 99, expected 1"):
        summary.text(folder())


def test_only_the_part_between_the_markers_is_rewritten(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    results = folder(a=CPU)
    assert summary.update(readme, results, write=False)
    assert "old" in readme.read_text()
    assert summary.update(readme, results)
    text = readme.read_text()
    assert text.startswith(f"before\n{summary.BEGIN}\nSome CPU")
    assert text.endswith(f"{summary.END}\nafter\n")
    assert not summary.update(readme, results)
    readme.write_text("no markers")
    with pytest.raises(summary.UnreadableResult, match="has no part between"):
        summary.update(readme, results)


def test_the_command_writes_or_checks(folder, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"{summary.BEGIN}\n{summary.END}\n")
    folder = folder(a=CPU)
    update = summary.update
    monkeypatch.setattr(summary, "update", lambda write, ladder: update(readme, folder, write))
    run = CliRunner()
    result = run.invoke(app, ["summary", "--check"])
    assert (result.exit_code, result.output.strip()) == (
        1,
        "README.md is out of date: python -m bench summary",
    )
    assert run.invoke(app, ["summary"]).output.strip() == "README.md: written"
    result = run.invoke(app, ["summary", "--check"])
    assert (result.exit_code, result.output.strip()) == (0, "nothing to change")
    (folder / "b.json").write_text("{")
    result = run.invoke(app, ["summary"])
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (99.96, "100.0"), (12.34, "12.3"), (1.0, "1.00"), (0.0123, "0.0123")],
)
def test_numbers_have_three_digits(value, text):
    assert summary._number(value) == text


def test_the_picture_is_kept_in_step(folder, tmp_path):
    pytest.importorskip("matplotlib")
    from tests.bench.results import KERNELS, kernel_row

    where, readme = folder(a=KERNELS), tmp_path / "README.md"
    readme.write_text(f"{summary.BEGIN}\n{summary.END}\n")
    assert summary.update(readme, where) == ["README.md", summary.PICTURE]
    assert summary.update(readme, where) == []
    slower = kernel_row("softmax", (4096, 1024), 2e-3)
    folder(a=KERNELS | {"rows": [*KERNELS["rows"][:2], slower]})
    assert summary.update(readme, where, write=False) == ["README.md", summary.PICTURE]


def test_the_ladder_has_its_gains(folder):
    step = {"file": "cpu_2_numpy.py", "idea": "in NumPy", "seconds": 2e-3, "gain": 321.4}
    slow = step | {"file": "cpu_1_loop.py", "gain": None, "share_of_copy": 0.0004}
    broken = step | {"seconds": None}
    steps = [slow, step | {"share_of_copy": 1.28}, broken]
    result = {"operation": "softmax", "shape": [4096, 1024], "steps": steps}
    where = folder(a=FACTS | {"kind": "ladder", "device": "cpu", "result": result})
    lines = summary.of_ladders(where).splitlines()
    assert lines[0].startswith("softmax, 4096x1024; Some CPU, 2 threads; numpy")
    name = "cpu_2_numpy.py"
    assert f"| [{name}](softmax/{name}) | in NumPy | 2.00 | 321x | 128% |" in lines
    assert "| [cpu_1_loop.py](softmax/cpu_1_loop.py) | in NumPy | 2.00 |  | 0.04% |" in lines
    assert f"| [{name}](softmax/{name}) | in NumPy | not timed |  |  |" in lines
    assert summary.of_ladders(where / "none") == summary.NO_RESULTS
