"""While ``python -m framework`` imports its parts: what goes wrong ends as one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

_active = False


def report_in_one_line() -> None:
    """Until `report_as_usual`, errors that imports raise for the user (a shadowed package, a wrong
    environment variable) and Ctrl-C are one line on stderr; only for ``python -m framework``.

    The package is imported before its __main__.py has a say, hence the hook.
    """
    global _active
    words = sys.orig_argv
    if any(words[i : i + 2] == ["-m", "framework"] for i in range(len(words) - 1)):
        _active = True
        sys.excepthook = _one_line
        # No KeyboardInterrupt: in the middle of an import some libraries make other errors of it.
        _handle(_leave)


def report_as_usual() -> None:
    """Errors have tracebacks again; Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt."""
    global _active
    if _active:
        _active = False
        _handle(signal.default_int_handler)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    """By `handler`, except for what whoever started the process wants ignored (nohup, `&`)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last one not on Windows
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if _active and isinstance(error, (ImportError, ValueError)):
        lines = filter(None, map(str.strip, str(error).splitlines()))
        print("error:", "; ".join(lines), file=sys.stderr)
        sys.exit(2)
    sys.__excepthook__(kind, error, trace)
