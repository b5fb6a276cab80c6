"""A run folder: what was trained, on what, how, and what came of it.

config.json          model, data set, seed, recipe, transforms, versions
tokenizer.json       of text
metrics.jsonl        a line an epoch
model.safetensors    weights, buffers and the fitted transforms' arrays
curves.png           where matplotlib is installed
profile.txt, trace.json   with --profile: where the time of a few steps went
checkpoints/         while it trains, and after Ctrl-C: the states to resume from
"""

from __future__ import annotations

import json
import logging
import operator
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from framework import functional as F
from framework.autograd import Tensor, no_grad
from framework.data import Transform, from_state
from framework.interop import safetensors
from framework.interop.atomic import FileError, read_bytes
from framework.interop.lock import holder
from framework.layers import Module
from framework.optimizers import SGD, AdamW, Optimizer, schedules
from framework.trainer import checkpoint
from framework.trainer.callbacks import Callback, EarlyStopping
from framework.trainer.config import (
    CONFIG as CONFIG,
    Recipe as Recipe,
    RunConfig as RunConfig,
)
from framework.trainer.folders import make_folder
from framework.trainer.language import (
    TOKENIZER as TOKENIZER,
    LanguageScores as LanguageScores,
    LastStep,
    language_scores as language_scores,
    opening as opening,
    read_tokenizer as read_tokenizer,
    save_tokenizer as save_tokenizer,
    token_loss,
    tokenizer_for as tokenizer_for,
)
from framework.trainer.loading import Data as Data, load_data as load_data
from framework.trainer.metrics import R2, Accuracy, Metric
from framework.trainer.model_loss import ModelLoss
from framework.trainer.precision import ComputePrecision
from framework.trainer.store import Store, checkpoints_in
from framework.trainer.trainer import Trainer
from framework.trainer.versions import version_of as version_of, versions as versions
from kernels.registry import has_numba

log = logging.getLogger("framework")

METRICS, MODEL, CURVES = "metrics.jsonl", "model.safetensors", "curves.png"
CHECKPOINTS = "checkpoints"

#: Names in model.safetensors, before the names of a transform's arrays.
INPUT, TARGET = "input_transform.", "target_transform."
#: And of the epochs that its weights have seen.
EPOCH = "run.epoch"


# Training -----------------------------------------------------------------------------------------


def loss_for(task: str, model: Module, label_smoothing: float = 0.0) -> Any:
    """Cross-entropy of logits, or the mean squared error; of a language model its own, if it has
    one.
    """
    if task == "regression":
        return F.mse_loss
    if task == "language" and hasattr(model, "loss"):
        return ModelLoss(label_smoothing=label_smoothing)
    if task == "language":
        return partial(token_loss, label_smoothing=label_smoothing)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=label_smoothing)

    return loss


def metrics_for(task: str) -> list[Metric]:
    """The one number that a run is judged by; of text that is the loss."""
    known: dict[str, list[Metric]]
    known = {"classification": [Accuracy()], "regression": [R2()], "language": []}
    return known[task]


def optimizer_for(recipe: Recipe, model: Module) -> Optimizer:
    """As the recipe has it."""
    parameters: list[Any] = list(model.parameters())
    if recipe.decay == "matrices":
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        parameters = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        parameters = [group for group in parameters if group["params"]]
    lr, momentum, decay = recipe.lr, recipe.momentum, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return SGD(parameters, lr, momentum, weight_decay=decay, nesterov=momentum > 0)
    return AdamW(parameters, lr, (momentum, recipe.beta2), weight_decay=decay)


def example(config: RunConfig) -> Any:
    """One input, for `Module.summary`: its shape, or token ids."""
    if config.task == "language":
        return Tensor(np.zeros((1, *config.shape), np.int64)).to(config.device)
    return (1, *config.shape)


@contextmanager
def fitting_threads(model: Module, config: RunConfig) -> Iterator[None]:
    """Within the block, one thread where the steps are too small for two to be worth waking.

    A step of 20 M multiply-adds takes one core 0.5 ms. Splitting its dozen products saves little on
    an idle machine; on a busy one each split waits for a second core, 5 ms at a time (measured: an
    epoch of digits 20 times as slow). The result is the same, bit for bit.
    """
    forward = model.summary(example(config)).multiply_adds * config.recipe.batch_size
    work = 3 * forward  # with both gradients
    if not has_numba() or work > 20_000_000:
        yield
        return
    from kernels.cpu.engine import set_threads, threads

    before = threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


