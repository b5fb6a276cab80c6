"""A small model of each family with data, loss and optimizer: what the tests of resuming, killing
and leaking go through. A new family is one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import functional as F, optimizers
from framework.data import (
    ArrayDataset,
    Compose,
    DataLoader,
    Dataset,
    RandomCrop,
    RandomHorizontalFlip,
    RandomSampler,
    Sampler,
    Sequences,
    StreamSampler,
    Transform,
    Windows,
)
from framework.layers import Module
from framework.trainer import ModelLoss
from framework.trainer.language import token_loss
from models import BERT, BERTConfig, build

#: Of the data that is not read in streams, and of an epoch.
SAMPLES = 50
TOKENS, WINDOW = 12, 6


@dataclass(frozen=True)
class Family:
    """`model()` draws its weights from the default generator; `data()` is the same at each call.

    `order(data, batch_size, seed)`: the data as an epoch reads it and a sampler, where that is no
    shuffle. `transform`: what happens at random to the inputs.
    """

    model: Callable[[], Module]
    data: Callable[[], Any]
    loss: Callable[[Any, Any], Any] | ModelLoss
    optimizer: Callable[[Module], optimizers.Optimizer] = lambda model: optimizers.AdamW(
        model.parameters(), lr=0.01
    )
    order: Callable[[Any, int, int], tuple[Dataset, Sampler]] | None = None
    transform: Transform | None = None
    classifies: bool = True  # outputs (N, 3) and targets (N,)

    def loader(self, batch_size: int = 8, seed: int = 0, workers: int = 0) -> DataLoader:
        """As such a model is trained; 7 batches of 8 an epoch, of which only streams fill all."""
        data, sampler = self.data(), None
        if self.order is not None:
            data, sampler = self.order(data, batch_size, seed)
        return DataLoader(
            data, batch_size, shuffle=sampler is None, sampler=sampler, seed=seed, workers=workers,
            transform=self.transform, device="cpu",
        )  # fmt: skip


def _points(samples: int, shape: tuple[int, ...], classes: int) -> Dataset:
    """Inputs in `classes` clouds, and which one each is of."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, classes, samples)
    centres = draw.normal(size=(classes, *shape))
    x = (centres[y] + draw.normal(size=(samples, *shape))).astype(np.float32)
    return ArrayDataset(x, y.astype(np.int64), classes=tuple(map(str, range(classes))))


def _text() -> Windows:
    """Enough for 8 streams of 7 windows."""
    ids = np.random.default_rng(0).integers(0, TOKENS, 8 * 7 * WINDOW + 1)
    return Windows(ids, WINDOW)


def _streams(data: Windows, batch_size: int, seed: int) -> tuple[Dataset, Sampler]:
    sampler = StreamSampler(len(data.ids), data.window, batch_size)
    return Windows(data.ids, data.window, sampler.length), sampler


def _drawn(data: Windows, batch_size: int, seed: int) -> tuple[Dataset, Sampler]:
    return data, RandomSampler(len(data), SAMPLES, seed)


def _sequences(written: bool) -> Sequences:
    """1 to 6 tokens, and one of 3 classes; or what is to be written: 4 tokens between two marks."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(2, TOKENS, n) for n in draw.integers(1, WINDOW + 1, SAMPLES)]
    if not written:
        return Sequences(ids, draw.integers(0, 3, SAMPLES))
    targets = [np.array([0, *draw.integers(2, TOKENS, 4), 1]) for _ in ids]
    return Sequences(ids, targets)


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        lambda: build("mlp", inputs=12, hidden=(16, 16), outputs=3, norm="batch", dropout=0.2),
        lambda: _points(SAMPLES, (12,), 3),
        F.cross_entropy,
    ),
    "vgg": Family(
        lambda: build(
            "vgg", shape=(1, 6, 6), classes=3, channels=(4,), convolutions=1, hidden=8, dropout=0.2
        ),
        lambda: _points(SAMPLES, (1, 6, 6), 3),
        F.cross_entropy,
        transform=Compose(RandomCrop(6, padding=1), RandomHorizontalFlip()),
    ),
    "charlstm": Family(
        lambda: build("charlstm", vocabulary=TOKENS, hidden=8, embedding=8, dropout=0.2),
        _text,
        token_loss,
        order=_streams,
        classifies=False,
    ),
    "rnnseq2seq": Family(
        lambda: build(
            "rnnseq2seq", vocabulary=TOKENS, outputs=TOKENS, embedding=8, hidden=8, attention=8,
            dropout=0.2,
        ),
        lambda: _sequences(written=True),
        token_loss,
        classifies=False,
    ),
    "gpt": Family(
        lambda: build(
            "gpt", vocabulary=TOKENS, block=WINDOW, depth=1, heads=2, width=8, dropout=0.2
        ),
        _text,
        ModelLoss(),
        order=_drawn,
        classifies=False,
    ),
    "bert": Family(
        lambda: BERT(
            BERTConfig(
                TOKENS, block=WINDOW, depth=1, heads=2, width=8, dropout=0.2,
                head="classification", classes=3,
            )
        ),
        lambda: _sequences(written=False),
        F.cross_entropy,
    ),
    "vit": Family(
        lambda: build(
            "vit", height=4, width=4, outputs=3, patch=2, depth=1, heads=2, embedding=8, dropout=0.2
        ),
        lambda: _points(SAMPLES, (1, 4, 4), 3),
        F.cross_entropy,
    ),
}  # fmt: skip
