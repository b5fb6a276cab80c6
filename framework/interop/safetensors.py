"""Weights as safetensors files, the format that Hugging Face and PyTorch users exchange: no pickle,
no code.

save(path, model.state_dict())
model.load_state_dict(load(path))
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from framework.autograd.tensor import Tensor, as_dtype
from framework.interop.atomic import FileError, read_bytes, write_bytes
from kernels.arrays import Array, is_array, to_numpy

#: In the metadata of files that say how they should read: others do not have it.
CHECKSUM = "framework-crc32"

#: The format's name of each dtype that a tensor can have.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def save(
    tensors: Mapping[str, Tensor | Array],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors, on any device, to a safetensors file; a kill leaves the old file or the
    new one. Without `metadata` of your own it has a checksum, which `load` checks.

    The same tensors and `metadata` give the same bytes (with more than one entry of `metadata`, up
    to their order). Nested dicts and numbers, such as an optimizer's state, are written by
    ``framework.trainer.checkpoint.save(path, state)``, and read by its ``load(path)``.

    Raises:
        TypeError: a value is no tensor or array, or its dtype has no place in the format.
        FileError: `path` cannot be written.
    """
    write_bytes(path, to_bytes(tensors, metadata))


def to_bytes(
    tensors: Mapping[str, Tensor | Array], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The content of the file that `save` writes."""
    import safetensors.numpy

    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"save: tensors is a {type(tensors).__name__}, expected a dict of names and tensors, "
            "as state_dict() gives it"
        )
    arrays = {name: _plain(name, value) for name, value in tensors.items()}
    if metadata is None:
        metadata = {CHECKSUM: str(checksum(arrays))}
    return safetensors.numpy.save(arrays, dict(metadata) or None)


def load(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """Named NumPy arrays from a safetensors file; for a Module's `load_state_dict`.

    Raises:
        FileError: the file is missing or damaged, or holds a dtype that NumPy and ml_dtypes do not
            have.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(
    path: str | Path,
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The arrays and the metadata of a safetensors file; raises as `load`."""
    return from_bytes(read_bytes(path), path)


def from_bytes(
    data: bytes, path: str | Path
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The same of the file's content; `path` is what errors name."""
    import json

    import safetensors

    try:
        entries = safetensors.deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path} is no safetensors file, or a damaged one ({reason})") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            known = ", ".join(DTYPES)
            raise FileError(f"{path}: {name!r} has dtype {entry['dtype']}; known are {known}")
        flat = np.frombuffer(entry["data"], as_dtype(DTYPES[entry["dtype"]]))
        try:
            # writable, and free of the file's buffer
            arrays[name] = flat.reshape(entry["shape"]).copy()
        except (ValueError, OverflowError) as error:  # sizes beyond NumPy's, of no elements
            raise FileError(f"{path}: {name!r} has shape {entry['shape']}: {error}") from error
    metadata = header.get("__metadata__", {})
    if CHECKSUM in metadata and metadata[CHECKSUM] != str(checksum(arrays)):
        raise FileError(f"{path} is damaged: its checksum does not match")
    return arrays, metadata


def room_of(paths: Iterable[Path]) -> int:
    """More elements than a model can have whose weights are in these files: one for each byte, and
    some for buffers that are in no file.
    """
    return sum(path.stat().st_size for path in paths) + 2**20


def checksum(arrays: Mapping[str, np.ndarray[Any, Any]], start: int = 0) -> int:
    """CRC-32 of every array's name, dtype, shape and bytes."""
    total = start
    for name in sorted(arrays):
        what = f"{name} {arrays[name].dtype} {arrays[name].shape}"
        data = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data
        total = zlib.crc32(data, zlib.crc32(what.encode(), total))
    return total


def _plain(name: str, value: Tensor | Array) -> np.ndarray[Any, Any]:
    """A contiguous little-endian NumPy array."""
    array = value.data if isinstance(value, Tensor) else value
    if not is_array(array):
        raise TypeError(
            f"{name!r} is a {type(value).__name__}, expected a tensor or an array; nested dicts, "
            "lists and numbers are written by framework.trainer.checkpoint.save(path, state), and "
            "read by its load(path)"
        )
    if array.dtype.name not in DTYPES.values():
        raise TypeError(f"{name!r} has dtype {array.dtype}, which safetensors cannot hold")
    plain = np.asarray(to_numpy(array), order="C")
    return plain.astype(plain.dtype.newbyteorder("<"), copy=False)
