"""Training steps as CUDA graphs: the textbook of the Trainer, captured once and replayed.

Forward, loss, backward, clipping, optimizer, EMA and the sums of loss and metrics are one graph for
each shape of batch (of a window of batches, where gradients are accumulated). The schedule is asked
on the host before; a metric that is more than sums is told after, from the graph's outputs. Where a
callback looks at the gradients there are two graphs, one up to them and one after.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

from framework.autograd import Tensor
from framework.backend.cuda import CapturedStep, CaptureError
from framework.layers import Module
from framework.profiler import is_recording
from framework.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from framework.trainer.trainer import Batch, Trainer

log = logging.getLogger("framework")

#: Of each batch: output, target and loss.
Results = list[tuple[Tensor, Tensor, Tensor]]


def captured_training(trainer: Trainer, capture: bool | str) -> CapturedTraining | None:
    """What replays the trainer's steps; None where they run as they are."""
    if capture not in ("auto", True, False):
        raise ValueError(f"capture is {capture!r}, expected 'auto', True or False")
    if capture is True and trainer.device.kind == "cpu":
        raise ValueError("capture=True needs a CUDA device, the model is on the CPU")
    if not capture or trainer.device.kind == "cpu":
        return None
    return CapturedTraining(trainer, strict=capture is True)


class CapturedTraining:
    """The steps of `trainer` on its CUDA device. With `strict`, what prevents a capture is a
    CaptureError; otherwise it is said once, and the steps run as they are.
    """

    def __init__(self, trainer: Trainer, strict: bool) -> None:
        # No cycle of references: graphs and their memory go with the trainer, not when the garbage
        # collector comes by.
        self.trainer: Trainer = weakref.proxy(trainer)
        self.strict = strict
        device, me = trainer.device, weakref.proxy(self)
        self.whole = CapturedStep(lambda *batches: me._whole(*batches), device, strict=strict)
        self.gradients = CapturedStep(
            lambda *batches: me._gradients(*batches), device, strict=strict
        )
        self.move = CapturedStep(lambda: me._move(), device, strict=strict)
        self._epoch = -1
        self._modules: list[Module] = []
        self._parameters: list[Tensor] = []
        self._description = ""
        self._settings: tuple[Any, ...] = ()
        self._told = False

    def step(self, window: list[Batch]) -> bool:
        """Take a step, or return False where it has to be taken as it is."""
        if is_recording():  # layers and kernels are seen where Python calls them, not in a replay
            return False
        if not self._can_replay():
            return False
        trainer = self.trainer
        sizes = tuple(len(batch) for batch in window)
        tensors = [x for batch in window for x in batch]
        if self._somebody_looks():
            self._observe(self.gradients(sizes, *tensors))
            trainer._call("on_gradients")
            trainer.apply_schedule()
            self.move()
        else:
            trainer.apply_schedule()
            self._observe(self.whole(sizes, *tensors))
        return True

    # What is captured -----------------------------------------------------------------------------

    def _whole(self, sizes: tuple[int, ...], *tensors: Tensor) -> Results:
        results = self._gradients(sizes, *tensors)
        self._move()
        return results

    def _gradients(self, sizes: tuple[int, ...], *tensors: Tensor) -> Results:
        rest = iter(tensors)
        window: list[Batch] = [[next(rest) for _ in range(size)] for size in sizes]
        results: Results = []

        def observe(*result: Tensor) -> None:
            output, target, loss = result
            self.trainer.running.update(loss.detach(), len(target))
            for metric in self.trainer.metrics:
                if metric.is_replayable(output, target):
                    metric.update(output.detach(), target)
            results.append((output, target, loss))

        self.trainer.compute_gradients(window, observe)
        return results

    def _move(self) -> None:
        self.trainer.move_weights()

    def _observe(self, results: Results) -> None:
        """What the graph has not done."""
        trainer = self.trainer
        for output, target, loss in results:
            trainer.losses.append(loss)
            trainer.samples += len(target)
            for metric in trainer.metrics:
                if not metric.is_replayable(output, target):
                    metric.update(output, target)

    # What decides ---------------------------------------------------------------------------------

    def _somebody_looks(self) -> bool:
        """Does a callback act between gradients and step?"""
        return any(
            type(callback).on_gradients is not Callback.on_gradients
            or "on_gradients" in vars(callback)
            for callback in self.trainer.callbacks
        )

    def _can_replay(self) -> bool:
        """Is all that a step does on the device?

        Where a setting has changed steps are captured anew: a replay runs no Python, and would not
        see it.
        """
        trainer = self.trainer
        if self.whole.reason is not None or self.gradients.reason is not None:
            return False  # which has been said
        if trainer.precision.scaler is not None:
            self._tell("with fp16-mixed the host looks at the gradients before each step")
            return False
        if trainer.epoch != self._epoch:
            self._epoch = trainer.epoch
            self._modules = list(trainer.model.modules())
            self._parameters = list(trainer.model.parameters())
            self._description = repr(trainer.model)  # with dropout's p, batch norm's momentum, ...
        settings = (
            trainer.model,
            trainer.loss,
            trainer.optimizer,
            trainer.ema,
            trainer.clip_norm,
            trainer.clip_value,
            trainer.running,
            *trainer.metrics,
            self._description,
            [p.requires_grad for p in self._parameters],
            [module.training for module in self._modules],
        )
        if settings != self._settings:
            self._settings = settings
            for captured in (self.whole, self.gradients, self.move):
                captured.forget()
            for mean in (trainer.running, *(m for x in trainer.metrics for m in x.sums())):
                mean.hold(trainer.device)
        hooked = any(p.hooks for p in self._parameters) or any(m.has_hooks for m in self._modules)
        if hooked:
            self._tell("hooks of the model or its parameters run in every step")
        return not hooked

    def _tell(self, reason: str) -> None:
        if self.strict:
            raise CaptureError(f"the training step cannot be captured: {reason}")
        if not self._told:
            self._told = True
            log.warning("the training step is not captured into a CUDA graph: %s", reason)
