"""A pytest plugin for runs that may be killed: each result is a line in a file when it is known.

The file, named by BENCH_TEST_REPORT, is also what was run before: those tests are left out, so that
a run after a crash goes on behind it. BENCH_TEST_SHARD, "0/4", takes every fourth of the tests.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

#: What ends a CUDA context: every later call of the process fails with it, whatever it does.
LOST = (
    *("IllegalAddress", "MisalignedAddress", "LaunchFailure", "IllegalInstruction"),
    *("HardwareStackError", "InvalidAddressSpace", "InvalidPc", "cudaErrorAssert"),
    *("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED"),
)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines so far; one that a kill has cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


class Report:
    """Writes the lines of one run."""

    def __init__(self, path: Path, shard: str) -> None:
        self._before = {line["test"] for line in read(path) if "test" in line}
        self._file = path.open("a", encoding="utf-8")
        self._shard, self._of = map(int, shard.split("/"))
        self._lost = False

    def _write(self, **line: Any) -> None:
        print(json.dumps(line), file=self._file, flush=True)

    def pytest_sessionstart(self, session: Any) -> None:
        self._session = session

    @pytest.hookimpl(trylast=True)  # after -m has chosen
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        mine = items[self._shard :: self._of]
        self._write(collected=len(mine))
        chosen = {item.nodeid for item in mine} - self._before
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in chosen])
        items[:] = [item for item in mine if item.nodeid in chosen]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self._shard == 0 and report.nodeid not in self._before:
            self._write(test=report.nodeid, outcome="failed", reason=_reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed or report.skipped or report.when == "call":
            reason = _reason(report) if report.failed or report.skipped else ""
            self._write(
                test=report.nodeid,
                outcome=report.outcome,
                reason=reason,
                seconds=round(report.duration, 3),
            )
        if report.failed and any(name in report.longreprtext for name in LOST):
            self._lost = True

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._lost:
            self._write(lost=nodeid)
            self._session.shouldstop = "the CUDA context is lost"


def _reason(report: Any) -> str:
    """The error in one line."""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2])[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash is not None else report.longreprtext).strip().splitlines()
    text = lines[0] if crash is not None or not lines else lines[-1]
    return " ".join(str(text).split())[:300]


def pytest_configure(config: Any) -> None:
    """Take part where a file is named."""
    path = os.environ.get("BENCH_TEST_REPORT")
    if path:
        shard = os.environ.get("BENCH_TEST_SHARD", "0/1")
        config.pluginmanager.register(Report(Path(path), shard), "bench-report")
