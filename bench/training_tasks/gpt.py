"""GPT, models/gpt.py, at the setting that nanoGPT trains characters with on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.training_tasks.task import Shape, Task


@dataclass(frozen=True, kw_only=True)
class GPTTask(Task):
    """Causal blocks on windows of a text drawn from a Markov chain; AdamW."""

    unit: ClassVar[str] = "tokens"
    optimizer_name: ClassVar[str] = "AdamW"

    batch: int = 12
    window: int = 64
    vocabulary: int = 65
    depth: int = 4
    heads: int = 4
    width: int = 128
    bias: bool = False

    @property
    def title(self) -> str:
        return f"GPT {self.depth} x {self.width}, {self.heads} heads, window {self.window}"

    @property
    def per_step(self) -> int:
        return self.batch * self.window

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(self.seed + 1)
        likely = draw.integers(0, self.vocabulary, (self.vocabulary, 4))  # four after each token
        rows = self.batches * self.batch
        ids = np.empty((rows, self.window + 1), np.int64)
        ids[:, 0] = draw.integers(0, self.vocabulary, rows)
        for t in range(self.window):
            ids[:, t + 1] = likely[ids[:, t], draw.integers(0, 4, rows)]
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])

    def our_model(self) -> Any:
        from models.gpt import GPT, GPTConfig

        return GPT(
            GPTConfig(
                self.vocabulary, self.window, self.depth, self.heads, self.width, bias=self.bias
            )
        )

    def torch_model(self) -> Any:
        from bench.training_tasks.gpt_torch import GPT

        return GPT(self.vocabulary, self.window, self.depth, self.heads, self.width, self.bias)

    def loss(self, model: Any, F: Any, x: Any, y: Any) -> Any:
        """Each model's own."""
        return model.loss(x, y)

    def optimizer(self, optimizers: Any, model: Any, **options: Any) -> Any:
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        return optimizers.AdamW(groups, lr=self.lr, betas=(0.9, 0.99), **options)

    def weight(self, name: str, shape: Shape) -> np.ndarray:
        """As GPT-2 starts: normal of 0.02."""
        wide = super().weight(name, shape)
        return wide if len(shape) < 2 else wide * np.float32(0.02 / np.sqrt(2 / shape[1]))
