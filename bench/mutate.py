"""`python -m bench mutate`: files of every kind that the framework reads, damaged and read.

Each reading has to end in the framework's own error, which names the file, or in content: where a
file has a checksum, in the content that was written. Never in another error, in a hang, in memory
without bound, or in a model of which a part is loaded.
"""

from __future__ import annotations

import gzip
import io
import logging
import random
import signal
import struct
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import framework as fw
from bench.families import FAMILIES
from bench.mutator import damaged
from framework.data import DataError, DataLoader, cifar
from framework.data.idx import read_idx
from framework.interop import safetensors
from framework.interop.atomic import FileError
from framework.trainer import Trainer, checkpoint, store
from framework.trainer.inputs import read_inputs
from framework.trainer.run import CONFIG, Recipe, RunConfig, read_history
from models import configure

#: The errors that a user is meant to see.
OWN = (FileError, DataError)

SECONDS = 20  # after which a reading hangs
ROOM = 1 << 30  # bytes beyond those of the process: what a few hundred kilobytes may ask for


@dataclass
class Target:
    """A kind of file: `write(folder)` makes a good one, `read(path)` gives its content in a form
    that can be compared.

    `checked`: the file has a checksum, so that other content is never taken for its own.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool = False


@dataclass
class Tally:
    """What came of the files of a kind."""

    name: str
    files: int = 0
    errors: int = 0
    same: int = 0  # the damage was where nothing is read, or healed by what is beside
    other: int = 0  # well-formed, with other content
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


# Kinds of files -----------------------------------------------------------------------------------


def _trainer(family: str) -> Trainer:
    fw.manual_seed(0)
    made = FAMILIES[family]
    model = made.model()
    return Trainer(model, made.loss, made.optimizer(model))


def _write_checkpoint(family: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        trainer = _trainer(family)
        loader = DataLoader(FAMILIES[family].data(), 16, shuffle=True, device="cpu")
        trainer.fit(loader, epochs=1)
        checkpoint.save_trainer(folder / "c.safetensors", trainer)
        return folder / "c.safetensors"

    return write


def _read_checkpoint(family: str) -> Callable[[Path], Any]:
    """Into a trainer, which is as it was after an error."""
    trainer = _trainer(family)
    before = checkpoint.to_bytes(trainer.state_dict())

    def read(path: Path) -> Any:
        nonlocal trainer
        try:
            checkpoint.load_trainer(path, trainer)
        except OWN:
            if checkpoint.to_bytes(trainer.state_dict()) != before:
                raise AssertionError("a part of the checkpoint has been loaded") from None
            raise
        after = checkpoint.to_bytes(trainer.state_dict())
        trainer = _trainer(family)
        return after

    return read


def _write_manifest(folder: Path) -> Path:
    kept = store.Store(folder / "run")
    (folder / "run").mkdir()
    for step in (1, 2):
        kept.save(checkpoint.to_bytes({"w": np.arange(5.0)}), step=step)
    return folder / "run" / store.MANIFEST


def _write_weights(folder: Path) -> Path:
    safetensors.save(_trainer("mlp").model.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def _read_weights(path: Path) -> Any:
    """As a run's model.safetensors are read."""
    arrays, metadata = safetensors.load_with_metadata(path)
    if safetensors.CHECKSUM not in metadata:  # by which others' files are known
        raise FileError(f"{path} is damaged: its checksum is missing")
    return arrays


def _write_config(folder: Path) -> Path:
    config = RunConfig(
        model="mlp", model_config={"inputs": 64, "hidden": [32]}, dataset="digits", seed=0,
        device="cpu", recipe=Recipe(epochs=3), task="classification",
        input_transform={"kind": "Standardise"}, target_transform=None, input_range=(0.0, 1.0),
        classes=("a", "b"), shape=(1, 8, 8), samples=(100, 20),
    )  # fmt: skip
    config.write(folder)
    return folder / CONFIG


def _read_config(path: Path) -> Any:
    config = RunConfig.read(path.parent)
    try:
        configure(config.model, **config.model_config)
    except (ValueError, TypeError) as error:  # as the command line has it
        raise FileError(f"{path} describes no model: {error}") from error
    return config


def _idx(shape: tuple[int, ...]) -> bytes:
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    draw = np.random.default_rng(0)
    return header + draw.integers(0, 10, shape, dtype=np.uint8).tobytes()


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


RECORDS = 3  # in each file of a small CIFAR-10


def _cifar_files() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    files = {}
    for name in cifar.TRAIN + cifar.TEST:
        records = draw.integers(0, 256, (RECORDS, cifar.RECORD), dtype=np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    return files


def _write_cifar_folder(folder: Path) -> Path:
    for name, content in _cifar_files().items():
        (folder / name).write_bytes(content)
    return folder / cifar.TEST[0]


def _write_cifar_archive(folder: Path) -> Path:
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        for name, content in _cifar_files().items():
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder / "cifar.tar.gz"


def _read_cifar(path: Path) -> Any:
    before, cifar.IMAGES_PER_FILE = cifar.IMAGES_PER_FILE, RECORDS
    try:
        return cifar.read_cifar10(path.parent if path.suffix == ".bin" else path)
    finally:
        cifar.IMAGES_PER_FILE = before


def _npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 1, 8, 8))
    return content.getvalue()


