"""Folders of Hugging Face's `transformers`: config.json and model.safetensors, read and written.

A model says in `Place`s where each of its tensors lies in such a file. All is read and checked
before anything is loaded, so that an error leaves the model as it was.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from framework.interop import safetensors
from framework.interop.atomic import FileError, read_bytes, write_text
from framework.layers import Module
from framework.layers.storage import at_most

log = logging.getLogger("framework")

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

Array = np.ndarray[Any, Any]
Config, Model = TypeVar("Config"), TypeVar("Model", bound=Module)


class Place(NamedTuple):
    """Our tensor `ours` is their tensors `theirs` one below the other, `rows` of each (all of one);
    `transposed`: their matrices are (in, out).
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False

    def shapes(self, whole: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes of `theirs`, where ours has the shape `whole`."""
        parts = [(n, *whole[1:]) for n in self.rows or whole[:1]]
        return [shape[::-1] for shape in parts] if self.transposed else parts


def one(ours: str, theirs: str, transposed: bool = False) -> Iterable[Place]:
    """The weight and the bias of a layer."""
    yield Place(f"{ours}.weight", (f"{theirs}.weight",), transposed=transposed)
    yield Place(f"{ours}.bias", (f"{theirs}.bias",))


def several(ours: str, theirs: Sequence[str], rows: tuple[int, ...]) -> Iterable[Place]:
    """The weights and the biases of layers that are one of ours."""
    for kind in ("weight", "bias"):
        yield Place(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), rows)


def read_config(folder: str | Path, kinds: Sequence[str]) -> dict[str, Any]:
    """config.json of a model of one of these kinds ("model_type")."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(read_bytes(path))
        kind = config.get("model_type")
    except FileError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error}") from error
    if kind not in kinds:
        raise FileError(
            f"{path} is of another architecture: model_type is {kind!r}, expected "
            f"{' or '.join(map(repr, kinds))}"
        )
    return dict(config)


def build(folder: str | Path, read: Callable[[], Config], make: Callable[[Config], Model]) -> Model:
    """A new model, `make(read())`, of what config.json says; FileError where that cannot be, or
    where it would be larger than the weights beside it.
    """
    path, files = Path(folder) / CONFIG, list(Path(folder).glob("*.safetensors"))
    try:
        config = read()
        if not files:
            raise FileError(f"{path.with_name(WEIGHTS)} does not exist")
        with at_most(safetensors.room_of(files)):
            return make(config)
    except FileError:
        raise
    except KeyError as error:
        raise FileError(f"{path} has no {error.args[0]!r}") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise FileError(f"{path} describes no model: {error}") from error


def expect_values(config: Mapping[str, Any], **expected: Any) -> None:
    """ValueError where an entry that is there has another value than the one computed here."""
    for name, value in expected.items():
        if name in config and config[name] not in (value, None):
            raise ValueError(f"{name} is {config[name]!r}, only {value!r} is computed here")


def one_dropout(config: Mapping[str, Any], name: str, *others: str) -> float:
    """The dropout `name`, which our models use in all places; where `others` differ a line is
    logged, for training, and what is saved, will have this one.
    """
    kept = config.get(name, 0.1)
    lost = [f"{other}={config[other]!r}" for other in others if config.get(other, kept) != kept]
    if lost:
        log.warning("config.json has %s: %s=%r is used for these too", ", ".join(lost), name, kept)
    return kept


def read_weights(folder: str | Path) -> tuple[dict[str, Array], Path]:
    """All tensors of a folder, from one file or from those of an index, and what to call it."""
    folder = Path(folder)
    path, index = folder / WEIGHTS, folder / INDEX
    if path.is_file() or not index.is_file():
        return safetensors.load(path), path
    try:
        where = json.loads(read_bytes(index))["weight_map"]
        files = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{index} is damaged: it has no weight_map") from error
    found: dict[str, Array] = {}
    for file in files:
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise FileError(f"{index} is damaged: {file!r} is no name of a file beside it")
        found |= safetensors.load(folder / file)
    missing = [name for name in where if name not in found]
    if missing:
        raise FileError(f"{folder}: {missing[0]} is in none of the files that {INDEX} names")
    return found, index


def load(
    model: Module, folder: str | Path, places: Iterable[Place], prefix: str, spare: str
) -> None:
    """Fill `model`; `prefix` may be missing before all names, names that match `spare` may be there
    without being of the model.

    Raises:
        FileError: a file or a tensor is missing, or a tensor has another shape; the model is as it
            was.
    """
    tensors, path = read_weights(folder)
    tensors = {_today(name): x for name, x in tensors.items()}
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {prefix + name: x for name, x in tensors.items()}
    own = {name: x.shape for name, x in model.state_dict().items()}
    state: dict[str, Array] = {}
    used: set[str] = set()
    for place in places:
        if place.ours not in own:  # a bias that the model goes without
            continue
        parts = []
        for name, shape in zip(place.theirs, place.shapes(own[place.ours]), strict=True):
            if name not in tensors:
                raise FileError(f"{path} has no tensor {name}, of shape {shape}")
            if tensors[name].shape != shape:
                raise FileError(
                    f"{path}: {name} has shape {tensors[name].shape}, the model needs {shape}"
                )
            parts.append(tensors[name].T if place.transposed else tensors[name])
        used.update(place.theirs)
        state[place.ours] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    odd = [name for name in tensors if name not in used and not re.search(spare, name)]
    if odd:
        raise FileError(
            f"{path} has {odd[0]} of shape {tensors[odd[0]].shape}, for which the model has no "
            f"place{f', and {len(odd) - 1} more' if odd[1:] else ''}"
        )
    model.load_state_dict(state)


def _today(name: str) -> str:
    """The first files of BERT have TensorFlow's names of a norm's scale and shift."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def save(
    model: Module, folder: str | Path, places: Iterable[Place], config: Mapping[str, Any]
) -> None:
    """Write both files into `folder`, which is made if need be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make {folder}: {error.strerror}") from error
    own = model.state_dict()
    tensors: dict[str, Array] = {}
    for place in places:
        if place.ours not in own:
            continue
        whole = own[place.ours].numpy()
        cuts = np.cumsum(place.rows)[:-1] if place.rows else []
        for name, part in zip(place.theirs, np.split(whole, cuts), strict=True):
            tensors[name] = np.ascontiguousarray(part.T if place.transposed else part)
    safetensors.save(tensors, folder / WEIGHTS, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
