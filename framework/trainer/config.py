"""config.json: what a run was asked to do, and the check of what is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from framework.backend.device import Device
from framework.data import CATALOG, Splits, TokenSplits
from framework.interop.atomic import FileError, read_bytes, write_text
from framework.trainer.folders import make_folder
from framework.trainer.precision import PRECISIONS, check_precision
from framework.trainer.versions import versions

CONFIG = "config.json"
FORMAT = 1

#: Settings of a recipe that have a meaning for images only, and for text only.
OF_IMAGES = ("shift", "flip", "cutout", "rand_augment", "mixup")
OF_TEXT = ("steps", "window", "sampling", "tokenizer", "vocabulary")


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field is an option of ``train`` or can be given with ``--set``.

    Args:
        epochs: None: as many as make about 60,000 samples (windows of text), between 5 and 40.
        batch_size: samples of a step.
        lr: the highest learning rate; it warms up, then falls along half a cosine to 0.
        warmup: the share of the steps in which it warms up.
        weight_decay: AdamW's.
        label_smoothing: of the cross-entropy.
        clip_norm: largest global norm of the gradients, None for no limit.
        accumulate: batches whose gradients make one step.
        shift: images are shifted at random by up to so many pixels.
        flip: half of the images are flipped, left to right.
        cutout: a square of so many pixels is cut out of each image.
        rand_augment: strength, from 0 to 1, of two operations drawn for each image (RandAugment).
        mixup: samples are mixed in pairs, by shares from Beta(mixup, mixup).
        validation: the share of the training split to hold out. Then the best epoch's weights by
            its loss are kept; otherwise the last's. The test split never decides anything.
        patience: with `validation`: epochs without improvement after which training stops; None:
            never.
        precision: of the matrix products: float32, tf32, bf16-mixed or fp16-mixed.
        optimizer: adamw, or sgd with Nesterov's momentum.
        momentum: SGD's, and AdamW's first beta.
        beta2: AdamW's second.
        decay: what `weight_decay` is for: all, or matrices only (weights with two axes or more).
        final_lr: where the cosine ends, as a share of `lr`; 1 makes a constant.
        steps: of text: optimizer steps in all, of which each of the `epochs` (10 by default, fewer
            where there are not as many steps) is an equal part, the last one what is left, ended by
            an evaluation; None: an epoch is as many as read the text once.
        window: of text: tokens of a window.
        sampling: of text: windows at random places, or streams side by side, in which a recurrent
            model carries its state from window to window.
        tokenizer: of text; None: words where the corpus is cut into words, else characters.
        vocabulary: of text: tokens that words (None: all), bpe and wordpiece (None: 4096) may have.
    """

    epochs: int | None = None
    batch_size: int = 64
    lr: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    shift: int = 0
    flip: bool = False
    cutout: int = 0
    rand_augment: float = 0.0
    mixup: float = 0.0
    validation: float = 0.0
    patience: int | None = None
    precision: str = field(default="float32", metadata={"choices": PRECISIONS})
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    beta2: float = 0.999
    decay: Literal["all", "matrices"] = "all"
    final_lr: float = 0.0
    steps: int | None = None
    window: int = 64
    sampling: Literal["random", "stream"] = "random"
    tokenizer: Literal["characters", "words", "bpe", "wordpiece"] | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for entry in fields(self):
            if entry.name == "precision":
                continue
            if str(entry.type).startswith("Literal"):
                self._check_choice(entry.name)
                continue
            value, kind = getattr(self, entry.name), str(entry.type).removesuffix(" | None")
            if value is None:
                continue
            if kind == "bool":
                if not isinstance(value, bool):
                    raise ValueError(f"{entry.name} is {value!r}, expected True or False")
                continue
            if not _is_integer(value) and not (kind == "float" and isinstance(value, float)):
                expected = "an integer" if kind == "int" else "a number"
                raise ValueError(f"{entry.name} is {value!r}, expected {expected}")
        least_of = {"epochs": 1, "batch_size": 1, "accumulate": 1, "patience": 1, "shift": 0}
        least_of |= {"cutout": 0}
        least_of |= {"steps": 1, "window": 1, "vocabulary": 2}
        for name, least in least_of.items():
            value = getattr(self, name)
            optional = name in ("epochs", "patience", "steps", "vocabulary")
            if (value is None and not optional) or (value is not None and value < least):
                raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
        for name, low, high in (
            ("lr", 0.0, float("inf")),
            ("warmup", 0.0, 1.0),
            ("weight_decay", 0.0, float("inf")),
            ("label_smoothing", 0.0, 1.0),
            ("validation", 0.0, 1.0),
            ("momentum", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            ("final_lr", 0.0, float("inf")),
            ("rand_augment", 0.0, 1.0 + 1e-9),
            ("mixup", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            if value is None or not low <= value < high or (name == "lr" and value == 0):
                limit = "0 or more" if high > 2 else "from 0 to below 1"
                limit = "from 0 to 1" if name == "rand_augment" else limit
                limit = "above 0" if name == "lr" else limit
                raise ValueError(f"{name} is {value!r}, expected a number {limit}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm!r}, expected a number above 0, or none")
        if self.patience is not None and not self.validation:
            raise ValueError(
                f"patience is {self.patience}, but nothing is held out to watch: "
                "set validation=0.1 too"
            )

    def _check_choice(self, name: str) -> None:
        kind = get_type_hints(type(self))[name]
        known = [x for part in get_args(kind) for x in (get_args(part) or (part,))]
        choices = [None if x is type(None) else x for x in known]
        if getattr(self, name) not in choices:
            listed = ", ".join("none" if x is None else x for x in choices)
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {listed}")

    def check_data(self, task: str, shape: tuple[int, ...], dataset: str) -> None:
        """ValueError for a setting that has no meaning for the data."""
        for name in ("shift", "flip", "cutout", "rand_augment"):
            if getattr(self, name) and len(shape) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}, but {dataset} has no images")
        if self.label_smoothing and task == "regression":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but {dataset} has no classes"
            )
        if self.mixup and task != "classification":
            raise ValueError(f"mixup is {self.mixup}, but {dataset} has no classes")
        if task == "language":
            return
        for name in ("steps", "tokenizer", "vocabulary"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which is for text, but {dataset} is none"
                )

    def epochs_for(self, samples: int) -> int:
        """The number of epochs for a training split of so many samples."""
        if self.steps is not None:
            return -(-self.steps // replace(self, epochs=self.epochs or 10).steps_of_epoch)
        return self.epochs or max(5, min(40, 60_000 // samples))

    def trained_on(self, epochs: int) -> Recipe:
        """The recipe with more epochs of the same length."""
        steps = self.steps
        if steps is not None and self.epochs is not None:
            steps += (epochs - self.epochs) * self.steps_of_epoch
        return replace(self, epochs=epochs, steps=steps)

    @property
    def steps_of_epoch(self) -> int:
        """Where there are `steps`: those of an epoch, of the last one at most."""
        assert self.steps is not None and self.epochs is not None
        return -(-self.steps // self.epochs)


def sizes(splits: Splits) -> tuple[int, int]:
    """Samples of the training and the test split, or their tokens."""
    if isinstance(splits, TokenSplits):
        return len(splits.train.ids), len(splits.test.ids)
    return len(splits.train), len(splits.test)


def fingerprints(splits: Splits) -> dict[str, str]:
    """Hashes of the training and the test split, as far as they have one. Points that are made from
    a seed have none: their last digits are the machine's.
    """
    entry = CATALOG.get(splits.name)
    if entry is not None and entry.options:
        return {}
    found = {"training": splits.train.fingerprint(), "test": splits.test.fingerprint()}
    return {part: digest for part, digest in found.items() if digest is not None}


@dataclass(frozen=True)
class RunConfig:
    """The content of config.json. `recipe` has its final number of epochs; `samples` are the sizes
    of the training and the test split, the training split with what is held out; `fingerprint` has
    hashes of both, by which later commands know the data. Text has tokens for samples, and neither
    transforms nor a range of inputs.
    """

    model: str
    model_config: dict[str, Any]
    dataset: str
    seed: int
    device: str
    recipe: Recipe
    task: str
    input_transform: dict[str, Any] | None
    target_transform: dict[str, Any] | None
    input_range: tuple[float, float] | None
    classes: tuple[str, ...] | None
    shape: tuple[int, ...]
    samples: tuple[int, int]
    fingerprint: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Make `folder` and write config.json into it; FileError where that cannot be."""
        make_folder(folder)
        write_text(folder / CONFIG, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunConfig:
        """The configuration of a run folder; FileError with one clear line where it is none."""
        if not folder.is_dir():
            why = "it is a file" if folder.exists() else "there is no such folder"
            raise FileError(f"{folder} is no run folder: {why}")
        if not (folder / CONFIG).is_file():
            raise FileError(f"{folder} is no run folder: it has no {CONFIG}")
        path = folder / CONFIG
        try:
            content = json.loads(read_bytes(path))
            if not isinstance(content, dict):
                raise FileError(
                    f"{path} is damaged: it holds {_short(content)}, expected a run's settings "
                    "in braces"
                )
            if content.get("format") != FORMAT:
                raise FileError(
                    f"{path} has format {content.get('format')!r}, this version reads {FORMAT}"
                )
            content.setdefault("fingerprint", {})  # which the first runs had not
            names = [f.name for f in fields(cls)]
            if set(content) != set(names):
                odd = ", ".join(sorted(set(content) ^ set(names)))
                raise FileError(f"{path} is damaged: wrong or missing entries ({odd})")
            text = content["task"] == "language"
            for name, (fits, expected) in ENTRIES.items():
                if text and name in NOT_OF_TEXT and content[name] is None:
                    continue
                if not fits(content[name]):
                    raise FileError(
                        f"{path} is damaged: {name} is {_short(content[name])}, expected {expected}"
                    )
            content["recipe"] = Recipe(**content["recipe"])
            for name in ("input_range", "classes", "shape", "samples"):
                content[name] = None if content[name] is None else tuple(content[name])
            return cls(**content)
        except FileError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(f"{path} is damaged: {error}") from error

    def check_data(self, splits: Splits) -> None:
        """FileError where the data set is not the one that the run was trained on."""
        for name, now in (
            ("task", splits.task),
            ("shape", splits.shape),
            ("classes", splits.classes),
            ("samples", sizes(splits)),
        ):
            then = getattr(self, name)
            if now != then:
                raise FileError(
                    f"{self.dataset} is not the data of this run: {name} was {_short(then)}, "
                    f"now it is {_short(now)}"
                )
        for part, digest in fingerprints(splits).items():
            before = self.fingerprint.get(part, digest)
            if digest != before:
                raise FileError(
                    f"{self.dataset} is not the data of this run: as many {part} samples, but "
                    f"others than when the run began (their hash was {before}, now it is {digest})"
                )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and abs(value) < float("inf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_device(value: Any) -> bool:
    try:
        Device(value)
    except ValueError:
        return False
    return isinstance(value, str)


def _list_of(fits: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, list) or not value or not all(map(fits, value)):
            return False
        return length is None or len(value) == length

    return check


def _is_size(value: Any) -> bool:
    return _is_integer(value) and 0 < value < 2**63


def _is_range(value: Any) -> bool:
    return _list_of(_is_number, 2)(value) and value[0] <= value[1]


#: Entry of config.json -> what it has to be, as a check and in words.
ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "a name"),
    "model_config": (_is_mapping, "a model's settings"),
    "dataset": (_is_text, "a name"),
    "seed": (lambda v: _is_integer(v) and 0 <= v < 2**63, "an integer of at least 0"),
    "device": (_is_device, "'cpu', 'cuda' or 'cuda:N'"),
    "recipe": (
        lambda v: _is_mapping(v) and v.get("epochs") is not None,
        "a recipe's settings with its number of epochs",
    ),
    "task": (
        lambda v: v in ("classification", "regression", "language"),
        "classification, regression or language",
    ),
    "input_transform": (_is_mapping, "a transform's settings"),
    "target_transform": (lambda v: v is None or _is_mapping(v), "a transform's settings or null"),
    "input_range": (_is_range, "two numbers, the lower one first"),
    "classes": (lambda v: v is None or _list_of(_is_text)(v), "names or null"),
    "shape": (_list_of(_is_size), "positive integers"),
    "samples": (_list_of(_is_size, 2), "two positive integers"),
    "fingerprint": (
        lambda v: _is_mapping(v) and all(map(_is_text, v.values())),
        "parts of the data with their hashes",
    ),
    "versions": (_is_mapping, "names with versions"),
}


#: Entries that are null where the data is text.
NOT_OF_TEXT = ("input_transform", "input_range")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
