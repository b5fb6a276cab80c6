"""Memory for the emulator's arrays: exactly as long as asked for, never zero, watched at its ends.

Under AddressSanitizer an allocation is the C library's, and an access beyond it ends the process.
Otherwise bytes of a pattern lie before and after it, and `check` says when one has changed.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda_emulator import programs

#: As in CuPy's memory pool.
ALIGNMENT = 512

#: NaN in every floating type and -1 in the integers: what was never written stands out.
PATTERN = 0xFF

#: Told of every allocation (streams.py): a capture allows some only.
listeners: list[Callable[[Memory], None]] = []

_live: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()

_GUARD = 512  # before, and 64 bytes after: enough for a pack too many

_c = ctypes.CDLL(None)
_c.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_c.free.argtypes = (ctypes.c_void_p,)


class OutOfMemoryError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        super().__init__(f"Out of memory allocating {size:,} bytes (limit set to: {limit:,} bytes)")


class Source:
    """Where allocations come from: the C library. Counts those that live, and all that were made.

    copies.py has one that hands out freed blocks again, as CuPy's pool does.
    """

    def __init__(self) -> None:
        self.live, self.live_bytes, self.made = 0, 0, 0

    def take(self, size: int) -> tuple[int, bool]:
        """Address of a block, and whether it is fresh: filled with the pattern then."""
        start = ctypes.c_void_p()
        if _c.posix_memalign(ctypes.byref(start), ALIGNMENT, size):
            raise MemoryError(f"{size} bytes for the emulator")
        return start.value or 0, True

    def give(self, start: int, size: int) -> None:
        _c.free(start)


source = Source()


class Memory:
    """One allocation of `size` > 0 bytes at `pointer`."""

    def __init__(self, size: int) -> None:
        before, after = (0, 0) if programs.SANITIZE else (_GUARD, 64)
        self.size, self._whole, self._source = size, before + size + after, source
        self._start, fresh = source.take(self._whole)
        if fresh:
            ctypes.memset(self._start, PATTERN, self._whole)
        self.pointer = self._start + before
        self._guards = ((self._start, before), (self.pointer + size, after))
        source.live, source.made = source.live + 1, source.made + 1
        source.live_bytes += size
        #: The array that was made of it, and the pool that it is from if not the common one.
        self.owner: weakref.ref[Any] | None = None
        self.pool: weakref.ref[Any] | None = None
        _live[self.pointer] = self

    def is_kept(self) -> bool:
        """Is its pool there, or for the common one an array? What only an operation of a graph
        still knows has been freed.
        """
        keeper = self.owner if self.pool is None else self.pool
        return keeper is not None and keeper() is not None

    def read(self) -> bytes:
        return ctypes.string_at(self.pointer, self.size)

    def write(self, content: bytes) -> None:
        ctypes.memmove(self.pointer, content, self.size)

    def __del__(self) -> None:
        if hasattr(self, "_guards"):
            self._source.live -= 1
            self._source.live_bytes -= self.size
            self._source.give(self._start, self._whole)

    def check(self) -> str | None:
        """What was written outside, as a sentence."""
        for start, length in self._guards:
            found = np.frombuffer(ctypes.string_at(start, length), np.uint8)
            changed = np.flatnonzero(found != PATTERN)
            if changed.size:
                at = int(changed[0]) + start - self.pointer
                return f"a write at byte {at} of an array of {self.size} bytes"
        return None


def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A C-contiguous NumPy view of fresh memory."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    memory = Memory(size)
    for listener in listeners:
        listener(memory)
    return np.frombuffer(buffer_of(memory), dtype).reshape(shape)


def buffer_of(memory: Memory) -> Any:
    """The bytes; `memory` lives as long as a view of them does."""
    buffer = (ctypes.c_char * memory.size).from_address(memory.pointer)
    buffer.memory = memory  # type: ignore[attr-defined]
    return buffer


def live() -> list[Memory]:
    """Every allocation."""
    return list(_live.values())


def memory_of(view: np.ndarray) -> Memory | None:
    """The allocation that `view` looks into; None for NumPy's own memory."""
    base: Any = view
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return getattr(base, "memory", None)
