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
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import typer
import typer.core

if TYPE_CHECKING:
    from framework.data import Splits, Transform
    from framework.layers import Module
    from framework.trainer.run import Data, Recipe, RunConfig


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


class UsageError(ValueError):
    """What was asked for on the command line cannot be."""


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
            print(f"error: not enough memory ({error})", file=sys.stderr)
            raise typer.Exit(2) from None
        except Exception as error:
            if debug or not isinstance(error, expected):
                raise
            print("error:", "; ".join(str(error).splitlines()), file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if debug:
                raise
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


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
        int | None, typer.Option(help="Passes over the training data.", show_default="by its size")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples of a step.", show_default="64")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default="0.003")
    ] = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides all that is random.", show_default="0")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder.", show_default="runs/MODEL-DATASET-seedN")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with an interrupted run.", show_default=False)
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    debug: Debug = False,
) -> None:
    """Train a model; the last line is its score on the test data.

    Without options: a multilayer perceptron on the embedded handwritten digits.
    """
    from models import entry

    if model is not None:
        _expect(lambda: entry(model))
    if resume is None:
        given = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        options = {name: value for name, value in given.items() if value is not None}
        plan = _plan(
            model or "mlp", dataset or "digits", seed or 0, device, out, options, settings or []
        )
    else:
        _only_resume(dataset, epochs, batch_size, lr, seed, out, settings)
        plan = _resumed(resume, model, device)
    _train(plan, resume is not None, quiet)


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
    with _damage_of(run):
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
    with _damage_of(run):
        x = inputs(x)
    output = outputs_for(model, x, config.device)
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


# Planning -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to train, on which data, and where the run is kept."""

    config: RunConfig
    folder: Path
    splits: Splits
    data: Data


def _plan(
    model: str,
    dataset: str,
    seed: int,
    device: str | None,
    out: Path | None,
    options: dict[str, Any],
    settings: list[str],
) -> Plan:
    """A new run."""
    from framework.data import load
    from framework.trainer.run import CONFIG, Recipe, RunConfig, load_data
    from models import entry

    family = entry(model)
    place = _place(device)
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: expected 0 or more")
    for_model, for_recipe = _settings(settings, family.config, Recipe)
    recipe = _expect(lambda: Recipe(**{**for_recipe, **options}))
    splits = load(dataset, seed)
    classes = len(splits.classes) if splits.classes else None
    model_config = _expect(
        lambda: family.config.for_data(splits.shape, classes, splits.task, **for_model)
    )
    recipe = replace(recipe, epochs=recipe.epochs_for(len(splits.train)))
    folder = out or _free_folder(f"{model}-{dataset}-seed{seed}")
    if (folder / CONFIG).exists():
        raise UsageError(
            f"{folder} holds a run already: choose another --out, or --resume {folder}"
        )
    data = _expect(lambda: load_data(splits, recipe, seed, place))
    config = RunConfig(
        model=model,
        model_config=asdict(model_config),
        dataset=dataset,
        seed=seed,
        device=place,
        recipe=recipe,
        task=splits.task,
        input_transform=data.inputs.config(),
        target_transform=None if data.targets is None else data.targets.config(),
        input_range=data.input_range,
        classes=splits.classes,
        shape=splits.shape,
        samples=(len(splits.train), len(splits.test)),
    )
    return Plan(config, folder, splits, data)


def _place(device: str | None) -> str:
    """The device's name: of --device, else of FRAMEWORK_DEVICE, else cuda where it works."""
    from framework.backend.device import choose_device, default_device

    if device is None:
        return str(_expect(default_device))
    return str(_expect(lambda: choose_device(device, "--device")))


