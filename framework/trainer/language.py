"""Learning a language: tokens of a corpus, loaders of windows, loss and scores, tokenizer.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework import functional as F
from framework.autograd import Tensor
from framework.data import (
    BPETokenizer,
    CharTokenizer,
    Corpus,
    DataError,
    DataLoader,
    RandomSampler,
    StreamSampler,
    Subset,
    Tokenizer,
    TokenSplits,
    Windows,
    WordPieceTokenizer,
    WordTokenizer,
    tokenizer_from_json,
)
from framework.data.subwords import BERT_SPECIAL, END_OF_TEXT
from framework.data.tokenizers import UNKNOWN
from framework.interop.atomic import FileError, read_bytes, write_text
from framework.trainer.callbacks.callback import Callback
from framework.trainer.config import Recipe

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

TOKENIZER = "tokenizer.json"

#: Tokens that are no text.
SPECIAL = {UNKNOWN, END_OF_TEXT, *BERT_SPECIAL}

#: Tokens of a batch in evaluation, at least one window.
EVALUATED_TOKENS = 2048


def tokenizer_for(corpus: Corpus, recipe: Recipe) -> Tokenizer:
    """A new tokenizer as the recipe has it. Characters are those of the whole text; words and
    pieces are learnt from the training part.
    """
    kind = recipe.tokenizer or ("words" if corpus.words else "characters")
    if kind == "characters":
        if recipe.vocabulary is not None:
            raise ValueError(
                f"vocabulary is {recipe.vocabulary}, but the vocabulary of characters is all that "
                f"{corpus.name} has: leave it out, or set tokenizer=bpe"
            )
        return CharTokenizer.train(corpus.text)
    if kind == "words":
        return WordTokenizer.train(corpus.train, recipe.vocabulary)
    trained = BPETokenizer if kind == "bpe" else WordPieceTokenizer
    return trained.train(corpus.train, recipe.vocabulary or 4096)


def token_loaders(
    splits: TokenSplits, recipe: Recipe, seed: int, device: str
) -> tuple[DataLoader, DataLoader | None, DataLoader]:
    """Loaders of training, validation (the end of the training part, if any) and test."""
    ids, held_out = splits.train.ids, None
    if recipe.validation:
        cut = round(len(ids) * (1 - recipe.validation))
        ids, rest = ids[:cut], ids[cut:]
        held_out = _evaluated(Windows(rest, recipe.window), recipe, device)
    train = _trained(Windows(ids, recipe.window), recipe, seed, device)
    return train, held_out, _evaluated(splits.test, recipe, device)


def _trained(windows: Windows, recipe: Recipe, seed: int, device: str) -> DataLoader:
    size, batches = recipe.batch_size, None
    if recipe.steps is not None:
        batches = recipe.steps_of_epoch * recipe.accumulate
    if recipe.sampling == "stream":
        return _streamed(windows, size, device, batches)
    if batches is None:
        batches = max(1, len(windows.ids) // (size * windows.window))
    sampler = RandomSampler(len(windows), size * batches, seed)
    return DataLoader(windows, size, sampler=sampler, seed=seed, device=device)


def _evaluated(windows: Windows, recipe: Recipe, device: str) -> DataLoader:
    """The whole text once; in streams as in training, fewer where it is too short for as many."""
    whole = len(windows.starts)
    if recipe.sampling == "stream":
        return _streamed(windows, min(recipe.batch_size, whole), device)
    size = max(1, EVALUATED_TOKENS // windows.window)
    return DataLoader(Subset(windows, windows.starts), size, device=device)


def _streamed(
    windows: Windows, streams: int, device: str, batches: int | None = None
) -> DataLoader:
    sampler = StreamSampler(len(windows.ids), windows.window, streams, batches)
    marked = Windows(windows.ids, windows.window, sampler.length)
    return DataLoader(marked, streams, sampler=sampler, device=device)


# Loss and scores ----------------------------------------------------------------------------------


def token_loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy of all tokens, in nats: logits (B, T, V), target (B, T)."""
    if logits.ndim != 3 or logits.shape[:2] != target.shape:
        raise ValueError(
            f"logits have shape {logits.shape}, the target {target.shape}; "
            "expected (B, T, V) and (B, T)"
        )
    flat = logits.reshape(-1, logits.shape[-1])  # (B T, V)
    return F.cross_entropy(flat, target.reshape(-1), label_smoothing=label_smoothing)


def language_scores(loss: float, characters_per_token: float) -> dict[str, float]:
    """What a loss in nats per token means: bits per character (bpc) and perplexity per token."""
    bits = loss / math.log(2) / characters_per_token
    return {"bpc": bits, "perplexity": math.exp(min(loss, 700.0))}


class LanguageScores(Callback):
    """Adds perplexity and bits per character to the records, of the training and of the test."""

    def __init__(self, splits: TokenSplits) -> None:
        train, test = splits.characters_per_token
        self.characters = {"": train, "validation_": train, "test_": test}

    def on_epoch_end(self, trainer: Trainer) -> None:
        record = trainer.history[-1]
        for prefix, characters in self.characters.items():
            if f"{prefix}loss" in record:
                scores = language_scores(record[f"{prefix}loss"], characters)
                record |= {prefix + name: value for name, value in scores.items()}


class LastStep(Callback):
    """Ends the run after so many steps, where that is within an epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, trainer: Trainer) -> None:
        trainer.should_stop |= trainer.step + trainer.skipped >= self.steps

    def on_step_skipped(self, trainer: Trainer) -> None:
        self.on_step_end(trainer)


def opening(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray[Any, Any] = ()) -> str:
    """What a sample of text begins with: a new line, or where the vocabulary has none the first of
    `ids`, or of all tokens, that stands for itself (neither [UNK] nor a piece within a word).
    """
    for text in chain(["\n"], (tokenizer.decode([i]) for i in chain(ids, range(tokenizer.size)))):
        with suppress(DataError):
            found = tokenizer.encode(text)
            if len(found) and text not in SPECIAL and tokenizer.decode(found) == text:
                return text
    raise DataError(f"no token of {tokenizer} stands for itself: begin with a text")


# tokenizer.json -----------------------------------------------------------------------------------


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json."""
    write_text(folder / TOKENIZER, tokenizer.to_json() + "\n")


def read_tokenizer(folder: Path, size: Any = None) -> Tokenizer:
    """The tokenizer of a run; FileError where it is missing or damaged, or where `size` is not the
    size of its vocabulary.
    """
    path = folder / TOKENIZER
    try:
        tokenizer = tokenizer_from_json(read_bytes(path).decode("utf-8"))
    except FileError:
        raise
    except DataError as error:  # also where the library for it is missing
        raise DataError(f"{path}: {error}") from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}") from error
    if size is not None and tokenizer.size != size:
        raise FileError(f"{path} has {tokenizer.size} tokens, but the model has {size}")
    return tokenizer
