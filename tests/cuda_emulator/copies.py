"""Streams, events, pinned memory and a pool for the emulator: copies that take their time.

A GPU may do a copy, or a kernel, at any time between its launch and the moment somebody waits for
it. Here that moment is chosen against the program:

- "late": a copy happens when an event after it is waited for, and not before;
- "early": a copy happens at once if nothing that its stream has to wait for is missing, and kernels
  come late.

So a wait that is missing gives wrong data. It is also found without any luck: every access carries
a vector clock (what its stream, the events it waited for, and the host have done before), and two
accesses to the same memory, one of them a write, that no event orders are noted in `races`.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tests.cuda_emulator import arrays, cupy_module, memory

Clock = dict[str, int]


def join(clock: Clock, other: Clock) -> None:
    for name, time in other.items():
        clock[name] = max(time, clock.get(name, 0))


class Access(NamedTuple):
    """A launched read or write of device memory, and what is done before it."""

    what: str
    stream: str
    time: int
    clock: Clock
    start: int
    size: int
    writes: bool


class Stream:
    """A queue of launched operations. Those of an `immediate` stream are done when launched."""

    def __init__(self, device: Device, name: str, immediate: bool = False) -> None:
        self.device, self.name, self.immediate = device, name, immediate
        self.ptr = len(device.streams)
        self.clock: Clock = {}
        self.queue: deque[tuple[str, Any]] = deque()
        device.streams.append(self)

    def launch(self, what: str, run: Callable[[], None], touched: tuple[int, int, bool]) -> None:
        """Put an operation on the queue; it has `touched` (address, bytes, does it write)."""
        self._tick()
        self.device.log.append(f"{self.name}: {what}")
        at = self.clock[self.name], dict(self.clock)
        self.device.touch(Access(what, self.name, *at, *touched))
        self._put("run", run)

    def wait_event(self, event: Event) -> None:
        if self.device.ignore == f"waits of {self.name}":
            return
        join(self.clock, event.clock)
        self.device.log.append(f"{self.name}: wait {event.name}")
        self._put("wait", event.ticket)

    def record(self, event: Event) -> Event:
        self._tick()
        event.clock, event.ticket = dict(self.clock), SimpleNamespace(done=False, stream=self)
        self.device.log.append(f"{self.name}: record {event.name}")
        self._put("record", event.ticket)
        return event

    def synchronize(self) -> None:
        self.device.log.append(f"host: wait {self.name}")
        join(self.device.host, self.clock)
        while self.queue:
            self.step()

    def _tick(self) -> None:
        join(self.clock, self.device.host)
        self.clock[self.name] = self.clock.get(self.name, 0) + 1

    def _put(self, kind: str, content: Any) -> None:
        self.queue.append((kind, content))
        if self.immediate:
            while self.queue:
                self.step()
        elif self.device.policy == "early" and self.name != "compute":
            while self.queue and not (self.queue[0][0] == "wait" and not self.queue[0][1].done):
                self.step()

    def step(self) -> None:
        """Do the next operation, and before it all that it waits for."""
        kind, content = self.queue[0]
        if kind == "wait":
            while not content.done:
                content.stream.step()
        self.queue.popleft()
        if kind == "run":
            content()
        elif kind == "record":
            content.done = True


class Event:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name
        self.clock: Clock = {}
        self.ticket = SimpleNamespace(done=True, stream=None)

    def record(self, stream: Stream | None = None) -> None:
        (stream or self.device.current).record(self)

    def synchronize(self) -> None:
        if self.device.ignore == "waits of the host":
            return
        self.device.log.append(f"host: wait {self.name}")
        join(self.device.host, self.clock)
        while not self.ticket.done:
            self.ticket.stream.step()


class Pool(memory.Source):
    """Hands out the block that was freed last, as it was left: the worst that CuPy's could do."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device, self.fresh, self.limit = device, 0, 0
        self.free: dict[int, list[int]] = {}

    def take(self, size: int) -> tuple[int, bool]:
        if self.limit and self.live_bytes + size > self.limit:
            raise memory.OutOfMemoryError(size, self.live_bytes, self.limit)
        if self.free.get(size):
            return self.free[size].pop(), False
        self.fresh += 1
        return super().take(size)

    def give(self, start: int, size: int) -> None:
        # whoever takes the block next does so on the compute stream: is that after the copy?
        for what, at in self.device.under_way.items():
            if start <= at < start + size:
                copy = next(a for a in self.device.accesses if a.what == what)
                if self.device.current.clock.get(copy.stream, 0) < copy.time:
                    self.device.races.append(f"freed before it was done: {what}")
        self.free.setdefault(size, []).append(start)

    def __del__(self) -> None:  # the last array is gone: each has its pool
        for blocks in self.free.values():
            for start in blocks:
                super().give(start, 0)


