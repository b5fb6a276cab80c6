"""Spans: what ran from when to when, in which thread, inside of what.

`begin` and `end` are called by the hooks (hooks.py) while at least one profile records. A span
belongs to the profiles that recorded when it began and still do when it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.profiler.clock import CudaClock
    from framework.profiler.profile import Profile

#: "layer": a module's forward. "autograd": a backward pass, and each node in it. "kernel": a call
#: of a kernel. "step": a training step, and the optimizer's part of it. "data": batches.
CATEGORIES = ("layer", "kernel", "autograd", "step", "data")


class Span:
    """Nanoseconds of the host's clock, and where there is one the device's events."""

    __slots__ = (
        "begun",
        "category",
        "detail",
        "end",
        "ended",
        "layer",
        "name",
        "parent",
        "profiles",
        "start",
        "thread",
    )

    def __init__(self, category: str, name: str, layer: str | None, detail: str) -> None:
        self.category, self.name, self.detail = category, name, detail
        #: The layer that it is part of: by nesting, for the backward by who recorded the node.
        self.layer = layer
        self.parent: Span | None = None
        self.thread: tuple[int, str] = (0, "")
        self.profiles: tuple[Profile, ...] = ()
        self.start = self.end = 0
        #: Places on the device's timeline (clock.py), or None.
        self.begun: Any = None
        self.ended: Any = None

    def __repr__(self) -> str:
        return f"<{self.category} {self.name}: {(self.end - self.start) / 1e6:.3f} ms>"


#: The profiles that record, outermost first. Replaced, never changed: any thread may read it.
recording: tuple[Profile, ...] = ()

_numbers = count(1)  # 0 is the idle thread to some viewers


class _Thread(threading.local):
    """The open spans of a thread, and its number and name."""

    def __init__(self) -> None:
        self.open: list[Span] = []
        self.identity = next(_numbers), threading.current_thread().name


_here = _Thread()


def innermost() -> Span | None:
    """The span that this thread is in."""
    return _here.open[-1] if _here.open else None


def begin(category: str, name: str, layer: str | None = None, detail: str = "") -> Span:
    """Open a span in this thread; its layer is the one around it unless one is given."""
    around = _here.open
    span = Span(category, name, layer, detail)
    if around:
        span.parent = around[-1]
        if layer is None:
            span.layer = around[-1].layer
    span.thread, span.profiles = _here.identity, recording
    around.append(span)
    clock = _clock(span)
    if clock is not None:
        span.begun = clock.push(span)
    span.start = perf_counter_ns()
    return span


def end(span: Span) -> None:
    """Close the span, and with it what was left open inside by an error."""
    span.end = perf_counter_ns()
    around = _here.open
    if span not in around:  # it was closed together with the one around it
        return
    while around:
        inner = around.pop()
        clock = _clock(inner)
        if clock is not None:
            inner.ended = clock.pop(inner)
        if inner is span:
            break
    for profile in span.profiles:
        profile.take(span)


def _clock(span: Span) -> CudaClock | None:
    """One for all its profiles: a range in Nsight for each would be one too many."""
    return next((p.clock for p in span.profiles if p.clock is not None), None)


def set_recording(change: Callable[[tuple[Profile, ...]], tuple[Profile, ...]]) -> None:
    """Replace the profiles that record; the caller holds the lock of hooks.py."""
    global recording
    recording = change(recording)
