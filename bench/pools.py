"""Who runs the sides of a case: on the CPU a process for each, on CUDA one process for all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from bench.cases import Case
from bench.measure import Runner, measure
from bench.peer import PeerError, Worker
from bench.sizes import Device

Facts = dict[str, dict[str, Any]]
#: Starts a worker by name, factory and threads.
Start = Callable[..., Worker]

#: Seconds that a case may take on CUDA before its worker is given up, torch.compile included.
CUDA_TIMEOUT = 120.0


class Pool(Protocol):
    """The sides of one case after another."""

    def prepare(self, case: Case, without: Collection[str] = ()) -> tuple[Facts, list[str]]:
        """What the sides say of the case, and the problems of those that say nothing."""

    def runners(self, sides: Iterable[str]) -> Mapping[str, Runner]:
        """For `measure`."""

    def restart(self, sides: Iterable[str]) -> None:
        """After a failure."""

    def restart_all(self) -> None:
        """Other processes from the next case on."""

    def close(self) -> None:
        """End the processes."""


def copy_bandwidth(device: Device, threads: int | None, start: Start = Worker) -> float:
    """Bytes a second, read and written, of a plain copy."""
    factory = "bench.sides:copy" if device == "cpu" else "bench.cuda_sides:copy"
    with start("copy", factory, threads) as worker:
        moved = worker.call("prepare")["bytes"]
        times = measure({"copy": worker}, 15 * 0.03, 15)
    return float(moved / times.seconds("copy").median)


def peak_flops(device: Device, threads: int | None, dtype: str, start: Start = Worker) -> float:
    """Operations a second of the arithmetic alone; on the CPU products are in float32."""
    factory = "bench.sides:peak" if device == "cpu" else "bench.cuda_sides:peak"
    with start("peak", factory, threads) as worker:
        count = worker.call("prepare", *([] if device == "cpu" else [dtype]))["flops"]
        times = measure({"peak": worker}, 15 * 0.02, 15)
    return float(count / times.seconds("peak").median)


class Separate:
    """A process for each side: their thread pools would spin against each other in one."""

    def __init__(self, sides: Sequence[str], threads: int | None, start: Start = Worker) -> None:
        self._sides = list(sides)
        self._threads = threads
        self._start_worker = start
        self._stack = ExitStack()
        self._workers: dict[str, Worker] = {}
        self._start()

    def _start(self) -> None:
        """Start the sides that are not running: all at first, later those that died."""
        for side in self._sides:
            if side not in self._workers:
                factory = f"bench.sides:{side.replace('.', '_')}"
                worker = self._start_worker(side, factory, self._threads)
                self._workers[side] = self._stack.enter_context(worker)

    def prepare(self, case: Case, without: Collection[str] = ()) -> tuple[Facts, list[str]]:
        """All sides at once: each draws its arguments and computes its first result."""
        self._start()
        asked = [side for side in self._workers if side not in without]
        for side in asked:
            self._workers[side].send("prepare", case)
        facts: Facts = {}
        problems = []
        for side in asked:
            try:
                facts[side] = self._workers[side].receive()
            except PeerError as error:
                problems.append(str(error))
                self.restart([side])
        return facts, problems

    def runners(self, sides: Iterable[str]) -> Mapping[str, Runner]:
        """The workers themselves."""
        return {side: self._workers[side] for side in sides}

    def restart(self, sides: Iterable[str]) -> None:
        """They start again with the next case."""
        for side in sides:
            self._workers.pop(side).close()

    def restart_all(self) -> None:
        """With the next case."""
        self.restart(list(self._workers))

    def close(self) -> None:
        """End the processes."""
        self._stack.close()


class _OneOf:
    """A side of the common worker, as `measure` asks it."""

    def __init__(self, worker: Worker, side: str) -> None:
        self._worker, self._side = worker, side

    def call(self, request: str, *args: Any) -> Any:
        """Forwarded with the side's name."""
        return self._worker.call("ask", request, self._side, *args)


class Together:
    """One process for all sides, started again when one breaks it; cuda_sides.py says why one."""

    def __init__(self, sides: Sequence[str], start: Start = Worker) -> None:
        self.sides = list(sides)
        self._start_worker = start
        self._worker: Worker | None = None

    def _running(self) -> Worker:
        if self._worker is None:
            factory = "bench.cuda_sides:together"
            self._worker = self._start_worker("cuda", factory, timeout=CUDA_TIMEOUT)
        return self._worker

    def prepare(self, case: Case, without: Collection[str] = ()) -> tuple[Facts, list[str]]:
        """All sides; if one of them ended the process, ours alone once more."""
        problems = []
        asked = [side for side in self.sides if side not in without]
        for sides in (asked, ["ours"]):
            try:
                facts: Facts = dict(self._running().call("prepare", case, sides))
            except PeerError as error:
                problems.append(str(error))
                self.restart(sides)
                if len(asked) == 1:
                    break
                continue
            problems += [f["problem"] for f in facts.values() if "problem" in f]
            return {s: f for s, f in facts.items() if "problem" not in f}, problems
        return {}, problems

    def runners(self, sides: Iterable[str]) -> Mapping[str, Runner]:
        """A door to the worker for each side."""
        worker = self._running()
        return {side: _OneOf(worker, side) for side in sides}

    def restart(self, sides: Iterable[str]) -> None:
        """All of them: they share a process."""
        self.close()

    def restart_all(self) -> None:
        """With the next case."""
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
