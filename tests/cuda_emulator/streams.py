"""Streams, events, capture and graphs of the emulator.

Work is done at once, whatever its stream. While a stream captures, an operation is done and kept
too: kernels with the arguments they got, CuPy's functions as closures over the same memory, numbers
as they were. When the capture ends, their memory is set back to what it was before, so that nothing
was run, as on a GPU. `Graph.launch` does the operations again.

What a GPU or CuPy refuses during a capture is refused: waiting for the device, copies from the
host, the default stream. So is what they let pass and what goes wrong later: memory that is not
from a pool of the graph's own, and a launch after some of its memory was freed.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from tests.cuda_emulator import memory
from tests.cuda_emulator.memory import PATTERN, Memory


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime refuses."""

    status = 1  # cudaErrorInvalidValue


class NoMemory(CUDARuntimeError):
    """What it has no memory for."""

    status = 2  # cudaErrorMemoryAllocation


_UNSUPPORTED = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
_INVALIDATED = (
    "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture"
)


class Graph:
    """Operations in their order. It holds no memory: that is its owner's part."""

    def __init__(self, operations: list[tuple[Callable[[], None], list[Memory]]]) -> None:
        self.operations = operations
        self.launches = 0

    def launch(self, stream: Stream | None = None) -> None:
        (stream or current()).check()
        for run, memories in self.operations:
            for m in memories:
                if not m.is_kept():
                    raise CUDARuntimeError(
                        f"a graph was launched that uses {m.size} bytes which have been freed"
                    )
            run()
        self.launches += 1


class _Capture:
    def __init__(self) -> None:
        self.operations: list[tuple[Callable[[], None], list[Memory]]] = []
        self.valid = True
        self.touched: list[Memory] = []  # other threads may work on other memory meanwhile
        self._before = [(weakref.ref(m), m.read()) for m in memory.live()]

    def undo(self) -> None:
        """Memory as it was before; what was allocated since holds nothing."""
        known = {id(m): content for m, content in ((r(), c) for r, c in self._before) if m}
        for m in self.touched:
            m.write(known.get(id(m), bytes([PATTERN]) * m.size))


class Stream:
    """`cupy.cuda.Stream`."""

    null: Stream
    _numbers = count(16)

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(self._numbers)
        self.non_blocking = non_blocking
        self.capture: _Capture | None = None

    def __enter__(self) -> Stream:
        _state.stack.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _state.stack.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def synchronize(self) -> None:
        if self.capture is not None:
            self.capture.valid = False
            raise CUDARuntimeError(_UNSUPPORTED)

    def record(self, event: Event | None = None) -> Event:
        return event or Event()

    def wait_event(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"wait_event got {event!r}")

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if not self.non_blocking:
            raise CUDARuntimeError("capture on a blocking stream: the default stream is unhappy")
        if self.capture is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self.capture = _state.capture = _Capture()

    def end_capture(self) -> Graph:
        capture, self.capture = self.capture, None
        if capture is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        _state.capture = None
        capture.undo()
        if not capture.valid:
            raise CUDARuntimeError(_INVALIDATED)
        return Graph(capture.operations)

    def is_capturing(self) -> bool:
        return self.capture is not None

    def check(self) -> None:
        """May the current thread give work to this stream now?"""
        if _state.capture is not None and self.capture is not _state.capture:
            _state.capture.valid = False
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureImplicit: work for the default stream during a capture"
            )


class Event:
    """`cupy.cuda.Event`: a moment of a stream, which here is the host's."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        waits("synchronize()")


class _State(threading.local):
    def __init__(self) -> None:
        self.stack: list[Stream] = []
        self.capture: _Capture | None = None
        self.pool: MemoryPool | None = None


Stream.null = Stream(null=True)
_state = _State()


def current() -> Stream:
    """This thread's."""
    return _state.stack[-1] if _state.stack else Stream.null


def is_capturing() -> bool:
    """Does this thread capture?"""
    return _state.capture is not None


# What the emulator tells --------------------------------------------------------------------------


def did(again: Callable[[], None], *memories: Memory | None) -> None:
    """An operation on `memories` has been done: keep it if this is a capture."""
    used = [m for m in memories if m is not None]
    if _state.capture is not None:
        _state.capture.touched += used
    stream = current()
    stream.check()
    if stream.capture is not None:
        stream.capture.operations.append((again, used))


def waits(what: str) -> None:
    """The host is about to wait for the device, or to copy to it."""
    if _state.capture is not None:
        raise RuntimeError(f"{what}: the current stream is capturing, so it cannot be done")


# Memory -------------------------------------------------------------------------------------------


class MemoryPool:
    """`cupy.cuda.MemoryPool`: which pool an allocation is from is all that matters here."""

    def malloc(self, size: int) -> Any:
        raise NotImplementedError("an allocator to name, not to call")

    def used_bytes(self) -> int:
        mine = (m for m in memory.live() if m.pool is not None and m.pool() is self)
        return sum(m.size for m in mine if m.owner is not None and m.owner() is not None)

    def total_bytes(self) -> int:
        """Of a graph's pool: what the graph knows, too."""
        return sum(m.size for m in memory.live() if m.pool is not None and m.pool() is self)

    def free_all_blocks(self) -> None:
        """What nobody holds is freed anyway."""


class Plain:
    """`cupy.cuda.Memory`: from the device itself, outside of every pool."""

    def __init__(self, size: int) -> None:
        self._memory = Memory(size)
        self.ptr = self._memory.pointer


class _DefaultPool(MemoryPool):
    """`cupy.get_default_memory_pool()`."""

    def used_bytes(self) -> int:
        return sum(m.size for m in memory.live() if m.pool is None and m.is_kept())

    total_bytes = used_bytes

    def get_limit(self) -> int:
        return 0


default_pool = _DefaultPool()


@contextmanager
def using_allocator(malloc: Callable[[int], Any]) -> Iterator[None]:
    """Arrays made within the block, by this thread, come from the pool whose method this is."""
    previous, _state.pool = _state.pool, malloc.__self__  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _state.pool = previous


def _allocated(made: Memory) -> None:
    if _state.capture is not None and _state.pool is None:
        raise RuntimeError("memory from the common pool during a capture: others will write to it")
    if _state.pool is not None:
        made.pool = weakref.ref(_state.pool)


memory.listeners.append(_allocated)


def memories_at(addresses: Sequence[int]) -> list[Memory]:
    """The allocations that some addresses lie in."""
    return [m for m in memory.live() if any(m.pointer <= a < m.pointer + m.size for a in addresses)]
