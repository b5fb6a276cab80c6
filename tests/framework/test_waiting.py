"""The line that moves while kernels are compiled."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest

from framework import waiting
from framework.waiting import Waiting, on_terminal, shown_by
from kernels import compiling


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(waiting, "PATIENCE", 0.02)
    monkeypatch.setattr(waiting, "FRAME", 0.005)


def compile_for(seconds):
    with compiling.told(), compiling.told():  # one function calls another
        time.sleep(seconds)


def test_a_wait_moves_and_goes(soon):
    shown = []
    with shown_by(shown.append):
        compile_for(0.1)
    assert len(set(shown)) > 3
    assert all("compiling kernels, once on this machine: 0 s" in text for text in shown[:-1])
    assert shown[-1] is None
    assert shown.count(None) == 1


def test_several_short_compilations_are_one_wait(soon):
    shown = []
    with shown_by(shown.append):
        for _ in range(5):
            compile_for(0.01)
    assert len(set(shown)) > 1
    assert shown[-1] is None


def test_a_short_wait_says_nothing():
    shown = []
    with shown_by(shown.append):
        compile_for(0.01)
    assert shown == []


def test_the_one_before_has_the_line_again(soon):
    before, within = [], []
    with shown_by(before.append):
        with shown_by(within.append):
            compile_for(0.05)
        assert before == []
        compile_for(0.05)
    assert within[-1] is before[-1] is None


def test_on_a_terminal_the_cursor_stays_where_it_is(soon):
    screen = Terminal()
    with on_terminal(screen):
        compile_for(0.05)
    drawn = screen.getvalue().split("\x1b7")[1:]
    assert "compiling kernels" in drawn[0]
    assert all(text.endswith("\x1b8") for text in drawn)
    assert "compiling" not in drawn[-1]
    assert "\n" not in screen.getvalue()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_without_a_terminal_there_is_no_line(soon, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    screen = io.StringIO() if term != "dumb" else Terminal()
    with on_terminal(screen):
        compile_for(0.05)
    assert screen.getvalue() == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_keeps_quiet(soon):
    said = []
    watch = Waiting(said.append)
    watch._process = -1  # the parent's
    watch(True)
    assert watch._thread is None
    watch(False)
    assert said == []


def test_numba_tells_what_it_compiles_and_not_what_it_loads(tmp_path):
    pytest.importorskip("numba")
    script = """
import numpy as np
from kernels import compiling
from kernels.cpu.embedding import first_outside

told = []
compiling.watch = told.append
for _ in range(2):
    first_outside(np.zeros(4, np.int64), 3)
print(told.count(True), told.count(False))
"""
    cold = {**os.environ, "FRAMEWORK_CACHE": str(tmp_path)}
    counts = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", script], env=cold, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        counts.append([int(n) for n in run.stdout.split()])
    assert counts[0][0] == counts[0][1] > 0
    assert counts[1] == [0, 0]