def make_trainer(
    model: Module, config: RunConfig, data: Data, callbacks: list[Callback]
) -> Trainer:
    """The recipe's optimizer, warm-up and cosine, and with a validation split early stopping
    (before the other `callbacks`).
    """
    recipe = config.recipe
    assert recipe.epochs is not None
    steps = recipe.steps or -(-len(data.train) // recipe.accumulate) * recipe.epochs
    rising = round(recipe.warmup * steps)
    schedule = schedules.linear_warmup(
        rising,
        then=schedules.cosine(max(1, steps - rising), recipe.final_lr),
        start=1 / (rising + 1),
    )
    if data.validation is not None:
        patience = recipe.patience or recipe.epochs
        callbacks = [EarlyStopping("validation_loss", patience=patience), *callbacks]
    if recipe.steps is not None:
        callbacks = [LastStep(recipe.steps), *callbacks]
    trainer = Trainer(
        model,
        loss_for(config.task, model, recipe.label_smoothing),
        optimizer_for(recipe, model),
        schedule,
        metrics=metrics_for(config.task),
        callbacks=callbacks,
        device=config.device,
        accumulate=recipe.accumulate,
        clip_norm=recipe.clip_norm,
        precision=recipe.precision,
    )
    trainer.config = asdict(config)
    return trainer


# Weights ------------------------------------------------------------------------------------------


def save_model(folder: Path, model: Module, data: Data, epoch: int) -> None:
    """Write model.safetensors, the weights after so many epochs."""
    arrays: dict[str, Any] = dict(model.state_dict())
    for prefix, transform in ((INPUT, data.inputs), (TARGET, data.targets)):
        if transform is not None:
            arrays |= {prefix + name: x for name, x in transform.state_dict().items()}
    arrays[EPOCH] = np.array(epoch)
    safetensors.save(arrays, folder / MODEL)


def weights_of(folder: Path) -> Path:
    """The file model.safetensors; FileError where there is none, as when the run did not end."""
    path = folder / MODEL
    if path.is_file():
        return path
    if (process := holder(folder)) is not None:
        raise FileError(f"{folder} is being trained by process {process}: wait for its end")
    if checkpoints_in(folder / CHECKPOINTS):
        raise FileError(f"{folder} has not ended its training: {_go_on(folder)}")
    raise FileError(f"{path} does not exist")


def load_model(
    folder: Path, model: Module, config: RunConfig
) -> tuple[Transform | None, Transform | None]:
    """Read model.safetensors into `model`; returns the transforms of inputs and targets.

    Raises:
        FileError: the file is missing (the run did not end), damaged, or of another model.
    """
    path = weights_of(folder)
    arrays, metadata = safetensors.load_with_metadata(path)
    written = arrays.pop(EPOCH, None)
    if safetensors.CHECKSUM not in metadata:
        raise FileError(f"{path} is damaged: its checksum is missing")
    try:
        epoch = None if written is None else operator.index(written)
        inputs = _transform(config.input_transform, arrays, INPUT)
        targets = _transform(config.target_transform, arrays, TARGET)
        weights = {n: a for n, a in arrays.items() if not n.startswith((INPUT, TARGET))}
        model.load_state_dict(weights)
    except (ValueError, TypeError, KeyError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines())
        reason = reason.replace(":; ", ": ")  # a list begins
        raise FileError(f"{path} does not fit {folder / CONFIG}: {reason}") from error
    _tell_of_older_weights(folder, epoch, config)
    return inputs, targets


def _tell_of_older_weights(folder: Path, epoch: int | None, config: RunConfig) -> None:
    """A warning where the run is being trained on, was until a stop, or has ended too early."""
    process, epochs = holder(folder), config.recipe.epochs or 0
    model = "this is the model that it has so far" + (
        "" if epoch is None else f", of epoch {epoch}"
    )
    if process == str(os.getpid()):  # which trains it on
        return
    if process is not None:
        what = f"is being trained by process {process}"
    elif checkpoints_in(folder / CHECKPOINTS) and epoch != epochs:
        what = f"has not ended its training ({_go_on(folder)})"
    elif epoch is not None and epoch < epochs and not config.recipe.validation:
        what = f"ended in epoch {epoch + 1} of {epochs}, as its loss diverged"
        model = "this is the model that it had then"
    else:
        return
    log.warning("note: %s %s; %s", folder, what, model)


def _go_on(folder: Path) -> str:
    return f"go on with train --resume {folder}"


def keep_state_of_complete_run(
    folder: Path, trainer: Trainer, config: RunConfig, data: Data
) -> None:
    """Write a checkpoint for a run that has ended, to train on from: weights and epochs as they
    were. The optimizer's averages are not kept with such a run: it starts anew.

    Raises:
        FileError: model.safetensors or metrics.jsonl are missing or damaged.
    """
    load_model(folder, trainer.model, config)
    trainer.history = read_history(folder / METRICS)
    trainer.epoch, trainer.step = len(trainer.history), trainer.history[-1]["step"]
    trainer.position.attach(data.train)
    data.train.set_epoch(trainer.epoch)
    make_folder(folder / CHECKPOINTS)
    Store(folder / CHECKPOINTS).save(checkpoint.to_bytes(trainer.state_dict()))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; what JSON has as null is NaN again."""
    try:
        records = [json.loads(line) for line in read_bytes(path).splitlines()]
        numbers = [record["epoch"] for record in records]
        if not numbers or numbers != list(range(1, len(numbers) + 1)):
            raise ValueError("its epochs are not 1, 2, ...")
        if not isinstance(records[-1]["step"], int):
            raise ValueError(f"step is {records[-1]['step']!r}")
        return [
            {name: float("nan") if value is None else value for name, value in record.items()}
            for record in records
        ]
    except FileError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error}") from error


def outputs_for(
    model: Module,
    x: np.ndarray[Any, Any],
    device: str,
    precision: str = "float32",
    batch_size: int = 256,
) -> Tensor:
    """What `model` makes of transformed inputs (N, ...), in evaluation mode: float32, computed as
    in its training.
    """
    model.eval()
    parts = [Tensor(x[i : i + batch_size]).to(device) for i in range(0, len(x), batch_size)]
    how = ComputePrecision(precision)
    with no_grad(), how.computing():
        return F.concatenate([how.widened(model(part)) for part in parts])


def _transform(
    config: Mapping[str, Any] | None, arrays: Mapping[str, Any], prefix: str
) -> Transform | None:
    if config is None:
        return None
    state = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return from_state(config, state)


def invert(transform: Transform | None, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values on the scale of the data again: x * scale + shift."""
    if transform is None:
        return values
    state = transform.state_dict()
    return np.asarray(values * state["scale"] + state["shift"], values.dtype)
