"""The recurrent language model, models/rnn.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from bench.training_tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class CharLSTMTask(Task):
    """Characters of a text, read in windows of `steps`: embedding, LSTM, output."""

    unit: ClassVar[str] = "tokens"

    batch: int = 32
    steps: int = 64
    hidden: int = 256
    layers: int = 1
    embedding: int = 64
    #: A corpus of framework.data, or a file.
    text: str = "python-reference"

    @property
    def title(self) -> str:
        return f"LSTM {self.layers}x{self.hidden}, {self.steps} steps"

    @property
    def per_step(self) -> int:
        return self.batch * self.steps

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        ids, _ = _tokens(self.text)
        rows, T = self.batches * self.batch, self.steps
        starts = np.linspace(0, len(ids) - T - 1, rows, dtype=np.int64)
        windows = ids[starts[:, None] + np.arange(T + 1)]  # (rows, T + 1)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def our_model(self) -> Any:
        from models.rnn import CharRNN, CharRNNConfig

        _, vocabulary = _tokens(self.text)
        return CharRNN(
            CharRNNConfig(
                vocabulary, hidden=self.hidden, layers=self.layers, embedding=self.embedding
            )
        )

    def torch_model(self) -> Any:
        from torch import nn

        _, vocabulary = _tokens(self.text)

        class Net(nn.Module):
            def __init__(self, task: CharLSTMTask) -> None:
                super().__init__()
                E, H = task.embedding, task.hidden
                self.embedding = nn.Embedding(vocabulary, E)
                self.rnn = nn.LSTM(E, H, task.layers, batch_first=True)
                self.output = nn.Linear(H, vocabulary)

            def forward(self, ids: Any) -> Any:
                y, _ = self.rnn(self.embedding(ids))
                return self.output(y)

        return Net(self)

    def loss(self, model: Any, F: Any, x: Any, y: Any) -> Any:
        logits = model(x)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


@cache
def _tokens(text: str) -> tuple[np.ndarray, int]:
    """The token of each character, int64, and how many there are."""
    from framework.data import CharTokenizer, load_text

    content = load_text(text).text
    tokenizer = CharTokenizer.train(content)
    return tokenizer.encode(content), tokenizer.size
