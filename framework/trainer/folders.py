"""Folders that a run writes into."""

from __future__ import annotations

from pathlib import Path

from framework.interop.atomic import FileError


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it where they are missing; FileError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileError(f"cannot make the folder {folder}: there is a file of this name") from None
    except OSError as error:
        raise FileError(f"cannot make {folder}: {error.strerror or error}") from error
