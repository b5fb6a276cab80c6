"""Launches: arguments checked against the kernel's parameters, limits against a GPU's, the grid
run, memory looked after.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from tests.cuda_emulator import streams
from tests.cuda_emulator.arrays import ndarray
from tests.cuda_emulator.memory import memory_of
from tests.cuda_emulator.programs import CompiledKernel, find, stacks

#: Every instantiation launched so far: (program, name expression).
launched: set[tuple[str, str]] = set()

#: 0: the first thread that can run does. Otherwise the seed of a random order.
_seed = 0

BLOCK_LIMITS = (1024, 1024, 64)
GRID_LIMITS = (2**31 - 1, 65535, 65535)
SHARED_LIMIT, SHARED_LIMIT_RAISED = 48 << 10, 227 << 10


class LaunchError(RuntimeError):
    """A launch that a GPU or CuPy would refuse, or one that went wrong."""


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Threads and blocks run in a random order, another one for each `seed` > 0."""
    global _seed
    previous, _seed = _seed, seed
    try:
        yield
    finally:
        _seed = previous


@cache
def _found(code: str, name: str) -> CompiledKernel:
    return find(code, name)


class Function:
    """What `RawModule.get_function` gives."""

    def __init__(self, code: str, name: str) -> None:
        self._kernel = _found(code, name)
        self.name = name
        self.max_dynamic_shared_size_bytes = SHARED_LIMIT

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
    ) -> None:
        grid, block = self._sizes(grid, block, shared_mem)
        slots = self._slots(args)
        pointers = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(slot) for slot in slots))
        words = ctypes.c_uint * 3
        error = ctypes.create_string_buffer(2048)
        sizes = (words(*grid), words(*block), shared_mem)
        memories = [memory_of(a.host) if isinstance(a, ndarray) else None for a in args]

        def run(slots: Any = slots) -> None:  # which the pointers point to
            failed = self._kernel.launch(
                self._kernel.call, pointers, *sizes, _seed, stacks(), error, len(error)
            )
            if failed:
                raise LaunchError(f"{self.name}, {error.value.decode()}")
            for i, memory in enumerate(memories):
                if memory is not None and (outside := memory.check()):
                    raise LaunchError(f"{self.name}: {outside}, argument {i}")

        run()
        streams.did(run, *memories)
        launched.add((self._kernel.program, self.name))

    def _sizes(self, grid: Any, block: Any, shared: int) -> tuple[Any, Any]:
        for what, given in (("grid", grid), ("block", block)):
            if not isinstance(given, tuple) or not 1 <= len(given) <= 3:
                raise TypeError(f"{self.name}: {what} is {given!r}, expected a tuple of 1 to 3")
        grid, block = ((*map(int, s), 1, 1)[:3] for s in (grid, block))
        for what, given, limits in (("grid", grid, GRID_LIMITS), ("block", block, BLOCK_LIMITS)):
            if any(not 1 <= n <= limit for n, limit in zip(given, limits, strict=True)):
                raise LaunchError(f"{self.name}: {what} {given} is outside 1 to {limits}")
        if block[0] * block[1] * block[2] > 1024:
            raise LaunchError(f"{self.name}: a block of {block} has more than 1024 threads")
        limit = min(self.max_dynamic_shared_size_bytes, SHARED_LIMIT_RAISED)
        if not 0 <= shared <= limit:
            raise LaunchError(f"{self.name}: {shared} bytes of shared memory, limit {limit}")
        return grid, block

    def _slots(self, args: Sequence[Any]) -> list[Any]:
        """One 8-byte slot for each argument."""
        parameters = self._kernel.parameters
        if len(args) != len(parameters):
            raise LaunchError(
                f"{self.name} has {len(parameters)} parameters, got {len(args)} arguments"
            )
        pairs = enumerate(zip(args, parameters, strict=True))
        return [self._slot(i, a, parameter) for i, (a, parameter) in pairs]

    def _slot(self, i: int, a: Any, parameter: str) -> Any:
        where = f"{self.name}: argument {i} is {{}}, the parameter {parameter}"
        kind = parameter.removesuffix("*")
        if isinstance(a, ndarray):
            if kind == parameter or a.dtype.name != kind:
                raise LaunchError(where.format(f"an array of {a.dtype}"))
            return ctypes.c_uint64(a.data.ptr)
        # CuPy passes Python's numbers as 64 bits
        for given, dtype in ((bool, np.bool_), (int, np.int64), (float, np.float64)):
            if type(a) is given:
                a = dtype(a)
        if not isinstance(a, np.generic):
            raise TypeError(f"Unsupported type {type(a)}")
        if kind != parameter:
            if a.dtype.itemsize != 8 or a.dtype.kind not in "iu" or a != 0:
                raise LaunchError(where.format(f"{a!r}"))
        elif a.dtype.name != kind:
            raise LaunchError(where.format(f"{a!r} ({a.dtype})"))
        return ctypes.c_uint64(int.from_bytes(a.tobytes(), "little"))
