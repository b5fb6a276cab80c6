"""A network and its training, stated once for every side.

Names are PyTorch's on both sides, so that most of a task serves both: the loss is written with the
side's own `functional`, the optimizer taken from its own `optimizers`. What differs is how the
model is made: ours from `models`, torch's from torch.nn with the same parameter names.
"""

from __future__ import annotations

import dataclasses
import difflib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Shape = tuple[int, ...]


class BadSetting(ValueError):
    """A setting that a task does not have, or a value that does not fit it."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What a family's file states; its fields are the settings of --set.

    A side draws `weight` into each of its model's parameters by name, so that the models need not
    be made in the same order; buffers (running statistics) stay as the model made them.
    """

    #: What a step trains on: "samples" or "tokens".
    unit: ClassVar[str] = "samples"
    #: The optimizer's name, for the title.
    optimizer_name: ClassVar[str] = "Adam"
    #: Has a batch of 4 axes, so that torch can have it channels-last?
    images: ClassVar[bool] = False

    batch: int
    lr: float = 1e-3
    #: Batches in the data, which are gone through in order, again and again.
    batches: int = 16
    seed: int = 0

    @property
    @abstractmethod
    def title(self) -> str:
        """The network in a few words: MLP 784-512-256-10."""

    @property
    def per_step(self) -> int:
        """How many of `unit` are in a step."""
        return self.batch

    @abstractmethod
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each of ``batches * batch`` rows, the same at every call."""

    @abstractmethod
    def our_model(self) -> Any:
        """Ours, on the default device."""

    @abstractmethod
    def torch_model(self) -> Any:
        """Torch's, on the CPU, with the parameter names and shapes of ours."""

    def loss(self, model: Any, F: Any, x: Any, y: Any) -> Any:
        """The loss of a batch; `F` is framework.functional or torch.nn.functional."""
        return F.cross_entropy(model(x), y)

    def optimizer(self, optimizers: Any, model: Any, **options: Any) -> Any:
        """From framework.optimizers, or torch.optim with `options` that only torch has."""
        return optimizers.Adam(model.parameters(), lr=self.lr, **options)

    def weight(self, name: str, shape: Shape) -> np.ndarray:
        """The common value of a parameter at the start, float32.

        Matrices and filters are drawn as He et al. (2015) do, the scales of norms are 1 and biases
        0. A generator of its own for each name: no other parameter changes it.
        """
        draw = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        if len(shape) > 1:
            scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
            return draw.standard_normal(shape, np.float32) * scale
        bias = name.rpartition(".")[2].startswith("bias")  # and bias_ih_l0
        return np.full(shape, 0.0 if bias else 1.0, np.float32)

    def with_settings(self, settings: Mapping[str, str]) -> Task:
        """A copy with fields changed, each given as text. Raises BadSetting."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: _parsed(name, text, known) for name, text in settings.items()}
        )


def _parsed(name: str, text: str, known: Mapping[str, Any]) -> Any:
    """A setting's value from text; "-" joins the numbers of a tuple."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise BadSetting(f"--set {name}={text}: no such setting; {hint}")
    now = known[name]
    try:
        return _like(now, text)
    except (ValueError, KeyError):
        shown = "-".join(map(str, now)) if isinstance(now, tuple) else str(now).lower()
        raise BadSetting(f"--set {name}={text}: expected a value like {shown}") from None


def _like(now: Any, text: str) -> Any:
    """`text` as a value of the type of `now`. Raises ValueError or KeyError."""
    if isinstance(now, tuple):
        return tuple(_like(now[0], part) for part in text.split("-"))
    if isinstance(now, str):
        return text
    if isinstance(now, bool):
        return {"true": True, "false": False}[text]
    value = type(now)(text)
    if value < 0 or (value == 0 and now != 0):  # a seed may be 0, a batch may not
        raise ValueError
    return value


def prototypes(rows: int, shape: Shape, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy prototypes of each class, (rows, *shape) float32, with labels (rows,) int64."""
    draw = np.random.default_rng(seed + 1)
    centres = draw.random((classes, *shape), np.float32)
    y = draw.integers(0, classes, rows)
    return centres[y] + draw.standard_normal((rows, *shape), np.float32), y
