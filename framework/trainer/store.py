"""A folder of checkpoints: the last few of a run, with a manifest of their sizes and hashes.

    checkpoint-000017.safetensors     numbered as they were written
    checkpoint-000018.safetensors
    manifest.json                     size, SHA-256, epoch and step of each

Each file is written whole or not at all, the checkpoint first, then the manifest, and only then is
an older checkpoint removed: a kill at any moment leaves the last one that was whole. One that was
written and did not get into the manifest any more has its own checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from framework.interop.atomic import FileError, read_bytes, remove_scratch, write_bytes, write_text
from framework.trainer import checkpoint

log = logging.getLogger("framework")

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{6,12})\.safetensors")


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of `folder`, newest first, whole or not."""
    try:
        found = [path for path in Path(folder).iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, key=_number, reverse=True)


def newest(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The newest whole checkpoint of `folder`, and its state. Damaged ones that are newer are named
    by a warning.

    Raises:
        CheckpointError: there is none; says what is wrong with those that there are.
    """
    folder = Path(folder)
    entries, problems = _manifest(folder)
    names = {path.name for path in checkpoints_in(folder)} | set(entries)
    if not names:
        raise checkpoint.CheckpointError("; ".join([*problems, f"{folder} holds no checkpoint"]))
    paths = sorted((folder / name for name in names), key=_number, reverse=True)
    # Where the manifest speaks against all of them, it is what is damaged: then their own checksums
    # decide.
    for path, entry in [(p, entries.get(p.name)) for p in paths] + [(p, None) for p in paths]:
        try:
            state = checkpoint.from_bytes(_checked(path, entry), path)
        except FileError as error:
            if not any(str(path) in problem for problem in problems):
                problems.append(str(error))
            continue
        for problem in problems:
            log.warning("%s; going on from %s", problem, path.name)
        return path, state
    raise checkpoint.CheckpointError("; ".join(problems))


class Store:
    """Writes checkpoints into `folder`, of which the last `keep` stay."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self._kept: dict[str, Any] = {}

    def begin(self, goes_on: bool) -> None:
        """Before a run's first `save`: what kills left half written goes. Whole checkpoints count
        among the last few where the run `goes_on` from one, else the first `save` replaces them.
        """
        remove_scratch(self.folder)
        self._kept = {}
        entries, _ = _manifest(self.folder)
        for path in reversed(checkpoints_in(self.folder)) if goes_on else ():
            with suppress(FileError):
                data = _checked(path, entries.get(path.name))
                checkpoint.from_bytes(data, path)
                self._kept[path.name] = entries.get(path.name) or _entry(data)

    def save(self, data: bytes, **about: Any) -> Path:
        """Add a checkpoint, and remove those that are too many. `about` goes into the manifest.

        Raises:
            FileError: it cannot be written; the ones before it are whole.
        """
        there = checkpoints_in(self.folder)
        path = self.folder / f"checkpoint-{_number(there[0]) + 1 if there else 1:06}.safetensors"
        write_bytes(path, data)
        kept = {**self._kept, path.name: _entry(data) | about}
        kept = dict(list(kept.items())[-self.keep :])
        text = json.dumps({"format": FORMAT, "checkpoints": kept}, indent=2)
        write_text(self.folder / MANIFEST, text + "\n")
        self._kept = kept
        for old in there:
            if old.name not in kept:
                with suppress(OSError):
                    old.unlink()
        return path

    def remove(self) -> None:
        """Remove all checkpoints, and the folder if it is empty then."""
        with suppress(OSError):
            for path in (*reversed(checkpoints_in(self.folder)), self.folder / MANIFEST):
                path.unlink(missing_ok=True)
            remove_scratch(self.folder)
            self.folder.rmdir()


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _checked(path: Path, entry: dict[str, Any] | None) -> bytes:
    """The bytes of a checkpoint; FileError where they are others than the manifest says."""
    data = read_bytes(path)
    if entry is None:
        return data
    if len(data) != entry["size"]:
        raise FileError(f"{path} is damaged: {len(data)} bytes, {MANIFEST} says {entry['size']}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise FileError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return data


def _manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The entries of the manifest by name, and what is wrong with it."""
    path = folder / MANIFEST
    if not path.exists():
        return {}, []
    try:
        content = json.loads(read_bytes(path))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        entries = content["checkpoints"]
        for name, entry in entries.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a checkpoint")
            if not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str):
                raise ValueError(f"the entry of {name} is {entry!r}")
        return entries, []
    except FileError as error:
        return {}, [str(error)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        return {}, [f"{path} is damaged ({reason})"]
