"""A run folder: what was trained, on what, how, and what came of it.

config.json          model, data set, seed, recipe, transforms, versions
metrics.jsonl        a line an epoch
model.safetensors    weights, buffers and the fitted transforms' arrays
curves.png           where matplotlib is installed
profile.txt, trace.json   with --profile: where the time of a few steps went
checkpoints/         while it trains, and after Ctrl-C: the states to resume from
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework import functional as F
from framework.autograd import Tensor, no_grad
from framework.data import (
    Compose,
    DataLoader,
    RandomCrop,
    Splits,
    Standardise,
    Transform,
    from_state,
    random_split,
)
from framework.interop import safetensors
from framework.interop.atomic import FileError, read_bytes
from framework.layers import Module
from framework.optimizers import AdamW, schedules
from framework.trainer import checkpoint
from framework.trainer.callbacks import Callback, EarlyStopping
from framework.trainer.config import (
    CONFIG as CONFIG,
    Recipe as Recipe,
    RunConfig as RunConfig,
)
from framework.trainer.folders import make_folder
from framework.trainer.metrics import R2, Accuracy, Metric
from framework.trainer.precision import ComputePrecision
from framework.trainer.store import Store, checkpoints_in
from framework.trainer.trainer import Trainer
from framework.trainer.versions import version_of as version_of, versions as versions
from kernels.registry import has_numba

METRICS, MODEL, CURVES = "metrics.jsonl", "model.safetensors", "curves.png"
CHECKPOINTS = "checkpoints"

#: Names in model.safetensors, before the names of a transform's arrays.
INPUT, TARGET = "input_transform.", "target_transform."


# Data ---------------------------------------------------------------------------------------------


@dataclass
class Data:
    """The loaders of a run, and the transforms fitted on its training split."""

    train: DataLoader
    validation: DataLoader | None
    test: DataLoader
    inputs: Transform
    targets: Transform | None
    input_range: tuple[float, float]


def fit_transforms(splits: Splits) -> tuple[Transform, Transform | None]:
    """Standardise inputs (images as a whole, other features one by one) and regression targets."""
    per = "all" if len(splits.shape) > 1 else "feature"
    inputs = Standardise(per=per).fit(splits.train)  # type: ignore[arg-type]
    if splits.task == "classification":
        return inputs, None
    targets = splits.train.batch(np.arange(len(splits.train)))[1]
    return inputs, Standardise(per="feature").fit(targets)


def load_data(
    splits: Splits,
    recipe: Recipe,
    seed: int,
    device: str,
    inputs: Transform | None = None,
    targets: Transform | None = None,
) -> Data:
    """Loaders as the recipe has them; the transforms are fitted unless they are given."""
    if inputs is None:
        inputs, targets = fit_transforms(splits)
    if recipe.label_smoothing and splits.task != "classification":
        raise ValueError(
            f"label_smoothing is {recipe.label_smoothing}, but {splits.name} has no classes"
        )
    train: Any = splits.train
    held_out = None
    if recipe.validation:
        train, held_out = random_split(train, [1 - recipe.validation, recipe.validation], seed)
    augmented: Transform = inputs
    if recipe.shift:
        if len(splits.shape) != 3:
            raise ValueError(f"shift is {recipe.shift}, but {splits.name} has no images")
        height, width = splits.shape[1:]
        if recipe.shift >= min(height, width):
            raise ValueError(
                f"shift is {recipe.shift}, but the images of {splits.name} have {height}x{width} "
                f"pixels: expected at most {min(height, width) - 1}"
            )
        augmented = Compose(RandomCrop(splits.shape[1:], padding=recipe.shift), inputs)
    # A last batch of a single sample has no variance for batch norm: leave it out.
    single = len(train) % recipe.batch_size == 1 and len(train) > recipe.batch_size
    training = DataLoader(
        train,
        recipe.batch_size,
        shuffle=True,
        drop_last=single,
        seed=seed,
        transform=augmented,
        target_transform=targets,
        device=device,
    )
    everything = {"transform": inputs, "target_transform": targets, "device": device}
    x = splits.train.batch(np.arange(min(len(splits.train), 10_000)))[0]
    return Data(
        training,
        None if held_out is None else DataLoader(held_out, EVALUATED, **everything),  # type: ignore[arg-type]
        DataLoader(splits.test, EVALUATED, **everything),  # type: ignore[arg-type]
        inputs,
        targets,
        (float(x.min()), float(x.max())),
    )


#: Samples of a batch in evaluation: few enough for a small model's loops to stay on one thread, so
#: that a first run compiles no parallel twins (2 s less).
EVALUATED = 128

# Training -----------------------------------------------------------------------------------------


def loss_for(task: str, label_smoothing: float = 0.0) -> Any:
    """Cross-entropy of logits, or the mean squared error."""
    if task == "regression":
        return F.mse_loss

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=label_smoothing)

    return loss


def metric_for(task: str) -> Metric:
    """The one number that a run is judged by."""
    return R2() if task == "regression" else Accuracy()


@contextmanager
def fitting_threads(model: Module, shape: tuple[int, ...], batch_size: int) -> Iterator[None]:
    """Within the block, one thread where the steps are too small for two to be worth waking.

    A step of 20 M multiply-adds takes one core 0.5 ms. Splitting its dozen products saves little on
    an idle machine; on a busy one each split waits for a second core, 5 ms at a time (measured: an
    epoch of digits 20 times as slow). The result is the same, bit for bit.
    """
    work = 3 * model.summary((1, *shape)).multiply_adds * batch_size  # forward and two gradients
    if not has_numba() or work > 20_000_000:
        yield
        return
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def make_trainer(
    model: Module, config: RunConfig, data: Data, callbacks: list[Callback]
) -> Trainer:
    """AdamW, warm-up and cosine, and with a validation split early stopping (before the other
    `callbacks`).
    """
    recipe = config.recipe
    assert recipe.epochs is not None
    steps = -(-len(data.train) // recipe.accumulate) * recipe.epochs
    optimizer = AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    rising = round(recipe.warmup * steps)
    schedule = schedules.linear_warmup(
        rising, then=schedules.cosine(max(1, steps - rising)), start=1 / (rising + 1)
    )
    if data.validation is not None:
        patience = recipe.patience or recipe.epochs
        callbacks = [EarlyStopping("validation_loss", patience=patience), *callbacks]
    trainer = Trainer(
        model,
        loss_for(config.task, recipe.label_smoothing),
        optimizer,
        schedule,
        metrics=[metric_for(config.task)],
        callbacks=callbacks,
        device=config.device,
        accumulate=recipe.accumulate,
        clip_norm=recipe.clip_norm,
        precision=recipe.precision,
    )
    trainer.config = asdict(config)
    return trainer


# Weights ------------------------------------------------------------------------------------------


def save_model(folder: Path, model: Module, data: Data) -> None:
    """Write model.safetensors."""
    arrays: dict[str, Any] = dict(model.state_dict())
    arrays |= {INPUT + name: array for name, array in data.inputs.state_dict().items()}
    if data.targets is not None:
        arrays |= {TARGET + name: array for name, array in data.targets.state_dict().items()}
    safetensors.save(arrays, folder / MODEL)


def load_model(
    folder: Path, model: Module, config: RunConfig
) -> tuple[Transform, Transform | None]:
    """Read model.safetensors into `model`; returns the transforms of inputs and targets.

    Raises:
        FileError: the file is missing (the run did not end), damaged, or of another model.
    """
    path = folder / MODEL
    if not path.is_file() and checkpoints_in(folder / CHECKPOINTS):
        raise FileError(f"{folder} has not ended its training: go on with train --resume {folder}")
    arrays, metadata = safetensors.load_with_metadata(path)
    if safetensors.CHECKSUM not in metadata:
        raise FileError(f"{path} is damaged: its checksum is missing")
    try:
        inputs = _transform(config.input_transform, arrays, INPUT)
        targets = None
        if config.target_transform is not None:
            targets = _transform(config.target_transform, arrays, TARGET)
        weights = {n: a for n, a in arrays.items() if not n.startswith((INPUT, TARGET))}
        model.load_state_dict(weights)
    except (ValueError, TypeError, KeyError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines())
        reason = reason.replace(":; ", ": ")  # a list begins
        raise FileError(f"{path} does not fit {folder / CONFIG}: {reason}") from error
    return inputs, targets


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


def _transform(config: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str) -> Transform:
    state = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return from_state(config, state)


def invert(transform: Transform | None, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values on the scale of the data again: x * scale + shift."""
    if transform is None:
        return values
    state = transform.state_dict()
    return np.asarray(values * state["scale"] + state["shift"], values.dtype)
