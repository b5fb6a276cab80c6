"""What a command line asks for, checked: the plan of a new run, or of one to go on with."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from framework.data import Splits
    from framework.trainer.run import Data, Recipe, RunConfig


class UsageError(ValueError):
    """What was asked for on the command line cannot be."""


@dataclass(frozen=True)
class Plan:
    """What to train, on which data, and where the run is kept.

    `epochs_before`: where a run gets more epochs than it was to have, how many those were.
    """

    config: RunConfig
    folder: Path
    splits: Splits
    data: Data
    epochs_before: int | None = None


def plan_run(
    model: str,
    dataset: str | None,
    seed: int,
    device: str | None,
    out: Path | None,
    options: dict[str, Any],
    settings: list[str],
) -> Plan:
    """A new run; without a `dataset`, on the embedded one that the family is for."""
    from framework.data import CATALOG, CORPORA, TokenSplits
    from framework.trainer.config import fingerprints, sizes
    from framework.trainer.run import CONFIG, Recipe, RunConfig, load_data
    from models import entry

    family = entry(model)
    if not family.tasks:
        raise UsageError(f"{model} has no data to train on from here; train it from Python")
    if dataset is None:
        dataset = "digits" if "classification" in family.tasks else "python-reference"
    if family.tasks == ("language",) and dataset in CATALOG:  # before it is downloaded
        known = ", ".join(sorted(CORPORA))
        raise UsageError(
            f"{model} is for language, but {dataset} is no text: take one of {known}, or any text "
            "file by its path"
        )
    if "language" not in family.tasks and dataset in CORPORA:
        raise UsageError(_other_families(model, family.tasks, dataset, "language"))
    on = place(device)
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: expected 0 or more")
    for_model, for_recipe = _settings(settings, model, Recipe)
    for name in options:
        if name in for_recipe:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{name} is given twice: by {option} and by --set {name}=...")
    suits = CATALOG[dataset].augmentation if family.augments and dataset in CATALOG else {}
    recipe = expect(lambda: Recipe(**{**family.recipe, **suits, **for_recipe, **options}))
    splits = expect(lambda: _splits(dataset, seed, recipe))
    _check_family(model, family, splits, recipe)
    _check_meaning(model, splits, recipe, for_recipe)
    classes = len(splits.classes) if splits.classes else None
    trained_on = len(splits.train)
    if isinstance(splits, TokenSplits):
        classes, trained_on = splits.tokenizer.size, len(splits.train.starts)
    model_config = expect(
        lambda: family.config.for_data(splits.shape, classes, splits.task, **for_model)
    )
    recipe = replace(recipe, epochs=recipe.epochs_for(trained_on))
    folder = out or _free_folder(f"{model}-{Path(dataset).stem}-seed{seed}")
    if (folder / CONFIG).exists():
        raise UsageError(
            f"{folder} holds a run already: choose another --out, or --resume {folder}"
        )
    data = expect(lambda: load_data(splits, recipe, seed, on))
    config = RunConfig(
        model=model,
        model_config=asdict(model_config),
        dataset=splits.name,
        seed=seed,
        device=on,
        recipe=recipe,
        task=splits.task,
        input_transform=None if data.inputs is None else data.inputs.config(),
        target_transform=None if data.targets is None else data.targets.config(),
        input_range=data.input_range,
        classes=splits.classes,
        shape=splits.shape,
        samples=sizes(splits),
        fingerprint=fingerprints(splits),
    )
    return Plan(config, folder, splits, data)


def _splits(dataset: str, seed: int, recipe: Recipe, folder: Path | None = None) -> Splits:
    """A data set of the catalog, or a text as tokens; by the tokenizer of the run in `folder`."""
    from framework.data import CATALOG, load, load_text
    from framework.trainer.run import read_tokenizer, tokenizer_for

    if dataset in CATALOG:
        return load(dataset, seed)
    corpus = load_text(dataset)
    tokenizer = tokenizer_for(corpus, recipe) if folder is None else read_tokenizer(folder)
    return corpus.tokenised(tokenizer, recipe.window)


def splits_of(config: RunConfig, folder: Path) -> Splits:
    """The data of a run; FileError where it is not what the run was trained on."""
    splits = _splits(config.dataset, config.seed, config.recipe, folder)
    config.check_data(splits)
    return splits


def _check_family(model: str, family: Any, splits: Splits, recipe: Recipe) -> None:
    """UsageError where the family is not for this data, or not for streams of it."""
    if splits.task not in family.tasks:
        raise UsageError(_other_families(model, family.tasks, splits.name, splits.task))
    if recipe.sampling == "stream" and splits.task == "language" and not family.carries:
        raise UsageError(
            f"sampling is stream, but {model} carries no state from window to window: "
            "set sampling=random"
        )


def _other_families(model: str, tasks: tuple[str, ...], dataset: str, task: str) -> str:
    """That `model` is not for this data, and which families are."""
    from models import ZOO

    fitting = [name for name, other in sorted(ZOO.items()) if task in other.tasks]
    return (
        f"{model} is for {' and '.join(tasks)}, but {dataset} is data for {task}: take one of "
        f"{', '.join(fitting)}"
    )


def _check_meaning(model: str, splits: Splits, recipe: Recipe, given: dict[str, Any]) -> None:
    """UsageError for a setting that would change nothing here."""
    from framework.trainer.config import OF_TEXT
    from models import ZOO

    for name in OF_TEXT if splits.task != "language" else ():
        if name in given:
            writers = ", ".join(
                key for key, other in sorted(ZOO.items()) if "language" in other.tasks
            )
            raise UsageError(
                f"{name} is {given[name]}, which is for text, but {splits.name} is none: it is a "
                f"setting of {writers}, not of {model}"
            )
    if "beta2" in given and recipe.optimizer != "adamw":
        raise UsageError(
            f"beta2 is {given['beta2']}, which is AdamW's, but the optimizer is {recipe.optimizer}"
        )


def whole_number(option: str, text: str) -> int:
    """What an option that also has words was given as a number."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: expected an integer, or auto") from None


