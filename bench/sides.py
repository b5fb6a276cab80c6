"""The sides of a case, as factories for a worker: ours, reference, torch, and a bare copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench import cases, extra_memory
from bench.cases import Case
from bench.peer import Work, threads

#: Bytes of the array that is copied to find the machine's bandwidth: beyond a core's caches.
COPY_BYTES = 1 << 27


def _same_memory() -> None:
    """On every side alike: kernels are compared here, not the allocators of two libraries, nor
    arrays that begin at 16 bytes with tensors that begin at 64.
    """
    from framework.backend.memory import keep_freed_memory
    from kernels.cpu.alignment import align_arrays

    keep_freed_memory()
    align_arrays()


def ours(case: Case) -> Work:
    """The version that a call runs, checked against the float64 reference."""
    _same_memory()
    kernel = cases.load()[case.kernel]
    args = cases.arguments(case)
    first = next(a for a in args if isinstance(a, np.ndarray))
    tuned = kernel.version("cpu", first.dtype)
    got = cases.results(kernel, args, kernel)
    facts = {
        "version": "reference" if tuned is None else "tuned",
        "dtype": str(first.dtype),
        "error": cases.error(got, cases.truth(case)),
        "bytes": cases.bytes_moved(kernel, args, got),
    }
    return Work(lambda: kernel(*args), facts, extra=extra_memory.of_numpy)


def reference(case: Case) -> Work:
    """The array maths in float32, as it would run without tuned versions."""
    _same_memory()
    kernel = cases.load()[case.kernel]
    args = cases.arguments(case)
    function = kernel.reference

    def step() -> Any:
        with np.errstate(all="ignore"):
            return function(*args)

    return Work(step, extra=extra_memory.of_numpy)


def torch(case: Case) -> Work:
    """PyTorch's operation, with its result compared where it is the same function."""
    return _torch(case, lambda call: call)


def torch_compile(case: Case) -> Work:
    """torch.compile of the same, where it is a plain function of tensors."""
    from bench import torch_calls

    return _torch(case, torch_calls.compiled)


def _torch(case: Case, wrap: Callable[[Any], Any]) -> Work:
    _same_memory()
    # before torch is there: its profiler, which counts memory, writes when it starts and stops
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from bench import torch_peers  # noqa: F401  (fills the table)
    from bench.torch_calls import prepare

    call = prepare(case, cases.arguments(case))
    call = None if call is None else wrap(call)
    if call is None:
        return Work(lambda: None, {"peer": None})
    facts: dict[str, Any] = {"peer": call.text, "error": None}
    if call.comparable:
        facts["error"] = cases.error(call.results(), cases.truth(case))
    return Work(call.step, facts, extra=extra_memory.of_torch)


def peak() -> Work:
    """Multiply-adds on all threads: what the arithmetic gives at best."""
    from bench.peak import LANES, run

    rows = np.zeros((4 * threads(), LANES), np.float32)
    return Work(lambda: run(rows), {"flops": run(rows)})


def copy(n_bytes: int = COPY_BYTES) -> Work:
    """A plain copy on all threads: what the memory gives at best."""
    _same_memory()
    count = threads()
    source = np.ones(n_bytes, np.uint8)
    target = np.ones(n_bytes, np.uint8)
    pairs = list(zip(np.array_split(target, count), np.array_split(source, count), strict=True))
    pool = ThreadPoolExecutor(count)

    def step() -> None:
        list(pool.map(lambda pair: np.copyto(*pair), pairs))  # releases the GIL

    return Work(step, {"bytes": 2 * n_bytes})
