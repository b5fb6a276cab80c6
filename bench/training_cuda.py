"""The sides of a training comparison on CUDA: ours eager and captured, torch eager, compiled and as
a CUDA graph.

A step's kernels run after Python has gone on, so there are no laps: an iteration is a whole round
over the batches, then one wait for the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.peer import Work
from bench.training_sides import NotAvailable, Shapes, our_task, torch_task
from bench.training_tasks import Task

#: What `--against` chooses from; torch is torch eager.
SIDES = ("captured", "torch", "torch.channels_last", "torch.compile", "torch.graph")

#: Steps as they are before a CUDA graph is captured: what is compiled or allocated once is done.
WARM_UP = 3

Step = Callable[[Any, Any], Any]


class _Rounds:
    """Rounds over the batches; `make` gives a step from the common weights, (x, y) -> loss."""

    def __init__(
        self, make: Callable[[], Step], batches: Sequence[Any], wait: Callable[[], object]
    ) -> None:
        self._make, self._batches, self._wait = make, batches, wait
        self._step = make()

    def round(self) -> tuple[float]:
        """Seconds a step, over a round."""
        start = time.perf_counter()
        for x, y in self._batches:
            self._step(x, y)
        self._wait()
        return ((time.perf_counter() - start) / len(self._batches),)

    def losses(self, steps: int) -> list[float]:
        """The losses of `steps` steps from the common weights."""
        self._step = self._make()
        count = len(self._batches)
        return [float(self._step(*self._batches[i % count]).detach().item()) for i in range(steps)]


def _batches(task: Task, put: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    """All batches on the device, where they stay: the copying is bench/overlap.py's subject."""
    x, y = task.data()
    cuts = range(0, len(x), task.batch)
    return [(put(x[i : i + task.batch]), put(y[i : i + task.batch])) for i in cuts]


def _work(rounds: _Rounds, free: Callable[[], int], before: int, shapes: Shapes) -> Work:
    def memory() -> dict[str, int]:
        """What the process has taken of the card's memory since its context was there."""
        return {"device": before - free()}

    answers: dict[str, Callable[..., Any]] = {"losses": rounds.losses, "memory": memory}
    return Work(rounds.round, {"parameters": shapes}, ("step",), answers, own_clock=True)


# Ours ---------------------------------------------------------------------------------------------


def _ours(task: Task, wrap: Callable[[Step], Step]) -> Work:
    import cupy

    import framework as fw

    def free() -> int:
        return int(cupy.cuda.runtime.memGetInfo()[0])

    cupy.zeros(1)  # the context
    before = free()
    build, shapes = our_task(task, "cuda")
    batches = _batches(task, lambda a: fw.tensor(a, device="cuda"))

    def make() -> Step:
        loss_of, optimizer = build()

        def step(x: Any, y: Any) -> Any:
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return wrap(step)

    return _work(_Rounds(make, batches, cupy.cuda.Device().synchronize), free, before, shapes)


def ours(task: Task) -> Work:
    """Eager: each kernel launched from Python."""
    return _ours(task, lambda step: step)


def captured(task: Task) -> Work:
    """The whole step as one CUDA graph."""
    return _ours(task, captured_step)


def captured_step(step: Step) -> Step:
    """`step` as a CUDA graph of the framework's."""
    import framework as fw

    captured: Step = fw.cuda.graph(step, device="cuda", strict=True)
    return captured


# torch --------------------------------------------------------------------------------------------


def _torch(
    task: Task, make_step: Callable[[Any, Any], Step], layout: Any = None, **options: Any
) -> Work:
    import torch

    if not torch.cuda.is_available():
        raise NotAvailable("this torch has no CUDA")

    def free() -> int:
        return int(torch.cuda.mem_get_info()[0])

    def put(a: Any) -> Any:
        tensor = torch.from_numpy(a).to("cuda")
        images = layout is not None and tensor.ndim == 4
        return tensor.contiguous(memory_format=layout) if images else tensor

    torch.zeros(1, device="cuda")  # the context
    before = free()
    build, shapes = torch_task(task, "cuda", layout, **options)

    def make() -> Step:
        return make_step(*build())

    return _work(_Rounds(make, _batches(task, put), torch.cuda.synchronize), free, before, shapes)


def _eager(loss_of: Any, optimizer: Any) -> Step:
    def step(x: Any, y: Any) -> Any:
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def torch(task: Task) -> Work:
    """torch eager, its optimizer fused."""
    return _torch(task, _eager)


def torch_channels_last(task: Task) -> Work:
    """torch eager with the model and the images channels-last."""
    import torch

    if not task.images:
        raise NotAvailable(f"{task.title} has no images")
    return _torch(task, _eager, torch.channels_last)


def torch_compile(task: Task) -> Work:
    """torch.compile of forward pass and loss; the optimizer is fused already."""
    import torch

    return _torch(task, lambda loss_of, optimizer: _eager(torch.compile(loss_of), optimizer))


def torch_graph(task: Task) -> Work:
    """The whole step as one CUDA graph of torch's."""
    return _torch(task, _TorchGraph, capturable=True)


class _TorchGraph:
    """A step that is captured after WARM_UP steps as they are, as torch's manual has it."""

    def __init__(self, loss_of: Any, optimizer: Any) -> None:
        import torch

        self._torch, self._loss_of, self._optimizer = torch, loss_of, optimizer
        self._stream = torch.cuda.Stream()
        self._count = 0
        self._graph: Any = None

    def __call__(self, x: Any, y: Any) -> Any:
        """One step; the loss lies in the graph's memory, where the next one overwrites it."""
        torch = self._torch
        if self._count < WARM_UP:
            self._count += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                loss = self._step(x, y)
            torch.cuda.current_stream().wait_stream(self._stream)
            return loss
        if self._graph is None:
            self._x, self._y = x.clone(), y.clone()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = self._step(self._x, self._y)
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._loss

    def _step(self, x: Any, y: Any) -> Any:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of(x, y)
        loss.backward()
        self._optimizer.step()
        return loss
