"""`python -m bench mutate`: files of every kind that the framework reads, damaged and read.

Each reading has to end in the framework's own error, which names the file, or in content: where a
file has a checksum, in the content that was written. Never in another error, in a hang, in memory
without bound, or in a model of which a part is loaded.
"""

from __future__ import annotations

import logging
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bench.mutate_targets import OWN, TARGETS, Target
from bench.mutator import damaged

SECONDS = 120  # after which a reading hangs; others may hold up the machine for some
ROOM = 1 << 28  # bytes beyond those of the process: what a few hundred kilobytes may ask for


@dataclass
class Tally:
    """What came of the files of a kind."""

    name: str
    files: int = 0
    errors: int = 0
    same: int = 0  # the damage was where nothing is read, or healed by what is beside
    other: int = 0  # well-formed, with other content
    slowest: float = 0.0  # seconds of computing
    problems: list[str] = field(default_factory=list)


# Reading ------------------------------------------------------------------------------------------


class _Hangs(BaseException):
    pass


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """`_Hangs` within the block after so long."""

    def ring(*_: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited_memory(room: int) -> Iterator[None]:
    """Within the block the process can have `room` bytes more than it has: beyond, MemoryError."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block what is said of damaged files that are not needed is not shown."""
    log = logging.getLogger("framework")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def run(
    files: int,
    targets: Sequence[Target] = TARGETS,
    seed: int = 0,
    after_file: Callable[[], object] = lambda: None,
) -> list[Tally]:
    """Damage and read `files` files, as many of each kind. The same `seed`, the same damage."""
    tallies = []
    with _quiet():
        for i, target in enumerate(targets):
            tally = Tally(target.name)
            with tempfile.TemporaryDirectory() as folder:
                path = target.write(Path(folder))
                good, content = path.read_bytes(), target.read(path)
                share = files // len(targets) + (i < files % len(targets))
                with _limited_memory(ROOM):
                    for number in range(share):
                        chance = random.Random(f"{seed} {target.name} {number}")
                        path.write_bytes(damaged(good, chance))
                        _read(target, path, content, tally, f"file {number} of seed {seed}")
                        after_file()
            tallies.append(tally)
    return tallies


def _read(target: Target, path: Path, content: Any, tally: Tally, which: str) -> None:
    began = time.process_time()
    tally.files += 1
    try:
        with _within(SECONDS):
            found = target.read(path)
    except OWN as error:
        tally.errors += 1
        if path.name not in str(error) and str(path.parent) not in str(error):
            tally.problems.append(f"{which}: the error does not name the file: {error}")
        if "\n" in str(error):
            tally.problems.append(f"{which}: the error has several lines: {error}")
    except _Hangs:
        tally.problems.append(f"{which}: no answer after {SECONDS} s")
    except Exception as error:
        tally.problems.append(f"{which}: {type(error).__name__}: {str(error)[:200]}")
    else:
        same = alike(found, content)
        tally.same, tally.other = tally.same + same, tally.other + (not same)
        if target.checked and not same:
            tally.problems.append(f"{which}: damage that its checksum does not show")
    tally.slowest = max(tally.slowest, time.process_time() - began)


def alike(a: Any, b: Any) -> bool:
    """Equal contents: arrays by dtype, shape and bytes."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b) or (a != a and b != b)


# What is shown ------------------------------------------------------------------------------------


def table(tallies: Sequence[Tally]) -> Table:
    """A row for each kind of file."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("file")
    columns = "files", "own error", "read, same", "read, other", "crash, hang, wrong", "slowest"
    for name in columns:
        out.add_column(name, justify="right")
    total = Tally("all")
    for tally in tallies:
        for key in ("files", "errors", "same", "other"):
            setattr(total, key, getattr(total, key) + getattr(tally, key))
        total.problems += tally.problems
        total.slowest = max(total.slowest, tally.slowest)
    for tally in (*tallies, total):
        counts = tally.files, tally.errors, tally.same, tally.other, len(tally.problems)
        out.add_row(tally.name, *(f"{n:,}" for n in counts), f"{tally.slowest * 1e3:.0f} ms")
    return out


def as_dict(tallies: Sequence[Tally]) -> dict[str, Any]:
    """For JSON."""
    return {"kind": "mutate", "targets": [asdict(tally) for tally in tallies]}


def failed(tallies: Sequence[Tally]) -> list[str]:
    """What must not be, in words."""
    return [f"{tally.name}, {what}" for tally in tallies for what in tally.problems]
