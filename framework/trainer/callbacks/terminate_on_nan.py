"""Stop at the first loss or gradient that is no number, and say which layer made it."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from framework.autograd import Tensor
from framework.backend.random import default_generator
from framework.layers.carry import Carry, carries
from framework.optimizers import Optimizer
from framework.trainer.callbacks.callback import Callback
from framework.trainer.guard import Before, Flag, Guard, Moved, can_be_held
from framework.trainer.suspects import all_finite, first_suspect

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


log = logging.getLogger("framework")


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite. The model has the weights of the last good step."""


class TerminateOnNaN(Callback):
    """Looks at the loss and at the gradients of every step; raises NonFiniteError where they are
    not finite.

    The message names the first layer whose output is not finite, and the kernel that made it, found
    by running the step again (with the same dropout masks) and looking at everything. Weights,
    buffers, optimizer, EMA, running loss and metrics are those before the step. Where it was a
    label, an id or a length out of range, which CUDA kernels do not look at, the error is the
    IndexError that the CPU raises, with that layer. An infinite gradient is seen though
    `clip_value` makes a number of it.

    On the CPU the look is before the step. On CUDA nobody waits: the device holds back the step and
    those after it, and the host raises when it has launched the next one
    (framework/trainer/guard.py); callbacks have heard `on_step_end` of the bad step then, and maybe
    of the one after. Where something else ends the run before that, nothing of a bad step is left
    either, and the error gets a note (and the log a line) of it. It waits for the device in every
    step where `skip` is set, with optimizers and EMAs that are not of framework.optimizers, and
    with parameters in float64. `every` looks at each n-th step only, waiting for it, and the
    weights are then those of up to n - 1 steps too late. Steps that fp16-mixed skips are no reason
    to stop, until the loss scale has fallen as far as it may; nor are those that a callback before
    this one leaves out by `skip_step`.

    With `skip` the batch is left out instead: weights, buffers, optimizer, running loss and metrics
    stay as they were, ``trainer.skipped`` counts it, and the first such batch is logged with its
    suspect.
    """

    def __init__(self, every: int = 1, skip: bool = False) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every is {every!r}, expected an integer of at least 1")
        if skip and every != 1:
            raise ValueError(f"every is {every}, expected 1 with skip: no step may go unseen")
        self.every, self.skip = every, skip
        self._buffers: list[Tensor] = []
        self._carries: list[Carry] = []
        self._alone = False  # does nobody else look at the gradients, and maybe change them?
        self._guard: Guard | None = None  # where the device holds the steps
        self._made: Guard | None = None  # the same, for the next run: graphs know its flag
        self._flag: Flag | None = None  # where the host looks at it
        self._moved = Moved()  # by the step, as it was before
        self.generator: dict[str, int] = {}
        self.told = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.told = False

    def on_epoch_start(self, trainer: Trainer) -> None:
        # Once an epoch: walking through a model takes longer than looking at its gradients.
        optimizer, parameters = trainer.optimizer, list(trainer.model.parameters())
        held = set()
        ours = isinstance(optimizer, Optimizer)  # asked once, as asking an ABC takes 1 us
        if ours:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        others: list[Tensor] = [p for p in parameters if id(p) not in held]
        self._buffers, self._carries = list(trainer.model.buffers()), carries(trainer.model)
        self._moved = Moved()
        self._alone = not any(c is not self and c.looks_at_gradients() for c in trainer.callbacks)
        late = self.every == 1 and not self.skip and can_be_held(trainer)
        if late and self._guard is None:
            if self._made is None or self._made.device != trainer.device:
                self._made = Guard(trainer.device)
            self._made.begin()
        self._guard = trainer.guard = self._made if late else None
        if self._flag is None or self._flag.device != trainer.device:
            self._flag = Flag(trainer.device)
        self._flag.clear()
        trainer.flag = self._guard or self._flag
        for flag in (self._flag, trainer.flag):
            flag.ours, flag.others, flag.alone = ours, others, self._alone

    def looks_at_gradients(self) -> bool:
        own = type(self).on_gradients is not TerminateOnNaN.on_gradients
        return own or self._guard is None or "on_gradients" in vars(self)

    def on_step_start(self, trainer: Trainer) -> None:
        if self._guard is not None:
            self._guard.taken = Before(trainer, self._buffers, self._carries)
            return
        if self.every > 1 and self._flag is not None:
            self._flag.clear()  # of the steps that are not looked at
        # The forward pass moves the running statistics of batch norm, before the loss is known.
        if self._buffers or self._carries:
            self._moved = Moved(self._buffers, self._carries)
        self.generator = default_generator.state()

    # Before the step: the host waits --------------------------------------------------------------

    def on_gradients(self, trainer: Trainer) -> None:
        if self._guard is not None or trainer.step % self.every or self._all_finite(trainer):
            return
        found = self._what_is_not_finite(trainer)
        if found is None:
            return
        if trainer.skip_step:  # somebody has left it out already
            self._moved.give_back()
            return
        at = f"step {trainer.step + 1}, epoch {trainer.epoch + 1}: {found}"
        if self.skip:
            self._skip(trainer, at)
            return
        raise self._error(trainer, at)

    def _all_finite(self, trainer: Trainer) -> bool:
        """Are the losses and all gradients finite? On CUDA the host waits for the device, once.
        False is a reason to look closer, no more than that.
        """
        assert self._flag is not None
        flag = self._flag  # not set, unless by a gradient before `clip_value`
        for loss in trainer.losses:
            if trainer.device.kind != "cpu":
                flag.mark(loss.data)
            elif not math.isfinite(loss.data.item()):  # a number costs less there than a kernel
                return False
        if self._alone and trainer.clip_value is not None:
            pass  # they have been marked
        elif self._alone and trainer.clip_norm is not None and trainer.norm is not None:
            flag.mark(trainer.norm.data)  # it has seen all of the optimizer's
            flag.mark_others()
        else:
            flag.mark_gradients(trainer.optimizer)
        return not flag.found.item()

    def _what_is_not_finite(self, trainer: Trainer) -> str | None:
        """The loss, or the first gradient, in words; None where all are finite. Clears the flag."""
        assert self._flag is not None
        hidden = trainer.clip_value is not None and bool(self._flag.found.item())
        self._flag.clear()
        for loss in trainer.losses:
            if not math.isfinite(value := float(loss)):
                return f"the loss is {value}"
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None and not all_finite(parameter.grad.data):
                return f"the gradient of {name} is not finite"
        return "a gradient is infinite, before clip_value limits it" if hidden else None

    def on_step_skipped(self, trainer: Trainer) -> None:
        if self._guard is not None:
            self._forget(trainer, self._guard)
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
        self._moved.give_back()

    # After the step: the device holds it, the host hears late -------------------------------------

    def on_step_end(self, trainer: Trainer) -> None:
        if self._guard is not None:
            self._guard.ask()
            self._raise_if_held(trainer, leave=1)

    def on_settle(self, trainer: Trainer) -> None:
        guard = self._guard
        if guard is None:
            return
        if guard.taken is not None and guard.taken.counts[0] < trainer.step:  # it has been launched
            guard.ask()
        self._raise_if_held(trainer, leave=0)

    def _forget(self, trainer: Trainer, guard: Guard) -> None:
        """A callback has left out the step: the next one is not to be held for its numbers."""
        left_out, guard.taken = guard.taken, None
        self._raise_if_held(trainer, leave=0)  # for those of a step before
        if guard.found.item() and left_out is not None:
            guard.clear()
            left_out.moved.give_back()

    def _raise_if_held(self, trainer: Trainer, leave: int) -> None:
        assert self._guard is not None
        before = self._guard.first_held(leave)
        if before is None:
            return
        self._guard, trainer.guard, trainer.flag = None, None, self._flag
        before.put_back(trainer)
        self._moved, self.generator = before.moved, before.generator
        trainer.losses = []
        try:
            trainer.compute_gradients(
                before.window, lambda output, target, loss: trainer.losses.append(loss.detach())
            )
            at = f"step {trainer.step + 1}, epoch {trainer.epoch + 1}"
            found = self._what_is_not_finite(trainer)
            if found is None:
                raise NonFiniteError(
                    f"{at}: the loss or a gradient was not finite, and is when the step is run "
                    "again: a callback has changed the gradients, or the step does something else "
                    "each time. The weights are those before this step"
                )
            raise self._error(trainer, f"{at}: {found}")
        finally:
            before.put_back(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._guard = trainer.guard = trainer.flag = None

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._guard = trainer.guard = trainer.flag = None

    # Both -----------------------------------------------------------------------------------------

    def _error(self, trainer: Trainer, at: str) -> NonFiniteError:
        return NonFiniteError(
            f"{at}; {self._suspect(trainer)}. "
            "The weights are those before this step. Lower the learning rate, clip the gradients "
            "(clip_norm=1.0), or look at the data"
        )

    def _suspect(self, trainer: Trainer) -> str:
        """Who it was. Buffers, what is carried and the generator are those before the step, and
        after it.
        """
        self._moved.give_back()
        after = default_generator.state()
        default_generator.load_state(self.generator)
        try:
            return first_suspect(trainer)
        finally:
            default_generator.load_state(after)
            self._moved.give_back()
            if self._flag is not None:
                self._flag.clear()
