"""Shared by the tests of kernels."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernels.tolerances import assert_close


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """`assert_close`."""
    return assert_close


@pytest.fixture
def host_cublas(monkeypatch):
    """tests/kernels/host_cublas.py with its library and its CuPy in place, as
    ``(module, library, cupy)``.
    """
    path = Path(__file__).with_name("host_cublas.py")
    spec = importlib.util.spec_from_file_location("host_cublas", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module, *module.install(monkeypatch)
    module.forget()
