"""What a long run prints: a screen that is gone, or a full disk behind ``> log``, does not end
it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def that_may_fail() -> Iterator[None]:
    """Within the block, what cannot be printed (terminal closed, pipe closed, disk full) is left
    out; where stderr is still read, it says so once.
    """
    out, errors = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Lenient(out), _Lenient(errors)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, errors
        for stream in (out, errors):
            _leave_out_the_rest(stream)


class _Lenient:
    """A stream whose writes do not fail."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._told = stream, False

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._tell(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told and sys.stderr is not self:
            self._told = True
            reason = error.strerror or error
            print(f"cannot print any more: {reason}; training goes on", file=sys.stderr, flush=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _leave_out_the_rest(stream: Any) -> None:
    """What is still to be written and cannot be: the interpreter would fail at it at its end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
