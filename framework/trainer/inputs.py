"""Inputs to predict: arrays as the model computes with them, and what the command reads, a .npy
file whose content may be anything.
"""

from __future__ import annotations

import io
import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from framework.autograd import Tensor
from framework.autograd.graph import in_dtype
from framework.interop.atomic import FileError, read_bytes
from framework.layers import Embedding, Module
from kernels.arrays import is_array, is_floating

MAGIC = b"\x93NUMPY"


def read_inputs(file: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The numbers of a .npy file as float32 inputs (N, *shape), finite.

    One input may be `shape` or flat, several (N, *shape) or (N, size); where there is one channel,
    it may be left out.

    Raises:
        FileError: missing, no .npy file, no numbers, another shape, or NaN; one line.
    """
    content = read_bytes(file)
    if not content.startswith(MAGIC):
        raise FileError(f"{file} is no .npy file of numbers, or a damaged one")
    try:
        x = np.load(io.BytesIO(content), allow_pickle=False)
    except (
        OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, MemoryError, OverflowError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise FileError(f"{file} is no .npy file of numbers, or a damaged one ({reason})") from None
    if x.dtype.kind not in "biuf":
        raise FileError(f"{file} holds {x.dtype}, expected one array of numbers")
    x = _as_samples(file, x, shape)
    with np.errstate(all="ignore"):  # float64 beyond float32 becomes infinite, and is named below
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise FileError(f"{file} holds values that are NaN or infinite (as float32)")
    return x


def holds_numbers(data: Any) -> bool:
    """Is this a nested list of numbers, or a list of arrays, and not one of batches?"""
    if not isinstance(data, (list, tuple)) or not data:
        return False
    first = data[0]
    if is_array(first):
        return True
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return isinstance(first, (bool, int, float, str, np.generic))


def as_input(name: str, data: Any, model: Module) -> Tensor:
    """An array or nested list as the input that `model` computes with: in the dtype of its
    parameters, integers as they are where it has an Embedding. `name` is the caller's.
    """
    try:
        x = data if is_array(data) else np.asarray(data)
    except ValueError as error:
        raise ValueError(f"{name}: data is no array of numbers: {error}") from None
    if x.dtype.kind not in "biuf" and not is_floating(x.dtype):
        raise TypeError(f"{name}: data has dtype {x.dtype}, expected numbers")
    if x.dtype.kind in "iu" and any(isinstance(m, Embedding) for m in model.modules()):
        return Tensor(x)
    dtype = next((p.dtype for p in model.parameters() if is_floating(p.dtype)), x.dtype)
    return Tensor(in_dtype(x, dtype))


def _as_samples(
    file: Path, x: np.ndarray[Any, Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """`x` as (N, *shape)."""
    forms = [shape, (math.prod(shape),)]
    if len(shape) > 1 and shape[0] == 1:
        forms.append(shape[1:])
    single = x.shape in forms
    sizes = ", ".join(map(str, shape))
    if not single and x.shape[1:] in forms and len(x) == 0:
        raise FileError(f"{file} has shape {x.shape}: it holds no inputs, expected at least one")
    if not single and x.shape[1:] not in forms:
        raise FileError(f"{file} has shape {x.shape}, expected inputs (N, {sizes})")
    return x.reshape(1 if single else len(x), *shape)
