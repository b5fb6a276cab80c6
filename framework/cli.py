"""python -m framework train | evaluate | predict | models | doctor

What a command needs is imported inside it: ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from dataclasses import fields, replace
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

if TYPE_CHECKING:
    from framework.trainer.run import Data, Recipe, RunConfig
    from framework.trainer.trainer import Trainer

app = typer.Typer(
    name="framework",
    help="Train neural networks, and use what they have learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

LAST = "last.safetensors"


class UsageError(ValueError):
    """What was asked for on the command line cannot be."""


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Run = Annotated[Path, typer.Argument(help="A run folder, as train writes it.", show_default=False)]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Expected errors end as one line on stderr and exit code 2, Ctrl-C with 130; others are bugs
    and show.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        from framework.backend import DeviceError
        from framework.data import DataError, LoaderError
        from framework.interop.atomic import FileError
        from framework.trainer import NonFiniteError

        try:
            command(*args, debug=debug, **options)
        except (
            UsageError,
            DataError,
            LoaderError,
            FileError,
            DeviceError,
            NonFiniteError,
        ) as error:
            if debug:
                raise
            print("error:", "; ".join(str(error).splitlines()), file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if debug:
                raise
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


# Commands -----------------------------------------------------------------------------------------


@app.command()
@one_line_errors
def train(
    model: Annotated[str, typer.Argument(help="A family of the zoo, see [bold]models[/].")] = "mlp",
    dataset: Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, ...")] = "digits",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data.", show_default="by its size")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples of a step.", show_default="64")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default="0.003")
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Decides all that is random.")] = 0,
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

    _expect(lambda: entry(model))
    if resume is None:
        given = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        options = {name: value for name, value in given.items() if value is not None}
        config, folder = _plan(model, dataset, seed, device, out, options, settings or [])
    else:
        _only_resume(epochs, batch_size, lr, out, settings)
        config, folder = _resumed(resume, model, device), resume
    _train(config, folder, resume is not None, quiet)


@app.command()
@one_line_errors
def evaluate(run: Run, device: Device = "auto", debug: Debug = False) -> None:
    """Score a trained model on the test data: overall, and for each class."""
    from framework import screen
    from framework.trainer import ConfusionMatrix

    trainer, config, data = _opened(run, device)
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
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Say what a trained model makes of the inputs in a file.

    Inputs are on the scale of the data set that it was trained on (digits: 0 to 1).
    """
    from framework import functional as F, screen
    from framework.interop.atomic import FileError
    from framework.trainer.run import invert

    trainer, config, data = _opened(run, device)
    x = _inputs(file, config)
    output = trainer.predict(data.inputs(x))
    if config.task == "classification":
        output = F.softmax(output, -1)
    values = invert(data.targets, output.cpu().numpy())
    screen.show_predictions(config, values)
    if out is not None:
        import numpy as np

        try:
            np.save(out, values)
        except OSError as error:
            raise FileError(f"cannot write {out}: {error.strerror or error}") from error


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


def _plan(
    model: str,
    dataset: str,
    seed: int,
    device: str,
    out: Path | None,
    options: dict[str, Any],
    settings: list[str],
) -> tuple[RunConfig, Path]:
    """The configuration and the folder of a new run."""
    from dataclasses import asdict

    from framework.backend.device import choose_device
    from framework.data import load
    from framework.trainer.run import CONFIG, Recipe, RunConfig, load_data
    from models import entry

    family = entry(model)
    place = str(_expect(lambda: choose_device(device, "--device")))
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
    )
    return config, folder


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
            "--resume goes on with the run's own settings: leave out --epochs, --batch-size, --lr, "
            "--out and --set"
        )


def _resumed(folder: Path, model: str, device: str) -> RunConfig:
    """The configuration of an interrupted run."""
    from framework.backend.device import choose_device
    from framework.trainer.run import MODEL, RunConfig

    config = RunConfig.read(folder)
    if config.model != model:
        raise UsageError(f"{folder} is a run of {config.model}, not of {model}")
    if not (folder / LAST).is_file():
        if (folder / MODEL).is_file():
            raise UsageError(f"{folder} is complete: there is nothing to go on with")
        raise UsageError(f"{folder} was interrupted before its first epoch ended: start it anew")
    if device != "auto":
        config = replace(config, device=str(_expect(lambda: choose_device(device, "--device"))))
    return config


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


