"""python -m framework train | evaluate | predict | models | doctor

What a command needs is imported inside it: ``--help`` answers at once.
"""

from __future__ import annotations

import difflib
import functools
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from framework.planning import (
    Plan,
    UsageError,
    damage_of,
    expect,
    only_resume,
    place,
    plan_run,
    resumed_run,
)

if TYPE_CHECKING:
    from framework.data import Transform
    from framework.layers import Module
    from framework.trainer.run import Data, RunConfig


class Commands(typer.core.TyperGroup):
    """The commands; a wrong one is answered in one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            print(
                f"error: there is no command {name!r}{hint}; there are: {', '.join(known)}",
                file=sys.stderr,
            )
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="framework",
    cls=Commands,
    help="Train neural networks, and use what they have learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="FRAMEWORK_DEVICE, else auto"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Run = Annotated[Path, typer.Argument(help="A run folder, as train writes it.", show_default=False)]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Expected errors end as one line on stderr and exit code 2, Ctrl-C with 130; others are bugs
    and show.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        from framework.startup import report_as_usual

        try:
            report_as_usual()
            expected = _expected_errors()
            command(*args, debug=debug, **options)
        except MemoryError as error:
            if debug:
                raise
            print(f"error: not enough memory ({_joined(error)})", file=sys.stderr)
            raise typer.Exit(2) from None
        except Exception as error:
            if debug or not isinstance(error, expected):
                raise
            print("error:", _joined(error), file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if debug:
                raise
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def _joined(error: Exception) -> str:
    return "; ".join(str(error).splitlines())


def _expected_errors() -> tuple[type[Exception], ...]:
    from framework.backend import DeviceError
    from framework.data import DataError, LoaderError
    from framework.interop.atomic import FileError
    from framework.trainer import NonFiniteError

    return UsageError, DataError, LoaderError, FileError, DeviceError, NonFiniteError


# Commands -----------------------------------------------------------------------------------------


@app.command()
@one_line_errors
def train(
    model: Annotated[
        str | None,
        typer.Argument(help="A family of the zoo, see [bold]models[/].", show_default="mlp"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="digits, mnist, fashion-mnist, ...", show_default="digits"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training data. With --resume: a larger number than before trains "
            "on, with the schedule of so many epochs.",
            show_default="by its size",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples of a step.", show_default="64")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default="0.003")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, tf32, bf16-mixed or fp16-mixed.", show_default="float32"),
    ] = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides all that is random.", show_default="0")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder.", show_default="runs/MODEL-DATASET-seedN")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted run; with more --epochs, with a complete one too.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of model or recipe: hidden=512,256 dropout=0.2 shift=1 ...",
            show_default=False,
        ),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            help="Save the state after so many steps, or so much time: 500, 30s, 10m.",
            show_default="10s",
        ),
    ] = None,
    fast_dev_run: Annotated[
        bool,
        typer.Option(
            "--fast-dev-run", help="One batch through everything, and nothing written: does it fit?"
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Say where the time of some of the first steps goes; write a trace."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    debug: Debug = False,
) -> None:
    """Train a model; the last line is its score on the test data.

    Without options: a multilayer perceptron on the embedded handwritten digits.
    """
    from models import entry

    if model is not None:
        expect(lambda: entry(model))
    if resume is None:
        given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision}
        options = {name: value for name, value in given.items() if value is not None}
        plan = plan_run(
            model or "mlp", dataset or "digits", seed or 0, device, out, options, settings or []
        )
    else:
        only_resume(dataset, batch_size, lr, precision, seed, out, settings)
        plan = resumed_run(resume, model, device, epochs)
    if fast_dev_run:
        _dry_run(plan)
        return
    _train(plan, resume is not None, quiet, profile, checkpoint_every)


@app.command()
@one_line_errors
def evaluate(run: Run, device: Device = None, debug: Debug = False) -> None:
    """Score a trained model on the test data: overall, and for each class."""
    from framework import screen
    from framework.data import load
    from framework.trainer import ConfusionMatrix
    from framework.trainer.run import load_data, make_trainer

    model, config, inputs, targets = _opened(run, device)
    splits = load(config.dataset, config.seed)
    config.check_data(splits)
    with damage_of(run):
        data = load_data(splits, config.recipe, config.seed, config.device, inputs, targets)
    trainer = make_trainer(model, config, data, [])
    if config.task == "classification" and config.classes:
        trainer.metrics.append(ConfusionMatrix(len(config.classes)))
    scores = trainer.evaluate(data.test)
    screen.show_evaluation(config, scores, len(data.test.dataset))
    _print_score(config, scores)


@app.command()
@one_line_errors
def predict(
    run: Run,
    file: Annotated[Path, typer.Argument(help="Inputs: a .npy file (N, ...).", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write probabilities (N, classes), or values, to a .npy file.", show_default=False
        ),
    ] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Say what a trained model makes of the inputs in a file.

    Inputs are on the scale of the data set that it was trained on (digits: 0 to 1).
    """
    import numpy as np

    from framework import functional as F, screen
    from framework.interop.atomic import write_bytes
    from framework.trainer.inputs import read_inputs
    from framework.trainer.run import invert, outputs_for

    if out is not None:
        _check_writable(out)
    model, config, inputs, targets = _opened(run, device)
    x = read_inputs(file, config.shape)
    _say_if_elsewhere(x, config)
    with damage_of(run):
        x = inputs(x)
    output = outputs_for(model, x, config.device, config.recipe.precision)
    if config.task == "classification":
        output = F.softmax(output, -1)
    values = invert(targets, output.cpu().numpy())
    screen.show_predictions(config, values)
    if out is not None:
        content = io.BytesIO()
        np.save(content, values)
        write_bytes(out, content.getvalue())  # the very path, whatever its ending


