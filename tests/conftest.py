"""Shared by all tests."""

import os
import signal

import pytest

# What takes no `device` means the CPU, on every machine.
os.environ.setdefault("FRAMEWORK_DEVICE", "cpu")

# Several test processes share the cores: a thread that waits must sleep, not spin. OpenMP reads
# this when numba loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Started by nohup, or in the background of a script, this process ignores signals, and so would
# those that tests start to be interrupted.
for number in (signal.SIGINT, getattr(signal, "SIGHUP", None)):
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)


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


def skip_or_fail(reason: str | None) -> None:
    """Skip for this reason; fail where FRAMEWORK_EMULATOR=required, as .ci/run has it: what the
    tests of CUDA code without a GPU need is there.
    """
    if reason and os.environ.get("FRAMEWORK_EMULATOR") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def _nvrtc():
    from kernels.cuda import nvrtc

    skip_or_fail(nvrtc.missing())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """The default device within the test: the CPU, and CUDA where there is one.

    For tests that make tensors without naming a device and read them by `numpy`, `tolist` or
    `item`; those that look into arrays belong to the CPU.
    """
    from framework.backend import device as backend

    before = backend._default
    backend.set_default_device(request.param)
    yield request.param
    backend._default = before
