"""What ``train`` does with a plan: build the model, fit it, keep it, score it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import typer

import framework as fw
from framework import screen
from framework.data import TokenSplits
from framework.layers import BatchNorm1d, BatchNorm2d, Module
from framework.planning import Plan, UsageError
from framework.trainer import (
    Callback,
    CurvePlot,
    JSONLLog,
    LRMonitor,
    ModelCheckpoint,
    NonFiniteError,
    Profiler,
    Progress,
    SampleText,
    TerminateOnNaN,
    checkpoint,
)
from framework.trainer.run import (
    CURVES,
    LAST,
    METRICS,
    MODEL,
    Data,
    LanguageScores,
    RunConfig,
    fitting_threads,
    keep_state_of_complete_run,
    make_trainer,
    opening,
    save_model,
    save_tokenizer,
)
from models import build_model


def run_training(plan: Plan, resumed: bool, quiet: bool, profiled: bool) -> None:
    """Run what `plan` says, from the start or from the last checkpoint; the last line printed is
    the score on the test data.

    Raises:
        typer.Exit: 130, after Ctrl-C; what there is has been kept.
        NonFiniteError: the loss or a gradient is no number.
    """
    config, folder, data = plan.config, plan.folder, plan.data
    fw.manual_seed(config.seed)
    fw.set_default_device(config.device)
    model = build_model(config, folder)
    _check_batches(model, data, config.recipe.batch_size)
    kept = ModelCheckpoint(folder, every_seconds=10)
    callbacks = [
        LRMonitor(),
        TerminateOnNaN(),
        JSONLLog(folder / METRICS),
        kept,
        CurvePlot(folder / CURVES, quiet),
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
    anew = resumed and not (folder / LAST).is_file()
    if anew:
        keep_state_of_complete_run(folder, trainer, config, data)
    if resumed:
        checkpoint.load_trainer(folder / LAST, trainer)
    if not resumed or plan.epochs_before is not None:
        config.write(folder)
        if isinstance(plan.splits, TokenSplits):
            save_tokenizer(folder, plan.splits.tokenizer)
    if not quiet:
        screen.show_training(config, plan.splits, model, trainer.epoch, plan.epochs_before, anew)
    watched = {"validation": data.validation} if data.validation else {"test": data.test}
    assert config.recipe.epochs is not None
    try:
        with fitting_threads(model, config):
            trainer.fit(data.train, watched, config.recipe.epochs)
        save_model(folder, model, data)
    except KeyboardInterrupt:
        _say_how_to_go_on(config, folder, kept.epoch or trainer.epoch)
        raise typer.Exit(130) from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_save_last_good(plan, model)}") from error
    (folder / LAST).unlink(missing_ok=True)
    scores = trainer.evaluate(data.test)
    if profiled and not (quiet and profiler.recorded):
        screen.show_profile(profiler)
    if not quiet:
        screen.show_files(folder)
    screen.print_score(plan.splits, scores)


def _sample(splits: TokenSplits) -> Callback:
    """Shows a little text after each epoch."""
    return SampleText(splits.tokenizer, opening(splits), show=screen.show_sample)


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


def _save_last_good(plan: Plan, model: Module) -> str:
    """Keep the weights that the run ended with if they are finite; says what is kept."""
    if all(np.isfinite(x.cpu().numpy()).all() for x in model.state_dict().values()):
        save_model(plan.folder, model, plan.data)
        return f"The last good weights are in {plan.folder / MODEL}"
    if (plan.folder / LAST).is_file():
        return f"The last epoch before is in {plan.folder / LAST}"
    return "No epoch had ended, and the weights are not finite: nothing is kept"


def _say_how_to_go_on(config: RunConfig, folder: Path, epoch: int) -> None:
    if not (folder / LAST).is_file():
        print("\nstopped before the first epoch ended: nothing to keep", file=sys.stderr)
        return
    print(
        f"\nstopped; epoch {epoch} of {config.recipe.epochs} is kept in {folder / LAST}\n"
        f"go on with: python -m framework train {config.model} --resume {shlex.quote(str(folder))}",
        file=sys.stderr,
    )
