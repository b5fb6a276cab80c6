"""Tokenizers: text to token ids and back, saved as JSON.

    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode("to be")              # int64 (5,)
    tokenizer.decode(ids)                        # "to be"

Characters and words here; byte-level BPE and WordPiece in framework/data/subwords.py.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from framework.data.errors import DataError


class Tokenizer(ABC):
    """Text to ids 0..size-1 and back."""

    #: Of the class, in JSON.
    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """Tokens in the vocabulary."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int64 (tokens,); DataError where the vocabulary has no tokens for the text."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; ValueError for one outside the vocabulary."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What makes it again, as JSON can hold it."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tokenizer:
        """The inverse of `state`."""

    def to_json(self) -> str:
        """`state` with the kind, for `tokenizer_from_json`."""
        return json.dumps({"type": self.kind, **self.state()}, ensure_ascii=False)

    def stream(self, ids: Iterator[int], before: Sequence[int] = ()) -> Iterator[str]:
        """The text of `ids` piece by piece, as it goes on after the tokens `before`.

        A piece is held back while it ends within a character (byte-level tokens).
        """
        context, waiting = list(before)[-8:], []
        for token in ids:
            waiting.append(token)
            text = self.decode([*context, *waiting])
            if text.endswith("\ufffd") and len(waiting) < 8:
                continue
            yield text[len(self.decode(context)) :]
            context, waiting = [*context, *waiting][-8:], []
        if waiting:
            yield self.decode([*context, *waiting])[len(self.decode(context)) :]

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(ids, np.int64) if len(ids) else np.empty(0, np.int64)
        wrong = array[(array < 0) | (array >= self.size)]
        if wrong.size:
            raise ValueError(f"token {wrong[0]} is outside the vocabulary, 0..{self.size - 1}")
        return array

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


class CharTokenizer(Tokenizer):
    """A token for each of some characters, numbered in the order of their code points.

    >>> tokenizer = CharTokenizer.train("hello world")
    >>> tokenizer.encode("hold"), tokenizer.decode([3, 2])
    (array([3, 5, 4, 1]), 'he')
    """

    kind = "characters"

    def __init__(self, characters: str) -> None:
        if not characters:
            raise DataError("the text is empty: there are no characters to make a vocabulary of")
        self.characters = "".join(sorted(set(characters)))
        self._codes = _code_points(self.characters)

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """The characters of `text`."""
        return cls(text)

    @property
    def size(self) -> int:
        """Different characters."""
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """A token for each character; DataError shows those outside the vocabulary."""
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(ids, self.size - 1)] == codes
        if not known.all():
            place = int(np.flatnonzero(~known)[0])
            odd = sorted({text[i] for i in np.flatnonzero(~known)})
            shown = ", ".join(map(repr, odd[:10])) + (", ..." if len(odd) > 10 else "")
            raise DataError(
                f"{len(odd)} character{'s are' if len(odd) > 1 else ' is'} outside the vocabulary "
                f"of {self.size}: {shown} (the first at position {place})"
            )
        return ids.astype(np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The characters."""
        return "".join(self.characters[i] for i in self._checked(ids).tolist())

    def state(self) -> dict[str, Any]:
        """The characters."""
        return {"characters": self.characters}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CharTokenizer:
        """From `state`."""
        return cls(state["characters"])


UNKNOWN, LINE_END = "<unk>", "<eos>"


class WordTokenizer(Tokenizer):
    """A token for each word, which is what stands between spaces, and for each end of a line.

    What is not in the vocabulary becomes <unk>. Made for text whose punctuation has been split off,
    as that of wikitext.

    >>> tokenizer = WordTokenizer.train("the cat saw the dog\\n")
    >>> tokenizer.words
    ('<unk>', '<eos>', 'the', 'cat', 'dog', 'saw')
    >>> tokenizer.decode(tokenizer.encode("the dog\\nsaw the bird"))
    'the dog\\nsaw the <unk>'
    """

    kind = "words"

    def __init__(self, words: Sequence[str]) -> None:
        if tuple(words[:2]) != (UNKNOWN, LINE_END) or len(set(words)) != len(words):
            raise ValueError(
                f"words are {list(words[:3])} ..., expected {UNKNOWN}, {LINE_END}, ..."
            )
        if odd := [word for word in words if not isinstance(word, str)]:
            raise TypeError(f"words has {odd[0]!r}, expected strings")
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def train(cls, text: str, size: int | None = None, min_count: int = 1) -> WordTokenizer:
        """The words that `text` has at least `min_count` times, the most frequent first; at most
        `size` tokens in all.
        """
        for name, value, least in (("size", size, 2), ("min_count", min_count, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        counts = Counter(_words(text))
        if not counts:
            raise DataError("the text is empty: there are no words to make a vocabulary of")
        counts.pop(UNKNOWN, None), counts.pop(LINE_END, None)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [UNKNOWN, LINE_END, *(word for word, count in ranked if count >= min_count)]
        return cls(words[:size])

    @property
    def size(self) -> int:
        """Words, with <unk> and <eos>."""
        return len(self.words)

    def encode(self, text: str) -> np.ndarray:
        """A token for each word and each end of a line."""
        return np.array([self._ids.get(word, 0) for word in _words(text)], np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The words with spaces between, and the lines."""
        text = " ".join(self.words[i] for i in self._checked(ids).tolist())
        return re.sub(f" ?{LINE_END} ?", "\n", text)

    def state(self) -> dict[str, Any]:
        """The words in the order of their ids."""
        return {"words": self.words}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> WordTokenizer:
        """From `state`."""
        return cls(state["words"])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _words(text: str) -> Iterator[str]:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        yield from line.split()
        if number < len(lines) - 1:
            yield LINE_END


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote; ValueError where the text is something else."""
    from framework.data.subwords import BPETokenizer, WordPieceTokenizer

    kinds: tuple[type[Tokenizer], ...]
    kinds = CharTokenizer, WordTokenizer, BPETokenizer, WordPieceTokenizer
    try:
        state = json.loads(text)
        kind = {k.kind: k for k in kinds}[state["type"]]
        return kind.from_state(state)
    except DataError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = str(error) if type(error) is ValueError else repr(error)
        raise ValueError(f"this describes no tokenizer: {' '.join(reason.split())}") from error
