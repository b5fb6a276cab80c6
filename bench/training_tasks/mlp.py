"""The multi-layer perceptron, models/mlp.py."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.training_tasks.task import Task, prototypes


@dataclass(frozen=True, kw_only=True)
class MLPTask(Task):
    """Linear layers with ReLU between them, on noisy prototypes of each class."""

    batch: int = 128
    widths: tuple[int, ...] = (784, 512, 256, 10)

    @property
    def title(self) -> str:
        return f"MLP {'-'.join(map(str, self.widths))}"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        inputs, *_, classes = self.widths
        return prototypes(self.batches * self.batch, (inputs,), classes, self.seed)

    def our_model(self) -> Any:
        from models.mlp import MLP, MLPConfig

        inputs, *hidden, classes = self.widths
        return MLP(MLPConfig(inputs, tuple(hidden), classes, "relu", norm=None, dropout=0.0))

    def torch_model(self) -> Any:
        from torch import nn

        inputs, *hidden, classes = self.widths
        pairs = zip((inputs, *hidden), hidden, strict=False)
        blocks = [
            nn.Sequential(OrderedDict(linear=nn.Linear(a, b), activation=nn.ReLU()))
            for a, b in pairs
        ]
        head = nn.Linear(self.widths[-2], classes)
        return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), head=head))
