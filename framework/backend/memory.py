"""Memory of the process and of the devices."""

from __future__ import annotations

import ctypes
import os
import sys

from framework.backend.device import Device


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks up to 1 GiB instead of giving each back to the system.

    Fresh arrays of 1-16 MB otherwise cost 2-6 times their use in page faults. Does nothing
    elsewhere than on glibc, or with FRAMEWORK_MALLOC=system. Returns whether it took effect.
    """
    if sys.platform != "linux" or os.environ.get("FRAMEWORK_MALLOC") == "system":
        return False
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, 1 << 30))


def used(device: Device) -> int:
    """Bytes in use: by live arrays of CuPy's pool on a CUDA device, by the whole process on the
    CPU.
    """
    if device.kind == "cuda":
        with device.context():
            return int(device.module.get_default_memory_pool().used_bytes())
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_of_process()


def peak_of_process() -> int:
    """The most memory this process ever held, in bytes (0 where the system does not say)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
