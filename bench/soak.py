"""`python -m bench soak`: training processes killed at random moments, resumed, and compared with
runs that nobody killed.

A run is killed with SIGKILL again and again, half of the time while it saves, until it comes to its
end; then everything that it has come to, weights, optimizer, EMA, generator, history, has to have
the bits of the run that was let alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.table import Table

from bench.families import FAMILIES
from framework.interop.atomic import SCRATCH, FileError
from framework.trainer import checkpoint
from framework.trainer.store import checkpoints_in, newest

ROOT = Path(__file__).resolve().parents[1]

#: The clocks of a record, which no two runs have alike.
CLOCKS = ("seconds", "samples_per_second")

#: Seconds after which a life that should have ended hangs.
PATIENCE = 120.0


@dataclass
class Tally:
    """What happened to a family."""

    family: str
    runs: int = 0
    kills: int = 0
    aimed: int = 0  # of the kills, those for which a save was waited for
    mid_write: int = 0  # of the kills, those that left a file half written
    resumes: int = 0
    steps: int = 0  # trained in the runs that came to their end
    damaged: int = 0  # checkpoints that could not be read after a kill
    differences: list[str] = field(default_factory=list)


class Process(Protocol):
    pid: int

    def wait(self) -> int:
        """Its exit code."""

    def ended(self) -> bool: ...


Start = Callable[[Path, str, int, int], Process]


# Processes ----------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "FRAMEWORK_DEVICE": "cpu"}


class Whole:
    """A process of its own, from the interpreter's start on."""

    def __init__(self, folder: Path, family: str, seed: int, epochs: int) -> None:
        command = [sys.executable, "-m", "bench.soak_run", str(folder), family]
        self._process = subprocess.Popen([*command, str(seed), str(epochs)], env=environment())
        self.pid = self._process.pid

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def ended(self) -> bool:
        return self._process.poll() is not None


