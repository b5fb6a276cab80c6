"""What there is to know about the CUDA devices of this machine."""

from __future__ import annotations

from framework.backend.device import Device, probe_cuda
from framework.backend.graph import CapturedStep as CapturedStep, graph as graph
from framework.backend.live import CaptureError as CaptureError


def is_available() -> bool:
    """Can tensors live on CUDA here? The first call tries it; `why_not` tells the reason."""
    return probe_cuda().usable


def why_not() -> str:
    """Why CUDA cannot be used and what to do about it; empty where it can."""
    probe = probe_cuda()
    return "" if probe.usable else str(probe)


def device_count() -> int:
    """Number of usable CUDA devices, 0 without CUDA."""
    return int(Device("cuda").module.cuda.runtime.getDeviceCount()) if is_available() else 0


def synchronize(device: Device | str = "cuda") -> None:
    """Wait until the device has finished everything it was given."""
    device = Device(device)
    with device.context():
        device.module.cuda.Device().synchronize()
