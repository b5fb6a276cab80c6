"""Both sides of a training comparison on the CPU, as factories for a worker: same weights, batches
and rule. training_cuda.py has those on CUDA, from the same models.

A side builds its model, draws the common weights into it, and does whole steps: forward and loss,
backward, optimizer with zero_grad. Batches lie ready in memory; loading is not part of a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peer import Work, threads
from bench.sizes import Device

LAPS = ("forward", "backward", "optimizer")

Batches = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """A network and its training, the same on every side."""

    name: str
    widths: tuple[int, ...]
    batch: int
    lr: float = 1e-3
    batches: int = 16
    seed: int = 0

    def weights(self) -> list[np.ndarray]:
        """weight (out, in) and bias (out,) of each layer in turn, float32 (He et al. 2015)."""
        draw = np.random.default_rng(self.seed)
        arrays = []
        for inputs, outputs in zip(self.widths[:-1], self.widths[1:], strict=True):
            weight = draw.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
            arrays += [weight.astype(np.float32), np.zeros(outputs, np.float32)]
        return arrays

    def data(self) -> Batches:
        """Noisy prototypes of each class, (batch, inputs) float32, with labels (batch,) int64."""
        draw = np.random.default_rng(self.seed + 1)
        prototypes = draw.random((self.widths[-1], self.widths[0]))
        made = []
        for _ in range(self.batches):
            y = draw.integers(0, self.widths[-1], self.batch)
            x = prototypes[y] + draw.standard_normal((self.batch, self.widths[0]))
            made.append((x.astype(np.float32), y))
        return made


#: What `--model` chooses from.
TASKS = {"mlp": Task("mlp", (784, 512, 256, 10), 128)}


class _Steps:
    """Whole steps of a side; `build` makes its loss function of (x, y) and its optimizer anew."""

    def __init__(self, build: Callable[[], tuple[Any, Any]], batches: Sequence[Any]) -> None:
        self._build = build
        self._batches = batches
        self.restart()

    def restart(self) -> None:
        """Back to the common weights and an optimizer without memory."""
        self._loss, self._optimizer = self._build()
        self._count = 0

    def step(self) -> tuple[float, float, float]:
        """One step; seconds of its laps."""
        x, y = self._batches[self._count % len(self._batches)]
        self._count += 1
        clock = time.perf_counter
        start = clock()
        loss = self._loss(x, y)
        forward = clock()
        loss.backward()
        backward = clock()
        self._optimizer.step()
        self._optimizer.zero_grad()
        end = clock()
        self._last = loss
        return forward - start, backward - forward, end - backward

    def losses(self, steps: int) -> list[float]:
        """The losses of `steps` steps from the common weights."""
        self.restart()
        values = []
        for _ in range(steps):
            self.step()
            values.append(float(self._last.detach().item()))
        return values


def _work(steps: _Steps, memory: Memory) -> Work:
    answers: dict[str, Callable[..., Any]] = {"losses": steps.losses, "memory": memory.peak}
    return Work(steps.step, {}, LAPS, answers)


#: Makes a loss function of (x, y) and an optimizer, from the common weights.
Build = Callable[[], tuple[Any, Any]]


def ours(name: str) -> Work:
    """models.MLP with this framework's Adam."""
    import numba  # noqa: F401  (loaded at the first kernel otherwise: part of the imports)

    import framework  # noqa: F401
    import models.mlp  # noqa: F401

    memory = Memory()
    build, batches = our_task(TASKS[name], "cpu")
    return _work(_Steps(build, batches), memory)


def our_task(task: Task, device: Device) -> tuple[Build, Any]:
    """How the model is built, and the batches, on `device`."""
    import framework as fw
    from framework import functional as F, optimizers
    from models.mlp import MLP, MLPConfig

    fw.set_default_device(device)
    inputs, *hidden, outputs = task.widths

    def build() -> tuple[Any, Any]:
        config = MLPConfig(inputs, tuple(hidden), outputs, "relu", norm=None, dropout=0.0)
        model = MLP(config)
        for p, w in zip(model.parameters(), task.weights(), strict=True):
            _same_shape(p.shape, w)
            p.data[...] = fw.tensor(w, device=device).data
        optimizer = optimizers.Adam(model.parameters(), lr=task.lr)
        return lambda x, y: F.cross_entropy(model(x), y), optimizer

    batches = task.data()
    return build, [(fw.tensor(x, device=device), fw.tensor(y, device=device)) for x, y in batches]


def torch(name: str) -> Work:
    """torch eager: nn.Sequential with torch.optim.Adam(fused=True)."""
    import torch

    memory = Memory()
    torch.set_num_threads(threads())
    build, batches = torch_task(TASKS[name], "cpu")
    return _work(_Steps(build, batches), memory)


def torch_task(task: Task, device: Device, **adam: Any) -> tuple[Build, Any]:
    """How the model is built, with options of Adam, and the batches, on `device`."""
    import torch
    from torch.nn import functional as F

    def build() -> tuple[Any, Any]:
        modules: list[Any] = []
        for inputs, outputs in zip(task.widths[:-1], task.widths[1:], strict=True):
            modules += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*modules[:-1]).to(device)
        with torch.no_grad():
            for p, w in zip(model.parameters(), task.weights(), strict=True):
                _same_shape(tuple(p.shape), w)
                p.copy_(torch.from_numpy(w))
        optimizer = torch.optim.Adam(model.parameters(), lr=task.lr, fused=True, **adam)
        return lambda x, y: F.cross_entropy(model(x), y), optimizer

    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in task.data()]
    return build, [(x.to(device), y.to(device)) for x, y in batches]


def _same_shape(shape: tuple[int, ...], w: np.ndarray) -> None:
    if shape != w.shape:
        raise ValueError(f"a parameter has shape {shape}, the common weight {w.shape}")


# Memory -------------------------------------------------------------------------------------------


class Memory:
    """The process's memory from now on: create it after the imports."""

    def __init__(self) -> None:
        # Linux: "5" sets the high-water mark back to what is in use now. Where that is not
        # allowed, the mark may stem from the imports, and growth can only be understated.
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        self._before = _high_water()

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