@app.command(name="models")
@one_line_errors
def list_models(debug: Debug = False) -> None:
    """List the families of the zoo and their settings, the recipe's settings, and the data sets."""
    from framework import screen
    from framework.data import CATALOG
    from framework.trainer.run import Recipe
    from models import ZOO

    screen.show_models(ZOO, Recipe, {name: entry.summary for name, entry in CATALOG.items()})


@app.command()
@one_line_errors
def doctor(debug: Debug = False) -> None:
    """Say what this machine has: versions, devices, libraries, and which version of each kernel
    runs.
    """
    from framework import doctor as examination

    examination.report()


# Training -----------------------------------------------------------------------------------------


def _train(plan: Plan, resumed: bool, quiet: bool, profiled: bool, every: str | None) -> None:
    """Run what `plan` says, from the start or from the last checkpoint."""
    import framework as fw
    from framework.interop.lock import FolderLock
    from framework.trainer.folders import make_folder
    from framework.trainer.run import CONFIG

    checkpoint_every = _every(every)
    fw.manual_seed(plan.config.seed)
    fw.set_default_device(plan.config.device)
    model = _build(plan.config, plan.folder)
    _check_batches(model, plan.data, plan.config.recipe.batch_size)
    make_folder(plan.folder)
    with FolderLock(plan.folder):
        if not resumed and (plan.folder / CONFIG).exists():  # written while this one was planned
            raise UsageError(f"{plan.folder} holds a run already: choose another --out")
        _train_model(plan, model, resumed, quiet, profiled, checkpoint_every)


