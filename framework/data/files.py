"""Where published files are: in FRAMEWORK_DATA, in the user's cache folder, or on a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from framework.data.errors import DataError
from kernels.cache import chosen_cache, user_cache


@dataclass(frozen=True)
class RemoteFile:
    """A published file: name, size in bytes, ``"md5:..."`` or ``"sha256:..."``, URLs in order."""

    name: str
    size: int
    digest: str
    urls: tuple[str, ...]


def data_folder() -> Path | None:
    """The folder that FRAMEWORK_DATA names, with a folder for each data set in it; None if unset.

    Raises:
        DataError: it is set, but is no folder.
    """
    chosen = os.environ.get("FRAMEWORK_DATA")
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise DataError(f"FRAMEWORK_DATA is {chosen!r}, which is not a folder")
    return folder


def cache_folder() -> Path:
    """Where downloads are kept: ``data`` inside FRAMEWORK_CACHE or the user's cache folder."""
    return (chosen_cache() or user_cache()) / "data"


def locate(folder: str, name: str) -> Path | None:
    """`folder`/`name` in FRAMEWORK_DATA, or else in the cache, or else None.

    A ``.gz`` file may be there unpacked, without its ``.gz``.
    """
    for root in (data_folder(), cache_folder()):
        for candidate in (name, name.removesuffix(".gz")):
            if root is not None and (root / folder / candidate).is_file():
                return root / folder / candidate
    return None


def fetch(folder: str, file: RemoteFile) -> Path:
    """The path of `file`: found by `locate`, or downloaded into the cache.

    Raises:
        DataError: no URL gave the right file. Says what each one did, and where to put the file by
            hand.
    """
    found = locate(folder, file.name)
    if found is not None:
        return found
    from framework.data.download import download

    target = cache_folder() / folder / file.name
    failures = []
    for url in file.urls:
        try:
            download(url, target, file)
            return target
        except DataError as error:
            failures.append(str(error))
    root = data_folder()
    if root is not None:
        where = f"into {root / folder}"
    else:
        where = (
            f"into a folder {folder} inside any folder, which the environment variable "
            "FRAMEWORK_DATA then has to name: FRAMEWORK_DATA=/path/to/data for "
            f"/path/to/data/{folder}/{file.name}"
        )
    raise DataError(
        f"{file.name} could not be downloaded: {'; '.join(failures)}; "
        f"get it by other means, and put it {where}"
    )
