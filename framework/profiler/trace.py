"""A profile as a trace in the Chrome format, which Perfetto reads:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU

A complete event ("ph": "X") for each span, in microseconds: process 1 is the host with a row a
thread, process 2 the CUDA device. Memory is a counter ("C").
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from framework.interop.atomic import write_text
from framework.profiler.profile import Profile
from framework.profiler.spans import Span

HOST, DEVICE = 1, 2


def events(profile: Profile) -> list[dict[str, Any]]:
    """All events: names first, then by time; of two that begin together the outer one first."""
    on_device = list(filter(profile.has_device_time, profile.spans))
    zero = min((since for since, _ in profile.intervals), default=0)
    # the two clocks are tied together within microseconds: a kernel may seem to begin before
    zero = min([zero, *(span.begun for span in on_device)])
    threads = dict(sorted({span.thread for span in profile.spans}))
    found = list(_names(HOST, "host", threads))
    if on_device:
        found += _names(DEVICE, f"device {profile.device}", threads)
    timed = [_complete(span, HOST, span.start - zero, span.end - zero) for span in profile.spans]
    timed += [_complete(span, DEVICE, span.begun - zero, span.ended - zero) for span in on_device]
    for ns, used in profile.samples:
        counter = {"name": "memory", "ph": "C", "ts": max(0, ns - zero) / 1e3, "pid": HOST}
        timed.append(counter | {"tid": 0, "args": {"bytes": used}})
    timed.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    return found + timed


def _complete(span: Span, pid: int, start: int, end: int) -> dict[str, Any]:
    inside = span.layer if span.layer != span.name else None
    args = {"layer": inside, "type": span.detail if span.category == "layer" else None}
    return {
        "name": span.name,
        "cat": span.category,
        "ph": "X",
        "ts": start / 1e3,
        "dur": (end - start) / 1e3,
        "pid": pid,
        "tid": span.thread[0],
        "args": {key: value for key, value in args.items() if value},
    }


def _names(pid: int, name: str, threads: dict[int, str]) -> Iterable[dict[str, Any]]:
    common = {"ph": "M", "ts": 0, "pid": pid}
    yield common | {"name": "process_name", "tid": 0, "args": {"name": name}}
    for tid, thread in threads.items():
        yield common | {"name": "thread_name", "tid": tid, "args": {"name": thread}}


def write(profile: Profile, path: str | Path) -> None:
    """The trace as a file; FileError where it cannot be written."""
    content = {"traceEvents": events(profile), "displayTimeUnit": "ms"}
    write_text(path, json.dumps(content, allow_nan=False) + "\n")
