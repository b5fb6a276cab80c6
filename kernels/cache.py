"""Where things are kept from one run to the next: compiled kernels, downloads."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def chosen_cache() -> Path | None:
    """The folder that FRAMEWORK_CACHE names, or None."""
    chosen = os.environ.get("FRAMEWORK_CACHE")
    return Path(chosen) if chosen else None


def user_cache() -> Path:
    """The framework's folder in the place where this system keeps a user's caches."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "framework"
