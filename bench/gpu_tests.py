"""The tests that need a GPU, for `python -m bench gpu`: results as they come, within a limit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import pytest_report

ROOT = Path(__file__).resolve().parent.parent

#: -o addopts: pyproject's ask for xdist, which may not be installed and would hide who crashed.
PYTEST = (
    *("-m", "pytest", "-m", "cuda", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
    *("-o", "addopts=--import-mode=importlib --strict-markers", "--continue-on-collection-errors"),
    *("-p", "bench.pytest_report"),
)

#: pytest's exit codes of a run that came to its end: all passed, some failed, none were chosen.
_ENDED = (0, 1, 5)

#: At most this many processes: compiling kernels is what takes the time, a core each.
MOST_SHARDS = 6


def shards() -> int:
    """Processes that the tests are dealt out to."""
    return max(1, min(MOST_SHARDS, (os.cpu_count() or 1) // 2))


@dataclass
class _Shard:
    """One of the processes, started again behind a test that ended it."""

    number: int
    of: int
    folder: Path
    paths: Sequence[str]
    runs: int = 0
    problem: str = ""
    process: Any = None
    known: int = 0
    done: bool = False
    log: Any = field(default=None, repr=False)

    @property
    def report(self) -> Path:
        return self.folder / f"{self.number}.jsonl"

    def start(self) -> None:
        self.runs += 1
        self.known = len(pytest_report.read(self.report))
        self.log = (self.folder / f"{self.number}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, *PYTEST, *self.paths],
            cwd=ROOT,
            env=os.environ
            | {"BENCH_TEST_REPORT": str(self.report)}
            | {"BENCH_TEST_SHARD": f"{self.number}/{self.of}"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def poll(self) -> None:
        """Look after the process: done, or to be started again."""
        code = self.process.poll()
        if self.done or code is None:
            return
        if self.log is not None:
            self.log.seek(0)
            text = [line for line in self.log.read().splitlines() if line.strip()]
            self.log.close()
            self.log = None
        lines = pytest_report.read(self.report)
        if code in _ENDED and any("collected" in line for line in lines):
            self.done = True
        elif not any("test" in line for line in lines[self.known :]):
            # it did not come to a test: starting it again would end alike
            self.problem = f"pytest ended with code {code}: {text[-1] if text else 'no output'}"
            self.done = True
        else:
            self.start()

    def kill(self) -> None:
        """End it, whatever it is at."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.log is not None:
            self.log.close()


def run(
    seconds: float,
    paths: Sequence[str] = ("tests",),
    count: int | None = None,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run them for at most `seconds`; what has passed, failed, crashed and not been reached."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-tests-") as folder, ExitStack() as stack:
        count = count or shards()
        every = [_Shard(i, count, Path(folder), paths) for i in range(count)]
        for shard in every:
            stack.callback(shard.kill)
            shard.start()
        while not all(shard.done for shard in every) and time.monotonic() - begin < seconds:
            time.sleep(0.05)
            for shard in every:
                shard.poll()
            tick()
        for shard in every:
            shard.kill()
        lines = [line for shard in every for line in pytest_report.read(shard.report)]
        running = {_last(shard.report) for shard in every if not shard.done}
        problems = sorted({shard.problem for shard in every if shard.problem})
        collected = sum(_collected(shard.report) for shard in every)
    result = summarised(lines, running, collected)
    result |= {
        "seconds": round(time.monotonic() - begin, 1),
        "limit": round(seconds, 1),
        "complete": all(shard.done for shard in every) and not problems,
        "processes": count,
        "runs": sum(shard.runs for shard in every),
        "problem": "; ".join(problems) or None,
    }
    return result


def _collected(path: Path) -> int:
    counts = [line["collected"] for line in pytest_report.read(path) if "collected" in line]
    return counts[0] if counts else 0


def _last(path: Path) -> str | None:
    """The test that was running when the time was up."""
    tests = [line for line in pytest_report.read(path) if "test" in line]
    return tests[-1]["test"] if tests and tests[-1]["outcome"] == "started" else None


def summarised(
    lines: Sequence[dict[str, Any]], running: set[str | None], collected: int
) -> dict[str, Any]:
    """Counts, failures in the order they came, tests that ended their process, the slowest."""
    last: dict[str, dict[str, Any]] = {}
    for line in lines:
        # a failure in the test and another one in its teardown are one failed test, the first
        known = last.get(line.get("test", ""))
        if "test" in line and (known is None or known["outcome"] != "failed"):
            last[line["test"]] = line
    outcomes = [line["outcome"] for test, line in last.items()]
    crashed = [t for t, line in last.items() if line["outcome"] == "started" and t not in running]
    failures = [
        {"test": test, "reason": line["reason"]}
        for test, line in last.items()
        if line["outcome"] == "failed"
    ]
    failures += [{"test": test, "reason": "ended the process"} for test in crashed]
    skipped: dict[str, int] = {}
    for line in last.values():
        if line["outcome"] == "skipped":
            reason = line["reason"].removeprefix("Skipped: ")
            skipped[reason] = skipped.get(reason, 0) + 1
    slowest = sorted(last.values(), key=lambda line: -line.get("seconds", 0.0))[:10]
    finished = len(outcomes) - outcomes.count("started")
    return {
        "passed": outcomes.count("passed"),
        "failed": len(failures),
        "skipped": skipped,
        "not_reached": max(0, collected - finished - len(crashed)),
        "failures": failures,
        "lost_contexts": [line["lost"] for line in lines if "lost" in line],
        "slowest": [[line["test"], line["seconds"]] for line in slowest if "seconds" in line],
    }
