"""The versions that decide about a run's numbers."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib import metadata


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide about the numbers."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in (
        "framework-dl",
        "numpy",
        "numba",
        "ml_dtypes",
        "safetensors",
        "tokenizers",
        "cupy",
    ):
        version = version_of(name)
        if version is not None:
            found[name] = version
    return found


def version_of(name: str) -> str | None:
    """The installed version of a distribution, None where there is none. CuPy has a name for each
    CUDA.
    """
    for distribution in [name] if name != "cupy" else ["cupy", "cupy-cuda12x", "cupy-cuda13x"]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
