"""Recurrent networks: a language model, and a classifier of sequences.

model = CharRNN(CharRNNConfig(vocabulary=65, hidden=256))
logits = model(ids)                                       # (B, T) -> (B, T, 65)

model = RNNClassifier(RNNClassifierConfig(features=8, outputs=10))
logits = model(x, lengths)                                # (B, T, 8), (B,) -> (B, 10)

The encoder-decoder is in models/rnn_seq2seq.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

import framework as fw
from framework import layers
from framework.autograd import Tensor
from framework.functional import embedding, linear_cross_entropy

CELLS: dict[str, Any] = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.RNN}

#: Tokens up to which one-hot vectors are a sensible input.
MOST_ONE_HOT = 4096


def check_sizes(config: Any, *names: str) -> None:
    """ValueError unless the fields are integers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")


def check_choice(config: Any, name: str, known: Any) -> None:
    """ValueError unless the field is one of those known."""
    if getattr(config, name) not in known:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected one of {', '.join(known)}")


def check_switches(config: Any, *names: str) -> None:
    """ValueError unless the fields are True or False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} is {getattr(config, name)!r}, expected True or False")


def check_dropout(config: Any) -> None:
    """ValueError unless dropout is a probability below 1."""
    p = config.dropout
    if not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise ValueError(f"dropout is {p!r}, expected a probability from 0 to below 1")


# The language model -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CharRNNConfig:
    """What the language model is made of. ``embedding=None`` feeds one-hot vectors; `tied` uses the
    embedding's rows as the output's weights (Press and Wolf 2017), with as many columns as `hidden`
    has units; `locked_dropout` drops the same elements at every step (Gal and Ghahramani 2016).
    ValueError names a setting that cannot be.
    """

    vocabulary: int = 65
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden: int = 256
    layers: int = 1
    embedding: int | None = 64
    dropout: float = 0.0
    locked_dropout: bool = False
    tied: bool = False

    of_data: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __post_init__(self) -> None:
        check_sizes(self, "vocabulary", "hidden", "layers")
        if self.embedding is not None:
            check_sizes(self, "embedding")
        elif self.vocabulary > MOST_ONE_HOT:
            raise ValueError(
                f"embedding is None, one-hot vectors, which are for up to {MOST_ONE_HOT} tokens; "
                f"the vocabulary has {self.vocabulary}"
            )
        check_choice(self, "cell", CELLS)
        check_dropout(self)
        check_switches(self, "locked_dropout", "tied")
        if self.tied and self.embedding != self.hidden:
            raise ValueError(
                f"tied weights need an embedding as large as hidden, {self.hidden}, but it is "
                f"{self.embedding}"
            )

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> CharRNNConfig:
        """The configuration for a vocabulary of `classes` tokens."""
        return cls(vocabulary=classes or 1, **overrides)


class CharRNN(layers.Module):
    """Token ids (B, T) -> logits (B, T, vocabulary) of the tokens that follow each: characters or
    words. Dropout is where Zaremba et al. (2014) have it: before, between and after the layers.
    """

    def __init__(self, config: CharRNNConfig) -> None:
        super().__init__()
        self.config = config
        V, E, H = config.vocabulary, config.embedding, config.hidden
        if E is None:
            self.register_buffer("one_hot", fw.tensor(np.eye(V, dtype=np.float32)), False)
        else:
            self.embedding = layers.Embedding(V, E)
        dropout = layers.LockedDropout if config.locked_dropout else layers.Dropout
        self.dropout = dropout(config.dropout) if config.dropout else layers.Identity()
        self.rnn = CELLS[config.cell](
            E or V, H, config.layers, dropout=config.dropout, locked_dropout=config.locked_dropout
        )
        self.output = layers.Linear(H, V)
        if config.tied:
            layers.init.normal_(self.embedding.weight, std=1 / math.sqrt(H))
            self.output.weight = self.embedding.weight
        self.carry = layers.Carry()

    def forward(self, ids: Tensor, fresh: Tensor | None = None) -> Tensor:
        return self.output(self._carried(ids, fresh)).transpose(0, 1)  # (B, T, vocabulary)

    def loss(self, *batch: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of the last of `batch`, the target (B, T), after the others, which
        are what `forward` takes; without the logits in memory.
        """
        *inputs, target = batch
        y, output = self._carried(*inputs), self.output
        return linear_cross_entropy(
            y, output.weight, target.transpose(0, 1), output.bias, label_smoothing=label_smoothing
        )

    def _carried(self, ids: Tensor, fresh: Tensor | None = None) -> Tensor:
        """What the output reads, (T, B, hidden); with `fresh` on from the state that is carried."""
        if fresh is None:
            return self._read(ids, None)[0]
        y, state = self._read(ids, self.carry(self.start(len(ids)), fresh))
        self.carry.keep(state)
        return y

    def start(self, batch: int) -> Any:
        """Zeros (layers, B, hidden); a pair of them for an LSTM."""
        weight, config = self.output.weight, self.config
        shape = config.layers, batch, config.hidden
        zeros = [fw.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2)]
        return tuple(zeros) if config.cell == "lstm" else zeros[0]

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, vocabulary), and the state (layers, B, hidden) after the last token."""
        y, state = self._read(ids, state)
        return self.output(y).transpose(0, 1), state

    def _read(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        if ids.ndim != 2:
            raise ValueError(f"ids have shape {ids.shape}, expected (rows, tokens)")
        plain = self.config.embedding is None
        x = embedding(ids, self.one_hot) if plain else self.embedding(ids)  # (B, T, E)
        x = x.transpose(0, 1)  # (T, B, E)
        y, state = self.rnn(self.dropout(x), state)  # (T, B, hidden)
        return self.dropout(y), state


# The classifier -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RNNClassifierConfig:
    """What a classifier of sequences is made of.

    `features` are those of a step, or with a `vocabulary` of token ids those of its embedding;
    `outputs` the classes, or the values to predict. `pooling`: the last state of each row and
    direction, or the mean or maximum over its steps. ValueError names a setting that cannot be.
    """

    features: int = 8
    outputs: int = 10
    vocabulary: int | None = None
    cell: Literal["lstm", "gru", "rnn"] = "gru"
    hidden: int = 64
    layers: int = 1
    bidirectional: bool = True
    pooling: Literal["last", "mean", "max"] = "last"
    dropout: float = 0.0

    of_data: ClassVar[tuple[str, ...]] = ("features", "outputs", "vocabulary")

    def __post_init__(self) -> None:
        check_sizes(self, "features", "outputs", "hidden", "layers")
        if self.vocabulary is not None:
            check_sizes(self, "vocabulary")
        check_choice(self, "cell", CELLS)
        check_choice(self, "pooling", ("last", "mean", "max"))
        check_switches(self, "bidirectional")
        check_dropout(self)

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> RNNClassifierConfig:
        """The configuration for inputs of `shape` and `classes` classes (None: one value)."""
        channels, *rest = shape
        features = 1 if not rest else rest[0] if len(rest) == 1 else channels * rest[-1]
        return cls(**({"features": features, "outputs": classes or 1} | overrides))


class RNNClassifier(layers.Module):
    """Sequences (B, T, features), or token ids (B, T) -> logits or values (B, outputs).

    Images (B, C, H, W) are read row by row from the top, and vectors (B, T) number by number.
    """

    def __init__(self, config: RNNClassifierConfig) -> None:
        super().__init__()
        self.config = config
        if config.vocabulary is not None:
            self.embedding = layers.Embedding(config.vocabulary, config.features)
        self.rnn = CELLS[config.cell](
            config.features, config.hidden, config.layers, batch_first=True,
            dropout=config.dropout, bidirectional=config.bidirectional,
        )  # fmt: skip
        self.dropout = layers.Dropout(config.dropout) if config.dropout else layers.Identity()
        self.head = layers.Linear(config.hidden * self.rnn.directions, config.outputs)

    def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
        """`lengths` (B,): steps of each row, 1 to T; all of them if None."""
        y, state = self.rnn(self._steps(x), lengths=lengths)  # (B, T, directions * hidden)
        return self.head(self.dropout(self._pooled(y, state, lengths)))

    def _steps(self, x: Tensor) -> Tensor:
        """x as (B, T, features)."""
        if self.config.vocabulary is not None:
            if x.ndim != 2:
                raise ValueError(f"ids have shape {x.shape}, expected (rows, tokens)")
            return self.embedding(x)
        if x.ndim == 4:
            return x.transpose(1, 2).flatten(2)  # (B, H, C * W)
        return x.unsqueeze(2) if x.ndim == 2 else x

    def _pooled(self, y: Tensor, state: Any, lengths: Any) -> Tensor:
        """(B, directions * hidden)."""
        if self.config.pooling == "last":
            h = state[0] if isinstance(state, tuple) else state  # (layers * directions, B, hidden)
            return fw.concatenate([h[i] for i in range(-self.rnn.directions, 0)], -1)
        if lengths is None:
            return y.mean(1) if self.config.pooling == "mean" else y.max(1)
        if not isinstance(lengths, Tensor):
            lengths = fw.tensor(lengths, device=y.device)
        lengths = lengths.to(y.device).unsqueeze(1)  # (B, 1)
        if self.config.pooling == "mean":
            return y.sum(1) / lengths.to(y.dtype)  # beyond its end a row is 0
        live = fw.arange(y.shape[1], device=y.device).unsqueeze(0) < lengths  # (B, T)
        return fw.where(live.unsqueeze(2), y, -math.inf).max(1)
