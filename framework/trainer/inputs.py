"""The inputs that ``predict`` reads: a .npy file, whose content may be anything."""

from __future__ import annotations

import io
import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from framework.interop.atomic import FileError, read_bytes

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


def _as_samples(
    file: Path, x: np.ndarray[Any, Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """`x` as (N, *shape)."""
    forms = [shape, (math.prod(shape),)]
    if len(shape) > 1 and shape[0] == 1:
        forms.append(shape[1:])
    single = x.shape in forms
    if not single and (x.shape[1:] not in forms or len(x) == 0):
        sizes = ", ".join(map(str, shape))
        raise FileError(f"{file} has shape {x.shape}, expected inputs (N, {sizes})")
    return x.reshape(1 if single else len(x), *shape)
