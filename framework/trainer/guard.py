"""Steps on a CUDA device are held where their numbers are not finite; the host hears of it late.

To ask the device before each step would mean to wait for it: it runs dry while the host works, and
a step captured as a CUDA graph is cut in two. So the device decides itself. Losses and gradients
are marked in a flag; where it is set, this optimizer step and all that follow change nothing
(`Trainer.holding`, kernels.optimizers.held_by). The flag is copied to the host behind each step,
and read when the next one has been launched. By then the host has counted on, for at most two
steps: `Before` is what it takes to go back. Sums of losses and metrics in graphs are held like the
weights, others go back like the counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.autograd import Tensor
from framework.backend.device import Device
from framework.backend.random import default_generator
from framework.layers.carry import Carry
from framework.optimizers import EMA, Optimizer
from kernels.arrays import Array, is_cuda
from kernels.finite import mark_nonfinite_
from kernels.optimizers import adam_step

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

#: Steps that are asked for and not answered, at most.
_ASKED = 2


class Moved:
    """What a forward pass moves, as it was before: the running statistics of batch norm, and what
    is carried on.
    """

    def __init__(self, buffers: Sequence[Tensor] = (), carries: Sequence[Carry] = ()) -> None:
        self._buffers = [(b, b.data.copy()) for b in buffers]
        self._carried = [(c, [a.copy() for a in c.kept()]) for c in carries]

    def give_back(self) -> None:
        """Put it back; as often as it is asked."""
        for buffer, before in self._buffers:
            buffer.data[...] = before
        for carry, kept in self._carried:
            carry.restore([a.copy() for a in kept])


class Before:
    """What a step begins from, but for what the device holds: weights, optimizer state, EMA."""

    def __init__(self, trainer: Trainer, buffers: list[Tensor], carries: list[Carry]) -> None:
        self.window = trainer.window
        self.counts = trainer.step, trainer.samples, trainer.position.batches, trainer.skipped
        self.sums = trainer.running.kept(), [metric.kept() for metric in trainer.metrics]
        self.generator = default_generator.state()
        self.optimizer = trainer.optimizer.counted()
        self.updates = None if trainer.ema is None else trainer.ema.updates
        self.moved = Moved(buffers, carries)

    def put_back(self, trainer: Trainer) -> None:
        """The trainer, as the step found it."""
        trainer.window = self.window
        trainer.step, trainer.samples, trainer.position.batches, trainer.skipped = self.counts
        running, metrics = self.sums
        trainer.running.restore(running)
        for metric, gathered in zip(trainer.metrics, metrics, strict=True):
            metric.restore(gathered)
        default_generator.load_state(self.generator)
        trainer.optimizer.count_from(self.optimizer)
        if trainer.ema is not None:
            assert self.updates is not None
            trainer.ema.updates = self.updates
        self.moved.give_back()


class Flag:
    """Set, on the device, by what is marked and not finite."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.others: list[Tensor] = []  # parameters that the optimizer does not hold
        self.ours = True  # is the optimizer one of framework.optimizers?
        self.alone = False  # does nobody else look at the gradients, and maybe change them?
        with device.context():
            self.found: Array = device.module.zeros(1, np.int32)

    def clear(self) -> None:
        """Nothing is found."""
        with self.device.context():
            self.found.fill(0)

    def mark(self, x: Array) -> None:
        """Is `x` finite? With a `Guard` steps are held from now on, if not."""
        mark_nonfinite_(x, self.found)

    def mark_gradients(self, optimizer: Optimizer) -> None:
        """Are all gradients?"""
        if self.ours:
            optimizer.mark_nonfinite_gradients(self.found)
        self.mark_others()

    def mark_others(self) -> None:
        """Those that the optimizer does not hold."""
        for p in self.others:
            if p.grad is not None:
                self.mark(p.grad.data)


class Guard(Flag):
    """The flag of one run, its copies on the host, and what the steps began from."""

    def __init__(self, device: Device) -> None:
        import cupyx

        super().__init__(device)
        with device.context():
            cuda = device.module.cuda
            self._seen = cupyx.empty_pinned(_ASKED, np.int32)
            self._copied = [cuda.Event(disable_timing=True) for _ in range(_ASKED)]
        self.taken: Before | None = None  # of the step that is under way
        self._asked: deque[tuple[int, Before]] = deque()
        self._next = 0

    def begin(self) -> None:
        """A run begins: nothing is found yet."""
        self.clear()
        self._asked.clear()
        self.taken = None

    def ask(self) -> None:
        """Copy the flag to the host, behind the step that has been launched, if that has not been
        asked yet. Nothing waits.
        """
        if self.taken is None:
            return
        place, self._next = self._next, (self._next + 1) % _ASKED
        with self.device.context():
            self.found.get(out=self._seen[place : place + 1], blocking=False)
            self._copied[place].record()
        self._asked.append((place, self.taken))
        self.taken = None

    def first_held(self, leave: int) -> Before | None:
        """What the first step began from that was held, if one was; all but the last `leave` steps
        are looked at. Waits for those.
        """
        while len(self._asked) > leave:
            place, before = self._asked.popleft()
            self._copied[place].synchronize()
            if self._seen[place]:
                return before
        return None


def can_be_held(trainer: Trainer) -> bool:
    """Is all that a step of `trainer` changes for good changed by kernels that look at the flag?

    Not on the CPU, which need not wait for itself; not by rules or averages of somebody else's, in
    float64, or by the references; and with fp16-mixed the host waits for the gradients anyway.
    """
    optimizer, ema = trainer.optimizer, trainer.ema
    if trainer.device.kind == "cpu" or trainer.precision.scaler is not None:
        return False
    if not isinstance(optimizer, Optimizer) or adam_step.version("cuda") is None:
        return False
    rules = [type(optimizer).step, type(optimizer).update]
    if ema is not None:
        rules.append(type(ema).update)
    own = {f"{package.__module__.rpartition('.')[0]}." for package in (Optimizer, EMA)}
    if not all(any(rule.__module__.startswith(name) for name in own) for rule in rules):
        return False
    buffers: list[Any] = optimizer.gradient_buffers()
    return all(is_cuda(b) and b.dtype == np.float32 for b in buffers)
