"""Trained models out of their run folders.

run = open_run("runs/nplm-tinyshakespeare-seed0")
for piece in fw.generate_text(run.model, run.tokenizer, "ROMEO:", tokens=200):
    print(piece, end="")
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import framework as fw
from framework.data import Tokenizer, Transform
from framework.interop import safetensors
from framework.interop.atomic import FileError
from framework.layers import Module
from framework.layers.storage import at_most
from framework.trainer.run import CONFIG, RunConfig, load_model, read_tokenizer, weights_of
from models.zoo import configure, entry


@dataclass(frozen=True)
class Run:
    """A trained model, in evaluation mode, and what it was trained with; a tokenizer where that was
    text, transforms of inputs (and of regression targets) otherwise.
    """

    model: Module
    config: RunConfig
    inputs: Transform | None
    targets: Transform | None
    tokenizer: Tokenizer | None


def open_run(folder: str | Path, device: str | None = None) -> Run:
    """The model of a run folder, on `device` (None: the default device).

    Raises:
        FileError: it is no run folder, the run has not ended, or a file is damaged; one line.
    """
    folder = Path(folder)
    config = RunConfig.read(folder)
    config = replace(config, device=device or str(fw.default_device()))
    with at_most(safetensors.room_of([weights_of(folder)])):
        model = build_model(config, folder)
    inputs, targets = load_model(folder, model, config)
    tokenizer = None
    if config.task == "language":
        tokenizer = read_tokenizer(folder, config.model_config["vocabulary"])
    return Run(model.to(config.device).eval(), config, inputs, targets, tokenizer)


def build_model(config: RunConfig, folder: Path) -> Module:
    """The model of a configuration with new weights; FileError where it describes none, or one that
    does not fit its data.
    """
    try:
        family = entry(config.model)
        settings = configure(config.model, **config.model_config)
        of_data = family.config.of_data
        free = {k: v for k, v in config.model_config.items() if k not in of_data}
        classes = len(config.classes) if config.classes else None
        if config.task == "language":
            classes = settings.vocabulary
        fitting = family.config.for_data(config.shape, classes, config.task, **free)
        if settings != fitting:
            names = [f.name for f in fields(fitting)]
            odd = [name for name in names if getattr(settings, name) != getattr(fitting, name)]
            raise ValueError(f"{', '.join(odd)} of model_config do not fit shape, classes and task")
        return family.build(settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise FileError(f"{folder / CONFIG} describes no model: {error}") from error
