"""The emulator in place of CuPy, or the reason why it cannot be."""

import sys

import pytest

from kernels.cuda import cudnn, cudnn_attention
from tests.conftest import skip_or_fail
from tests.cuda_emulator import cudnn_module, cupy_module, programs


def require_emulator() -> None:
    """Skip, or fail, without a C++ compiler."""
    skip_or_fail(programs.missing())


@pytest.fixture
def cupy():
    """The module that `import cupy` gives within the test."""
    require_emulator()
    with cupy_module.installed() as module:
        yield module


@pytest.fixture
def library(cupy, monkeypatch):
    """cuDNN as if it had just been installed."""
    module = cudnn_module.stand_in()
    monkeypatch.setitem(sys.modules, "cudnn", module)
    caches = cudnn._found, cudnn._handle, cudnn.graph_for, cudnn_attention.graph_for
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()
