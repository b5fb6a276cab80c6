"""The neural probabilistic language model (Bengio et al. 2003): the last few tokens, embedded, side
by side, through a hidden layer, to the next token.

model = NPLM(NPLMConfig(vocabulary=65, context=8))
logits = model(ids)                                       # (B, T) -> (B, T, 65)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import framework as fw
from framework import layers
from framework.autograd import Tensor
from framework.functional import linear_cross_entropy, tanh


@dataclass(frozen=True)
class NPLMConfig:
    """What the model is made of; `direct` connects the embedded tokens with the output as well,
    past the hidden layer. ValueError names a setting that cannot be.
    """

    vocabulary: int = 65
    context: int = 10
    embedding: int = 24
    hidden: int = 256
    direct: bool = False
    dropout: float = 0.0

    of_data: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "embedding", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")
        if not isinstance(self.direct, bool):
            raise ValueError(f"direct is {self.direct!r}, expected True or False")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is {self.dropout!r}, expected a probability from 0 to below 1"
            )

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> NPLMConfig:
        """The configuration for a vocabulary of `classes` tokens."""
        return cls(vocabulary=classes or 1, **overrides)


class NPLM(layers.Module):
    """Token ids (B, T) -> logits (B, T, vocabulary) of the tokens that follow each."""

    def __init__(self, config: NPLMConfig) -> None:
        super().__init__()
        self.config = config
        nothing = config.vocabulary  # the row for places before the beginning
        self.embedding = layers.Embedding(nothing + 1, config.embedding, padding_idx=nothing)
        seen = config.context * config.embedding
        self.hidden = layers.Linear(seen, config.hidden)
        self.dropout = layers.Dropout(config.dropout) if config.dropout else layers.Identity()
        self.output = layers.Linear(config.hidden, config.vocabulary)
        self.direct = layers.Linear(seen, config.vocabulary, bias=False) if config.direct else None
        self.carry = layers.Carry()

    def forward(self, ids: Tensor, fresh: Tensor | None = None) -> Tensor:
        return self._logits(*self._carried(ids, fresh))

    def loss(self, *batch: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of the last of `batch`, the target (B, T), after the others, which
        are what `forward` takes; without the logits in memory.
        """
        *inputs, target = batch
        h, x = self._carried(*inputs)
        weight, bias = self.output.weight, self.output.bias
        if self.direct is not None:  # one product of both side by side
            h, weight = fw.concatenate([h, x], 2), fw.concatenate([weight, self.direct.weight], 1)
        return linear_cross_entropy(h, weight, target, bias, label_smoothing=label_smoothing)

    def _carried(self, ids: Tensor, fresh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `_read`; with `fresh` on from the tokens that are carried."""
        before = self.start(len(ids))
        if fresh is not None:
            before = self.carry(before, fresh)
        h, x, before = self._read(ids, before)
        if fresh is not None:
            self.carry.keep(before)
        return h, x

    def start(self, batch: int) -> Tensor:
        """No tokens before the first one: (B, context - 1) of the row for nothing."""
        shape = batch, self.config.context - 1
        return fw.full(
            shape, self.config.vocabulary, dtype="int64", device=self.output.weight.device
        )

    def step(self, ids: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, vocabulary), and the last tokens (B, context - 1) for the next step."""
        h, x, before = self._read(ids, before)
        return self._logits(h, x), before

    def _read(self, ids: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden layer (B, T, hidden), what that reads, and the last tokens."""
        T, n = ids.shape[1], self.config.context
        known = fw.concatenate([before, ids], axis=1)  # (B, n - 1 + T)
        last = fw.stack([known[:, i : i + T] for i in range(n)], axis=2)  # (B, T, n)
        x = self.embedding(last).flatten(2)  # (B, T, n * embedding)
        return self.dropout(tanh(self.hidden(x))), x, known[:, T:]

    def _logits(self, h: Tensor, x: Tensor) -> Tensor:
        logits = self.output(h)  # (B, T, vocabulary)
        return logits if self.direct is None else logits + self.direct(x)
