"""README: its commands stand word for word, its Python runs, its diff applies and works."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv && .venv/bin/pip install -e . "
        "&& .venv/bin/python -m framework train mlp",
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest',
    ],
)
def test_the_two_commands_stand_on_a_line_of_their_own(command):
    assert [line for line in README.splitlines() if line.strip() == command]


def test_the_python_runs(tmp_path):
    program = "\n".join(blocks("python")) + "\nassert loss.item() < 1\n"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=_environment(ROOT),
    )
    assert out.returncode == 0, out.stderr
    accuracy = float(re.search(r"'accuracy': ([0-9.]+)", out.stdout)[1])
    assert accuracy > 0.95
    assert (tmp_path / "net.safetensors").exists()


def _environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root), "FRAMEWORK_DEVICE": "cpu"}


CHECK = """
import numpy as np, framework as fw, framework.functional as F
from kernels import reference_kernels
from kernels.activations import tanhshrink, tanhshrink_grad
x = fw.tensor(np.linspace(-3, 3, 7), requires_grad=True)
assert fw.gradcheck(F.tanhshrink, [x])
a = np.linspace(-5, 5, 100, dtype="float32")
with reference_kernels():
    expected = tanhshrink(a), tanhshrink_grad(a, a)
np.testing.assert_allclose(tanhshrink(a), expected[0], atol=1e-6)
np.testing.assert_allclose(tanhshrink_grad(a, a), expected[1], atol=1e-6)
assert "tanhf(x)" in tanhshrink.cuda_source()
print("works")
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_diff_of_a_new_activation_applies_and_works(tmp_path):
    (diff,) = blocks("diff")
    assert len(re.findall(r"^diff --git", diff, re.MULTILINE)) == 2
    for folder in ("framework", "kernels", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    out = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "works"
