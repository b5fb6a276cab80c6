"""What ``train`` does with a plan: build the model, fit it, keep it, score it."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

import framework as fw
from framework import output, screen
from framework.data import TokenSplits
from framework.interop.atomic import FileError
from framework.interop.lock import FolderLock
from framework.layers import BatchNorm1d, BatchNorm2d, Module
from framework.planning import Plan, UsageError, check_still_resumable, expect
from framework.trainer import (
    Callback,
    CurvePlot,
    Interrupts,
    JSONLLog,
    LRMonitor,
    ModelCheckpoint,
    NonFiniteError,
    Profiler,
    Progress,
    SampleText,
    Stopped,
    TerminateOnNaN,
    Trainer,
    checkpoint,
    find_batch_size,
)
from framework.trainer.batch_size import MOST
from framework.trainer.folders import make_folder
from framework.trainer.run import (
    CHECKPOINTS,
    CONFIG,
    CURVES,
    METRICS,
    MODEL,
    TOKENIZER,
    Data,
    LanguageScores,
    RunConfig,
    fitting_threads,
    keep_state_of_complete_run,
    load_data,
    load_model,
    make_trainer,
    opening,
    save_model,
    save_tokenizer,
)
from framework.trainer.store import Store, checkpoints_in
from models import build_model


def run_training(
    plan: Plan, resumed: bool, quiet: bool, profiled: bool, checkpoint_every: str | None
) -> None:
    """Run what `plan` says, from the start or from the last checkpoint; the last line printed is
    the score on the test data.

    Raises:
        typer.Exit: 130, after Ctrl-C; what there is has been kept.
        OSError: where `quiet`, the score cannot be printed; the run is complete.
        NonFiniteError: the loss or a gradient is no number.
        UsageError: another run has taken the folder; `checkpoint_every` is no time.
    """
    every = _every(checkpoint_every)
    model = _prepared(plan)
    new = not plan.folder.exists()
    make_folder(plan.folder)
    lenient = ["stderr"] if quiet else ["stdout", "stderr"]  # quiet: nothing but the result
    try:
        with output.that_may_fail(*lenient), FolderLock(plan.folder):
            if not resumed and (plan.folder / CONFIG).exists():  # written while this was planned
                raise UsageError(f"{plan.folder} holds a run already: choose another --out")
            if resumed:  # what was looked at without the lock
                check_still_resumable(plan)
            _train(plan, model, resumed, quiet, profiled, every)
    finally:
        if new:  # and nothing was written, or nothing kept
            with suppress(OSError):
                plan.folder.rmdir()


def dry_run(plan: Plan, checkpoint_every: str | None) -> None:
    """One batch of each loader, through everything but files; of a run to go on with, from where it
    is.
    """
    _every(checkpoint_every)
    model, data = _prepared(plan), plan.data
    callbacks: list[Callback] = [TerminateOnNaN()]
    if isinstance(plan.splits, TokenSplits):
        callbacks.insert(0, LanguageScores(plan.splits))
    trainer = make_trainer(model, plan.config, data, callbacks)
    after = ""
    if checkpoints_in(plan.folder / CHECKPOINTS):
        checkpoint.resume(plan.folder / CHECKPOINTS, trainer)
        after = f" after step {trainer.step}"
    elif (plan.folder / MODEL).is_file():
        load_model(plan.folder, model, plan.config)
        after = f" after epoch {plan.epochs_before}"
    (record,) = trainer.fit(data.train, _watched(data), fast_dev_run=True)
    shown = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if k.endswith("loss"))
    print(f"one batch went through everything{after}: {shown}")


def with_fitting_batch(plan: Plan, quiet: bool) -> Plan:
    """The plan with the largest batch that fits into memory, but of the data set's size at most.

    Raises:
        UsageError: this system does not say how much memory is free.
        OutOfMemoryError: not even two samples fit.
    """
    config, splits = plan.config, plan.splits
    most = len(plan.data.train.dataset)
    if isinstance(splits, TokenSplits):
        most = len(splits.train.starts)
    trainer = make_trainer(_prepared(plan), config, plan.data, [])
    try:
        found = find_batch_size(trainer, plan.data.train, most=min(MOST, most))
    except NotImplementedError:
        raise UsageError(
            "--batch-size auto: this system does not say how much memory is free: give a number"
        ) from None
    whole = found > most - 8  # it is a multiple of 8
    found = most if whole else found
    if not quiet:
        limit = "all training data at once" if whole else "the largest that fits into memory"
        print(f"batch size {found:,}: {limit}", flush=True)
    config = replace(config, recipe=replace(config.recipe, batch_size=found))
    data = expect(lambda: load_data(splits, config.recipe, config.seed, config.device))
    return replace(plan, config=config, data=data)


def _prepared(plan: Plan) -> Module:
    """The model, on the plan's device, from its seed."""
    fw.manual_seed(plan.config.seed)
    fw.set_default_device(plan.config.device)
    try:
        model = build_model(plan.config, plan.folder)
    except FileError as error:
        if (plan.folder / CONFIG).exists():
            raise
        settings = ", ".join(f"{name}={value}" for name, value in plan.config.model_config.items())
        raise UsageError(
            f"there is no {plan.config.model} with {settings}: {error.__cause__}"
        ) from error
    _check_batches(model, plan.data, plan.config.recipe.batch_size)
    return model


