"""A line that moves while kernels are compiled, so that nobody takes the wait for a hang."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kernels import compiling

#: Seconds: what takes less is not worth a line; a gap between two kernels that is still one wait;
#: from one frame to the next.
PATIENCE, GAP, FRAME = 1.0, 0.5, 0.1

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Waiting:
    """Calls `show` with a text that counts the seconds while kernels are compiled, and with None
    when they are: `kernels.compiling.watch` takes it.
    """

    def __init__(self, show: Callable[[str | None], None]) -> None:
        self._show = show
        self._process = os.getpid()  # a forked one keeps quiet: its copy of the lock may be held
        self._lock = threading.RLock()
        self._depth = 0
        self._began = self._ended = -GAP
        self._thread: threading.Thread | None = None
        self._shown = False

    def __call__(self, begins: bool) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            now = time.monotonic()
            self._depth += 1 if begins else -1
            if begins and self._depth == 1:
                if now - self._ended > GAP:
                    self._began = now
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, daemon=True)
                    self._thread.start()
                self._draw(now)
            elif not self._depth:
                self._ended = now
                if self._shown:  # at once: the next line that is printed is another's
                    self._shown = False
                    self._show(None)

    def _draw(self, now: float) -> None:
        seconds = now - self._began
        if seconds < PATIENCE:
            return
        self._shown = True
        frame = SPINNER[int(seconds / FRAME) % len(SPINNER)]
        self._show(f"{frame} compiling kernels, once on this machine: {seconds:.0f} s")

    def _run(self) -> None:
        while True:
            time.sleep(FRAME)
            with self._lock:
                now = time.monotonic()
                if self._depth:
                    self._draw(now)
                elif now - self._ended > GAP:
                    self._thread = None
                    return


@contextmanager
def shown_by(show: Callable[[str | None], None]) -> Iterator[None]:
    """Within the block, `show` has the line instead of whoever had it before; see `Waiting`."""
    before, compiling.watch = compiling.watch, Waiting(show)
    try:
        yield
    finally:
        compiling.watch = before


@contextmanager
def on_terminal(stream: Any) -> Iterator[None]:
    """Within the block the line stands on `stream` where the cursor is, and leaves no trace; where
    that is no terminal there is none.
    """
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    encoding = getattr(stream, "encoding", None) or "ascii"

    def show(text: str | None) -> None:
        # Nothing wraps and the cursor stays: the line may follow half a sentence of `generate`.
        line = "" if text is None else text.encode(encoding, "replace").decode(encoding)
        with suppress(OSError):  # a screen that is gone is not this line's to report
            sys.stdout.flush()
            stream.write(f"\x1b7\x1b[?7l\x1b[K\x1b[2m{line}\x1b[0m\x1b[?7h\x1b8")
            stream.flush()

    with shown_by(show):
        yield
