"""Where arrays live: the CPU (NumPy) or a CUDA device (CuPy), and which of them is the default."""

from __future__ import annotations

import importlib.util
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from kernels.arrays import Array, is_cuda, to_numpy

log = logging.getLogger("framework")

#: What to install when there is a driver and no CuPy.
INSTALL_CUPY = 'pip install "cupy-cuda13x[ctk]"   (or cupy-cuda12x for a driver older than CUDA 13)'


class DeviceError(RuntimeError):
    """A device was asked for by name and cannot be used."""


@dataclass(frozen=True)
class Device:
    """A place for arrays: ``Device("cpu")``, ``Device("cuda")``, ``Device("cuda:1")``."""

    kind: str
    index: int = 0

    def __init__(self, name: str | Device) -> None:
        if isinstance(name, Device):
            kind, index = name.kind, name.index
        else:
            kind, _, number = str(name).partition(":")
            if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
                raise ValueError(f"device {name!r}: expected 'cpu', 'cuda' or 'cuda:N'")
            index = int(number or 0)
            if kind == "cpu" and index:
                raise ValueError(f"device {name!r}: there is one CPU device, 'cpu'")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "index", index)

    def __str__(self) -> str:
        return self.kind if self.index == 0 else f"{self.kind}:{self.index}"

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"

    @property
    def module(self) -> ModuleType:
        """``numpy`` or ``cupy``; DeviceError where CUDA cannot be used."""
        if self.kind == "cpu":
            return np
        require_cuda()
        import cupy

        return cupy

    def context(self) -> AbstractContextManager[Any]:
        """Make this the current CUDA device inside a ``with`` block; nothing to do for the CPU."""
        return nullcontext() if self.kind == "cpu" else self.module.cuda.Device(self.index)


CPU = Device("cpu")


@dataclass(frozen=True)
class Probe:
    """What trying CUDA once showed: usable or not, and then why not and what to do about it."""

    usable: bool
    reason: str = ""
    remedy: str = ""
    hardware: bool = False

    def __str__(self) -> str:
        return "CUDA is usable" if self.usable else f"{self.reason}; {self.remedy}"


@cache
def probe_cuda() -> Probe:
    """Try CUDA once: driver, allocation, compiling and launching a kernel, cuBLAS."""
    hardware = os.path.exists("/dev/nvidiactl") or os.path.exists("/proc/driver/nvidia/version")
    if importlib.util.find_spec("cupy") is None:
        return Probe(False, "CuPy is not installed", INSTALL_CUPY, hardware)
    try:
        import cupy
    except Exception as error:
        return Probe(False, f"importing CuPy failed ({_line(error)})", INSTALL_CUPY, hardware)
    try:
        if not cupy.cuda.is_available():
            remedy = "CUDA needs an NVIDIA GPU and its driver (does nvidia-smi list one?)"
            return Probe(False, "no NVIDIA GPU or driver found", remedy, hardware)
        x = cupy.zeros(1, "float32")
        cupy.RawKernel('extern "C" __global__ void probe(float* x) { *x = 1; }', "probe")(
            (1,), (1,), (x,)
        )
        if float((x.reshape(1, 1) @ x.reshape(1, 1))[0, 0]) != 1.0:
            return Probe(
                False, "a first kernel gave a wrong result", "check the driver (nvidia-smi)", True
            )
    except Exception as error:
        remedy = f"CUDA's libraries come with {INSTALL_CUPY}"
        return Probe(False, f"a first CUDA kernel failed ({_line(error)})", remedy, True)
    return Probe(True, hardware=True)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def require_cuda() -> None:
    """DeviceError with reason and remedy unless CUDA is usable."""
    probe = probe_cuda()
    if not probe.usable:
        raise DeviceError(f"device 'cuda' cannot be used: {probe}")


_default: Device | None = None


def default_device() -> Device:
    """Where new tensors go: `set_default_device`, else FRAMEWORK_DEVICE=cpu|cuda|auto, else auto.

    ``auto`` is CUDA where it works and the CPU otherwise; a GPU that is there but cannot be used is
    reported once.
    """
    global _default
    if _default is None:
        _default = choose_device(os.environ.get("FRAMEWORK_DEVICE", "auto"), "FRAMEWORK_DEVICE")
    return _default


def choose_device(name: str | Device, argument: str = "device") -> Device:
    """The device for a name, ``auto`` included; DeviceError where CUDA was named and cannot be
    used.
    """
    if name == "auto":
        probe = probe_cuda()
        if not probe.usable and probe.hardware:
            _report_fallback(str(probe))
        return Device("cuda" if probe.usable else "cpu")
    try:
        device = Device(name)
    except ValueError:
        raise ValueError(
            f"{argument}={name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from None
    if device.kind == "cuda":
        require_cuda()
        count = device.module.cuda.runtime.getDeviceCount()
        if device.index >= count:
            raise DeviceError(
                f"{argument}={name!r}: this machine has {count} CUDA devices, 0 to {count - 1}"
            )
    return device


@cache
def _report_fallback(why: str) -> None:
    """Once per process: every "auto" of a program falls back for the same reason."""
    log.warning("using the CPU: %s", why)


def set_default_device(device: str | Device) -> None:
    """New tensors, and models made from now on, go to `device` ("auto" chooses)."""
    global _default
    _default = choose_device(device)


def device_of(array: Array) -> Device:
    """The device an array is on."""
    return Device(f"cuda:{array.device.id}") if is_cuda(array) else CPU


def to_device(array: Array, device: Device) -> Array:
    """`array` on `device`; the same object where it is there already."""
    if device.kind == "cpu":
        return to_numpy(array)
    if is_cuda(array) and array.device.id == device.index:
        return array
    with device.context():
        return device.module.asarray(array)
