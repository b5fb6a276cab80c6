"""The training loop, and what surrounds it: evaluation, prediction, the state of a run."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from framework.autograd import Tensor, no_grad
from framework.backend.device import Device, choose_device
from framework.data import DataLoader
from framework.data.prefetch import batches_on
from framework.functional import concatenate
from framework.layers import Module
from framework.optimizers import EMA, Optimizer, ReduceOnPlateau, clip_grad_norm_, clip_grad_value_
from framework.trainer import checkpoint
from framework.trainer.arguments import check_arguments, check_loader
from framework.trainer.batch_size import set_batch_size
from framework.trainer.callbacks.callback import Callback, acts
from framework.trainer.capture import captured_training
from framework.trainer.guard import Flag, Guard
from framework.trainer.inputs import as_input, holds_numbers
from framework.trainer.memory import explains_memory
from framework.trainer.metrics import Mean, Metric
from framework.trainer.model_loss import ModelLoss
from framework.trainer.position import Position, attached
from framework.trainer.precision import ComputePrecision
from framework.trainer.state import load_state, state_of
from framework.trainer.suspects import explain_evaluation
from framework.trainer.trial import dry_run
from kernels.optimizers import held_by

log = logging.getLogger("framework")

#: Inputs and, last, the target.
Batch = Sequence[Tensor]
#: A DataLoader, or any list or other iterable of batches that can be gone through again.
Loader = Iterable[Batch]
Record = dict[str, Any]


class Trainer:
    """Fits a model: forward, loss, backward, clip, step, schedule.

    Args:
        model: called as ``model(*inputs)``.
        loss: ``loss(output, target)``, a scalar Tensor, the mean over the batch's samples; or a
            `ModelLoss`, the model's own.
        optimizer: over the model's parameters; its learning rates are the schedule's 1.
        schedule: ``schedule(step)``, by which the learning rates are multiplied, or a
            ReduceOnPlateau.
        metrics: computed on the training batches as they pass, and by `evaluate`.
        callbacks: called in their order, see `Callback`.
        device: where the model is moved and the batches go; None: where the model is.
        accumulate: batches whose gradients make one step. Weighted by samples, so that it equals
            one big batch (but batch norm sees the small ones). Where there are metrics, outputs are
            kept until the step is done, so that none takes in one that fails. A loss that is a mean
            over something else than samples, such as cross-entropy with `ignore_index` or class
            weights, is weighted by samples all the same, here and in the records: not by the
            positions that count or by their weights.
        clip_norm: the gradients' global norm is brought down to this.
        clip_value: every gradient element is brought into [-clip_value, clip_value], before
            `clip_norm`.
        ema: an average of the weights, updated after each step; evaluation and prediction use it,
            but ``model.state_dict()`` has the model's own. What was evaluated is saved by ``with
            ema.swap(): fw.save(model.state_dict(), path)``.
        precision: "float32"; "tf32", on CUDA; "bf16-mixed" or "fp16-mixed", products in 16 bits
            with float32 weights. See framework/trainer/precision.py, also for skipped steps.
        capture: replay the steps as CUDA graphs (see `framework.cuda.graph`), which leaves out what
            Python and the launches take. "auto": on CUDA, unless something in a step cannot be
            captured, which is said once. True: that is a CaptureError. False: never, for a model or
            loss that does something else from step to step, such as drawing NumPy's random numbers.
            What callbacks set between steps is followed, by a new capture: the attributes of the
            model's modules and of the loss object (numbers, strings, other objects), arrays of
            parameters and buffers, the trainer's own. Not seen is what changes inside of a list,
            dict or other object that an attribute holds, in globals or in a closure: set the
            attribute to a new object.
        batch_size: of a DataLoader that `fit` trains on, in place of its own. "auto": the largest
            that fits into memory, see `find_batch_size`. None: the loader's.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[[Tensor, Tensor], Tensor] | ModelLoss,
        optimizer: Optimizer,
        schedule: Callable[[int], float] | ReduceOnPlateau | None = None,
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
        device: str | Device | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: EMA | None = None,
        precision: str = "float32",
        capture: bool | str = "auto",
        batch_size: int | str | None = None,
    ) -> None:
        check_arguments(
            model, loss, optimizer, schedule, metrics, callbacks, accumulate, clip_norm, clip_value,
            ema, batch_size,
        )  # fmt: skip
        self.batch_size = batch_size
        if isinstance(loss, ModelLoss):
            loss.check(model, metrics)
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.metrics, self.callbacks = list(metrics), list(callbacks)
        self.device = _device_of(model, device)
        self.accumulate, self.clip_norm, self.clip_value = accumulate, clip_norm, clip_value
        self.ema = ema
        self.precision = ComputePrecision(precision)
        self.precision.check(model, optimizer)
        self._captured = captured_training(self, capture)

        self.epoch = 0  # epochs done
        self.step = 0  # optimizer steps done
        self.skipped = 0  # steps left out, as float16 gradients overflowed or a callback said so
        self.skip_step = False  # a callback sets it in on_gradients to leave out this step
        self.history: list[Record] = []  # a record for each epoch
        self.should_stop = False  # a callback sets it to end training after this step
        self.running = Mean()  # the loss of this epoch so far
        self.samples = 0  # of this epoch so far
        self.guard: Guard | None = None  # holds steps on the device, see TerminateOnNaN
        self.flag: Flag | None = None  # for gradients before `clip_value`, the same or another
        self.norm: Tensor | None = None  # of the gradients before `clip_norm`
        self.window: list[Batch] = []  # the batches of this step
        self.losses: list[Tensor] = []  # and their losses
        self.position = Position()  # in the training data
        self.validation: dict[str, Position] = {}
        self.epochs = 0
        self.config: dict[str, Any] | None = None  # what a checkpoint says of the run as a whole
        self.folders: set[Path] = set()  # whose checkpoints are this run's
        self._asked: list[Callback] = []  # which of them act at a moment,
        self._acting: dict[str, list[Callable[..., None]]] = {}  # and how
        self._resumed = False  # should_stop is that of the saved run
        self._began = 0.0  # the epoch, by time.perf_counter
        self._skipped_before = 0  # the epoch

    # Training -------------------------------------------------------------------------------------

    def fit(
        self,
        train_loader: Loader,
        validation: Loader | Mapping[str, Loader] | None = None,
        epochs: int = 1,
        resume: str | Path | None = None,
        fast_dev_run: bool | int = False,
    ) -> list[Record]:
        """Train until `epochs` epochs are done in all, also after a resume; returns the history.

        Where they are done already, or where the resumed run had been stopped by a callback (its
        `should_stop` is restored; set it to False to train on), only the callbacks' `on_fit_start`
        and `on_fit_end` run: they finish what a kill after the last epoch cut short.

        `resume`: a checkpoint, or the folder of a ModelCheckpoint, whose newest whole one is taken.
        The run goes on there, with the next batch where that is inside an epoch, and ends with the
        same bits as if it had not been interrupted.

        `fast_dev_run`: one batch (or so many) of each loader goes through all of an epoch, without
        the callbacks that write files; nothing of it stays. Does everything fit together?

        On CUDA a label or an id out of range makes the loss NaN, and the weights with it; the error
        with its index and value comes with a `TerminateOnNaN` among the callbacks.

        A record of the history has epoch, step, loss and metrics of the training batches, seconds,
        samples_per_second, and for each loader of `validation` its loss and metrics as val_loss,
        val_accuracy, ... (a mapping names them itself: ``{"test": loader}`` gives test_loss, ...).
        """
        check_loader("train_loader", train_loader)
        loaders: Mapping[str, Loader | None] = (
            validation if isinstance(validation, Mapping) else {"val": validation}
        )
        for name, each in loaders.items():
            if each is not None:
                named = isinstance(validation, Mapping)
                check_loader(f"validation[{name!r}]" if named else "validation", each)
        if resume is not None:
            checkpoint.resume(resume, self)
        if fast_dev_run:
            return dry_run(self, train_loader, loaders, int(fast_dev_run))
        least = max(1, self.epoch)
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < least:
            raise ValueError(
                f"epochs is {epochs!r}, expected an integer of at least {least} "
                f"({self.epoch} epochs are done)"
            )
        if self.batch_size is not None:
            set_batch_size(self, train_loader)
        self.position.attach(train_loader)
        self.validation = attached(self.validation, loaders)
        self.epochs = epochs
        self.should_stop, self._resumed = self.should_stop and self._resumed, False
        try:
            self._call("on_fit_start")
            while self.epoch < epochs and (self.position.batches or not self.should_stop):
                self._call("on_epoch_start")
                record = self._train_epoch()
                for name, where in self.validation.items():
                    scores = self.evaluate(where.loader)
                    record |= {f"{name}_{key}": score for key, score in scores.items()}
                self.epoch, self.position.batches = self.epoch + 1, 0
                self.history.append({"epoch": self.epoch, "step": self.step, **record})
                if isinstance(self.schedule, ReduceOnPlateau):
                    self.schedule.step(_watched(self.history[-1]))
                self._call("on_epoch_end")
                self._call("on_epoch_complete")
            self._call("on_fit_end")
        except BaseException as error:
            self._settle_after(error)
            self._call("on_exception", error)
            raise
        finally:
            self.window, self.losses = [], []
        return self.history

    @explains_memory
    def _train_epoch(self) -> Record:
        """The epoch, or what is left of it after a resume."""
        if not self.position.batches:
            self._reset()
        self.model.train()
        for window in _windows(self.position.rest(self.device), self.accumulate):
            if self.should_stop:  # resumed after its last step: the epoch's end is to be made up
                break
            self._train_step(window)
            if self.should_stop:
                break
        self.settle()
        if not self.samples:
            left_out = self.position.batches
            raise ValueError(
                f"all {left_out} batches of the epoch were left out"
                if left_out
                else "the training loader has no batches"
            )
        scores = {"loss": self.running.compute()}
        scores |= {metric.name: metric.compute() for metric in self.metrics}
        seconds = (
            time.perf_counter() - self._began
        )  # now, as computing waits for a device's last step
        record: Record = {
            **scores,
            "seconds": seconds,
            "samples_per_second": self.samples / seconds,
        }
        if self.precision.scaler is not None:
            record |= {"scale": self.precision.scaler.get_scale()}
        if self.precision.scaler is not None or self.skipped > self._skipped_before:
            record |= {"skipped": self.skipped - self._skipped_before}
        return record

    def _train_step(self, window: list[Batch]) -> None:
        """The textbook: forward, loss, backward, clip, schedule, step."""
        self.window, self.losses, self.skip_step = window, [], False
        self._call("on_step_start")
        moved = None if self._captured is None else self._captured.step(window)
        if moved is None:
            moved = self._take_step(window)
        self.position.batches += len(window)
        if moved:
            self.step += 1
            self._call("on_step_end")
        else:
            self.skipped += 1
            self._call("on_step_skipped")
            self.precision.update()

    def _take_step(self, window: list[Batch]) -> bool:
        """Sums take in a step when it is done: none that is left out or that raises."""
        results: list[tuple[Any, Tensor, Tensor]] = []

        def observe(output: Any, target: Tensor, loss: Tensor) -> None:
            self.losses.append(loss.detach())
            results.append((output.detach() if self.metrics else None, target, self.losses[-1]))

        computed = self.compute_gradients(window, observe)
        moved = computed and self.look()
        with self.holding():
            if moved:
                self.apply_schedule()
                self.move_weights()
            if moved or not computed:  # overflowed, with "fp16-mixed"
                for result in results:
                    self._take_in(*result)
        return moved

    def settle(self) -> None:
        """Wait until the steps so far are known to be good. Raises what the callbacks raise where
        one was not.
        """
        self._call("on_settle")

    def _settle_after(self, error: BaseException) -> None:
        """Whatever has ended the run: nothing is left of a bad step that nobody has heard of."""
        try:
            if self.guard is not None:
                self.guard.ask()  # of the step that is under way, too
            self.settle()
        except Exception as earlier:
            text = f"before that, {type(earlier).__name__}: {earlier}"
            error.add_note(text)
            log.warning("%s", text)  # Ctrl-C's notes are not shown by everybody

    def look(self) -> bool:
        """Show the gradients to the callbacks. False where one has set `skip_step`."""
        self._call("on_gradients")
        return not self.skip_step

    def compute_gradients(
        self, window: list[Batch], observe: Callable[[Any, Tensor, Tensor], None]
    ) -> bool:
        """Forward, loss, backward, clip; `observe` gets output (None with a `ModelLoss`), target
        and loss of each batch.

        False where the gradients overflowed, with precision "fp16-mixed": there is no step then.
        """
        self.optimizer.zero_grad()
        self.precision.begin(self.model)
        in_window = sum(len(batch[-1]) for batch in window)
        with self.precision.computing():  # 16-bit copies of the weights live as long as this
            for batch in window:
                output, target, loss = self._forward(batch)
                share = len(target) / in_window
                if self.guard is not None:
                    self.guard.mark(loss.data)
                self.precision.scaled(loss if share == 1 else loss * share).backward()
                observe(output, target, loss)
        if not self.precision.unscale(self.optimizer):
            return False
        if self.clip_value is not None:
            if self.flag is not None:
                self.flag.mark_gradients(self.optimizer)  # clipped, infinity is a number
            clip_grad_value_(self.optimizer, self.clip_value)
        if self.clip_norm is not None:
            norm = clip_grad_norm_(self.optimizer, self.clip_norm)
            self.norm = norm if self._captured is None else None  # else it is a graph's
        return True

    def _forward(self, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        """Output, target and loss of a batch."""
        *inputs, target = self._here(batch)
        if isinstance(self.loss, ModelLoss):
            return None, target, self.loss(self.model, inputs, target)
        output = self.precision.widened(self.model(*inputs))
        return output, target, self.loss(output, target)

    def apply_schedule(self) -> None:
        """Set the learning rates of this step."""
        if self.schedule is not None:
            self.optimizer.scale_lr(self.schedule(self.step))

    def move_weights(self) -> None:
        """Step, and take the new weights into the average."""
        guard = self.guard
        if guard is not None and not (guard.alone and self.clip_value is not None):
            guard.mark_gradients(self.optimizer)  # else they have been, before they were clipped
        self.optimizer.step()
        self.precision.update()
        if self.ema is not None:
            self.ema.update()

    def holding(self) -> AbstractContextManager[None]:
        """The block in which weights and sums move; after a bad step they do not, with a guard."""
        return nullcontext() if self.guard is None else held_by(self.guard.found)

    def _take_in(self, output: Any, target: Tensor, loss: Tensor) -> None:
        """Running loss and metrics. Sums stay on the device: no waiting for it in a step."""
        self.running.update(loss, len(target))
        self.samples += len(target)
        for metric in self.metrics:
            metric.update(output, target)

    def _reset(self) -> None:
        self._began, self._skipped_before = time.perf_counter(), self.skipped
        self.running.reset()
        self.samples = 0
        for metric in self.metrics:
            metric.reset()

    def _call(self, hook: str, *args: Any) -> None:
        """Of the callbacks that do something there; who they are is asked once an epoch."""
        if self._asked != self.callbacks or hook == "on_epoch_start":
            self._asked, self._acting = list(self.callbacks), {}
        acting = self._acting.get(hook)
        if acting is None:
            acting = [getattr(c, hook) for c in self.callbacks if acts(c, hook)]
            self._acting[hook] = acting
        for act in acting:
            act(self, *args)

    def _here(self, batch: Batch) -> list[Tensor]:
        return [x.to(self.device) for x in batch]

    # Evaluation -----------------------------------------------------------------------------------

    @explains_memory
    def evaluate(self, loader: Loader) -> dict[str, Any]:
        """Loss and metrics over a loader: evaluation mode, no gradients, the EMA's weights if there
        is one.

        Every module is in its former mode afterwards. A label, id or length out of range is the
        IndexError or ValueError of the CPU on CUDA too: where the loss comes out as no number, it
        goes through the loader again to look at them. (Where that is an iterator, which is at its
        end, a warning says which batch it was.)
        """
        check_loader("loader", loader)
        mean, metrics, losses = Mean(), copy.deepcopy(self.metrics), []
        place = loader.upcoming() if isinstance(loader, DataLoader) else None
        for metric in metrics:
            metric.reset()
        with self.evaluating():
            for batch in batches_on(loader, self.device):
                with self.precision.computing():
                    output, target, loss = self._forward(batch)
                mean.update(loss, len(target))
                losses.append(loss)
                for metric in metrics:
                    metric.update(output, target)
        if not mean.weight:
            raise ValueError("the loader to evaluate has no batches")
        score = mean.compute()
        if self.device.kind != "cpu" and not math.isfinite(score):
            explain_evaluation(self, loader, place, losses)
        return {"loss": score, **{metric.name: metric.compute() for metric in metrics}}

    @explains_memory
    def predict(
        self, data: Loader | Tensor | np.ndarray[Any, Any] | list[Any], batch_size: int = 256
    ) -> Tensor:
        """The model's outputs (N, ...) for an array, nested list or Tensor of N inputs, or for a
        loader's.

        They are float32 in every precision. Arrays and lists become what the model computes with,
        the dtype of its parameters; integers stay integers where it has an Embedding. A Tensor is
        taken as it is. Of a loader's batches the last array, the target, is left out (unless it is
        the only one).
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
        batches: Loader
        if isinstance(data, Tensor) or hasattr(data, "dtype") or holds_numbers(data):
            x = data if isinstance(data, Tensor) else as_input("predict", data, self.model)
            if x.ndim == 0:
                raise ValueError("predict: data has shape (), expected inputs (N, ...)")
            batches = ((x[i : i + batch_size],) for i in range(0, len(x), batch_size))
        elif isinstance(data, Iterable):
            batches = data
        else:
            raise TypeError(
                f"predict: data is a {type(data).__name__}, expected an array, a nested list, a "
                "Tensor or a loader"
            )
        outputs = []
        with self.evaluating():
            for batch in batches_on(batches, self.device):
                inputs = self._here(batch[:-1] if len(batch) > 1 else batch)
                with self.precision.computing():
                    outputs.append(self.precision.widened(self.model(*inputs)))
        if not outputs:
            raise ValueError("there is nothing to predict: the data is empty")
        return concatenate(outputs)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block: evaluation mode, no gradients, averaged weights. All restored
        afterwards.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with no_grad():
                if self.ema is None:
                    yield
                else:
                    with self.ema.swap():
                        yield
        finally:
            for module, training in modes:
                module.training = training

    # The state of a run ---------------------------------------------------------------------------

    @property
    def train_loader(self) -> Loader:
        """What `fit` trains on."""
        loader: Loader = self.position.loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit, see framework/trainer/state.py."""
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the next `fit` goes on from there.

        Raises ValueError where the run that gave it had another make: other callbacks, an EMA, a
        plateau schedule, another precision, another model. Then nothing has changed.
        """
        load_state(self, state)


def _windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches in groups of `size`; the last group of an epoch may be smaller."""
    while window := list(islice(batches, size)):
        yield window


def _watched(record: Record) -> float:
    """What a plateau schedule looks at: the first validation loss, else the training loss."""
    losses = [value for key, value in record.items() if key.endswith("_loss")]
    return float(losses[0] if losses else record["loss"])


def _device_of(model: Module, device: str | Device | None) -> Device:
    """Where the model is, after a move to `device` if one is named."""
    if device is not None:
        model.to(choose_device(device))
    found = {parameter.device for parameter in model.parameters()}
    if not found:
        raise ValueError("the model has no parameters to train")
    if len(found) > 1:
        places = ", ".join(sorted(map(str, found)))
        raise ValueError(f"the model's parameters are on several devices: {places}; name one")
    return found.pop()