def _watched(data: Data) -> dict[str, Any]:
    return {"validation": data.validation} if data.validation else {"test": data.test}


def _train(
    plan: Plan, model: Module, resumed: bool, quiet: bool, profiled: bool, every: dict[str, Any]
) -> None:
    config, folder, data = plan.config, plan.folder, plan.data
    kept = ModelCheckpoint(folder / CHECKPOINTS, **every)
    callbacks = [
        LRMonitor(),
        TerminateOnNaN(),
        kept,
        JSONLLog(folder / METRICS),
        CurvePlot(folder / CURVES, quiet),
        Interrupts(),
    ]
    if not quiet:
        callbacks.insert(0, Progress(screen.console()))
    if isinstance(plan.splits, TokenSplits):
        callbacks[:0] = [LanguageScores(plan.splits)]  # before all that show or write records
        if not quiet and not profiled:  # a profile is of steps
            callbacks.append(_sample(plan.splits))
    profiler = Profiler(folder)
    if profiled:
        callbacks.insert(0, profiler)
    trainer = make_trainer(model, config, data, callbacks)
    saved = resumed and bool(checkpoints_in(folder / CHECKPOINTS))
    anew = resumed and (folder / MODEL).is_file() and not saved
    if anew:
        keep_state_of_complete_run(folder, trainer, config, data)
    if saved or anew:
        checkpoint.resume(folder / CHECKPOINTS, trainer)
    if plan.epochs_before is not None and config.recipe.steps is not None:
        trainer.should_stop &= config.recipe.validation > 0  # there are more steps now
    if not resumed or plan.epochs_before is not None:
        _describe(plan)
    assert config.recipe.epochs is not None
    began = trainer.step
    try:
        if not quiet:
            before = plan.epochs_before
            screen.show_training(config, plan.splits, model, trainer, before, anew, resumed)
        with fitting_threads(model, config):
            trainer.fit(data.train, _watched(data), config.recipe.epochs)
        make_folder(folder)  # it may have gone meanwhile, and all in it
        if not (folder / CONFIG).exists():
            _describe(plan)
        save_model(folder, model, data, trainer.epoch)
    except KeyboardInterrupt as error:
        step = trainer.step if isinstance(error, Stopped) else None
        _say_how_to_go_on(config, folder, step, kept.saved)
        raise typer.Exit(130) from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_save_last_good(plan, trainer)}") from error
    except Exception:  # memory, the data, ...: what there is has been kept
        if trainer.step > began and checkpoints_in(folder / CHECKPOINTS):
            _say_how_to_go_on(config, folder, None, kept.saved)
        elif not (resumed or trainer.history):
            _remove_new_run(folder)
        raise
    try:
        Store(folder / CHECKPOINTS).remove()
        scores = trainer.evaluate(data.test)
        if profiled and not (quiet and profiler.recorded):
            screen.show_profile(profiler)
        if not quiet:
            screen.show_files(folder)
        screen.print_score(plan.splits, scores, folder)
    except KeyboardInterrupt:
        print(f"\nstopped; the run is complete, its model in {folder / MODEL}", file=sys.stderr)
        command = f"python -m framework evaluate {shlex.quote(str(folder))}"
        print(f"score it with: {command}", file=sys.stderr)
        raise typer.Exit(130) from None


