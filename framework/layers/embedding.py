"""Embedding."""

from __future__ import annotations

import operator
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.checks import positive_integer
from framework.layers.module import Module
from framework.layers.storage import new_parameter


class Embedding(Module):
    """A row of the weight (num_embeddings, embedding_dim) for every index. Integers (*) -> (*,
    embedding_dim).

    The weight starts as N(0, 1). Row `padding_idx` starts as 0 and gets no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = positive_integer("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = positive_integer("Embedding", "embedding_dim", embedding_dim)
        self.padding_idx = None if padding_idx is None else self._row(padding_idx)
        self.weight = new_parameter((self.num_embeddings, self.embedding_dim), device, dtype)
        self.reset_parameters()

    def _row(self, index: int) -> int:
        n = self.num_embeddings
        if not -n <= operator.index(index) < n:
            raise ValueError(f"Embedding: padding_idx={index}, expected {-n} to {n - 1}")
        return operator.index(index) % n

    def reset_parameters(self) -> None:
        """Draw new rows."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx] = 0

    def forward(self, indices: Tensor) -> Tensor:
        """Integers (*) -> (*, embedding_dim)."""
        return F.embedding(indices, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """The arguments."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
