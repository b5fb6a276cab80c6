"""The kinds of files that `python -m bench mutate` damages: how a good one is made, and read."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import framework as fw
from bench.families import FAMILIES
from framework.data import (
    BPETokenizer,
    CharTokenizer,
    DataError,
    Standardise,
    Tokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    cifar,
    corpora,
    load_text,
)
from framework.data.idx import read_idx
from framework.interop import safetensors
from framework.interop.atomic import FileError
from framework.trainer import Trainer, checkpoint, store
from framework.trainer.inputs import read_inputs
from framework.trainer.language import TOKENIZER, save_tokenizer, tokenizer_for
from framework.trainer.run import (
    CONFIG,
    METRICS,
    MODEL,
    Recipe,
    RunConfig,
    read_history,
    save_model,
)
from models import BERT, GPT, BERTConfig, GPTConfig, build, hugging_face, open_run

#: The errors that a user is meant to see.
OWN = (FileError, DataError)


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


# Checkpoints --------------------------------------------------------------------------------------


def _trainer(family: str) -> Trainer:
    fw.manual_seed(0)
    made = FAMILIES[family]
    model = made.model()
    return Trainer(model, made.loss, made.optimizer(model))


def _write_checkpoint(family: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        trainer = _trainer(family)
        trainer.fit(FAMILIES[family].loader(), epochs=1)
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


# Runs ---------------------------------------------------------------------------------------------


def _describe(folder: Path, built: Any, **about: Any) -> None:
    """Write config.json and model.safetensors."""
    config = RunConfig(
        dataset="digits", seed=0, device="cpu", recipe=Recipe(epochs=3), target_transform=None,
        model_config=asdict(built.config), samples=(100, 20), **about,
    )  # fmt: skip
    config.write(folder)


def _write_run(file: str) -> Callable[[Path], Path]:
    """An MLP for images, and the transform of its inputs."""

    def write(folder: Path) -> Path:
        fw.manual_seed(0)
        model = build("mlp", inputs=64, hidden=(8,), outputs=2)
        inputs = Standardise(per="all").fit(np.linspace(0, 1, 128).reshape(2, 1, 8, 8))
        _describe(
            folder, model, model="mlp", task="classification", input_range=(0.0, 1.0),
            input_transform=inputs.config(), classes=("a", "b"), shape=(1, 8, 8),
        )  # fmt: skip
        data = SimpleNamespace(inputs=inputs, targets=None)
        save_model(folder, model, data, epoch=3)  # type: ignore[arg-type]
        return folder / file

    return write


TOKENIZERS: dict[str, Callable[[str], Tokenizer]] = {
    "characters": CharTokenizer.train,
    "words": WordTokenizer.train,
    "bpe": lambda text: BPETokenizer.train(text, 300),
    "wordpiece": lambda text: WordPieceTokenizer.train(text, 80),
}
TEXT = "the cat saw the dog, and the dog saw na\u00efve cats: 123 \u2603\n\nwhat a sight!\n" * 4


def _write_language_run(file: str, kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        fw.manual_seed(0)
        tokenizer = TOKENIZERS[kind](TEXT)
        model = build("charlstm", vocabulary=tokenizer.size, hidden=4, embedding=4)
        _describe(
            folder, model, model="charlstm", task="language", input_range=None,
            input_transform=None, classes=None, shape=(8,),
        )  # fmt: skip
        data = SimpleNamespace(inputs=None, targets=None)
        save_model(folder, model, data, epoch=3)  # type: ignore[arg-type]
        save_tokenizer(folder, tokenizer)
        return folder / file

    return write


def _read_run(path: Path) -> Any:
    run = open_run(path.parent, "cpu")
    inputs = run.inputs and (run.inputs.config(), run.inputs.state_dict())
    text = run.tokenizer and run.tokenizer.to_json()
    return asdict(run.config), _weights(run.model), inputs, text


def _weights(model: Any) -> dict[str, Any]:
    return {name: x.numpy().copy() for name, x in model.state_dict().items()}


# Models of `transformers` -------------------------------------------------------------------------


SMALL = {"depth": 1, "heads": 2, "width": 8}


def _new(kind: str) -> Any:
    fw.manual_seed(0)
    if kind == "bert":
        return BERT(BERTConfig(20, 8, head="classification", **SMALL))  # type: ignore[arg-type]
    if kind == "llama":
        return GPT(GPTConfig.llama(vocabulary=20, block=8, **SMALL))
    return GPT(GPTConfig(20, 8, bias=True, **SMALL))  # type: ignore[arg-type]


def _write_pretrained(kind: str, file: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        _new(kind).save_pretrained(folder)
        if file == hugging_face.INDEX:
            whole = folder / hugging_face.WEIGHTS
            tensors = safetensors.load(whole)
            whole.unlink()
            names = sorted(tensors)
            where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
            for part in set(where.values()):
                mine = {name: tensors[name] for name in names if where[name] == part}
                safetensors.save(mine, folder / part)
            (folder / file).write_text(json.dumps({"weight_map": where}))
        return folder / file

    return write


def _read_pretrained(kind: str) -> Callable[[Path], Any]:
    """As a new model, and into one that there is, which is as it was after an error."""

    def read(path: Path) -> Any:
        there = _new(kind)
        before = checkpoint.to_bytes(there.state_dict())
        try:
            there.load_pretrained(path.parent)
        except OWN:
            if checkpoint.to_bytes(there.state_dict()) != before:
                raise AssertionError("a part of the file has been loaded") from None
            raise
        model = type(there).from_pretrained(path.parent)
        return asdict(model.config), _weights(model), _weights(there)

    return read


# Texts and tokenizers -----------------------------------------------------------------------------


def _read_text(path: Path) -> Any:
    corpus = load_text(str(path))
    splits = corpus.tokenised(tokenizer_for(corpus, Recipe()), 8)
    return corpus.text, splits.train.ids, splits.test.ids


def _wikitext() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "valid", "test"):
            member = zipfile.ZipInfo(f"wikitext-2/wiki.{part}.tokens")
            archive.writestr(member, f" = {part} = \n" + TEXT, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _write_tokenizer_files(file: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        BPETokenizer.train(TEXT, 300).save_files(folder)
        WordPieceTokenizer.train(TEXT, 80).save_file(folder / "vocab.txt")
        return folder / file

    return write


def _read_gpt2_tokenizer(path: Path) -> Any:
    files = path.with_name("vocab.json"), path.with_name("merges.txt")
    return BPETokenizer.from_files(*files).to_json()


# Data ---------------------------------------------------------------------------------------------


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
    Target("run: model.safetensors", _write_run(MODEL), _read_run, checked=True),
    Target("run: config.json", _write_run(CONFIG), _read_run),
    Target("run of text: config.json", _write_language_run(CONFIG, "characters"), _read_run),
    *(
        Target(f"tokenizer.json, {kind}", _write_language_run(TOKENIZER, kind), _read_run)
        for kind in TOKENIZERS
    ),
    Target("metrics.jsonl", _bytes(METRICS, _history()), read_history),
    *(
        Target(f"{kind}: {file}", _write_pretrained(kind, file), _read_pretrained(kind))
        for kind, file in (
            ("gpt2", hugging_face.CONFIG),
            ("gpt2", hugging_face.WEIGHTS),
            ("gpt2", hugging_face.INDEX),
            ("llama", hugging_face.CONFIG),
            ("bert", hugging_face.CONFIG),
            ("bert", hugging_face.WEIGHTS),
        )
    ),
    Target("gpt2: vocab.json", _write_tokenizer_files("vocab.json"), _read_gpt2_tokenizer),
    Target("gpt2: merges.txt", _write_tokenizer_files("merges.txt"), _read_gpt2_tokenizer),
    Target(
        "bert: vocab.txt",
        _write_tokenizer_files("vocab.txt"),
        lambda p: WordPieceTokenizer.from_file(p).to_json(),
    ),
    Target("text", _bytes("a.txt", (TEXT * 9 + "one long line " * 900).encode()), _read_text),
    Target(
        "wikitext-2 archive", _bytes("w.zip", _wikitext()), corpora.read_wikitext2, checked=True
    ),
    Target("IDX images", _bytes("images", _idx((20, 8, 8))), read_idx),
    Target("IDX, gzipped", _bytes("labels.gz", gzip.compress(_idx((50,)), mtime=0)), read_idx),
    Target("CIFAR-10 folder", _write_cifar_folder, _read_cifar),
    Target("CIFAR-10 archive", _write_cifar_archive, _read_cifar),
    Target("inputs .npy", _bytes("x.npy", _npy()), lambda p: read_inputs(p, (1, 8, 8))),
)
