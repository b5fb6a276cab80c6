"""One download over https, checked for size and hash.

It goes to a temporary file beside its destination and is renamed when it is right, so that a file
under its own name is always whole. Imported only when it is needed: urllib.request takes 30 ms.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from framework.data.errors import DataError
from framework.data.files import RemoteFile

TIMEOUT = 30  # seconds without a byte
CHUNK = 2**18


def download(url: str, target: Path, file: RemoteFile) -> None:
    """Download `url` to `target`, which then is exactly `file`, or does not exist.

    Raises:
        DataError: not https, not reachable, wrong size, wrong hash, or `target` cannot be written.
    """
    _check_secure(url)
    algorithm, _, expected = file.digest.partition(":")
    if algorithm not in ("md5", "sha256"):
        raise DataError(
            f"{file.name}: digest is {file.digest!r}, expected 'md5:...' or 'sha256:...'"
        )
    # md5 is what some publishers give; it guards against damage, while https guards against
    # forgery.
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    # not tempfile: its files can be read by their owner only
    temporary = target.with_name(f".{file.name}.{os.urandom(4).hex()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as out:
            request = urllib.request.Request(url, headers={"User-Agent": "framework"})
            with _opener().open(request, timeout=TIMEOUT) as response:
                _copy(response, out, hasher.update, file, url)
            out.flush()
            os.fsync(out.fileno())  # before the rename: a power cut leaves no hollow file
        if hasher.hexdigest() != expected.lower():
            raise DataError(f"{url}: wrong {algorithm} {hasher.hexdigest()}, expected {expected}")
        os.replace(temporary, target)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url}: HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DataError(f"{url}: {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise DataError(f"{url}: {error or type(error).__name__}") from error
    finally:
        with suppress(OSError):  # renamed, or never made
            temporary.unlink()


def _copy(
    source: BinaryIO, out: BinaryIO, update: Callable[[bytes], object], file: RemoteFile, url: str
) -> None:
    """Copy the body, showing progress on a terminal; stop at the first byte too many."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(file.name, total=file.size)
        received = 0
        while piece := source.read(CHUNK):
            received += len(piece)
            if received > file.size:
                raise DataError(f"{url}: more than the {file.size} bytes of {file.name}")
            out.write(piece)
            update(piece)
            progress.advance(task, len(piece))
    if received < file.size:
        raise DataError(f"{url}: ended after {received} of {file.size} bytes")


def _check_secure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not loopback:
        raise DataError(f"{url}: not https")


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a download may start, too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SecureRedirects)
