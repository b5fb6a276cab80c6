"""Every instantiation of every kernel under a random order of threads and blocks, and under
AddressSanitizer.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.cuda.sources import programs
from tests.conftest import skip_or_fail
from tests.cuda_emulator import launching, matrix, sanitizer

ROOT = Path(__file__).resolve().parents[2]


#: The type parameters that a dtype stands for; float32 also for what fills no floating arrays.
KINDS = {
    "float32": ("float", "long long", "unsigned long long"),
    "float16": ("__half",),
    "bfloat16": ("__nv_bfloat16",),
}


@pytest.mark.parametrize("dtype", matrix.DTYPES)
def test_any_order_of_threads_and_every_instantiation(cupy, dtype):
    launching.launched.clear()
    with launching.shuffled(seed=1):
        matrix.check_few(dtype)
    expected = {
        (program.name, expression)
        for program in programs()
        for expression in program.expressions
        if expression.partition("<")[2].rstrip(">") in KINDS[dtype]
    }
    assert expected
    assert not expected - launching.launched, "never launched"


def sanitized(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.cuda_emulator.sanitizer", *args],
        env=sanitizer.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def _sanitizer(cupy):
    skip_or_fail(sanitizer.missing())


@pytest.mark.parametrize(
    ("setting", "outcome"), [("required", pytest.fail), ("", pytest.skip)], ids=["required", "not"]
)
def test_no_sanitizer_fails_where_it_is_required(request, cupy, monkeypatch, setting, outcome):
    monkeypatch.setenv("FRAMEWORK_EMULATOR", setting)
    monkeypatch.setattr(sanitizer, "missing", lambda: "no libasan.so")
    with pytest.raises(BaseException, match=r"no libasan\.so") as caught:
        request.getfixturevalue("_sanitizer")
    assert caught.type is outcome.Exception


#: bfloat16 accesses what float16 does: the code is one template, the size the same.
SANITIZED = ("float32", "float16")


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.parametrize("dtype", SANITIZED)
def test_no_access_is_out_of_bounds(dtype):
    done = sanitized("matrix", dtype)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.strip() == "done"


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.parametrize("place", sanitizer.PLANTED)
def test_a_planted_access_out_of_bounds_is_found(place):
    done = sanitized("planted", place)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr
    assert sanitizer.PLANTED[place][1] in done.stderr
    assert "own.cu:" in done.stderr