def _describe(plan: Plan) -> None:
    """What reads the run needs beside its weights; config.json, which makes the folder a run,
    last.
    """
    if isinstance(plan.splits, TokenSplits):
        save_tokenizer(plan.folder, plan.splits.tokenizer)
    plan.config.write(plan.folder)


def _every(text: str | None) -> dict[str, Any]:
    """--checkpoint-every as options of ModelCheckpoint: steps, or seconds where it ends in s, m or
    h.
    """
    if text is None:
        return {"every_seconds": 10.0}
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        number = int(text) if unit is None else float(text[:-1]) * unit
    except ValueError:
        number = 0
    if not 0 < number < 1e9:
        raise UsageError(
            f"--checkpoint-every {text}: expected a number of steps, or a time such as 30s or 10m"
        )
    return {"every_steps": number} if unit is None else {"every_seconds": number}


def _sample(splits: TokenSplits) -> Callback:
    """Shows a little text after each epoch."""
    start = opening(splits.tokenizer, splits.train.ids)
    return SampleText(splits.tokenizer, start, show=screen.show_sample)


def _check_batches(model: Module, data: Data, batch_size: int) -> None:
    """UsageError where batch norm would see a single sample, which has no variance."""
    samples = len(data.train.dataset)
    if min(batch_size, samples) > 1:
        return
    if any(isinstance(m, (BatchNorm1d, BatchNorm2d)) for m in model.modules()):
        what = f"batch_size is {batch_size}" if samples > 1 else "there is 1 training sample"
        raise UsageError(
            f"{what}, but batch norm needs at least 2 samples in a batch: take larger batches"
            + (", or --set norm=layer" if hasattr(model.config, "norm") else "")
        )


def _save_last_good(plan: Plan, trainer: Trainer) -> str:
    """Keep the weights that the run ended with if they are finite; says what is kept, and how to
    start again: a resumed run would diverge at the same step.
    """
    folder, model = plan.folder, trainer.model
    if all(np.isfinite(x.cpu().numpy()).all() for x in model.state_dict().values()):
        save_model(folder, model, plan.data, trainer.epoch)
        kept = f"The last good weights are in {folder / MODEL}"
    elif checkpoints_in(folder / CHECKPOINTS):
        kept = f"The states before are in {folder / CHECKPOINTS}"
    elif trainer.history:
        kept = f"The weights are not finite: all that is kept is {folder / METRICS}"
    else:
        _remove_new_run(folder)
        return "No epoch had ended, and the weights are not finite: nothing is kept"
    return f"{kept}. To start again with other settings, choose another --out or remove {folder}"


def _remove_new_run(folder: Path) -> None:
    """Take away what a run without results has written: its name is free again."""
    for name in (CONFIG, METRICS, TOKENIZER):
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        (folder / CHECKPOINTS).rmdir()


def _say_how_to_go_on(config: RunConfig, folder: Path, step: int | None, saved: int | None) -> None:
    """`step`: where it stopped, None in the middle of one; `saved`: the step of the last state that
    was written.
    """
    where = folder / CHECKPOINTS
    if not (folder / CONFIG).exists():
        print(f"\nstopped; {folder} has gone, and what was saved in it", file=sys.stderr)
        return
    if not checkpoints_in(where):
        what = "stopped before anything was saved"
    elif step is None:
        what = f"stopped; the last state is in {where}"
    elif step == saved:
        what = f"stopped after step {step}, saved in {where}"
    else:
        what = f"stopped after step {step}, not saved; an earlier state is in {where}"
    print(f"\n{what}", file=sys.stderr)
    command = f"python -m framework train {config.model} --resume {shlex.quote(str(folder))}"
    print(f"go on with: {command}", file=sys.stderr)