def place(device: str | None) -> str:
    """The device's name: of --device, else of FRAMEWORK_DEVICE, else cuda where it works."""
    from framework.backend.device import choose_device, default_device

    if device is None:
        return str(expect(default_device))
    return str(expect(lambda: choose_device(device, "--device")))


def _free_folder(name: str) -> Path:
    """runs/name, or runs/name-2, ... where it is taken."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def only_resume(*options: Any) -> None:
    if any(option not in (None, []) for option in options):
        raise UsageError(
            "--resume goes on with the run's own settings: leave out --dataset, --batch-size, "
            "--lr, --precision, --seed, --out and --set"
        )


def resumed_run(
    folder: Path, model: str | None, device: str | None, epochs: int | None = None
) -> Plan:
    """An interrupted run, also one that ended before it saved anything; with more `epochs` also a
    complete one.
    """
    from framework.trainer.run import CONFIG, load_data

    for run in (folder.parent, folder.parent.parent):
        if folder.exists() and not (folder / CONFIG).is_file() and (run / CONFIG).is_file():
            raise UsageError(f"--resume {folder}: expected the run folder, {run}")
    config = _config_to_go_on_with(folder, model, epochs)
    before = config.recipe.epochs
    if device is not None:
        config = replace(config, device=place(device))
    if epochs is not None:
        config = replace(config, recipe=config.recipe.trained_on(epochs))
    splits = splits_of(config, folder)
    with damage_of(folder):
        data = load_data(splits, config.recipe, config.seed, config.device)
    return Plan(config, folder, splits, data, None if epochs is None else before)


def check_still_resumable(plan: Plan) -> None:
    """UsageError where another process has ended or changed the run while `plan` was made: to be
    asked by who has the folder's lock.
    """
    epochs = plan.config.recipe.epochs
    planned = epochs if plan.epochs_before is None else plan.epochs_before
    more = None if plan.epochs_before is None else epochs
    now = _config_to_go_on_with(plan.folder, plan.config.model, more).recipe.epochs
    if now != planned:
        raise UsageError(
            f"{plan.folder} was a run of {planned} epochs, and another process has made it one of "
            f"{now} in the meantime: start again"
        )


def _config_to_go_on_with(folder: Path, model: str | None, epochs: int | None) -> RunConfig:
    """What config.json says; UsageError where there is nothing to go on with."""
    from framework.trainer.run import CHECKPOINTS, METRICS, MODEL, RunConfig
    from framework.trainer.store import checkpoints_in

    config = RunConfig.read(folder)
    if model not in (None, config.model):
        raise UsageError(f"{folder} is a run of {config.model}, not of {model}")
    before = config.recipe.epochs
    assert before is not None
    if epochs is not None and epochs <= before:
        raise UsageError(
            f"--epochs {epochs}: {folder} is a run of {before} epochs, --resume takes more, or none"
        )
    saved = bool(checkpoints_in(folder / CHECKPOINTS))
    complete = (folder / MODEL).is_file() and not saved
    log = folder / METRICS
    if complete and log.is_file() and not log.stat().st_size:
        raise UsageError(
            f"{folder} diverged in its first epoch: there is nothing to go on with; start again "
            "with other settings, and choose another --out or remove the folder"
        )
    if complete and epochs is not None and config.recipe.validation:
        raise UsageError(
            f"{folder} is complete and has its best epoch's weights by the validation loss: "
            "it cannot be trained on from there"
        )
    if complete and epochs is None:
        raise UsageError(
            f"{folder} is complete: there is nothing to go on with; "
            f"--epochs N trains on, with N above {before}"
        )
    if not saved and not complete and log.is_file() and log.stat().st_size:
        raise UsageError(
            f"{folder} has lost its {CHECKPOINTS}: there is nothing to go on with; start the run "
            "anew, and choose another --out or remove the folder"
        )
    return config


@contextmanager
def damage_of(folder: Path) -> Iterator[None]:
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
    given: list[str], model: str, recipe: type[Recipe]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """--set key=value, sorted into settings of the model and of the recipe."""
    from framework.trainer.config import OF_IMAGES, OF_TEXT
    from models import ZOO, hint

    model_config = ZOO[model].config
    for_model, for_recipe = (
        {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
        for kind in (model_config, recipe)
    )
    for_model = {name: for_model[name] for name in _free_settings(ZOO[model])}
    known = [*for_model, *for_recipe]
    foreign = OF_IMAGES if "language" in ZOO[model].tasks else OF_TEXT
    shown = ", ".join(name for name in known if name not in foreign)
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for setting in given:
        key, equals, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"--set {setting}: expected key=value, for example --set dropout=0.2")
        if key not in known:
            theirs = [n for n, other in sorted(ZOO.items()) if key in _free_settings(other)]
            if theirs:
                raise UsageError(
                    f"--set {setting}: {key} is a setting of {', '.join(theirs)}, not of {model}; "
                    f"there are: {shown}"
                )
            raise UsageError(
                f"--set {setting}: unknown setting {key!r}{hint(key, known)}; there are: {shown}"
            )
        side = 0 if key in for_model else 1
        if key in found[side]:
            raise UsageError(f"--set {setting}: {key} is given twice")
        found[side][key] = _parsed(setting, text.strip(), (for_model | for_recipe)[key])
    return found


def _free_settings(family: Any) -> list[str]:
    """Fields of its configuration that the data set does not decide."""
    return [f.name for f in fields(family.config) if f.name not in family.config.of_data]


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
        if setting.partition("=")[0].strip().replace("-", "_") == "batch_size":
            expected = "an integer; for the most that fit into memory give --batch-size auto"
        if get_origin(kind) is tuple:
            expected = "integers with commas between, for example 512,256"
        if get_origin(kind) is Literal:
            expected = "one of " + ", ".join(map(str, get_args(kind)))
            expected += ", none" if type(None) in kinds else ""
        raise UsageError(f"--set {setting}: expected {expected}") from None


def expect(make: Callable[[], Any]) -> Any:
    """`make()`, its ValueError being the user's."""
    from framework.data import DataError

    try:
        return make()
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
