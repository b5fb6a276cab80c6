"""Training steps as CUDA graphs: the textbook of the Trainer, captured once and replayed.

Forward, loss, backward, clipping, optimizer, EMA and the sums of loss and metrics are one graph for
each shape of batch (of a window of batches, where gradients are accumulated). The schedule is asked
on the host before; a metric that is more than sums is told after, from the graph's outputs. Where a
callback looks at the gradients there are two graphs, one up to them and one after; for NaN the
device looks itself (guard.py), within the one.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from itertools import chain
from operator import is_not
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.autograd import Tensor
from framework.backend.cuda import CapturedStep, CaptureError
from framework.layers import Module
from framework.profiler import is_recording

if TYPE_CHECKING:
    from framework.trainer.trainer import Batch, Trainer

log = logging.getLogger("framework")

#: Of each batch: output (None with a `ModelLoss`), target and loss.
Results = list[tuple[Any, Tensor, Tensor]]


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
        self._attributes = Attributes()
        self._refused = self._told = False

    def step(self, window: list[Batch]) -> bool | None:
        """Take a step: True; False where a callback leaves it out. None where it has to be taken as
        it is.
        """
        if is_recording():  # layers and kernels are seen where Python calls them, not in a replay
            return None
        if not self._can_replay():
            return None
        trainer = self.trainer
        sizes = tuple(len(batch) for batch in window)
        tensors = [x for batch in window for x in batch]
        if self._somebody_looks():
            results = self._run(self.gradients, sizes, *tensors)
            trainer.losses.extend(_copy(loss) for _, _, loss in results)
            if not trainer.look():
                return False
            trainer.apply_schedule()
            self._run(self.move)
            with trainer.holding():
                self._add(results)
        else:
            trainer.apply_schedule()
            results = self._run(self.whole, sizes, *tensors)
            trainer.losses.extend(_copy(loss) for _, _, loss in results)
        with trainer.holding():
            self._tell_metrics(results)
        return True

    def _run(self, captured: CapturedStep, *inputs: Any) -> Any:
        """Call it. What its Python sets in the model is no setting that has changed."""
        captures, replays = captured.captures, captured.replays
        results = captured(*inputs)
        if captured.captures > captures or captured.replays == replays:  # Python ran
            if self._attributes.arrays_have_changed() and self._graphs():
                self.forget()
                if captured.captures > captures:
                    self._refused = True
                    self._tell("it gives parameters or buffers other arrays in every step")
            self._attributes.note()
        return results

    def _graphs(self) -> list[CapturedStep]:
        return [x for x in (self.whole, self.gradients, self.move) if x.is_captured]

    def forget(self) -> None:
        """Let go of all graphs and of their memory; the steps that come are captured anew."""
        for captured in (self.whole, self.gradients, self.move):
            captured.forget()

    # What is captured -----------------------------------------------------------------------------

    def _whole(self, sizes: tuple[int, ...], *tensors: Tensor) -> Results:
        results = self._gradients(sizes, *tensors)
        with self.trainer.holding():
            self.trainer.move_weights()
            self._add(results)
        return results

    def _gradients(self, sizes: tuple[int, ...], *tensors: Tensor) -> Results:
        rest = iter(tensors)
        window: list[Batch] = [[next(rest) for _ in range(size)] for size in sizes]
        results: Results = []

        def observe(output: Any, target: Tensor, loss: Tensor) -> None:
            results.append((output, target, loss))

        self.trainer.compute_gradients(window, observe)
        return results

    def _move(self) -> None:
        with self.trainer.holding():
            self.trainer.move_weights()

    def _add(self, results: Results) -> None:
        """To running loss and metrics, where that is no more than sums."""
        for output, target, loss in results:
            self.trainer.running.update(loss.detach(), len(target))
            for metric in self.trainer.metrics:
                if metric.is_replayable(output, target):
                    metric.update(output.detach(), target)

    def _tell_metrics(self, results: Results) -> None:
        """What the graph has not done. The next replay writes to the same arrays: who may keep them
        is given copies.
        """
        trainer = self.trainer
        for output, target, _ in results:
            trainer.samples += len(target)
            told = [m for m in trainer.metrics if not m.is_replayable(output, target)]
            if told:
                output, target = _copy(output), _copy(target)
            for metric in told:
                metric.update(output, target)

    # What decides ---------------------------------------------------------------------------------

    def _somebody_looks(self) -> bool:
        """Does a callback act between gradients and step?"""
        return any(callback.looks_at_gradients() for callback in self.trainer.callbacks)

    def _can_replay(self) -> bool:
        """Is all that a step does on the device?

        Where a setting has changed steps are captured anew: a replay runs no Python, and would not
        see it.
        """
        trainer = self.trainer
        if self._refused or self.whole.reason is not None or self.gradients.reason is not None:
            return False  # which has been said
        if trainer.precision.scaler is not None:
            self._tell("with fp16-mixed the host looks at the gradients before each step")
            return False
        changed = self._attributes.have_changed()
        if trainer.epoch != self._epoch or changed:
            self._epoch = trainer.epoch
            self._modules = list(trainer.model.modules())
            self._parameters = list(trainer.model.parameters())
            self._description = repr(trainer.model)  # with dropout's p, batch norm's momentum, ...
            self._attributes = Attributes(*self._modules, *_objects_of(trainer.loss))
        settings = (
            trainer.model,
            trainer.loss,
            trainer.optimizer,
            trainer.ema,
            trainer.clip_norm,
            trainer.clip_value,
            trainer.running,
            trainer.guard,
            trainer.flag,
            *trainer.metrics,
            self._description,
            [p.requires_grad for p in self._parameters],
            [module.training for module in self._modules],
        )
        if changed or settings != self._settings:
            self._settings = settings
            self.forget()
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


def _copy(x: Tensor) -> Tensor:
    return Tensor(x.data.copy())


# What replays would not see -----------------------------------------------------------------------


class Attributes:
    """The attributes of `objects` as they were noted, and the arrays of those that are tensors.

    Numbers, strings and None are compared, all else is the same only if it is the same object:
    what changes within a list is not seen. Holding them all keeps them alive: a graph works on
    arrays of that time. Two hundred modules take some 0.1 ms.
    """

    def __init__(self, *objects: Any) -> None:
        self._dicts = [vars(x) for x in objects]
        self.note()

    def note(self) -> None:
        """Remember them as they are now."""
        self._values = self._now()
        self._tensors = [x for x in self._values if isinstance(x, Tensor)]
        self._arrays = [x.data for x in self._tensors]

    def have_changed(self) -> bool:
        """Are they others than noted?"""
        now = self._now()
        if len(now) != len(self._values):
            return True
        if any(map(is_not, self._values, now)) and any(map(_is_another, self._values, now)):
            return True
        return any(map(is_not, self._arrays, [x.data for x in self._tensors]))

    def arrays_have_changed(self) -> bool:
        """Is there a tensor with another array, or another tensor?"""
        now = [x.data for x in self._now() if isinstance(x, Tensor)]
        return len(now) != len(self._arrays) or any(map(is_not, self._arrays, now))

    def _now(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self._dicts))]


#: Compared by what they say.
_PLAIN = (int, float, complex, str, bytes, np.generic, np.dtype, type(None))


def _is_another(before: Any, now: Any) -> bool:
    if before is now:
        return False
    plain = type(before) is type(now) and isinstance(now, _PLAIN)
    return not (plain and repr(before) == repr(now))


def _objects_of(loss: Any) -> list[Any]:
    """Whose attributes a loss reads: its own, those of its object, those of its modules."""
    while isinstance(loss, partial):
        loss = loss.func
    owner = loss.__self__ if isinstance(loss, MethodType) else loss
    if isinstance(owner, Module):
        return list(owner.modules())
    return [owner] if isinstance(getattr(owner, "__dict__", None), dict) else []  # no class
