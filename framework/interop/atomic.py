"""Whole files or none: write beside the destination, flush to the disk, rename."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


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
    scratch: str | None = None
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(scratch, path)
        scratch = None
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if scratch is not None and os.path.exists(scratch):
            os.unlink(scratch)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; FileError with one clear line where there are none to be had."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable. Windows cannot open a folder, and does not need to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