def _train(config: RunConfig, folder: Path, resumed: bool, quiet: bool) -> None:
    """Run what `config` says, from the start or from the last checkpoint."""
    import framework as fw
    from framework import screen
    from framework.data import load
    from framework.trainer import (
        CurvePlot,
        JSONLLog,
        LRMonitor,
        ModelCheckpoint,
        Progress,
        TerminateOnNaN,
        checkpoint,
    )
    from framework.trainer.run import (
        CURVES,
        METRICS,
        fitting_threads,
        load_data,
        make_trainer,
        save_model,
    )

    fw.manual_seed(config.seed)
    fw.set_default_device(config.device)
    splits = load(config.dataset, config.seed)
    data = load_data(splits, config.recipe, config.seed, config.device)
    model = _build(config)
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
        screen.show_training(config, splits, model, trainer.epoch)
    try:
        if trainer.epoch < config.recipe.epochs and not trainer.should_stop:
            watched = {"validation": data.validation} if data.validation else {"test": data.test}
            with fitting_threads(model, config.shape, config.recipe.batch_size):
                trainer.fit(data.train, watched, config.recipe.epochs)
    except KeyboardInterrupt:
        _say_how_to_go_on(config, folder, kept.epoch or trainer.epoch)
        raise typer.Exit(130) from None
    save_model(folder, model, data)
    (folder / LAST).unlink(missing_ok=True)
    scores = trainer.evaluate(data.test)
    if not quiet:
        screen.show_files(folder)
    _print_score(config, scores)


def _say_how_to_go_on(config: RunConfig, folder: Path, epoch: int) -> None:
    if not (folder / LAST).is_file():
        print("\nstopped before the first epoch ended: nothing to keep", file=sys.stderr)
        return
    print(
        f"\nstopped; epoch {epoch} of {config.recipe.epochs} is kept in {folder / LAST}\n"
        f"go on with: python -m framework train {config.model} --resume {folder}",
        file=sys.stderr,
    )


def _build(config: RunConfig) -> Any:
    from framework.interop.atomic import FileError
    from models import build

    try:
        return build(config.model, **config.model_config)
    except ValueError as error:
        raise FileError(f"config.json describes no model: {error}") from error


def _print_score(config: RunConfig, scores: dict[str, Any]) -> None:
    """The last line of train and evaluate."""
    name = "r2" if config.task == "regression" else "accuracy"
    print(f"test {name} {scores[name]:.4f}", flush=True)


# Using a run --------------------------------------------------------------------------------------


def _opened(folder: Path, device: str) -> tuple[Trainer, RunConfig, Data]:
    """A trained model in a Trainer, its configuration, and the data as it was trained on."""
    import framework as fw
    from framework.backend.device import choose_device
    from framework.data import load
    from framework.trainer.run import RunConfig, load_data, load_model, make_trainer

    config = RunConfig.read(folder)
    config = replace(config, device=str(_expect(lambda: choose_device(device, "--device"))))
    fw.set_default_device(config.device)
    model = _build(config)
    inputs, targets = load_model(folder, model, config)
    splits = load(config.dataset, config.seed)
    data = load_data(splits, config.recipe, config.seed, config.device, inputs, targets)
    return make_trainer(model, config, data, []), config, data


def _inputs(file: Path, config: RunConfig) -> Any:
    """The inputs of a .npy file as float32 (N, *shape); FileError where they cannot be that."""
    import numpy as np

    from framework.interop.atomic import FileError

    try:
        x = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise FileError(f"{file} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{file} is no .npy file of numbers, or a damaged one ({error})") from error
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
        kind = x.dtype if isinstance(x, np.ndarray) else "several arrays"
        raise FileError(f"{file} holds {kind}, expected one array of numbers")
    single, size = config.shape, int(np.prod(config.shape))
    if x.shape == single or (x.ndim < 3 and x.size == size and x.shape[:1] != (1,)):
        x = x[None]
    if x.ndim < 2 or len(x) == 0 or x[0].size != size:
        raise FileError(
            f"{file} has shape {x.shape}, expected inputs (N, {', '.join(map(str, single))})"
        )
    x = x.reshape(len(x), *single).astype(np.float32)
    if not np.isfinite(x).all():
        raise FileError(f"{file} holds values that are NaN or infinite")
    low, high = config.input_range
    slack = 0.1 * (high - low)
    if x.min() < low - slack or x.max() > high + slack:
        print(
            f"note: inputs from {x.min():g} to {x.max():g}; "
            f"the model was trained on {low:g} to {high:g}",
            file=sys.stderr,
        )
    return x


def main() -> None:
    """The entry point of ``python -m framework`` and of the ``framework`` script."""
    name = "python -m framework" if Path(sys.argv[0]).name == "__main__.py" else None
    app(prog_name=name)


if __name__ == "__main__":
    main()
