"""Whole files or none: write beside the destination, flush to the disk, rename."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

#: In the name of a file that is being written; what a kill leaves of one has it too.
SCRATCH = ".writing-"


class FileError(ValueError):
    """A file that cannot be read or written; the message names it and says what is wrong, in one
    line.
    """


def write_bytes(path: str | Path, data: bytes) -> None:
    """Put `data` into `path` such that a kill or power cut at any moment leaves the old file or the
    new one.

    Raises:
        FileError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    # not tempfile: its files can be read by their owner only
    scratch = path.with_name(f".{path.name}{SCRATCH}{os.urandom(4).hex()}")
    try:
        with open(scratch, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # no longer there, or its folder never was
            scratch.unlink()
    _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def remove_scratch(folder: str | Path) -> None:
    """Remove what writes into `folder` left that a kill cut short; nobody else may be writing."""
    for leftover in Path(folder).glob(f".*{SCRATCH}*"):
        with suppress(OSError):
            leftover.unlink()


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; FileError with one clear line where there are none to be had.

    Pipes and devices are refused: they may never end.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError(f"cannot read {path}: it is no file")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be flushed: not on Windows, nor on some
    network file systems. The file is in its place either way.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
