"""What the commands print where that may fail: a screen or a pipe that is gone, a full disk behind
``> log``. A long run does not end by it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def that_may_fail(*names: str) -> Iterator[None]:
    """Within the block, what cannot be printed on the streams of these names, "stdout" or "stderr",
    is left out; where stderr is still read, it says so once.
    """
    streams = {name: getattr(sys, name) for name in names}
    for name, stream in streams.items():
        setattr(sys, name, _Lenient(stream))
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
            leave_out_the_rest(stream)


def tell(line: str) -> None:
    """`line` on stderr, if it can be written."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def reason_of(error: OSError) -> str:
    """In one line, with the path that it is about."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


class Named:
    """A stream the errors of which have a name, as a file's have a path."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._name) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._name) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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


def leave_out_the_rest(stream: Any) -> None:
    """What is still to be written and cannot be: the interpreter would fail at it at its end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
