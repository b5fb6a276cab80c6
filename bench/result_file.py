"""Files that `python -m bench` wrote, read back: who measured, and what, in one shape for all.

A reader of a file gets a `ResultFile`, or an `UnreadableResult` whose one line names the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.cases import Case, size_text
from bench.measure import Spread

#: What writes such a file, by the kind that stands in it.
KINDS = ("kernels", "training", "gpu")

#: Sides that are this framework: the others are peers.
OURS = ("ours", "captured")


class UnreadableResult(ValueError):
    """A file that is no result of this format."""


@dataclass(frozen=True)
class Entry:
    """A case of a kernel, or a part of a training step, with what each side needed for it.

    `bandwidth` is bytes a second and `flops` operations a second of ours; `bytes` the least
    traffic, `roof` the share of the roofline, `peak_flops` its flat part; `extra` bytes at the peak
    of a call beyond inputs and results, of each side. `problem` says why a side, or with no
    `seconds` all of it, was not timed.
    """

    name: str
    size: str
    shape: tuple[int, ...]
    dtype: str
    seconds: dict[str, Spread]
    best: dict[str, float]
    speedup: dict[str, Spread]
    bytes: int | None = None
    bandwidth: float | None = None
    flops: float | None = None
    peak_flops: float | None = None
    roof: float | None = None
    error: float | None = None
    extra: dict[str, int] = field(default_factory=dict)
    peer: str = ""
    problem: str = ""
    disturbed: bool = False
    training: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """The same in every run of the case."""
        return self.name, self.size, self.dtype

    def __str__(self) -> str:
        return f"{self.name}[{self.size}]" + ("" if self.dtype == "float32" else f" {self.dtype}")


@dataclass(frozen=True)
class ResultFile:
    """A file: `facts` are all of its JSON."""

    path: Path
    facts: dict[str, Any]
    entries: tuple[Entry, ...]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return str(self.facts["kind"])

    @property
    def machine(self) -> dict[str, Any]:
        """What has to be alike for times to be comparable."""
        known = {key: self.facts.get(key) for key in ("device", "cpu", "cores", "threads")}
        return {**known, "gpu": (self.facts.get("gpu") or {}).get("name")}

    @property
    def copy_bandwidth(self) -> float | None:
        """Bytes a second of a plain copy in this run, where one was timed."""
        part = self.facts if self.kind == "kernels" else self.facts.get("kernels", {})
        value = part.get("copy_bandwidth")
        return float(value) if value else None


def facts_of(path: Path) -> dict[str, Any]:
    """The JSON of a file of this format, of any kind. Raises UnreadableResult."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
        _ = facts["kind"], facts["device"], facts["date"]
    except OSError as error:
        raise UnreadableResult(f"{path}: {error.strerror}; expected a file of --json") from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableResult(f"{path}: no result of python -m bench ({what})") from None
    if version != machine.FORMAT:
        raise UnreadableResult(f"{path}: format {version}, expected {machine.FORMAT}")
    return dict(facts)


def read(path: Path) -> ResultFile:
    """A file with its entries. Raises UnreadableResult."""
    facts = facts_of(path)
    if facts["kind"] not in KINDS:
        raise UnreadableResult(f"{path}: kind {facts['kind']!r}, expected {', '.join(KINDS)}")
    try:
        return ResultFile(path, facts, tuple(_entries(facts)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableResult(
            f"{path}: expected figures of python -m bench {facts['kind']} ({what})"
        ) from None


# Entries ------------------------------------------------------------------------------------------


def _entries(facts: dict[str, Any]) -> Iterator[Entry]:
    if facts["kind"] == "kernels":
        yield from map(_of_kernel, facts["rows"])
    elif facts["kind"] == "training":
        for result in facts["results"]:
            yield from _of_training(result)
    else:  # a run on a GPU that was cut short lacks parts
        yield from map(_of_kernel, facts.get("kernels", {}).get("rows", []))
        for result in facts.get("training", {}).get("results", []):
            yield from _of_training(result)


def _of_kernel(row: Mapping[str, Any]) -> Entry:
    shape = tuple(int(n) for n in row["shape"])
    sides = row.get("sides", {})
    ours = sides.get("ours", {})
    return Entry(
        Case(row["kernel"], row["variant"], shape).label,
        size_text(shape),
        shape,
        row.get("dtype", "float32"),
        _spreads(row.get("seconds", {})),
        {side: float(t) for side, t in row.get("best_seconds", {}).items() if t},
        _spreads(row.get("speedup", {})),
        bytes=ours.get("bytes"),
        bandwidth=row.get("bandwidth"),
        flops=row.get("flops"),
        peak_flops=row.get("peak_flops"),
        roof=row.get("share_of_roof"),
        extra={s: f["extra_memory"] for s, f in sides.items() if f.get("extra_memory") is not None},
        error=ours.get("error"),
        peer=sides.get("torch", {}).get("peer") or "",
        problem=row.get("problem") or "",
        disturbed=bool(row.get("disturbed", False)),
    )


def _of_training(result: Mapping[str, Any]) -> Iterator[Entry]:
    """The step, then its parts."""
    size = f"{result['title']}, batch {result['batch']}"
    by_side = {side: _spreads(laps) for side, laps in result["seconds"].items()}
    for lap in result["seconds"]["ours"]:
        whole = lap == "step"
        yield Entry(
            f"{result['model']} {lap}",
            size,
            (int(result["batch"]),),
            result["dtype"],
            {side: laps[lap] for side, laps in by_side.items() if lap in laps},
            {side: float(t) for side, t in result["best_seconds"].items()} if whole else {},
            _spreads(result["speedup"]) if whole else {},
            disturbed=bool(result.get("disturbed", False)),
            training=True,
        )


def _spreads(of: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    return {name: _spread(name, spread) for name, spread in of.items()}


def _spread(name: str, of: Mapping[str, float]) -> Spread:
    spread = Spread(*(float(of[key]) for key in ("median", "p20", "p80")))
    if not 0 < spread.p20 <= spread.median <= spread.p80:
        raise ValueError(f"{name}: p20 {spread.p20}, median {spread.median}, p80 {spread.p80}")
    return spread
