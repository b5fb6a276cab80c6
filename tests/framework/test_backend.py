"""Devices: names, the default, the probe and its messages."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import mmap
import sys
import types

import numpy as np
import pytest

import framework as fw
from framework.backend import device as backend, memory


@pytest.fixture
def unknown(monkeypatch):
    """As at start-up: nothing probed, no default chosen."""
    monkeypatch.setattr(backend, "_default", None)
    backend.probe_cuda.cache_clear()
    backend._report_fallback.cache_clear()
    yield monkeypatch
    backend.probe_cuda.cache_clear()
    backend._report_fallback.cache_clear()


def test_device_names():
    assert fw.Device("cuda") == fw.Device("cuda:0") != fw.Device("cuda:1")
    assert str(fw.Device("cuda:1")) == "cuda:1" and str(fw.Device("cpu")) == "cpu"
    assert repr(fw.Device(fw.Device("cpu"))) == "Device('cpu')"
    for bad in ("gpu", "cuda:x", "cpu:1", ""):
        with pytest.raises(ValueError, match="expected|one CPU"):
            fw.Device(bad)


def test_default_device_follows_the_environment(unknown):
    unknown.setenv("FRAMEWORK_DEVICE", "cpu")
    assert fw.default_device() == fw.Device("cpu")


def test_bad_environment_names_the_variable(unknown):
    unknown.setenv("FRAMEWORK_DEVICE", "tpu")
    with pytest.raises(ValueError, match="FRAMEWORK_DEVICE='tpu': expected 'auto', 'cpu', 'cuda'"):
        fw.default_device()


def fake_cupy(monkeypatch, **cuda):
    """A CuPy whose cuda module has just these members."""
    module = types.ModuleType("cupy")
    module.cuda = types.SimpleNamespace(**cuda)
    monkeypatch.setitem(sys.modules, "cupy", module)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        backend.importlib.util, "find_spec", lambda n: object() if n == "cupy" else found(n)
    )
    return module


def test_without_cupy_the_reason_and_the_pip_command_are_given(unknown):
    found = importlib.util.find_spec
    unknown.setattr(
        backend.importlib.util, "find_spec", lambda name: None if name == "cupy" else found(name)
    )
    assert not fw.cuda.is_available()
    assert "CuPy is not installed" in fw.cuda.why_not() and "pip install" in fw.cuda.why_not()
    with pytest.raises(fw.DeviceError, match="CuPy is not installed.*pip install"):
        fw.set_default_device("cuda")
    with pytest.raises(fw.DeviceError, match="cannot be used"):
        fw.tensor([1.0], device="cuda")
    assert fw.cuda.device_count() == 0


def test_auto_falls_back_silently_where_there_is_no_gpu(unknown, caplog):
    fake_cupy(unknown, is_available=lambda: False)
    unknown.setattr(backend.os.path, "exists", lambda path: False)
    unknown.setenv("FRAMEWORK_DEVICE", "auto")
    with caplog.at_level(logging.WARNING, "framework"):
        assert fw.default_device() == fw.Device("cpu")
    assert caplog.records == []


def test_cuda_by_name_says_what_is_missing(unknown):
    fake_cupy(unknown, is_available=lambda: False)
    with pytest.raises(fw.DeviceError) as caught:
        backend.choose_device("cuda")
    message = str(caught.value)
    assert "no NVIDIA GPU or driver found" in message and "nvidia-smi" in message
    assert "the CPU is used" not in message


def test_auto_reports_a_broken_gpu_once(unknown, caplog):
    def broken(*args):
        raise OSError("libnvrtc.so.13:\n cannot open")

    module = fake_cupy(unknown, is_available=lambda: True)
    module.zeros = broken
    unknown.setenv("FRAMEWORK_DEVICE", "auto")
    with caplog.at_level(logging.WARNING, "framework"):
        assert fw.default_device() == fw.Device("cpu")
        assert fw.default_device() == fw.Device("cpu")
        for _ in range(3):  # as trainer and CLI do
            assert backend.choose_device("auto") == fw.Device("cpu")
    (line,) = [r.getMessage() for r in caplog.records]
    assert (
        "using the CPU: a first CUDA kernel failed (OSError: libnvrtc.so.13: cannot open)" in line
    )
    assert "\n" not in line


def test_a_failing_import_of_cupy_is_reported(unknown):
    importing = builtins.__import__

    def refuse(name, *args, **options):
        if name == "cupy":
            raise ImportError("libcuda is too old")
        return importing(name, *args, **options)

    found = importlib.util.find_spec
    unknown.setattr(
        backend.importlib.util, "find_spec", lambda n: object() if n == "cupy" else found(n)
    )
    unknown.delitem(sys.modules, "cupy", raising=False)
    unknown.setattr(builtins, "__import__", refuse)
    assert "importing CuPy failed (ImportError: libcuda is too old)" in fw.cuda.why_not()


def test_transfers_on_the_cpu_are_free():
    x = np.ones(3)
    assert backend.to_device(x, fw.Device("cpu")) is x
    assert backend.device_of(x) == fw.Device("cpu")
    with fw.Device("cpu").context():
        pass


@pytest.mark.cuda
def test_transfers_to_cuda_and_back():
    x = fw.tensor([1.0, 2.0], device="cuda", requires_grad=True)
    assert x.device == fw.Device("cuda")
    (x.cpu() * 3).sum().backward()
    assert x.grad.device == fw.Device("cuda")
    assert x.grad.cpu().tolist() == [3, 3]
    with pytest.raises(ValueError, match="operands are on"):
        x + fw.tensor([1.0, 2.0], device="cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_in_use_grows_with_an_array():
    before = fw.memory_used("cpu")
    # Pages straight from the system: malloc would hand out what earlier tests have freed.
    block = np.frombuffer(mmap.mmap(-1, 50_000_000), np.uint8)
    block[:] = 1
    assert fw.memory_used("cpu") - before > 40_000_000
    assert memory.peak_of_process() >= before + block.nbytes // 2


def test_malloc_setting_can_be_refused(monkeypatch):
    monkeypatch.setenv("FRAMEWORK_MALLOC", "system")
    assert memory.keep_freed_memory() is False


def test_the_precision_of_float32_products_is_pytorchs_switch():
    from kernels.precision import tf32_is_allowed

    assert fw.get_float32_matmul_precision() == "highest"
    try:
        for precision, tf32 in (("high", True), ("medium", True), ("highest", False)):
            fw.set_float32_matmul_precision(precision)
            assert fw.get_float32_matmul_precision() == precision
            assert tf32_is_allowed() == tf32
    finally:
        fw.set_float32_matmul_precision("highest")
