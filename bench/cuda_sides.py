"""All sides of a case on CUDA, in one worker: ours, ours without cuDNN, reference, torch,
torch.compile and Triton.

In one process, unlike on the CPU: what keeps the sides apart there, thread pools that spin against
each other, does not exist on a GPU, and one CUDA context saves the switch between processes at each
turn. CuPy and torch both launch into the legacy default stream, so that CuPy's events time either.
It is still a process of its own, for an illegal access ends a context for good.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from bench import cases, extra_memory
from bench.cases import Case
from bench.peer import Work

#: Bytes of the array that is copied to find the card's bandwidth.
COPY_BYTES = 1 << 29

#: The L2 cache is overwritten before each timed call by a buffer this many times its size. Writing
#: that takes 50 us and more, in which the host has launched the call: what Python takes for it is
#: not in the figure.
FLUSH = 4

#: Below this traffic a call is launch overhead: timed in a row, by the clock, with all of Python.
SMALL_BYTES = 8 << 20
CALLS = 20

#: Timed calls launched before the host waits for them.
CHUNK = 64


def together(case: Case, sides: Sequence[str]) -> Work:
    """Prepare each of `sides`; the work answers "warm", "run" and "extra_memory", each
    with the side's name first."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    args = [to_device(a) if isinstance(a, np.ndarray) else a for a in cases.arguments(case)]
    facts: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], Any]] = {}
    expected, where = _truth(case, args)
    for side in sides:
        try:
            facts[side], steps[side] = _PREPARE[side](case, args, expected)
        except Exception as error:
            if side == "ours":
                raise
            # raises what has broken the context, so that this process is left
            cupy.cuda.Device().synchronize()
            facts[side] = {"problem": f"{side}: {type(error).__name__}: {_first_line(error)}"}
    facts["ours"]["truth"] = where
    small = facts["ours"]["bytes"] < SMALL_BYTES
    facts["ours"]["timing"] = "clock, calls in a row" if small else "events, L2 flushed"
    timed = {side: _Timed(step, small) for side, step in steps.items()}

    def extra(side: str) -> int:
        torchs = side.partition(".")[0] in ("torch", "triton")  # Triton's arrays are tensors
        return (extra_memory.of_torch_cuda if torchs else extra_memory.of_cupy)(steps[side])

    return Work(
        lambda: None,
        facts,
        answers={
            "warm": lambda side, seconds: timed[side].warm(seconds),
            "run": lambda side, iterations, patience: timed[side].run(iterations, patience),
            "extra_memory": extra,
        },
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def to_device(a: np.ndarray) -> Any:
    """With the strides of `a`: CuPy would turn channels-last images into C order."""
    import cupy

    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    dense = cupy.asarray(np.ascontiguousarray(a.transpose(order)))
    return dense.transpose(sorted(range(a.ndim), key=order.__getitem__))


def _truth(case: Case, args: Sequence[Any]) -> tuple[list[Any], str]:
    """The float64 reference, on the device, where 16M elements take milliseconds; on NumPy, and the
    row says so, where CuPy cannot run it.
    """
    try:
        return cases.truth(case, args), "CuPy"
    except Exception as error:
        return cases.truth(case), f"NumPy, for CuPy said {type(error).__name__}"


# Sides --------------------------------------------------------------------------------------------

Prepared = tuple[dict[str, Any], Callable[[], Any]]


def _ours(case: Case, args: list[Any], expected: list[Any]) -> Prepared:
    kernel = cases.load()[case.kernel]
    first = next(a for a in args if hasattr(a, "dtype"))
    got = cases.results(kernel, args, kernel)
    facts = {
        "version": "reference" if kernel.version("cuda", first.dtype) is None else "tuned",
        "dtype": str(first.dtype),
        "error": cases.error(cases.to_host(got), expected),
        "bytes": cases.bytes_moved(kernel, args, got),
    }
    copies = _copies(args)
    return facts, lambda: kernel(*copies)


def _reference(case: Case, args: list[Any], expected: list[Any]) -> Prepared:
    """The array maths on CuPy: one kernel of CuPy's for each operation."""
    function = cases.load()[case.kernel].reference
    copies = _copies(args)
    function(*_copies(args))  # compiled before the first turn, and what cannot run says so here
    return {}, lambda: function(*copies)


def _own(case: Case, args: list[Any], expected: list[Any]) -> Prepared:
    """Our kernels where the call goes through cuDNN, and nothing where it does not."""
    from kernels.cuda import cudnn

    kernel = cases.load()[case.kernel]
    if kernel.family not in ("attention", "convolution") or not cudnn.usable():
        return {"peer": None}, lambda: None
    copies = _copies(args)

    def step() -> Any:
        with cudnn.without_cudnn():
            return kernel(*copies)

    with cudnn.without_cudnn():
        error = cases.error(cases.to_host(cases.results(kernel, args, kernel)), expected)
    return {"peer": "the same without cuDNN", "error": error}, step


def _torch(case: Case, args: list[Any], expected: list[Any]) -> Prepared:
    return _of_torch(case, args, expected, lambda call: call)


def _compile(case: Case, args: list[Any], expected: list[Any]) -> Prepared:
    from bench import torch_calls

    return _of_torch(case, args, expected, torch_calls.compiled)


def _triton(case: Case, args: list[Any], expected: list[Any]) -> Prepared:
    from bench.triton_peers import in_triton

    return _of_torch(case, args, expected, lambda call: in_triton(call, case))


def _of_torch(
    case: Case, args: list[Any], expected: list[Any], wrap: Callable[[Any], Any]
) -> Prepared:
    from bench import torch_peers  # noqa: F401  (fills the table)
    from bench.torch_calls import prepare

    call = prepare(case, args)
    call = None if call is None else wrap(call)
    if call is None:
        return {"peer": None}, lambda: None
    facts: dict[str, Any] = {"peer": call.text, "error": None}
    results = call.results()  # compiled here, and what cannot run says so
    if call.comparable:
        facts["error"] = cases.error(results, expected)
    return facts, call.step


_PREPARE = {
    "ours": _ours,
    "reference": _reference,
    "own": _own,
    "torch": _torch,
    "torch.compile": _compile,
    "triton": _triton,
}


def _copies(args: list[Any]) -> list[Any]:
    """For kernels that overwrite: each side its own."""
    return [a.copy(order="K") if hasattr(a, "dtype") else a for a in args]


# Timing -------------------------------------------------------------------------------------------


@cache
def _flush_buffer() -> Any:
    import cupy

    l2 = int(cupy.cuda.Device().attributes["L2CacheSize"])
    return cupy.empty(FLUSH * l2, "uint8")


class _Timed:
    """Times a step on the device."""

    def __init__(self, step: Callable[[], Any], small: bool) -> None:
        self._step = step
        self._small = small

    def warm(self, seconds: float) -> float:
        """Run untimed for `seconds`, at least twice; seconds that an iteration takes, with the
        flush.
        """
        import cupy

        wait = cupy.cuda.Device().synchronize
        once, spent = float("inf"), 0.0
        self._iterations(1)
        while spent < seconds:
            wait()
            start = time.perf_counter()
            self._iterations(4)
            wait()
            taken = time.perf_counter() - start
            spent, once = spent + taken, min(once, taken / 4)
        return once

    def run(self, iterations: int, patience: float) -> list[tuple[float]]:
        """Seconds of each iteration; no more are begun after `patience` seconds."""
        gc.disable()
        try:
            self._iterations(1)  # the clocks of the card and the caches of the host are up
            last = time.perf_counter() + patience
            times: list[tuple[float]] = []
            while len(times) < iterations and (not times or time.perf_counter() < last):
                times += self._iterations(min(CHUNK, iterations - len(times)))
            return times
        finally:
            gc.enable()

    def _iterations(self, count: int) -> list[tuple[float]]:
        return self._in_a_row(count) if self._small else self._flushed(count)

    def _flushed(self, count: int) -> list[tuple[float]]:
        import cupy

        buffer, step = _flush_buffer(), self._step
        pairs = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(count)]
        for start, end in pairs:
            buffer.fill(0)
            start.record()
            step()
            end.record()
        pairs[-1][1].synchronize()
        # CuPy counts milliseconds
        return [(cupy.cuda.get_elapsed_time(start, end) / 1e3,) for start, end in pairs]

    def _in_a_row(self, count: int) -> list[tuple[float]]:
        import cupy

        step, wait = self._step, cupy.cuda.Device().synchronize
        times = []
        for _ in range(count):
            wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                step()
            wait()
            times.append(((time.perf_counter() - start) / CALLS,))
        return times


#: The side of the square matrices whose product tells what the card's arithmetic gives.
PEAK_SIZE = 8192


def peak(dtype: str) -> Work:
    """A large product: what the card's arithmetic gives at best in practice. With cuBLAS, as the
    tensor cores have no other way in that is as good.
    """
    import cupy

    from kernels.matmul import matmul

    n = PEAK_SIZE
    a = cupy.ones((n, n), cases.DTYPES[dtype])
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def step() -> tuple[float]:
        start.record()
        matmul(a, a)
        end.record()
        end.synchronize()
        return (cupy.cuda.get_elapsed_time(start, end) / 1e3,)

    return Work(step, {"flops": 2 * n**3}, own_clock=True)


def copy(n_bytes: int | None = None) -> Work:
    """A plain copy on the card: what its memory gives at best."""
    import cupy

    n_bytes = n_bytes or COPY_BYTES
    source, target = cupy.zeros(n_bytes, "uint8"), cupy.zeros(n_bytes, "uint8")
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def step() -> tuple[float]:
        start.record()
        target[...] = source
        end.record()
        end.synchronize()
        return (cupy.cuda.get_elapsed_time(start, end) / 1e3,)

    return Work(step, {"bytes": 2 * n_bytes}, own_clock=True)
