"""Reader of CIFAR-10's binary version: files of records, each a label byte and 3,072 bytes of a
3x32x32 image.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from framework.data.errors import DataError

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_PER_FILE = 10_000
RECORD = 1 + 3 * 32 * 32  # bytes

#: Of the archive, unpacked; it has 184 million.
MAX_BYTES = 2**28


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, training labels, test images, test labels from the archive or from a folder
    with its .bin files.

    Images are uint8 (N, 3, 32, 32), labels uint8 (N,). The archive is read where it is; nothing is
    unpacked to disk.

    Raises:
        DataError: a file is missing, has the wrong length, or a label above 9; or the archive is
            corrupt.
    """
    contents = _from_folder(path) if path.is_dir() else _from_archive(path)
    parts = {name: _parse(contents[name], f"{path}: {name}") for name in TRAIN + TEST}
    images, labels = (np.concatenate([parts[name][i] for name in TRAIN]) for i in (0, 1))
    return images, labels, *parts[TEST[0]]


def _from_folder(folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in TRAIN + TEST}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


class _Limited:
    """Reads `file`, up to MAX_BYTES in all: a small archive can claim, and hold, any number."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, MAX_BYTES

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_BYTES:,} bytes")
        return data


def _from_archive(archive: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with gzip.open(archive) as file:
            limited = _Limited(file)
            with tarfile.open(fileobj=limited, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./").removeprefix(f"{FOLDER}/")
                    fits = member.isfile() and member.size <= IMAGES_PER_FILE * RECORD
                    if fits and name in TRAIN + TEST:
                        stream = tar.extractfile(member)
                        contents[name] = stream.read() if stream else b""
            while limited.read(2**20):  # to the end, where gzip's checksum is
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: corrupt archive ({error})") from error
    missing = [name for name in TRAIN + TEST if name not in contents]
    if missing:
        raise DataError(f"{archive}: lacks {', '.join(missing)}, or they are too large")
    return contents


def _parse(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != IMAGES_PER_FILE * RECORD:
        raise DataError(
            f"{where}: holds {len(content)} bytes, expected {IMAGES_PER_FILE} records of {RECORD}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels, images = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
    if labels.max() >= len(CLASSES):
        raise DataError(f"{where}: label {labels.max()} is outside 0..{len(CLASSES) - 1}")
    return images, labels