def _free_folder(name: str) -> Path:
    """runs/name, or runs/name-2, ... where it is taken."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _only_resume(*options: Any) -> None:
    if any(option not in (None, []) for option in options):
        raise UsageError(
            "--resume goes on with the run's own settings: leave out --dataset, --epochs, "
            "--batch-size, --lr, --seed, --out and --set"
        )


def _resumed(folder: Path, model: str | None, device: str | None) -> Plan:
    """An interrupted run."""
    from framework.data import load
    from framework.trainer.run import LAST, METRICS, MODEL, RunConfig, load_data

    config = RunConfig.read(folder)
    if model not in (None, config.model):
        raise UsageError(f"{folder} is a run of {config.model}, not of {model}")
    if not (folder / LAST).is_file():
        if (folder / MODEL).is_file():
            raise UsageError(f"{folder} is complete: there is nothing to go on with")
        log = folder / METRICS
        if log.is_file() and log.stat().st_size:
            raise UsageError(f"{folder} has lost its {LAST}: start the run anew")
        raise UsageError(f"{folder} was interrupted before its first epoch ended: start it anew")
    if device is not None:
        config = replace(config, device=_place(device))
    splits = load(config.dataset, config.seed)
    config.check_data(splits)
    with _damage_of(folder):
        data = load_data(splits, config.recipe, config.seed, config.device)
    return Plan(config, folder, splits, data)


@contextmanager
def _damage_of(folder: Path) -> Iterator[None]:
    """A ValueError within the block is due to what config.json or model.safetensors say."""
    from framework.interop.atomic import FileError
    from framework.trainer.run import CONFIG

    try:
        yield
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{folder / CONFIG} is damaged: {error}") from error


def _settings(
    given: list[str], model_config: type[Any], recipe: type[Recipe]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """--set key=value, sorted into settings of the model and of the recipe."""
    from models import hint

    for_model, for_recipe = (
        {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
        for kind in (model_config, recipe)
    )
    for name in ("inputs", "outputs", "task"):  # the data set decides these
        for_model.pop(name, None)
    known = [*for_model, *for_recipe]
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for setting in given:
        key, equals, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"--set {setting}: expected key=value, for example --set dropout=0.2")
        if key not in known:
            raise UsageError(
                f"--set {setting}: unknown setting {key!r}{hint(key, known)}; "
                f"there are: {', '.join(known)}"
            )
        side = 0 if key in for_model else 1
        found[side][key] = _parsed(setting, text.strip(), (for_model | for_recipe)[key])
    return found


def _parsed(setting: str, text: str, kind: Any) -> Any:
    """`text` as a field's type has it: int, float, bool, str, tuple of ints, a choice, or none."""
    kinds = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    if text.lower() == "none":
        if type(None) in kinds:
            return None
        raise UsageError(f"--set {setting}: this setting cannot be none")
    kind = next(k for k in kinds if k is not type(None))
    try:
        if get_origin(kind) is tuple:
            return tuple(int(part) for part in text.strip("()[] ").split(",") if part.strip())
        if get_origin(kind) is Literal:
            if text not in get_args(kind):
                raise ValueError
            return text
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
                text.lower()
            ]
        return kind(text)
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "an integer", float: "a number"}.get(kind)
        if get_origin(kind) is tuple:
            expected = "integers with commas between, for example 512,256"
        if get_origin(kind) is Literal:
            expected = "one of " + ", ".join(map(str, get_args(kind)))
            expected += ", none" if type(None) in kinds else ""
        raise UsageError(f"--set {setting}: expected {expected}") from None


def _expect(make: Callable[[], Any]) -> Any:
    """`make()`, its ValueError being the user's."""
    from framework.data import DataError

    try:
        return make()
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


# Training -----------------------------------------------------------------------------------------


def _train(plan: Plan, resumed: bool, quiet: bool) -> None:
    """Run what `plan` says, from the start or from the last checkpoint."""
    import framework as fw
    from framework import screen
    from framework.trainer import (
        CurvePlot,
        JSONLLog,
        LRMonitor,
        ModelCheckpoint,
        NonFiniteError,
        Progress,
        TerminateOnNaN,
        checkpoint,
    )
    from framework.trainer.run import (
        CURVES,
        LAST,
        METRICS,
        fitting_threads,
        make_trainer,
        save_model,
    )

    config, folder, data = plan.config, plan.folder, plan.data
    fw.manual_seed(config.seed)
    fw.set_default_device(config.device)
    model = _build(config, folder)
    _check_batches(model, data, config.recipe.batch_size)
    kept = ModelCheckpoint(folder, every_seconds=10)
    callbacks = [
        LRMonitor(),
        TerminateOnNaN(),
        JSONLLog(folder / METRICS),
        kept,
        CurvePlot(folder / CURVES),
    ]
    if not quiet:
        callbacks.insert(0, Progress(screen.console()))
    trainer = make_trainer(model, config, data, callbacks)
    if resumed:
        checkpoint.load_trainer(folder / LAST, trainer)
    else:
        config.write(folder)
    if not quiet:
        screen.show_training(config, plan.splits, model, trainer.epoch)
    watched = {"validation": data.validation} if data.validation else {"test": data.test}
    assert config.recipe.epochs is not None
    try:
        with fitting_threads(model, config.shape, config.recipe.batch_size):
            trainer.fit(data.train, watched, config.recipe.epochs)
        save_model(folder, model, data)
    except KeyboardInterrupt:
        _say_how_to_go_on(config, folder, kept.epoch or trainer.epoch)
        raise typer.Exit(130) from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_save_last_good(plan, model)}") from error
    (folder / LAST).unlink(missing_ok=True)
    scores = trainer.evaluate(data.test)
    if not quiet:
        screen.show_files(folder)
    _print_score(config, scores)


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

    from framework.trainer.run import LAST, MODEL, save_model

    if all(np.isfinite(x.cpu().numpy()).all() for x in model.state_dict().values()):
        save_model(plan.folder, model, plan.data)
        return f"The last good weights are in {plan.folder / MODEL}"
    if (plan.folder / LAST).is_file():
        return f"The last epoch before is in {plan.folder / LAST}"
    return "No epoch had ended, and the weights are not finite: nothing is kept"


def _say_how_to_go_on(config: RunConfig, folder: Path, epoch: int) -> None:
    from framework.trainer.run import LAST

    if not (folder / LAST).is_file():
        print("\nstopped before the first epoch ended: nothing to keep", file=sys.stderr)
        return
    print(
        f"\nstopped; epoch {epoch} of {config.recipe.epochs} is kept in {folder / LAST}\n"
        f"go on with: python -m framework train {config.model} --resume {shlex.quote(str(folder))}",
        file=sys.stderr,
    )


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
    config = replace(config, device=_place(device))
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