def _train_model(
    plan: Plan,
    model: Module,
    resumed: bool,
    quiet: bool,
    profiled: bool,
    checkpoint_every: dict[str, Any],
) -> None:
    from framework import screen
    from framework.trainer import (
        CurvePlot,
        Interrupts,
        JSONLLog,
        LRMonitor,
        ModelCheckpoint,
        NonFiniteError,
        Profiler,
        Progress,
        Stopped,
        TerminateOnNaN,
        checkpoint,
    )
    from framework.trainer.run import (
        CHECKPOINTS,
        CURVES,
        METRICS,
        MODEL,
        fitting_threads,
        keep_state_of_complete_run,
        make_trainer,
        save_model,
    )
    from framework.trainer.store import Store, checkpoints_in

    config, folder, data = plan.config, plan.folder, plan.data
    callbacks = [
        LRMonitor(),
        TerminateOnNaN(),
        ModelCheckpoint(folder / CHECKPOINTS, **checkpoint_every),
        JSONLLog(folder / METRICS),
        CurvePlot(folder / CURVES, quiet),
        Interrupts(),
    ]
    if not quiet:
        callbacks.insert(0, Progress(screen.console()))
    profiler = Profiler(folder)
    if profiled:
        callbacks.insert(0, profiler)
    trainer = make_trainer(model, config, data, callbacks)
    anew = resumed and (folder / MODEL).is_file() and not checkpoints_in(folder / CHECKPOINTS)
    if anew:
        keep_state_of_complete_run(folder, trainer, config, data)
    if resumed and checkpoints_in(folder / CHECKPOINTS):
        checkpoint.resume(folder / CHECKPOINTS, trainer)
    if not resumed or plan.epochs_before is not None:
        config.write(folder)
    if not quiet:
        screen.show_training(config, plan.splits, model, trainer, plan.epochs_before, anew, resumed)
    watched = {"validation": data.validation} if data.validation else {"test": data.test}
    assert config.recipe.epochs is not None
    try:
        with fitting_threads(model, config.shape, config.recipe.batch_size):
            trainer.fit(data.train, watched, config.recipe.epochs)
        save_model(folder, model, data)
    except KeyboardInterrupt as error:
        _say_how_to_go_on(config, folder, trainer.step if isinstance(error, Stopped) else None)
        raise typer.Exit(130) from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_save_last_good(plan, model)}") from error
    Store(folder / CHECKPOINTS).remove()
    scores = trainer.evaluate(data.test)
    if profiled and not (quiet and profiler.recorded):
        screen.show_profile(profiler)
    if not quiet:
        screen.show_files(folder)
    _print_score(config, scores)


def _dry_run(plan: Plan) -> None:
    """One batch of each loader, through everything but files."""
    import framework as fw
    from framework.trainer import TerminateOnNaN
    from framework.trainer.run import make_trainer

    config, data = plan.config, plan.data
    fw.manual_seed(config.seed)
    fw.set_default_device(config.device)
    model = _build(config, plan.folder)
    _check_batches(model, data, config.recipe.batch_size)
    trainer = make_trainer(model, config, data, [TerminateOnNaN()])
    watched = {"validation": data.validation} if data.validation else {"test": data.test}
    (record,) = trainer.fit(data.train, watched, fast_dev_run=True)
    shown = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if k.endswith("loss"))
    print(f"one batch went through everything: {shown}")


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


def _check_batches(model: Module, data: Data, batch_size: int) -> None:
    """UsageError where batch norm would see a single sample, which has no variance."""
    from framework.layers import BatchNorm1d

    samples = len(data.train.dataset)
    if min(batch_size, samples) > 1:
        return
    if any(isinstance(module, BatchNorm1d) for module in model.modules()):
        what = f"batch_size is {batch_size}" if samples > 1 else "there is 1 training sample"
        raise UsageError(
            f"{what}, but batch norm needs at least 2 samples in a batch: "
            "take larger batches, or --set norm=layer"
        )


def _save_last_good(plan: Plan, model: Module) -> str:
    """Keep the weights that the run ended with if they are finite; says what is kept."""
    import numpy as np

    from framework.trainer.run import CHECKPOINTS, MODEL, save_model
    from framework.trainer.store import checkpoints_in

    if all(np.isfinite(x.cpu().numpy()).all() for x in model.state_dict().values()):
        save_model(plan.folder, model, plan.data)
        return f"The last good weights are in {plan.folder / MODEL}"
    if checkpoints_in(plan.folder / CHECKPOINTS):
        return f"The states before are in {plan.folder / CHECKPOINTS}"
    return "No epoch had ended, and the weights are not finite: nothing is kept"