class Device:
    """What happened on the emulated device. `ignore` plants a fault: waits that are forgotten."""

    def __init__(self, policy: str, immediate: bool, ignore: str = "") -> None:
        assert policy in ("late", "early")
        self.policy, self.ignore = policy, ignore
        self.streams: list[Stream] = []
        self.log: list[str] = []
        self.races: list[str] = []
        self.accesses: list[Access] = []
        self.copies = 0
        self.under_way: dict[str, int] = {}  # copies that are not done, and their addresses
        self.pinned: list[np.ndarray] = []
        self.host: Clock = {}
        self.events = 0
        self.current = Stream(self, "compute", immediate)
        self.pool = Pool(self)

    def touch(self, access: Access) -> None:
        for other in self.accesses:
            apart = other.start + other.size <= access.start
            apart |= access.start + access.size <= other.start
            if apart or not (other.writes or access.writes):
                continue
            if access.clock.get(other.stream, 0) < other.time:
                self.races.append(f"{access.what} may happen before {other.what} is done")
        self.accesses.append(access)

    def read(self, x: Any) -> np.ndarray:
        """Launch a kernel that reads `x`; what it saw is in the result once it has run.

        Like a real kernel it has the address only: the array may be freed before it runs.
        """
        seen = np.empty(x.shape, x.dtype, "F" if x.host.flags.fnc else "C")
        start, size = x.data.ptr, x.nbytes

        def run() -> None:
            ctypes.memmove(seen.ctypes.data, start, size)

        self.current.launch("kernel", run, (start, size, False))
        return seen

    def write(self, x: Any, host: np.ndarray, stream: Stream) -> None:
        """`x.set(host, stream)`: a copy from pinned memory."""
        source, start, size = host.ctypes.data, x.data.ptr, x.nbytes
        if not any(p.ctypes.data <= source < p.ctypes.data + p.nbytes for p in self.pinned):
            raise TypeError("an asynchronous copy from memory that is not pinned")
        what = f"copy {self.copies}"
        self.copies += 1
        self.under_way[what] = start

        def run() -> None:
            ctypes.memmove(start, source, size)
            del self.under_way[what]

        stream.launch(what, run, (start, size, True))

    def new_event(self, **flags: bool) -> Event:
        if flags.keys() - {"block", "disable_timing", "interprocess"}:
            raise TypeError(f"Event() got {flags}")
        self.events += 1
        return Event(self, f"event {self.events}")

    def new_stream(self, null: bool = False, non_blocking: bool = False) -> Stream:
        if null or not non_blocking:
            raise AssertionError("a blocking stream waits for the default stream's kernels")
        return Stream(self, f"stream {len(self.streams)}")

    def empty_pinned(self, shape: Any, dtype: Any = float) -> np.ndarray:
        pinned = np.empty(shape, dtype)
        pinned.reshape(-1).view(np.uint8).fill(0xAA)
        self.pinned.append(pinned)  # kept, as a copy may come late
        return pinned


@contextmanager
def installed(policy: str = "late", immediate: bool = False, ignore: str = "") -> Iterator[Device]:
    """`cupy` and `cupyx` of the emulator with streams, events, pinned memory and a pool.

    With `immediate` the operations of the compute stream are done when they are launched, which is
    what the emulator's arrays and kernels do anyhow.
    """
    device = Device(policy, immediate, ignore)

    def set_(self: arrays.ndarray, host: np.ndarray, stream: Stream | None = None) -> None:
        if not isinstance(host, np.ndarray) or host.dtype != self.dtype:
            raise TypeError(f"{type(host).__name__} cannot be set to {self.dtype} array")
        if host.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {host.shape}")
        same = any(
            getattr(self.flags, f"{order}_contiguous")
            and getattr(host.flags, f"{order}_contiguous")
            for order in "cf"
        )
        if not same:
            raise RuntimeError("a copy in another memory order takes memory that is not pinned")
        device.write(self, host, stream or device.current)

    previous, memory.source = memory.source, device.pool
    previous_set = arrays.ndarray.set
    with cupy_module.installed() as cupy:
        sys.modules["cupyx"].empty_pinned = device.empty_pinned  # type: ignore[attr-defined]
        arrays.ndarray.set = set_  # type: ignore[method-assign]
        _add_cuda(cupy, device)
        try:
            yield device
        finally:
            arrays.ndarray.set = previous_set  # type: ignore[method-assign]
            memory.source = previous


class _Place:
    """`cupy.cuda.Device`."""

    attributes = {"MultiProcessorCount": cupy_module.MULTIPROCESSORS}  # noqa: RUF012

    def __init__(self, id: int = 0) -> None:  # noqa: A002 - CuPy's name
        self.id = id

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _add_cuda(cupy: ModuleType, device: Device) -> None:
    pool = device.pool
    cupy.get_default_memory_pool = lambda: SimpleNamespace(  # type: ignore[attr-defined]
        used_bytes=lambda: pool.live_bytes,
        total_bytes=lambda: pool.live_bytes,
        get_limit=lambda: pool.limit,
        free_all_blocks=lambda: None,
    )
    runtime = {"getDeviceCount": lambda: 1, "getDevice": lambda: 0}
    runtime["memGetInfo"] = lambda: (1 << 30, 2 << 30)
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=_Place,
        Event=device.new_event,
        Stream=device.new_stream,
        get_current_stream=lambda: device.current,
        is_available=lambda: True,
        memory=SimpleNamespace(OutOfMemoryError=memory.OutOfMemoryError),
        runtime=SimpleNamespace(**runtime),
    )
