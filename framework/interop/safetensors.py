"""Weights as safetensors files, the format that Hugging Face and PyTorch users exchange: no pickle,
no code.

save(path, model.state_dict())
model.load_state_dict(load(path))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from framework.autograd.tensor import Tensor, as_dtype
from framework.interop.atomic import FileError, read_bytes, write_bytes
from kernels.arrays import Array, is_array, to_numpy

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
    new one.

    The same tensors and `metadata` give the same bytes (with more than one entry of `metadata`, up
    to their order).

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
    return safetensors.numpy.save(arrays, dict(metadata) if metadata else None)


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
    import json

    import safetensors

    data = read_bytes(path)
    try:
        entries = safetensors.deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path} is no safetensors file, or a damaged one ({reason})") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            known = ", ".join(DTYPES)
            raise FileError(f"{path}: {name!r} has dtype {entry['dtype']}; known are {known}")
        flat = np.frombuffer(entry["data"], as_dtype(DTYPES[entry["dtype"]]))
        arrays[name] = flat.reshape(
            entry["shape"]
        ).copy()  # writable, and free of the file's buffer
    return arrays, header.get("__metadata__", {})


def _plain(name: str, value: Tensor | Array) -> np.ndarray[Any, Any]:
    """A contiguous little-endian NumPy array."""
    array = value.data if isinstance(value, Tensor) else value
    if not is_array(array):
        raise TypeError(f"{name!r} is a {type(value).__name__}, expected a tensor or an array")
    if array.dtype.name not in DTYPES.values():
        raise TypeError(f"{name!r} has dtype {array.dtype}, which safetensors cannot hold")
    plain = np.asarray(to_numpy(array), order="C")
    return plain.astype(plain.dtype.newbyteorder("<"), copy=False)
