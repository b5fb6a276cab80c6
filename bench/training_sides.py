"""The sides of a training comparison on the CPU, as factories for a worker: same weights, batches
and rule (bench/training_tasks/). training_cuda.py has those on CUDA, from the same tasks.

A side builds its model, draws the common weights into it, and does whole steps in four laps:

- input: the next batch out of the side's own DataLoader. The data lies in memory as one array on
  both sides, batches come in order, and neither uses worker threads. Torch's loader is given whole
  batches of indices (a BatchSampler as sampler): a gather as ours does, and many times as fast as
  its usual way, sample by sample.
- forward: the model and the loss.
- backward.
- optimizer: step and zero_grad.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.peer import Work, threads
from bench.sizes import Device
from bench.training_tasks import Task

LAPS = ("input", "forward", "backward", "optimizer")

#: Makes a loss function of (x, y) and an optimizer, from the common weights.
Build = Callable[[], tuple[Any, Any]]
Load = Callable[[], Iterator[Any]]
#: Of the parameters, by name.
Shapes = dict[str, tuple[int, ...]]


class NotAvailable(RuntimeError):
    """A side that this machine, this version or this task does not have."""


class _Steps:
    """Whole steps of a side; `load` begins an epoch of batches."""

    def __init__(self, build: Build, load: Load, memory: Memory) -> None:
        self._build, self._load, self._memory = build, load, memory
        self._loss: Any = None

    def restart(self) -> None:
        """Back to the common weights and an optimizer without memory."""
        self._loss = self._optimizer = self._last = None  # before the next ones are made
        self._loss, self._optimizer = self._build()
        self._batches = _endless(self._load)

    def step(self) -> tuple[float, float, float, float]:
        """One step; seconds of its laps."""
        if self._loss is None:
            self.restart()
        clock = time.perf_counter
        start = clock()
        x, y = next(self._batches)
        ready = clock()
        loss = self._loss(x, y)
        forward = clock()
        loss.backward()
        backward = clock()
        self._optimizer.step()
        self._optimizer.zero_grad()
        end = clock()
        self._last = loss
        return ready - start, forward - ready, backward - forward, end - backward

    def losses(self, steps: int) -> list[float]:
        """The losses of `steps` steps from the common weights."""
        self.restart()
        self._memory.begin()
        values = []
        for _ in range(steps):
            self.step()
            values.append(float(self._last.detach().item()))
        return values


def _endless(load: Load) -> Iterator[Any]:
    while True:
        yield from load()


def _work(build: Build, load: Load, memory: Memory, shapes: Shapes) -> Work:
    steps = _Steps(build, load, memory)
    answers: dict[str, Callable[..., Any]] = {"losses": steps.losses, "memory": memory.peak}
    return Work(steps.step, {"parameters": shapes}, LAPS, answers)


# Ours ---------------------------------------------------------------------------------------------


def ours(task: Task) -> Work:
    """The model of models/, with this framework's optimizer and DataLoader."""
    import numba  # noqa: F401  (loaded at the first kernel otherwise: part of the imports)

    import models  # noqa: F401
    from framework.data import ArrayDataset, DataLoader

    memory = Memory()
    build, shapes = our_task(task, "cpu")
    loader = DataLoader(ArrayDataset(*task.data()), task.batch)
    return _work(build, loader.__iter__, memory, shapes)


def our_task(task: Task, device: Device) -> tuple[Build, Shapes]:
    """How the model is built on `device`, and its parameters' shapes."""
    import framework as fw
    from framework import functional as F, optimizers

    fw.set_default_device(device)

    def build() -> tuple[Any, Any]:
        model = task.our_model()
        for name, p in model.named_parameters():
            p.data[...] = fw.tensor(task.weight(name, p.shape), device=device).data
        return partial(task.loss, model, F), task.optimizer(optimizers, model)

    shapes = {name: tuple(p.shape) for name, p in task.our_model().named_parameters()}
    return build, shapes


# torch --------------------------------------------------------------------------------------------


def torch(task: Task) -> Work:
    """torch eager, its optimizer fused."""
    return _torch(task)


def torch_channels_last(task: Task) -> Work:
    """torch eager with the model and the images channels-last."""
    import torch

    if not task.images:
        raise NotAvailable(f"{task.title} has no images")
    return _torch(task, layout=torch.channels_last)


def torch_compile(task: Task) -> Work:
    """torch.compile of forward pass and loss; the optimizer is fused already."""
    import torch

    return _torch(task, wrap=torch.compile)


def _torch(task: Task, layout: Any = None, wrap: Callable[[Any], Any] = lambda f: f) -> Work:
    import torch
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

    memory = Memory()
    torch.set_num_threads(threads())
    build, shapes = torch_task(task, "cpu", layout)

    def wrapped() -> tuple[Any, Any]:
        loss_of, optimizer = build()
        return wrap(loss_of), optimizer

    data = TensorDataset(*map(torch.from_numpy, task.data()))
    in_order = BatchSampler(SequentialSampler(data), task.batch, drop_last=True)

    def load() -> Iterator[Any]:
        # batch_size None: an index is a whole batch's
        for x, y in DataLoader(data, sampler=in_order, batch_size=None):
            yield (x if layout is None else x.contiguous(memory_format=layout)), y

    return _work(wrapped, load, memory, shapes)


def torch_task(
    task: Task, device: Device, layout: Any = None, **options: Any
) -> tuple[Build, Shapes]:
    """How the model is built on `device`, with `options` of its optimizer, and its parameters'
    shapes.
    """
    import torch
    from torch.nn import functional as F

    def build() -> tuple[Any, Any]:
        model = task.torch_model()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.from_numpy(task.weight(name, tuple(p.shape))))
        model.to(device, **({} if layout is None else {"memory_format": layout}))
        return partial(task.loss, model, F), task.optimizer(
            torch.optim, model, fused=True, **options
        )

    shapes = {name: tuple(p.shape) for name, p in task.torch_model().named_parameters()}
    return build, shapes


# Memory -------------------------------------------------------------------------------------------


class Memory:
    """The process's memory: create it after the imports, `begin` where counting is to begin."""

    def __init__(self) -> None:
        self.begin()
        self._before = _high_water()

    def begin(self) -> None:
        """Forget the peak so far: weights and data were drawn, which is no part of training."""
        # Linux: "5" sets the high-water mark back to what is in use now. Where that is not
        # allowed, the mark may stem from the imports, and growth can only be understated.
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass

    def peak(self) -> dict[str, int | None]:
        """Bytes: the process at its peak, after the imports, and the difference."""
        peak, before = _high_water(), self._before
        growth = None if peak is None or before is None else peak - before
        return {"peak": peak, "after_imports": before, "growth": growth}


def _high_water() -> int | None:
    """The most resident memory this process had; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
