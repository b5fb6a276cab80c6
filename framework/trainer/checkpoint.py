"""The state of a run in one file: arrays as safetensors, everything else as JSON in its header.
Never pickle.

One file, so that a kill at any moment leaves a state that fits together: the old one or the new
one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.autograd import Tensor
from framework.interop import safetensors
from framework.interop.atomic import FileError, read_bytes, write_bytes
from kernels.arrays import is_array, to_numpy

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

FORMAT = "framework-checkpoint-2"


class CheckpointError(FileError):
    """A checkpoint that is damaged, or that is none."""


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state`, nested dicts and lists of arrays, Tensors, numbers, strings, booleans and
    None.

    The file is written beside `path`, flushed to the disk and renamed. Floats come back bit for
    bit, NaN and infinities too.

    Raises:
        TypeError: something in `state` that a checkpoint cannot hold; the message says where.
        FileError: `path` cannot be written.
    """
    write(path, to_bytes(state))


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """The content of the file that `save` writes: a copy of the state."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_take_out(state, "", arrays))
    header = {"format": FORMAT, "crc32": _checksum(text, arrays), "state": text}
    return safetensors.to_bytes(arrays, {"checkpoint": json.dumps(header)})


def write(path: str | Path, data: bytes) -> None:
    """Put what `to_bytes` gave into a file, whole or not at all."""
    write_bytes(path, data)


def load(path: str | Path) -> dict[str, Any]:
    """The state that `save` wrote; arrays are NumPy's, tuples have become lists.

    Raises:
        CheckpointError: missing, damaged (a flipped bit shows too), or no checkpoint; one line that
            names the file.
    """
    try:
        data = read_bytes(path)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    return from_bytes(data, path)


def from_bytes(data: bytes, path: str | Path) -> dict[str, Any]:
    """The state in what `to_bytes` gave; `path` is what a CheckpointError names."""
    try:
        arrays, metadata = safetensors.from_bytes(data, path)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    try:
        header = json.loads(metadata["checkpoint"])
        if header["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {header['format']!r}, this version reads {FORMAT!r}"
            )
        if header["crc32"] != _checksum(header["state"], arrays):
            raise CheckpointError(
                f"{path} is damaged: its checksum does not match; use an older one"
            )
        state = _put_back(json.loads(header["state"]), arrays)
        if not isinstance(state, dict):
            raise TypeError(f"the state is a {type(state).__name__}")
        return state
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is a safetensors file, but no checkpoint of a run"
        ) from error


def save_trainer(path: str | Path, trainer: Trainer) -> None:
    """`save` of ``trainer.state_dict()``."""
    save(path, trainer.state_dict())


def load_trainer(path: str | Path, trainer: Trainer) -> None:
    """Make `trainer` go on where the saved one was; CheckpointError also where they do not fit, and
    then it is as it was.
    """
    _take_over(trainer, load(path), path)


def resume(path: str | Path, trainer: Trainer) -> Path:
    """`load_trainer` of a checkpoint, or of the newest whole one in a folder; which one it was."""
    if not Path(path).is_dir():
        load_trainer(path, trainer)
        return Path(path)
    from framework.trainer.store import newest  # which is built upon this file

    found, state = newest(path)
    _take_over(trainer, state, found)
    return found


def _take_over(trainer: Trainer, state: Mapping[str, Any], path: str | Path) -> None:
    try:
        trainer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} does not fit this run: {what}") from error
    trainer.folders.add(Path(path).resolve().parent)


def _take_out(value: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """`value` with every array moved to `arrays`, and {"$array": its name} left in its place."""
    if isinstance(value, Tensor):
        value = value.data
    if is_array(value):
        arrays[path] = to_numpy(value)
        return {"$array": path}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise TypeError(f"{path or 'state'} has the key {key!r}, expected str or int")
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _take_out(item, f"{path}/{key}", arrays) for key, item in value.items()}
        pairs = [[key, _take_out(item, f"{path}/{key}", arrays)] for key, item in value.items()]
        return {"$pairs": pairs}  # JSON's keys are strings
    if isinstance(value, (list, tuple)):
        return [_take_out(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{path or 'state'} is a {type(value).__name__}, which a checkpoint cannot hold"
    )


def _put_back(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_put_back(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return arrays[value["$array"]]
    if "$pairs" in value:
        return {key: _put_back(item, arrays) for key, item in value["$pairs"]}
    return {key: _put_back(item, arrays) for key, item in value.items()}


def _checksum(text: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """Of everything: the plain values, and the arrays."""
    return safetensors.checksum(arrays, zlib.crc32(text.encode()))
