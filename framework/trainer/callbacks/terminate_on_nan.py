"""Stop at the first loss or gradient that is no number, and say which layer made it."""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING

import numpy as np

from framework.autograd import Tensor
from framework.backend.random import default_generator
from framework.layers.carry import carries
from framework.optimizers import Optimizer
from framework.trainer.callbacks.callback import Callback
from framework.trainer.suspects import all_finite, first_suspect
from kernels.arrays import Array
from kernels.reductions import sum as sum_of

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


log = logging.getLogger("framework")


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite. The model has the weights of the last good step."""


class TerminateOnNaN(Callback):
    """Looks at the loss and at the gradients before every step; raises NonFiniteError where they
    are not finite.

    The message names the first layer whose output is not finite, and the kernel that made it, found
    by running the step again (with the same dropout masks) and looking at everything. Weights and
    buffers are those before the step. On CUDA it waits for the device once in every step; `every`
    looks at each n-th step only, and the weights are then those of up to n - 1 steps too late.
    Steps that fp16-mixed skips are no reason to stop, until the loss scale has fallen as far as it
    may.

    With `skip` the batch is left out instead: weights, buffers, optimizer and running loss stay as
    they were, ``trainer.skipped`` counts it, and the first such batch is logged with its suspect.
    """

    def __init__(self, every: int = 1, skip: bool = False) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every is {every!r}, expected an integer of at least 1")
        if skip and every != 1:
            raise ValueError(f"every is {every}, expected 1 with skip: no step may go unseen")
        self.every, self.skip = every, skip
        self.others: list[Tensor] = []  # parameters that the optimizer does not hold
        self._buffers: list[Tensor] = []
        self.buffers: list[tuple[Tensor, Array]] = []  # as they were before the step
        self.generator: dict[str, int] = {}
        self.running: dict[str, float] = {}
        self.told = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.told = False

    def on_epoch_start(self, trainer: Trainer) -> None:
        # Once an epoch: walking through a model takes longer than looking at its gradients.
        optimizer, parameters = trainer.optimizer, list(trainer.model.parameters())
        held = set()
        if isinstance(optimizer, Optimizer):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.others = [p for p in parameters if id(p) not in held]
        self._buffers = list(trainer.model.buffers())
        self._carries = carries(trainer.model)

    def on_step_start(self, trainer: Trainer) -> None:
        # The forward pass moves the running statistics of batch norm, before the loss is known.
        self.buffers = [(b, b.data.copy()) for b in self._buffers]
        self.generator = default_generator.state()
        if self.skip:
            self.running = trainer.running.state_dict()
            self.metrics = [copy.deepcopy(metric.state_dict()) for metric in trainer.metrics]
            self.carried = [(c, [a.copy() for a in c.kept()]) for c in self._carries]

    def on_gradients(self, trainer: Trainer) -> None:
        if trainer.step % self.every or _all_finite(trainer, self.others):
            return
        loss = next((float(x) for x in trainer.losses if not all_finite(x.data)), None)
        culprit = None
        if loss is None:
            culprit = _first_bad_gradient(trainer)
            if culprit is None:
                return
        found = (
            f"the loss is {loss}" if culprit is None else f"the gradient of {culprit} is not finite"
        )
        at = f"step {trainer.step + 1}, epoch {trainer.epoch + 1}: {found}"
        if self.skip:
            self._skip(trainer, at)
            return
        raise NonFiniteError(
            f"{at}; {self._suspect(trainer)}. "
            "The weights are those before this step. Lower the learning rate, clip the gradients "
            "(clip_norm=1.0), or look at the data"
        )

    def on_step_skipped(self, trainer: Trainer) -> None:
        scaler = trainer.precision.scaler
        if scaler is None or not scaler.exhausted:
            return
        raise NonFiniteError(
            f"step {trainer.step + 1}, epoch {trainer.epoch + 1}: gradients overflow float16 "
            f"(precision={trainer.precision.name!r}) even with the loss scaled by "
            f"{scaler.min_scale:g}, the smallest scale; {self._suspect(trainer)}. The weights are "
            "those of the last good step. Take precision='bf16-mixed', which has the range of "
            "float32, or 'float32'; if the loss is not finite there either, lower the learning "
            "rate or look at the data"
        )

    def _skip(self, trainer: Trainer, at: str) -> None:
        """Leave this batch out."""
        trainer.skip_step = True
        if not self.told:
            self.told = True
            log.warning("%s; %s. The batch is left out", at, self._suspect(trainer))
        self._give_back_buffers()
        trainer.running.load_state_dict(self.running)
        for metric, before in zip(trainer.metrics, self.metrics, strict=True):
            metric.load_state_dict(before)
        for carry, kept in self.carried:
            carry.restore(kept)
        trainer.samples -= sum(len(batch[-1]) for batch in trainer.window)

    def _suspect(self, trainer: Trainer) -> str:
        """Who it was. Buffers and the generator are those before the step, and after it."""
        self._give_back_buffers()
        after = default_generator.state()
        default_generator.load_state(self.generator)
        try:
            return first_suspect(trainer)
        finally:
            default_generator.load_state(after)
            self._give_back_buffers()

    def _give_back_buffers(self) -> None:
        for buffer, before in self.buffers:
            buffer.data[...] = before


def _all_finite(trainer: Trainer, others: list[Tensor]) -> bool:
    """Are the losses, the gradients that the optimizer holds and those of `others` finite? One
    number says so where their sum is finite: the host waits for the device once. False is a reason
    to look closer, no more than that.
    """
    numbers = [x.data for x in trainer.losses]
    if isinstance(trainer.optimizer, Optimizer):
        numbers += map(_sum, trainer.optimizer.gradient_buffers())
    numbers += [_sum(p.grad.data) for p in others if p.grad is not None]
    with np.errstate(all="ignore"):  # inf - inf, and finite numbers whose sum overflows
        total = numbers[0]
        for number in numbers[1:]:
            total = total + number
    return math.isfinite(total.item())


def _sum(x: Array) -> Array:
    with np.errstate(all="ignore"):
        return sum_of(x)  # NumPy's own takes four times as long


def _first_bad_gradient(trainer: Trainer) -> str | None:
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None and not all_finite(parameter.grad.data):
            return name
    return None
