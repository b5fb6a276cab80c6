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
from framework.interop.atomic import FileError, write_bytes
from kernels.arrays import is_array, to_numpy

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

FORMAT = "framework-checkpoint-1"


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
        arrays, metadata = safetensors.load_with_metadata(path)
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
        state: dict[str, Any] = _put_back(json.loads(header["state"]), arrays)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is a safetensors file, but no checkpoint of a run"
        ) from error
    return state


def save_trainer(path: str | Path, trainer: Trainer) -> None:
    """`save` of ``trainer.state_dict()``."""
    save(path, trainer.state_dict())


def load_trainer(path: str | Path, trainer: Trainer) -> None:
    """Make `trainer` go on where the saved one was; CheckpointError also where they do not fit."""
    state = load(path)
    try:
        trainer.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}") from error


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
    """Of everything: the plain values, and every array's name, dtype, shape and bytes."""
    total = zlib.crc32(text.encode())
    for name in sorted(arrays):
        what = f"{name} {arrays[name].dtype} {arrays[name].shape}"
        data = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data
        total = zlib.crc32(data, zlib.crc32(what.encode(), total))
    return total
