"""Reader of the IDX format, in which MNIST and its relatives are published.

A header of ``00 00 type ndim`` and `ndim` big-endian uint32 sizes, then the elements in C order,
big-endian (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits"). Files may
be gzipped.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from framework.data.errors import DataError

#: The type byte of the header, and the elements which it announces.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: MNIST's largest file holds 47 MB, EMNIST's 547 MB.
MAX_BYTES = 2**30

MAX_DIMENSIONS = 8
CHUNK = 2**20  # read in pieces: read(n) reserves n bytes at once, whatever the file holds
DEFLATE_RATIO = 1032  # the most that deflate can compress: 258 bytes in 2 bits


def read_idx(path: str | Path, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array in an IDX file, plain or gzipped (told by its first bytes, not by its name).

    The result is C-contiguous, writable and in the machine's byte order. The header is believed
    only as far as the file's length supports it, so that a corrupt one cannot reserve memory.

    Raises:
        DataError: the file is missing, unreadable, not IDX, truncated, has trailing bytes, a gzip
            error, or announces more than `max_bytes`.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # which may never end
        raise DataError(f"{path}: it is no file, but a pipe or a device")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            stored = file.seek(0, 2)
            file.seek(0)
            if not zipped:
                return _parse(file, path, stored, max_bytes)
            with gzip.GzipFile(fileobj=file) as stream:
                return _parse(stream, path, stored * DEFLATE_RATIO, max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: corrupt gzip data ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(
    stream: BinaryIO | gzip.GzipFile, path: Path, available: int, max_bytes: int
) -> np.ndarray:
    """Read header and elements; `available` is the most bytes that the stream can hold."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(f"{path}: {len(magic)} bytes are too few for an IDX file")
    if magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise DataError(
            f"{path}: not an IDX file (it starts with {magic.hex(' ')}, expected 00 00, a type of "
            f"08 09 0b 0c 0d 0e, and 1-{MAX_DIMENSIONS} dimensions)"
        )
    dtype, ndim = np.dtype(TYPES[magic[2]]), magic[3]
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{path}: truncated inside its header")
    shape = struct.unpack(f">{ndim}I", sizes)

    if math.prod(size for size in shape if size) * dtype.itemsize > max_bytes:
        raise DataError(
            f"{path}: header announces {shape} {dtype.name}, above the limit of {max_bytes} bytes"
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected > available:
        raise DataError(
            f"{path}: truncated (header announces {shape} {dtype.name}, {expected} bytes)"
        )

    content = bytearray()
    while len(content) <= expected and (
        piece := stream.read(min(CHUNK, expected + 1 - len(content)))
    ):
        content += piece
    if len(content) < expected:
        raise DataError(
            f"{path}: truncated ({len(content)} of the {expected} bytes of {shape} {dtype.name})"
        )
    if len(content) > expected:
        raise DataError(f"{path}: trailing bytes after the {expected} of {shape} {dtype.name}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
