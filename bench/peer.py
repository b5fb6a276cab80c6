"""A side of a comparison in a process of its own, and the few words spoken with it.

On the CPU every side (ours, reference, torch) runs in its own worker, so that their thread pools
never share a process: OpenBLAS's pool and two libgomps (the system's and the one inside torch) spin
against each other on few cores and fake the timings of both. Only one worker is asked to run at a
time; the others sleep on their pipe.

    worker = Worker("ours", "bench.sides:ours", threads=2)
    worker.call("prepare", case)       -> facts (a dict), the work itself stays over there
    worker.call("warm", seconds)       -> seconds that one iteration takes
    worker.call("run", iterations, patience)  -> [(lap, lap, ...), ...] seconds
    worker.call("extra_memory")        -> bytes beyond inputs and results

A factory, named "module:function", is called with what `prepare` sends and returns a `Work`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

#: Seconds a worker may take to answer; the first call of a kernel compiles it.
TIMEOUT = 300.0

#: Seconds of untimed work at the beginning of a turn: the threads of the side before have gone to
#: sleep by then, and the caches hold this side's arrays.
SETTLE = 0.003


def environment(threads: int) -> dict[str, str]:
    """For the workers: the same number of threads whatever they use.

    OpenBLAS's idle threads would spin for 25-100 ms into the next side's turn.
    """
    pools = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {"OPENBLAS_THREAD_TIMEOUT": "4"} | dict.fromkeys(pools, str(threads))


def threads() -> int:
    """How many threads a side is to use: what its worker was told, else all cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


@dataclass
class Work:
    """What a factory makes: `step` does one iteration, and may return the seconds of its laps."""

    step: Callable[[], Any]
    facts: dict[str, Any] = field(default_factory=dict)
    laps: tuple[str, ...] = ("total",)
    #: Further questions by name, asked with ``call("ask", name, *arguments)``.
    answers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    #: Does `step` return the seconds of its laps? With several laps it does.
    own_clock: bool = False
    #: Counts what a step needs beyond its inputs and results (bench/extra_memory.py).
    extra: Callable[[Callable[[], Any]], int] | None = None


class PeerError(RuntimeError):
    """A worker failed; the message is one line, `details` its traceback if it had one."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Worker:
    """The near end: starts the process, sends requests, waits for answers."""

    def __init__(
        self, name: str, factory: str, threads: int | None = None, timeout: float = TIMEOUT
    ) -> None:
        self.name = name
        self.timeout = timeout
        self._doing = "starting"
        spawn = multiprocessing.get_context("spawn")
        self._connection, far = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(far, factory), daemon=True)
        with _environment(environment(threads or os.cpu_count() or 1)):
            self._process.start()
        far.close()

    def send(self, request: str, *args: Any) -> None:
        """Ask without waiting; `receive` fetches the answer."""
        self._doing = request
        try:
            self._connection.send((request, args))
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The answer to the last request, or a PeerError."""
        try:
            if not self._connection.poll(self.timeout):
                self.close()
                raise PeerError(
                    f"the worker of {self.name} gave no answer to {self._doing!r} "
                    f"within {self.timeout:g} s and was ended"
                )
            ok, answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if not ok:
            message, details = answer
            raise PeerError(f"{self.name}: {message}", details)
        return answer

    def call(self, request: str, *args: Any) -> Any:
        """`send` and `receive`."""
        self.send(request, *args)
        return self.receive()

    def close(self) -> None:
        """End the process; safe to call twice."""
        self._connection.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _died(self) -> PeerError:
        self._process.join(1.0)
        code = self._process.exitcode
        cause = " (killed: out of memory?)" if code == -9 else ""
        return PeerError(
            f"the worker of {self.name} ended with exit code {code}{cause} during {self._doing!r}"
        )


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# The far end --------------------------------------------------------------------------------------


def _serve(connection: Connection, factory: str) -> None:
    """Answer requests until the other end hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it hangs up then
    server = _Server(factory)
    while True:
        try:
            request, args = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, getattr(server, request)(*args)
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            answer = False, (line, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


class _Server:
    def __init__(self, factory: str) -> None:
        self._factory = factory
        self._work: Work | None = None

    @property
    def work(self) -> Work:
        if self._work is None:
            raise RuntimeError("nothing was prepared")
        return self._work

    def prepare(self, *payload: Any) -> dict[str, Any]:
        self._work = None  # before the next one's arrays are made
        module, _, function = self._factory.partition(":")
        self._work = getattr(import_module(module), function)(*payload)
        gc.collect()
        gc.freeze()  # a collection over all of torch or numba takes 50 ms: once a case, not a turn
        return self.work.facts

    def warm(self, seconds: float) -> float:
        """Run untimed for `seconds`, at least twice; the fastest time after the first."""
        self.work.step()
        taken: list[float] = []
        while not taken or sum(taken) < seconds:
            start = time.perf_counter()
            self.work.step()
            taken.append(time.perf_counter() - start)
        return min(taken)

    def run(self, iterations: int, patience: float) -> list[tuple[float, ...]]:
        """Seconds of the laps of each iteration; no more are begun after `patience` seconds."""
        step, own_clock = self.work.step, self.work.own_clock or len(self.work.laps) > 1
        clock = time.perf_counter
        gc.disable()
        try:
            settled = clock() + SETTLE
            step()
            while clock() < settled:
                step()
            times: list[tuple[float, ...]] = []
            last = clock() + patience
            for _ in range(iterations):
                taken = None  # results go before the next ones are made, as within a step
                start = clock()
                taken = step()
                end = clock()
                times.append(tuple(taken) if own_clock else (end - start,))
                if end > last:
                    break
            return times
        finally:
            gc.enable()

    def extra_memory(self) -> int | None:
        """Bytes beyond inputs and results at the peak of a step; None where nothing counts them."""
        return None if self.work.extra is None else self.work.extra(self.work.step)

    def ask(self, name: str, *args: Any) -> Any:
        return self.work.answers[name](*args)
