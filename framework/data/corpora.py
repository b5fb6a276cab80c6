"""Corpora: text to learn a language from, by name or from a file.

corpus = load_text("tinyshakespeare")         # 90% to train, the last 10% to test
splits = corpus.tokenised(CharTokenizer.train(corpus.text), window=64)
"""

from __future__ import annotations

import difflib
import io
import platform
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.catalog import CATALOG, Splits
from framework.data.errors import DataError
from framework.data.files import RemoteFile, cache_folder, data_folder, fetch, locate
from framework.data.text import Windows
from framework.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A text in two parts. `words`: punctuation is split off, so that words are what stands between
    spaces; `description` is one line for people.
    """

    name: str
    train: str
    test: str
    description: str
    words: bool = False

    def __repr__(self) -> str:
        train, test = len(self.train), len(self.test)
        return f"Corpus({self.name!r}, {train:,} characters to train, {test:,} to test)"

    @property
    def text(self) -> str:
        """Both parts."""
        return self.train + self.test

    def tokenised(self, tokenizer: Tokenizer, window: int) -> TokenSplits:
        """The parts as windows of `window` tokens; DataError where a part is shorter than that."""
        parts = {}
        for part, text in (("training", self.train), ("test", self.test)):
            try:
                ids = tokenizer.encode(text).astype(np.min_scalar_type(tokenizer.size - 1))
                parts[part] = Windows(ids, window)
            except DataError as error:
                raise DataError(f"{self.name}, {part} part: {error}") from error
        return TokenSplits(
            self.name,
            parts["training"],
            parts["test"],
            classes=None,
            task="language",
            shape=(window,),
            description=self.description,
            tokenizer=tokenizer,
            characters=(len(self.train), len(self.test)),
        )


@dataclass(frozen=True)
class TokenSplits(Splits):
    """A corpus as tokens. `characters`: of both parts, for bits per character."""

    train: Windows
    test: Windows
    tokenizer: Tokenizer
    characters: tuple[int, int]

    @property
    def characters_per_token(self) -> tuple[float, float]:
        """Of the training and of the test part."""
        train, test = (len(part.ids) for part in (self.train, self.test))
        return self.characters[0] / train, self.characters[1] / test


@dataclass(frozen=True)
class CorpusEntry:
    """A corpus of the catalog; `summary` is one line."""

    load: Callable[[], Corpus]
    summary: str


def load_text(name: str) -> Corpus:
    """The corpus called `name`, read or downloaded, or the text file at the path `name` (UTF-8).

    Raises:
        DataError: unknown name, missing or empty file, no UTF-8, failed download.
    """
    if name in CORPORA:
        return CORPORA[name].load()
    path = Path(name).expanduser()
    if path.is_file():
        return _halved(str(path.resolve()), _read(path), f"{path.name}")
    if path.suffix or len(path.parts) > 1:
        reason = "it is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"dataset {name!r} cannot be read: {reason}")
    known = sorted([*CATALOG, *CORPORA])
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise DataError(
        f"unknown dataset {name!r}{hint}; there are: {', '.join(known)}, and any text file by its "
        "path"
    )


TINYSHAKESPEARE = RemoteFile(
    "input.txt",
    1_115_394,
    "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
)

WIKITEXT2 = RemoteFile(
    "wikitext-2-v1.zip",
    4_475_746,
    "sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
    (
        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
        # the publisher's server no longer answers everybody
        "https://web.archive.org/web/2022id_/"
        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
    ),
)


def _tinyshakespeare() -> Corpus:
    text = _read(fetch("tinyshakespeare", TINYSHAKESPEARE))
    return _halved("tinyshakespeare", text, "Shakespeare, 40,000 lines (Karpathy)")


def _wikitext2() -> Corpus:
    """The published split. Where FRAMEWORK_DATA has the test text, and neither it nor the cache the
    training text, the validation text is trained on.
    """
    name, title = "wikitext-2", "WikiText-2, good articles of Wikipedia (Merity et al. 2016)"
    files = {part: _part(part) for part in ("train", "valid", "test")}
    folder = data_folder()
    packed = locate(name, WIKITEXT2.name)
    if files["train"] is not None and files["test"] is not None:
        train, test, split = _read(files["train"]), _read(files["test"]), "the published split"
    elif files["valid"] is not None and files["test"] is not None and packed is None:
        train, test = _read(files["valid"]), _read(files["test"])
        split = f"{folder or cache_folder()} lacks train.txt, so valid.txt is trained on"
    else:
        train, test = read_wikitext2(packed or fetch(name, WIKITEXT2))
        split = "the published split"
    return Corpus(name, train, test, f"{title}; {split}", words=True)


def _part(part: str) -> Path | None:
    """A part of wikitext-2, under either name."""
    return locate("wikitext-2", f"{part}.txt") or locate("wikitext-2", f"wiki.{part}.tokens")


#: Bytes of a text in wikitext-2's archive; the longest one has 11 million.
LONGEST = 2**26

#: What zipfile raises where an archive is not as it should be (RuntimeError: it is encrypted).
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, KeyError, ValueError,
    OverflowError, NotImplementedError, RuntimeError,
)  # fmt: skip


def read_wikitext2(path: Path) -> tuple[str, str]:
    """The training and the test text of the published archive. It is read where it is: nothing is
    unpacked to disk, and no more than `LONGEST` bytes of a text.

    Raises:
        DataError: the archive is damaged, lacks a text, or has one that is longer.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            train, test = (
                _unpacked(archive, f"wikitext-2/wiki.{part}.tokens") for part in ("train", "test")
            )
        return train, test
    except _DAMAGE as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from error


def _unpacked(archive: zipfile.ZipFile, member: str) -> str:
    info = archive.getinfo(member)
    size, method = info.file_size, info.compress_type
    if size > LONGEST:
        raise ValueError(f"{member} has {size:,} bytes, expected at most {LONGEST:,}")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are unpacked at once
        raise ValueError(f"{member} is packed by method {method}, expected deflate")
    with archive.open(member) as file:
        content = file.read(size)
    if len(content) != size:  # zipfile does not mind
        raise ValueError(f"{member} ends after {len(content):,} of {size:,} bytes")
    return content.decode("utf-8")


def _python_reference() -> Corpus:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    version = platform.python_version()
    return _halved("python-reference", text, f"the language reference of Python {version}")


CORPORA: dict[str, CorpusEntry] = {
    "tinyshakespeare": CorpusEntry(_tinyshakespeare, "1.1 million characters of Shakespeare"),
    "wikitext-2": CorpusEntry(_wikitext2, "articles of Wikipedia as 2.5 million words (Merity)"),
    "python-reference": CorpusEntry(
        _python_reference, "Python's language reference, as the installed Python has it"
    ),
}


def _halved(name: str, text: str, title: str) -> Corpus:
    """The first nine tenths to train, the rest to test."""
    if not text.strip():
        raise DataError(f"{name} is empty: expected a text to learn from")
    cut = len(text) * 9 // 10
    description = f"{title}; the first 90% to train, the last 10% to test"
    return Corpus(name, text[:cut], text[cut:], description)


def _read(path: Path) -> str:
    """A text file as UTF-8, with \\n at the ends of its lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if b"\0" in content[:4096]:
        raise DataError(f"{path} is no text: it has zero bytes")
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 text: byte {content[error.start]:#04x} at position {error.start}"
        ) from error
