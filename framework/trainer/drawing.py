"""What all pictures share: colours, how one is written, what to say where matplotlib is missing.

matplotlib is imported by those who draw, when they draw.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from framework.interop.atomic import FileError

INSTALL = 'pip install "matplotlib>=3.8"'
INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea")


def has_matplotlib() -> bool:
    """Can anything be drawn?"""
    return importlib.util.find_spec("matplotlib") is not None


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, as PNG, SVG or PDF by the path's ending.

    Written beside and renamed: a reader never sees half a picture.

    Raises:
        FileError: `path` cannot be written.
    """
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        figure.savefig(scratch, dpi=160)
        os.replace(scratch, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)
