"""Where caches are, and what is said when they cannot be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from framework.data import cache_folder
from kernels import cache
from kernels.cpu import engine


def test_framework_cache_is_the_place_for_both(monkeypatch, tmp_path):
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "data"
    assert engine.cache_folder.__wrapped__().parent == tmp_path


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "framework"),
        ("win32", "LOCALAPPDATA", "framework"),
        ("darwin", "HOME", "Library/Caches/framework"),
    ],
)
def test_the_users_cache_of_each_system(monkeypatch, tmp_path, platform, variable, expected):
    monkeypatch.delenv("FRAMEWORK_CACHE", raising=False)
    monkeypatch.setattr(cache.sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    if variable == "HOME":
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.user_cache() == tmp_path / expected
    assert cache_folder() == tmp_path / expected / "data"


def test_a_cache_that_cannot_be_made_is_reported_in_one_line(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "framework"):
        folder = engine.cache_folder.__wrapped__()
    assert folder.is_dir() and folder.parent == tmp_path / "temporary"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"cannot write to {tmp_path / 'file'}; kernels go to {folder}")
    assert "set FRAMEWORK_CACHE" in line and "\n" not in line


LOOP = """
import numpy as np
from kernels.cpu.engine import loop

@loop("x", "out")
def shifted(x, out):
    for i in range(x.shape[0]):
        out[i] = x[i] + np.float32(AMOUNT)

"""

CALLER = """
import numpy as np
from loops import shifted

x, out = np.zeros(100_000, np.float32), np.empty(100_000, np.float32)
shifted(x, out)
print(out[0], out[-1])
"""


def test_a_changed_loop_is_compiled_again_for_all_threads(monkeypatch, tmp_path):
    """The parallel twin lives in a generated file, whose own text has not changed."""
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    root = Path(engine.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{tmp_path}")
    (tmp_path / "caller.py").write_text(CALLER)
    for amount in ("1", "2"):
        (tmp_path / "loops.py").write_text(LOOP.replace("AMOUNT", amount))
        run = subprocess.run(
            [sys.executable, tmp_path / "caller.py"], capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == [f"{amount}.0"] * 2
