"""Shared by all tests."""

import os

import pytest

# Several test processes share the cores: a thread that waits must sleep, not spin. OpenMP reads
# this when numba loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _no_device() -> str | None:
    """Why there is no CUDA device; None if there is one."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is not installed ({error})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return str(error)
    return None if count else "no CUDA device"


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    reason = _no_device() if marked else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device: {reason}"))
