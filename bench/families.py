"""A small model of each family with data, loss and optimizer: what the tests of resuming, killing
and leaking go through. A new family is one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import functional as F, optimizers
from framework.data import ArrayDataset, Dataset
from framework.layers import Module
from models import build


@dataclass(frozen=True)
class Family:
    """`model()` draws its weights from the default generator; `data()` is the same at each call."""

    model: Callable[[], Module]
    data: Callable[[], Dataset]
    loss: Callable[[Any, Any], Any]
    optimizer: Callable[[Module], optimizers.Optimizer] = lambda model: optimizers.AdamW(
        model.parameters(), lr=0.01
    )
    classifies: bool = True  # outputs (N, 3) and targets (N,)


def _points(samples: int, shape: tuple[int, ...], classes: int) -> Dataset:
    """Inputs in `classes` clouds, and which one each is of."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, classes, samples)
    centres = draw.normal(size=(classes, *shape))
    x = (centres[y] + draw.normal(size=(samples, *shape))).astype(np.float32)
    return ArrayDataset(x, y.astype(np.int64), classes=tuple(map(str, range(classes))))


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        lambda: build("mlp", inputs=12, hidden=(16, 16), outputs=3, norm="batch", dropout=0.2),
        lambda: _points(50, (12,), 3),
        F.cross_entropy,
    ),
}
