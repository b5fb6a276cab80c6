"""The parts of `python -m bench gpu` that are other programs: pytest, compute-sanitizer."""

import os
import stat

import pytest

from bench import gpu_tests, pytest_report, sanitizer

INI = "[pytest]\nmarkers = cuda: needs a CUDA device\n"


@pytest.fixture
def suite(tmp_path):
    """Run a test file of this text."""
    (tmp_path / "pytest.ini").write_text(INI)

    def run(text, seconds=60.0, count=1):
        (tmp_path / "test_some.py").write_text(text)
        return gpu_tests.run(seconds, [str(tmp_path)], count)

    return run


HEAD = "import os, time, pytest\npytestmark = pytest.mark.cuda\n"


def test_passed_failed_and_skipped_are_told_apart(suite):
    result = suite(
        HEAD + "def test_good(): pass\n"
        "def test_bad():\n    assert 1 + 1 == 3, 'two and\\nmore'\n"
        "def test_error():\n    raise ValueError('no such kernel')\n"
        "def test_skip():\n    pytest.skip('no such card')\n"
    )
    assert (result["passed"], result["failed"], result["not_reached"]) == (1, 2, 0)
    assert result["complete"] and result["problem"] is None
    assert result["skipped"] == {"no such card": 1}
    bad, error = result["failures"]
    assert bad["test"].endswith("test_some.py::test_bad")
    assert bad["reason"].startswith("AssertionError: two and")
    assert error["reason"] == "ValueError: no such kernel"


def test_tests_without_the_marker_are_not_run(suite):
    result = suite(
        "import pytest\ndef test_cpu(): raise ValueError\n@pytest.mark.cuda\ndef test_gpu(): pass\n"
    )
    assert (result["passed"], result["failed"], result["not_reached"]) == (1, 0, 0)


def test_a_test_that_ends_the_process_is_named_and_the_rest_runs(suite):
    result = suite(HEAD + "def test_a(): pass\ndef test_b(): os._exit(139)\ndef test_c(): pass\n")
    assert (result["passed"], result["failed"], result["runs"]) == (2, 1, 2)
    assert result["failures"][0]["test"].endswith("::test_b")
    assert result["failures"][0]["reason"] == "ended the process"
    assert result["complete"]


def test_after_a_lost_context_the_rest_runs_in_a_new_process(suite):
    result = suite(
        HEAD + "broken = []\n"
        "def test_a():\n    broken.append(1)\n"
        "    raise RuntimeError('cudaErrorIllegalAddress: an illegal memory access')\n"
        "def test_b(): assert not broken\n"
    )
    assert (result["passed"], result["failed"], result["runs"]) == (1, 1, 2)
    assert [name.rpartition("::")[2] for name in result["lost_contexts"]] == ["test_a"]


def test_the_limit_leaves_what_was_known(suite):
    result = suite(
        HEAD + "def test_a(): pass\ndef test_b(): time.sleep(60)\ndef test_c(): pass\n", 6
    )
    assert result["passed"] == 1 and result["failed"] == 0
    assert not result["complete"]
    assert result["not_reached"] == 2
    assert result["seconds"] < 20


def test_processes_share_the_tests(suite):
    tests = "".join(f"def test_{i}(): pass\n" for i in range(5))
    result = suite(HEAD + tests, count=2)
    assert (result["passed"], result["processes"], result["not_reached"]) == (5, 2, 0)


def test_a_file_that_does_not_import_is_a_failure_and_stops_nothing(suite, tmp_path):
    (tmp_path / "test_broken.py").write_text("import no_such_module_at_all\n")
    result = suite(HEAD + "def test_good(): pass\n")
    assert result["passed"] == 1
    assert result["failed"] == 1
    assert "no_such_module_at_all" in result["failures"][0]["reason"]


def test_pytest_that_cannot_start_is_said(suite, monkeypatch):
    monkeypatch.setattr(gpu_tests, "PYTEST", ("-m", "no_such_pytest"))
    result = suite(HEAD)
    assert result["passed"] == 0 and not result["complete"]
    assert "pytest ended with code 1: " in result["problem"]
    assert "No module named no_such_pytest" in result["problem"]


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    path = tmp_path / "report.jsonl"
    path.write_text('{"test": "a", "outcome": "passed"}\n{"test": "b", "outc')
    assert pytest_report.read(path) == [{"test": "a", "outcome": "passed"}]


# compute-sanitizer --------------------------------------------------------------------------------


def fake(tmp_path, text):
    """A tool that prints `text`."""
    path = tmp_path / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="the fake tool is a shell script")
def test_the_tools_errors_are_counted_and_the_kernel_named(tmp_path):
    tool = fake(
        tmp_path,
        "echo 'kernel relu[33x65]'\n"
        "echo '========= Invalid __global__ write of size 4 bytes'\n"
        "echo 'kernel softmax[33x65]'\necho 'every kernel ran'\n"
        "echo '========= ERROR SUMMARY: 1 error'",
    )
    result = sanitizer.run("memcheck", 10, sanitizer=tool)
    assert (result["errors"], result["kernels"], result["complete"]) == (1, 2, True)
    assert result["problem"] is None
    assert "========= Invalid __global__ write of size 4 bytes" in result["report"]


@pytest.mark.skipif(os.name == "nt", reason="the fake tool is a shell script")
def test_a_tool_out_of_time_tells_how_far_it_came(tmp_path):
    tool = fake(tmp_path, "echo 'kernel relu[33x65]'\nexec sleep 30")
    result = sanitizer.run("racecheck", 1.0, sanitizer=tool)
    assert (result["errors"], result["complete"]) == (0, False)
    assert result["last"] == "relu[33x65]"
    assert result["seconds"] < 15


def test_a_program_that_fails_is_a_problem():
    result = sanitizer.read("memcheck", "kernel relu[3x5]\nValueError: no\n", 1)
    assert result["problem"] == "ended with code 1 in relu[3x5]: ValueError: no"
    hazards = "every kernel ran\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors)\n"
    assert sanitizer.read("racecheck", hazards, 0)["errors"] == 3


def test_a_missing_tool_is_said(monkeypatch):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    assert sanitizer.run("memcheck", 1) == {"tool": "memcheck", "problem": sanitizer.MISSING}


@pytest.mark.skipif(os.name == "nt", reason="the fake tool is a shell script")
def test_the_tool_of_a_pip_wheel_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(sanitizer, "cuda_roots", lambda: [tmp_path / "cu13"])
    assert sanitizer.find() is None
    folder = tmp_path / "cu13" / "compute-sanitizer"
    folder.mkdir(parents=True)
    path = fake(folder, "true")
    assert sanitizer.find() == path


def test_every_kernel_runs_once(cupy):
    from bench import every_kernel
    from bench.cases import load

    calls = every_kernel.every()
    names = {call.kernel.name for call in calls}
    assert {k.name for k in load().values() if k.version("cuda")} <= names
    for call in calls:
        if call.shape == every_kernel.SHAPES[0]:
            results = call.run()
            first = results[0] if isinstance(results, tuple) else results
            assert isinstance(first, cupy.ndarray), call