@contextmanager
def forks() -> Iterator[Start]:
    """What starts processes as forks of one that has its imports behind it: 1 s less for each."""
    command = [sys.executable, "-m", "bench.soak_run", "--serve"]
    pipe = subprocess.PIPE
    # a fork has none of the threads that its kernels would wait for: one thread, none to miss
    single = {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment() | single, stdin=pipe, stdout=pipe, text=True, bufsize=1
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdout.readline()

        class Fork:
            def __init__(self, *what: Any) -> None:
                print(*what, sep="\t", file=server.stdin)
                self.pid = int(server.stdout.readline())

            def wait(self) -> int:
                return int(server.stdout.readline())

            def ended(self) -> bool:
                try:
                    with open(f"/proc/{self.pid}/stat") as file:
                        return file.read().rpartition(")")[2].split()[0] == "Z"
                except OSError:
                    return True

        try:
            yield Fork
        finally:
            server.stdin.close()


# Killing ------------------------------------------------------------------------------------------


class Soak:
    """`kills` in all, spread over `families`; the same `seed` draws the same moments."""

    def __init__(
        self,
        kills: int,
        families: Sequence[str] = tuple(FAMILIES),
        start: Start = Whole,
        epochs: int = 150,
        startup: float = 1.5,
        seed: int = 0,
        after_kill: Callable[[], object] = lambda: None,
    ) -> None:
        self.kills, self.families, self.start, self.epochs = kills, families, start, epochs
        self.startup, self.random, self.after_kill = startup, random.Random(seed), after_kill

    def run(self) -> list[Tally]:
        """Kill, resume, compare."""
        tallies = []
        for i, family in enumerate(self.families):
            tally = Tally(family)
            share = self.kills // len(self.families) + (i < self.kills % len(self.families))
            with tempfile.TemporaryDirectory() as folder:
                while tally.kills < share:
                    tally.runs += 1
                    self._run(Path(folder), tally, share)
            tallies.append(tally)
        return tallies

    def _run(self, folder: Path, tally: Tally, share: int) -> None:
        """A run with its kills, and the same one without."""
        parts, whole, seed = folder / "parts", folder / "whole", tally.runs
        code = None
        while code is None:
            tally.resumes += bool(checkpoints_in(parts))
            process = self.start(parts, tally.family, seed, self.epochs)
            if tally.kills < share and self._kill(process, parts, tally):
                self._look(parts, tally)
                self.after_kill()
            else:
                code = process.wait()
        code = code or self.start(whole, tally.family, seed, self.epochs).wait()
        if code:
            tally.differences.append(f"run {seed}: exit code {code}")
        else:
            state, other = newest(parts)[1], newest(whole)[1]
            tally.steps += state["step"]
            tally.differences += [f"run {seed}: {what}" for what in _differences(state, other)]
            if _log(parts) != _log(whole):
                tally.differences.append(f"run {seed}: metrics.jsonl")
        shutil.rmtree(parts, ignore_errors=True)
        shutil.rmtree(whole, ignore_errors=True)

    def _kill(self, process: Process, folder: Path, tally: Tally) -> bool:
        """SIGKILL at a moment of chance; False where the process had come to its end before."""
        drawn = self.random.random()
        aimed = drawn < 0.5
        if aimed:
            self._wait_for_save(process, folder, self.random.randint(1, 4))
            time.sleep(self.random.uniform(0, 0.002))
        else:
            early = drawn > 0.9  # perhaps before it trains
            if not early:
                self._wait_for_save(process, folder, 1)
            end = time.monotonic() + self.random.uniform(0, self.startup if early else 0.3)
            while time.monotonic() < end and not process.ended():
                time.sleep(0.002)
        if process.ended():
            return False
        os.kill(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return False
        tally.kills += 1
        tally.aimed += aimed
        tally.mid_write += bool(_half_written(folder))
        return True

    def _wait_for_save(self, process: Process, folder: Path, saves: int) -> None:
        """Until the so-manieth file is being written that was not when this began."""
        old = _half_written(folder)
        limit = time.monotonic() + PATIENCE
        while saves and not process.ended() and time.monotonic() < limit:
            now = _half_written(folder)
            saves -= bool(now - old)
            old |= now
            time.sleep(0.0001)

    def _look(self, folder: Path, tally: Tally) -> None:
        """Is every checkpoint whole?"""
        for path in checkpoints_in(folder):
            try:
                checkpoint.load(path)
            except FileError:
                tally.damaged += 1


def _half_written(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder) if SCRATCH in entry.name}
    except OSError:
        return set()


def _differences(state: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The entries of two states whose bytes are not alike."""

    def content(of: dict[str, Any], key: str) -> bytes:
        value = _timeless(of[key]) if key == "history" else of.get(key)
        return checkpoint.to_bytes({key: value})

    return [key for key in sorted({*state, *other}) if content(state, key) != content(other, key)]


def _timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in records]


def _log(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return _timeless([json.loads(line) for line in lines])


# What is shown ------------------------------------------------------------------------------------


def table(tallies: Sequence[Tally]) -> Table:
    """A row for each family."""
    columns = {
        "runs": [t.runs for t in tallies],
        "kills": [t.kills for t in tallies],
        "while saving": [t.aimed for t in tallies],
        "file half written": [t.mid_write for t in tallies],
        "resumes": [t.resumes for t in tallies],
        "steps": [t.steps for t in tallies],
        "damaged checkpoints": [t.damaged for t in tallies],
        "differences": [len(t.differences) for t in tallies],
    }
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("family")
    for name in columns:
        out.add_column(name, justify="right")
    for i, tally in enumerate(tallies):
        out.add_row(tally.family, *(f"{values[i]:,}" for values in columns.values()))
    return out


def as_dict(tallies: Sequence[Tally]) -> dict[str, Any]:
    """For JSON."""
    return {"kind": "soak", "families": [asdict(tally) for tally in tallies]}


def failed(tallies: Sequence[Tally]) -> list[str]:
    """What must not be, in words."""
    found = [f"{t.family}: {what}" for t in tallies for what in t.differences]
    return found + [f"{t.family}: {t.damaged} damaged" for t in tallies if t.damaged]
