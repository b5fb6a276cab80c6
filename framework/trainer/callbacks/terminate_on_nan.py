"""Stop at the first loss or gradient that is no number, and say which layer made it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.autograd import Tensor, no_grad
from framework.optimizers import Optimizer
from framework.trainer.callbacks.callback import Callback
from kernels.arrays import Array, array_module, is_cuda, is_floating
from kernels.reductions import sum as sum_of

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite. The model has the weights of the last good step."""


class TerminateOnNaN(Callback):
    """Looks at the loss and at the gradients before every step; raises NonFiniteError where they
    are not finite.

    The message names the first layer whose output is not finite, found by running the batch again.
    Weights and buffers are those before the step. On CUDA it waits for the device once
    in every step; `every` looks at each n-th step only, and the weights are then those of up to
    n - 1 steps too late. Steps that fp16-mixed skips are no reason to stop, until the loss scale
    has fallen as far as it may.
    """

    def __init__(self, every: int = 1) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every is {every!r}, expected an integer of at least 1")
        self.every = every
        self.buffers: list[tuple[Tensor, Array]] = []

    def on_step_start(self, trainer: Trainer) -> None:
        # The forward pass moves the running statistics of batch norm, before the loss is known.
        self.buffers = [(b, b.data.copy()) for b in trainer.model.buffers()]

    def on_gradients(self, trainer: Trainer) -> None:
        if trainer.step % self.every or _all_finite(trainer):
            return
        loss = next((float(x) for x in trainer.losses if not _finite(x.data)), None)
        culprit = None
        if loss is None:
            culprit = _first_bad_gradient(trainer)
            if culprit is None:
                return
        for buffer, before in self.buffers:
            buffer.data[...] = before
        found = (
            f"the loss is {loss}" if culprit is None else f"the gradient of {culprit} is not finite"
        )
        where = _first_bad_layer(trainer)
        for buffer, before in self.buffers:
            buffer.data[...] = before
        raise NonFiniteError(
            f"step {trainer.step + 1}, epoch {trainer.epoch + 1}: {found}; {where}. "
            "The weights are those before this step. Lower the learning rate, clip the gradients "
            "(clip_norm=1.0), or look at the data"
        )

    def on_step_skipped(self, trainer: Trainer) -> None:
        scaler = trainer.precision.scaler
        if scaler is None or not scaler.exhausted:
            return
        where = _first_bad_layer(trainer)
        for buffer, before in self.buffers:
            buffer.data[...] = before
        raise NonFiniteError(
            f"step {trainer.step + 1}, epoch {trainer.epoch + 1}: gradients overflow float16 "
            f"(precision={trainer.precision.name!r}) even with the loss scaled by "
            f"{scaler.min_scale:g}, the smallest scale; {where}. The weights are those of the last "
            "good step. Take precision='bf16-mixed', which has the range of float32, or "
            "'float32'; if the loss is not finite there either, lower the learning rate or look at "
            "the data"
        )


def _all_finite(trainer: Trainer) -> bool:
    """Are the losses and all gradients finite? One number says so where their sum is finite: the
    host waits for the device once. False is a reason to look closer, no more than that.
    """
    optimizer, parameters = trainer.optimizer, trainer.model.parameters()
    numbers = [x.data for x in trainer.losses]
    if isinstance(optimizer, Optimizer):
        numbers += map(_sum, optimizer.gradient_buffers())
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parameters = (p for p in parameters if id(p) not in held)
    numbers += [_sum(p.grad.data) for p in parameters if p.grad is not None]
    with np.errstate(all="ignore"):  # inf - inf, and finite numbers whose sum overflows
        total = numbers[0]
        for number in numbers[1:]:
            total = total + number
    return math.isfinite(total.item())


def _sum(x: Array) -> Array:
    """On the CPU in float32 and one thread, for which a step's gradients are cheap."""
    with np.errstate(all="ignore"):
        return sum_of(x) if is_cuda(x) else x.sum()


def _finite(x: Array) -> bool:
    """Are all elements finite? The sum says so at once where it is finite itself."""
    xp = array_module(x)
    with np.errstate(all="ignore"):  # inf - inf, and finite elements whose sum overflows
        return bool(xp.isfinite(x.sum())) or bool(xp.isfinite(x).all())


def _first_bad_gradient(trainer: Trainer) -> str | None:
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad.data):
            return name
    return None


def _first_bad_layer(trainer: Trainer) -> str:
    """What the first thing is that is not finite: a weight, an input, a layer's output, or the
    loss.
    """
    for name, parameter in trainer.model.named_parameters():
        if not _finite(parameter.data):
            return f"the weight {name} is not finite itself"
    found: list[str] = []
    removers = []
    for name, module in trainer.model.named_modules():
        if any(True for _ in module.children()):
            continue  # a container's output is its last child's

        def look(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and not found and not _finite(output.data):
                found.append(
                    f"the first layer with such an output is {name or 'the model'} ({module!r})"
                )

        removers.append(module.register_forward_hook(look))
    try:
        with no_grad():
            for batch in trainer.window:
                *inputs, target = [x.to(trainer.device) for x in batch]
                for array in (*inputs, target):
                    if is_floating(array.dtype) and not _finite(array.data):
                        return "the batch itself has values that are not finite"
                with trainer.precision.computing():
                    trainer.model(*inputs)
                if found:
                    return found[0]
    finally:
        for remove in removers:
            remove()
    return "every layer's output is finite, so the loss function or its gradient made it"
