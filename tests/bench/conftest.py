"""Shared by the tests of bench/: CUDA on the emulator, workers without processes."""

import sys

import pytest

from bench.peer import PeerError, Worker, _Server
from tests.cuda_emulator import cupy_module
from tests.cuda_emulator.conftest import require_emulator


class Local:
    """What `Worker` is, in this process: for factories that need the emulator installed here."""

    def __init__(self, name, factory, threads=None, timeout=0.0):
        self.name, self.server = name, _Server(factory)

    def call(self, request, *args):
        try:
            return getattr(self.server, request)(*args)
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise PeerError(f"{self.name}: {line}") from error

    def close(self):
        self.server = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error):
        self.close()


@pytest.fixture(autouse=True)
def torch_records_gradients_again():
    """bench/torch_calls.py turns it off for its process, which here is other tests' too."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


@pytest.fixture
def cupy():
    """The emulator as CuPy, or the reason why it cannot be."""
    require_emulator()
    with cupy_module.installed() as module:
        yield module


@pytest.fixture
def local(cupy, monkeypatch):
    """`Local`, small copies, and no garbage frozen: this process lives on."""
    from bench import cuda_sides, peer

    monkeypatch.setattr(cuda_sides, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(cuda_sides, "PEAK_SIZE", 16)
    monkeypatch.setattr(peer.gc, "freeze", lambda: None)
    flush = cuda_sides._flush_buffer
    yield Local
    flush.cache_clear()
