"""Memory of the process and of the devices."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from functools import cache
from typing import Any

from framework.backend.device import Device, choose_device, default_device


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


def give_back_freed_memory() -> bool:
    """Give the system back what glibc has kept (`keep_freed_memory`): for one who measures how much
    the process grows. Returns whether it took effect.
    """
    if sys.platform != "linux":
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl
        return False
    return bool(trim(0))


def memory_used(device: Device | str | None = None) -> int:
    """Bytes in use now: by arrays in CuPy's pool and by captured graphs on a CUDA device, by the
    whole process on the CPU.

    Cheap, but a pass over the pool's live blocks: not for the inside of a loop.
    """
    place = _place(device)
    if place.kind == "cuda":
        with place.context():
            return _used(place)
    return _from_status("VmRSS") or peak_of_process()


def peak_memory(device: Device | str | None = None) -> int:
    """The most that `memory_used` was since the last `reset_peak_memory`, in bytes.

    On CUDA nothing counts before the first reset, so that nobody pays for it; until then this is
    what the pools have taken from the device, which is never less unless they gave some back. On
    the CPU the system counts, from the start of the process on.
    """
    place = _place(device)
    if place.kind == "cuda":
        with place.context():
            counted = _peaks.get(place.index)
            return memory_reserved(place) if counted is None else counted
    return _from_status("VmHWM") or peak_of_process()


def reset_peak_memory(device: Device | str | None = None) -> None:
    """Let `peak_memory` count from what is in use now.

    On CUDA this installs a memory hook of CuPy for the calling thread: from then on each of its
    allocations takes a call of Python and a pass over the pool's live blocks longer. It sees that
    thread's allocations, those of a capture too. On the CPU only Linux can forget a peak;
    NotImplementedError elsewhere.
    """
    place = _place(device)
    if place.kind == "cuda":
        with place.context():
            _install_hook(place)
            _peaks[place.index] = _used(place)
        return
    try:
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # proc(5): "reset the peak resident set size to the current value"
    except OSError as error:
        raise NotImplementedError(
            f"this system ({sys.platform}) cannot forget a process's peak memory: {error}"
        ) from None


def _place(device: Device | str | None) -> Device:
    return default_device() if device is None else choose_device(device)


def _pool(place: Device) -> Any:
    return place.module.get_default_memory_pool()


def _used(place: Device) -> int:
    return int(_pool(place).used_bytes()) + private_bytes()


def memory_reserved(place: Device) -> int:
    """Bytes that CuPy's pools have of a CUDA device."""
    with place.context():
        return int(_pool(place).total_bytes()) + private_bytes()


# Pools of their own -------------------------------------------------------------------------------

_private: weakref.WeakSet[Any] = weakref.WeakSet()
_private_lock = threading.RLock()


def private_pool(device: Device) -> Any:
    """A `cupy.cuda.MemoryPool` for a captured graph, which counts as memory in use for as long as
    it is there.
    """
    pool = _private_kind(device.module.cuda.MemoryPool)()
    with _private_lock:
        _private.add(pool)
    return pool


@cache
def _private_kind(base: Any) -> Any:
    """CuPy's own class cannot be referred to weakly."""
    return type("PrivatePool", (base,), {})


def private_bytes() -> int:
    """Bytes that private pools have of the current CUDA device. All of them are in use: a replay
    writes also to the blocks that the step has freed.
    """
    with _private_lock:
        pools = list(_private)
    return sum(int(pool.total_bytes()) for pool in pools)


# Peaks --------------------------------------------------------------------------------------------

#: CUDA device -> the most that was in use since the reset.
_peaks: dict[int, int] = {}
_hooked = threading.local()


def _install_hook(place: Device) -> None:
    """Count this thread's allocations; CuPy's hooks belong to a thread."""
    base = place.module.cuda.MemoryHook
    if isinstance(getattr(_hooked, "hook", None), base):
        return

    class Peak(base):  # type: ignore[misc, valid-type]
        name = "framework.peak_memory"

        def malloc_postprocess(self, **what: Any) -> None:
            # The pool's own sum and not one kept here: blocks are also freed by other threads,
            # such as one in which the garbage collector happens to run.
            index = what["device_id"]
            if index in _peaks:
                _peaks[index] = max(_peaks[index], _used(place))

    _hooked.hook = Peak()
    _hooked.hook.__enter__()


def _from_status(name: str) -> int:
    """A figure of /proc/self/status in bytes; 0 where there is no such thing."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def peak_of_process() -> int:
    """The most memory this process ever held, in bytes (0 where the system does not say)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