def _say_how_to_go_on(config: RunConfig, folder: Path, step: int | None) -> None:
    """`step`: where all is saved; None where the last checkpoint has to do."""
    from framework.trainer.run import CHECKPOINTS
    from framework.trainer.store import checkpoints_in

    if not checkpoints_in(folder / CHECKPOINTS):
        print("\nstopped before anything was saved", file=sys.stderr)
    elif step is None:
        print(f"\nstopped; the last state is in {folder / CHECKPOINTS}", file=sys.stderr)
    else:
        print(f"\nstopped after step {step}, saved in {folder / CHECKPOINTS}", file=sys.stderr)
    command = f"python -m framework train {config.model} --resume {shlex.quote(str(folder))}"
    print(f"go on with: {command}", file=sys.stderr)


def _build(config: RunConfig, folder: Path) -> Module:
    """The model of a configuration, new or read; FileError where it describes none, or one that
    does not fit its data.
    """
    from framework.interop.atomic import FileError
    from framework.trainer.run import CONFIG
    from models import configure, entry

    of_data = ("inputs", "outputs", "task")
    try:
        family = entry(config.model)
        settings = configure(config.model, **config.model_config)
        free = {k: v for k, v in config.model_config.items() if k not in of_data}
        classes = len(config.classes) if config.classes else None
        fitting = family.config.for_data(config.shape, classes, config.task, **free)
        if settings != fitting:
            odd = [f.name for f in fields(fitting) if _differ(settings, fitting, f.name)]
            raise ValueError(f"{', '.join(odd)} of model_config do not fit shape, classes and task")
        return family.build(settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise FileError(f"{folder / CONFIG} describes no model: {error}") from error


def _differ(a: Any, b: Any, name: str) -> bool:
    return bool(getattr(a, name) != getattr(b, name))


def _print_score(config: RunConfig, scores: dict[str, Any]) -> None:
    """The last line of train and evaluate."""
    name = "r2" if config.task == "regression" else "accuracy"
    print(f"test {name} {scores[name]:.4f}", flush=True)


# Using a run --------------------------------------------------------------------------------------


def _opened(
    folder: Path, device: str | None
) -> tuple[Module, RunConfig, Transform, Transform | None]:
    """A trained model, its configuration, and the transforms of inputs and targets."""
    import framework as fw
    from framework.trainer.run import RunConfig, load_model

    config = RunConfig.read(folder)
    config = replace(config, device=place(device))
    fw.set_default_device(config.device)
    model = _build(config, folder)
    inputs, targets = load_model(folder, model, config)
    return model, config, inputs, targets


def _say_if_elsewhere(x: Any, config: RunConfig) -> None:
    """A note where inputs are not on the scale that the model was trained on."""
    low, high = config.input_range
    slack = 0.1 * (high - low)
    if x.min() < low - slack or x.max() > high + slack:
        print(
            f"note: inputs from {x.min():g} to {x.max():g}; "
            f"the model was trained on {low:g} to {high:g}",
            file=sys.stderr,
        )


def _check_writable(file: Path) -> None:
    """FileError where `file` cannot be written, before there is anything to write."""
    from framework.interop.atomic import FileError

    if file.exists() and not file.is_file():
        raise FileError(f"cannot write {file}: it is no file")
    if not file.parent.is_dir():
        raise FileError(f"cannot write {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise FileError(f"cannot write {file}: the folder {file.parent} is not writable")


def main() -> None:
    """The entry point of ``python -m framework`` and of the ``framework`` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where the encoding lacks a character
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    name = "python -m framework" if Path(sys.argv[0]).name == "__main__.py" else None
    app(prog_name=name)


if __name__ == "__main__":
    main()
