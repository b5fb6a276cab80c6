"""Subword tokenizers: byte-level BPE as GPT-2 has it, WordPiece as BERT has it.

Training and encoding are the `tokenizers` library's (the extra "text"); what is saved is ours, and
GPT-2's and BERT's own files are read and written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from framework.data.errors import DataError
from framework.data.tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSTALL = 'pip install "framework-dl[text]", or pip install "tokenizers>=0.20"'


class _Subwords(Tokenizer):
    """What a tokenizer of the library gives; `inner` is that one."""

    inner: Any

    @property
    def size(self) -> int:
        """Tokens, special ones included."""
        return int(self.inner.get_vocab_size())

    def encode(self, text: str) -> np.ndarray:
        """The tokens; no special ones are added."""
        return np.array(self.inner.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text."""
        return str(self.inner.decode(self._checked(ids).tolist(), skip_special_tokens=False))

    def id_of(self, token: str) -> int:
        """The id of a token, "[CLS]" for example; ValueError where there is none."""
        found = self.inner.token_to_id(token)
        if found is None:
            raise ValueError(f"there is no token {token!r} in the vocabulary of {self.size}")
        return int(found)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token to id, in the order of the ids."""
        return dict(sorted(self.inner.get_vocab().items(), key=lambda item: item[1]))


class BPETokenizer(_Subwords):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's, Radford et al. 2019): any text
    has tokens, and decoding gives it back exactly.

    Args:
        vocabulary: token to id, 0..n-1, as in GPT-2's vocab.json.
        merges: pairs of tokens in the order in which they are joined, as in its merges.txt.

    Raises:
        DataError: the `tokenizers` library is not installed; says how to install it.
    """

    kind = "bpe"

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> None:
        library = _library("byte-level BPE")
        _check_ids(vocabulary)
        self.merges = [(str(a), str(b)) for a, b in merges]
        model = library.models.BPE(vocab=dict(vocabulary), merges=self.merges)
        self.inner = _byte_level(library, model)
        if END_OF_TEXT in vocabulary:
            self.inner.add_special_tokens([END_OF_TEXT])

    @classmethod
    def train(cls, text: str, size: int = 4096) -> BPETokenizer:
        """Learn merges from `text` until there are `size` tokens, the 256 bytes and <|endoftext|>
        among them (fewer where the text has no more pairs).
        """
        library = _library("byte-level BPE")
        if not text:
            raise DataError("the text is empty: there is nothing to learn merges from")
        if size < 257:
            raise ValueError(f"size is {size}, expected at least 257: the bytes and {END_OF_TEXT}")
        learner = _byte_level(library, library.models.BPE())
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner.train_from_iterator([text], trainer)
        model = json.loads(learner.to_str())["model"]
        return cls(model["vocab"], model["merges"])

    @classmethod
    def from_files(cls, vocabulary: str | Path, merges: str | Path) -> BPETokenizer:
        """From GPT-2's vocab.json and merges.txt; DataError where they are not that."""
        content = _read(vocabulary)
        try:
            table = json.loads(content)
            if not isinstance(table, dict):
                raise ValueError("expected an object of tokens and ids")
            lines = [x for x in _read(merges).split("\n") if x and not x.startswith("#version")]
            pairs = [line.split(" ") for line in lines]
            if wrong := [pair for pair in pairs if len(pair) != 2]:
                raise ValueError(f"{merges} has {' '.join(wrong[0])!r}, expected two tokens a line")
            return cls(table, pairs)
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(
                f"{vocabulary} and {merges} are no tokenizer of GPT-2: {error}"
            ) from error

    def save_files(self, folder: str | Path) -> None:
        """Write vocab.json and merges.txt into `folder`, as GPT-2 has them."""
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in self.merges)]
        vocabulary = json.dumps(self.vocabulary, ensure_ascii=False)
        (Path(folder) / "vocab.json").write_text(vocabulary, encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """Vocabulary and merges."""
        return {"vocabulary": self.vocabulary, "merges": self.merges}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BPETokenizer:
        """From `state`."""
        return cls(state["vocabulary"], state["merges"])


class WordPieceTokenizer(_Subwords):
    """WordPiece (Wu et al. 2016) as BERT has it (Devlin et al. 2019): words and punctuation are cut
    into the longest pieces that the vocabulary has, those within a word marked by ##.

    Args:
        tokens: in the order of their ids, as the lines of BERT's vocab.txt; [UNK] among them.
        lowercase: lower case, and no accents.

    Raises:
        DataError: the `tokenizers` library is not installed; says how to install it.
    """

    kind = "wordpiece"

    def __init__(self, tokens: Sequence[str], lowercase: bool = True) -> None:
        library = _library("WordPiece")
        if BERT_SPECIAL[1] not in tokens:
            raise ValueError(f"there is no {BERT_SPECIAL[1]} among the {len(tokens)} tokens")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        _check_ids(vocabulary, len(tokens))
        model = library.models.WordPiece(vocabulary, unk_token=BERT_SPECIAL[1])
        self.inner, self.lowercase = _word_pieces(library, model, lowercase), lowercase
        self.inner.add_special_tokens([token for token in BERT_SPECIAL if token in vocabulary])

    @classmethod
    def train(cls, text: str, size: int = 4096, lowercase: bool = True) -> WordPieceTokenizer:
        """Learn at most `size` pieces from `text`, BERT's special tokens among them."""
        library = _library("WordPiece")
        if not text.strip():
            raise DataError("the text is empty: there is nothing to learn pieces from")
        if size < len(BERT_SPECIAL) + 1:
            raise ValueError(f"size is {size}, expected at least {len(BERT_SPECIAL) + 1}")
        learner = _word_pieces(library, library.models.WordPiece(unk_token="[UNK]"), lowercase)
        words = learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(text))
        inner = sorted({f"##{c}" for word, _ in words for c in word[1:]})
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=size,
            # the library numbers the inner characters by chance unless they are there already
            special_tokens=[*BERT_SPECIAL, *inner],
            show_progress=False,
        )
        learner.train_from_iterator([text], trainer)
        vocabulary = learner.get_vocab()
        return cls(sorted(vocabulary, key=vocabulary.__getitem__), lowercase)

    @classmethod
    def from_file(cls, path: str | Path, lowercase: bool = True) -> WordPieceTokenizer:
        """From BERT's vocab.txt; DataError where it is not that."""
        try:
            return cls(_read(path).removesuffix("\n").split("\n"), lowercase)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path} is no vocabulary of BERT: {error}") from error

    def save_file(self, path: str | Path) -> None:
        """Write BERT's vocab.txt."""
        Path(path).write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """Tokens in the order of their ids."""
        return {"tokens": list(self.vocabulary), "lowercase": self.lowercase}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> WordPieceTokenizer:
        """From `state`."""
        return cls(state["tokens"], state["lowercase"])


def _library(what: str) -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(f"{what} needs the tokenizers library: {INSTALL}") from error
    return tokenizers


def _byte_level(library: Any, model: Any) -> Any:
    inner = library.Tokenizer(model)
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    return inner


def _word_pieces(library: Any, model: Any, lowercase: bool) -> Any:
    inner = library.Tokenizer(model)
    inner.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    inner.decoder = library.decoders.WordPiece()
    return inner


def _check_ids(vocabulary: Mapping[str, int], size: int | None = None) -> None:
    """ValueError unless the ids are 0..n-1, each once."""
    ids = sorted(vocabulary.values())
    if ids != list(range(size or len(ids))):
        raise ValueError(
            f"the {size or len(ids)} ids are not 0..{(size or len(ids)) - 1}, each once"
        )


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
