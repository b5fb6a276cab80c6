"""What there is to know about the CUDA devices of this machine."""

from __future__ import annotations

from framework.backend import memory
from framework.backend.device import Device, choose_device, probe_cuda
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


# Memory, by PyTorch's names; `fw.memory_used` and its like take any device ------------------------


def memory_allocated(device: Device | str = "cuda") -> int:
    """Bytes of live arrays and captured graphs, `fw.memory_used`."""
    return memory.memory_used(choose_device(device))


def memory_reserved(device: Device | str = "cuda") -> int:
    """Bytes that CuPy's pools have of the device: live arrays, captured graphs, and blocks kept for
    new arrays.
    """
    return memory.memory_reserved(choose_device(device))


def max_memory_allocated(device: Device | str = "cuda") -> int:
    """The most that `memory_allocated` was; `fw.peak_memory` says since when."""
    return memory.peak_memory(choose_device(device))


def reset_peak_memory_stats(device: Device | str = "cuda") -> None:
    """Begin to count the peak anew; `fw.reset_peak_memory` says what counting costs."""
    memory.reset_peak_memory(choose_device(device))


def empty_cache(device: Device | str = "cuda") -> None:
    """Give the pool's unused blocks back to the device, for other programs."""
    device = choose_device(device)
    with device.context():
        device.module.get_default_memory_pool().free_all_blocks()