def _history() -> bytes:
    lines = [f'{{"epoch": {i}, "step": {9 * i}, "loss": {1 / i}, "lr": null}}' for i in (1, 2, 3)]
    return "\n".join(lines).encode()


TARGETS: tuple[Target, ...] = (
    *(
        Target(f"checkpoint {name}", _write_checkpoint(name), _read_checkpoint(name), checked=True)
        for name in FAMILIES
    ),
    # a hash that is not the file's leads to the checkpoint before, which holds the same
    Target("manifest.json", _write_manifest, lambda p: store.newest(p.parent)[1], checked=True),
    Target("model.safetensors", _write_weights, _read_weights, checked=True),
    Target(CONFIG, _write_config, _read_config),
    Target("metrics.jsonl", _bytes("metrics.jsonl", _history()), read_history),
    Target("IDX images", _bytes("images", _idx((20, 8, 8))), read_idx),
    Target("IDX, gzipped", _bytes("labels.gz", gzip.compress(_idx((50,)), mtime=0)), read_idx),
    Target("CIFAR-10 folder", _write_cifar_folder, _read_cifar),
    Target("CIFAR-10 archive", _write_cifar_archive, _read_cifar),
    Target("inputs .npy", _bytes("x.npy", _npy()), lambda p: read_inputs(p, (1, 8, 8))),
)  # fmt: skip


# Reading ------------------------------------------------------------------------------------------


class _Hangs(BaseException):
    pass


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """`_Hangs` within the block after so long."""

    def ring(*_: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited_memory(room: int) -> Iterator[None]:
    """Within the block the process can have `room` bytes more than it has: beyond, MemoryError."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block what is said of damaged files that are not needed is not shown."""
    log = logging.getLogger("framework")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def run(
    files: int,
    targets: Sequence[Target] = TARGETS,
    seed: int = 0,
    after_file: Callable[[], object] = lambda: None,
) -> list[Tally]:
    """Damage and read `files` files, as many of each kind. The same `seed`, the same damage."""
    tallies = []
    with _limited_memory(ROOM), _quiet():
        for i, target in enumerate(targets):
            tally = Tally(target.name)
            with tempfile.TemporaryDirectory() as folder:
                path = target.write(Path(folder))
                good, content = path.read_bytes(), target.read(path)
                for number in range(files // len(targets) + (i < files % len(targets))):
                    chance = random.Random(f"{seed} {target.name} {number}")
                    path.write_bytes(damaged(good, chance))
                    _read(target, path, content, tally, f"file {number} of seed {seed}")
                    after_file()
            tallies.append(tally)
    return tallies


def _read(target: Target, path: Path, content: Any, tally: Tally, which: str) -> None:
    began = time.perf_counter()
    tally.files += 1
    try:
        with _within(SECONDS):
            found = target.read(path)
    except OWN as error:
        tally.errors += 1
        if path.name not in str(error) and str(path.parent) not in str(error):
            tally.problems.append(f"{which}: the error does not name the file: {error}")
        if "\n" in str(error):
            tally.problems.append(f"{which}: the error has several lines: {error}")
    except _Hangs:
        tally.problems.append(f"{which}: no answer after {SECONDS} s")
    except Exception as error:
        tally.problems.append(f"{which}: {type(error).__name__}: {str(error)[:200]}")
    else:
        same = alike(found, content)
        tally.same, tally.other = tally.same + same, tally.other + (not same)
        if target.checked and not same:
            tally.problems.append(f"{which}: damage that its checksum does not show")
    tally.slowest = max(tally.slowest, time.perf_counter() - began)


def alike(a: Any, b: Any) -> bool:
    """Equal contents: arrays by dtype, shape and bytes."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b) or (a != a and b != b)


# What is shown ------------------------------------------------------------------------------------


def table(tallies: Sequence[Tally]) -> Table:
    """A row for each kind of file."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("file")
    columns = "files", "own error", "read, same", "read, other", "crash, hang, wrong", "slowest"
    for name in columns:
        out.add_column(name, justify="right")
    total = Tally("all")
    for tally in tallies:
        for key in ("files", "errors", "same", "other"):
            setattr(total, key, getattr(total, key) + getattr(tally, key))
        total.problems += tally.problems
        total.slowest = max(total.slowest, tally.slowest)
    for tally in (*tallies, total):
        counts = tally.files, tally.errors, tally.same, tally.other, len(tally.problems)
        out.add_row(tally.name, *(f"{n:,}" for n in counts), f"{tally.slowest * 1e3:.0f} ms")
    return out


def as_dict(tallies: Sequence[Tally]) -> dict[str, Any]:
    """For JSON."""
    return {"kind": "mutate", "targets": [asdict(tally) for tally in tallies]}


def failed(tallies: Sequence[Tally]) -> list[str]:
    """What must not be, in words."""
    return [f"{tally.name}, {what}" for tally in tallies for what in tally.problems]
