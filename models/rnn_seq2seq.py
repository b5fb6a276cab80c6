"""An encoder-decoder with additive attention (Bahdanau, Cho and Bengio 2015): one sequence of
tokens into another.

model = RNNSeq2Seq(RNNSeq2SeqConfig(vocabulary=40, outputs=50))
logits = model(ids, lengths, previous)                    # (B, S), (B,), (B, T) -> (B, T, 50)
model.decode(ids, lengths, begin=0, end=1, tokens=30)     # token ids of each row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import framework as fw
from framework import layers
from framework.autograd import Tensor
from framework.functional import softmax, tanh
from framework.generation import inference
from models.rnn import check_dropout, check_sizes


@dataclass(frozen=True)
class RNNSeq2SeqConfig:
    """`vocabulary` of what is read, `outputs` of what is written; ValueError names a setting that
    cannot be.
    """

    vocabulary: int = 32
    outputs: int = 32
    embedding: int = 64
    hidden: int = 128
    attention: int = 64
    dropout: float = 0.0

    of_data: ClassVar[tuple[str, ...]] = ("vocabulary", "outputs")

    def __post_init__(self) -> None:
        check_sizes(self, "vocabulary", "outputs", "embedding", "hidden", "attention")
        check_dropout(self)


class AdditiveAttention(layers.Module):
    """Weights softmax(v tanh(W q + U m)) over the memory m of each row, and its mean with these."""

    def __init__(self, query: int, memory: int, hidden: int) -> None:
        super().__init__()
        self.query = layers.Linear(query, hidden, bias=False)
        self.key = layers.Linear(memory, hidden)
        self.score = layers.Linear(hidden, 1, bias=False)

    def forward(self, q: Tensor, memory: Tensor, keys: Tensor, live: Tensor) -> tuple[Any, Any]:
        """q (B, H), memory (B, S, M), keys = key(memory), live (B, S) true where there is memory ->
        the mean (B, M) and its weights (B, S).
        """
        energy = tanh(self.query(q).unsqueeze(1) + keys)  # (B, S, hidden)
        weights = softmax(self.score(energy).squeeze(2), mask=live)  # (B, S)
        return (weights.unsqueeze(1) @ memory).squeeze(1), weights


class RNNSeq2Seq(layers.Module):
    """A bidirectional GRU reads, a GRU writes token after token; before each it looks over all that
    was read, by attention.
    """

    def __init__(self, config: RNNSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        E, H = config.embedding, config.hidden
        self.source = layers.Embedding(config.vocabulary, E)
        self.encoder = layers.GRU(E, H, batch_first=True, bidirectional=True)
        self.first = layers.Linear(H, H)
        self.target = layers.Embedding(config.outputs, E)
        self.attention = AdditiveAttention(H, 2 * H, config.attention)
        self.cell = layers.GRUCell(E + 2 * H, H)
        self.dropout = layers.Dropout(config.dropout) if config.dropout else layers.Identity()
        self.output = layers.Linear(E + 3 * H, config.outputs)

    def forward(self, ids: Tensor, lengths: Any, previous: Tensor) -> Tensor:
        """Teacher forcing: logits (B, T, outputs) of the token after each of `previous` (B, T), the
        right ones. ids (B, S); `lengths` (B,), None where all of them count.
        """
        self._check(ids, previous)
        read, state = self.read(ids, lengths)
        words = self.dropout(self.target(previous))  # (B, T, E)
        seen = []
        for t in range(previous.shape[1]):
            x, state = self._step(words[:, t], state, read)
            seen.append(x)
        return self.output(self.dropout(fw.stack(seen, axis=1)))  # (B, T, outputs)

    def read(self, ids: Tensor, lengths: Any = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """What was read, for the attention (memory, keys, live), and the writer's first state."""
        embedded = self.dropout(self.source(ids))
        memory, last = self.encoder(embedded, lengths=lengths)  # (B, S, 2 H), (2, B, H)
        if lengths is None:
            lengths = [ids.shape[1]] * ids.shape[0]
        if not isinstance(lengths, Tensor):
            lengths = fw.tensor(lengths, device=ids.device)
        live = fw.arange(ids.shape[1], device=ids.device).unsqueeze(0) < lengths.unsqueeze(1)
        return (memory, self.attention.key(memory), live), tanh(self.first(last[1]))

    def _step(self, word: Tensor, state: Tensor, read: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What the output is made of (B, E + 3 H), and the next state (B, H)."""
        context, _ = self.attention(state, *read)
        state = self.cell(fw.concatenate([word, context], -1), state)
        return fw.concatenate([word, context, state], -1), state

    def decode(
        self, ids: Tensor, lengths: Any = None, *, begin: int, end: int, tokens: int
    ) -> list[list[int]]:
        """The most probable token after the other, for each row of ids (B, S): from `begin` on, up
        to `end`, which is left out, or so many `tokens`.
        """
        self._check(ids)
        for name, value in (("begin", begin), ("end", end)):
            if not 0 <= value < self.config.outputs:
                raise ValueError(f"{name} is {value}, expected 0 to {self.config.outputs - 1}")
        rows: list[list[int]] = [[] for _ in range(len(ids))]
        ended = [False] * len(ids)
        with inference(self):
            read, state = self.read(ids, lengths)
            now = fw.full((len(ids),), begin, dtype="int64", device=ids.device)
            for _ in range(tokens):
                x, state = self._step(self.target(now), state, read)
                now = self.output(x).argmax(-1)
                for i, token in enumerate(now.tolist()):
                    ended[i] = ended[i] or token == end
                    if not ended[i]:
                        rows[i].append(token)
                if all(ended):
                    break
        return rows

    def _check(self, ids: Tensor, previous: Tensor | None = None) -> None:
        if ids.ndim != 2:
            raise ValueError(f"ids have shape {ids.shape}, expected (rows, tokens)")
        if previous is not None and (previous.ndim != 2 or len(previous) != len(ids)):
            raise ValueError(
                f"previous has shape {previous.shape}, expected (rows, tokens) with the "
                f"{len(ids)} rows of ids"
            )
