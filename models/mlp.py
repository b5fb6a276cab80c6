"""A multilayer perceptron: Linear, norm, activation, dropout, as often as you like, and a head.

model = MLP(MLPConfig(inputs=784, hidden=(512, 256), outputs=10))
logits = model(images)                                    # (N, 1, 28, 28) -> (N, 10)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from framework import layers
from framework.autograd import Tensor

ACTIVATIONS = {
    "relu": layers.ReLU,
    "leaky_relu": layers.LeakyReLU,
    "gelu": layers.GELU,
    "silu": layers.SiLU,
    "mish": layers.Mish,
    "elu": layers.ELU,
    "selu": layers.SELU,
    "celu": layers.CELU,
    "tanh": layers.Tanh,
    "sigmoid": layers.Sigmoid,
    "softplus": layers.Softplus,
    "softsign": layers.Softsign,
    "hardswish": layers.Hardswish,
    "relu6": layers.ReLU6,
}
NORMS = {"batch": layers.BatchNorm1d, "layer": layers.LayerNorm, "rms": layers.RMSNorm}


@dataclass(frozen=True)
class MLPConfig:
    """What an MLP is made of. ``hidden=()`` is a linear model.

    `outputs` is the number of classes, or of values to predict; `task` says which. ValueError names
    a setting that cannot be.
    """

    inputs: int = 64
    hidden: tuple[int, ...] = (128, 128)
    outputs: int = 10
    activation: str = field(default="relu", metadata={"choices": tuple(ACTIVATIONS)})
    norm: Literal["batch", "layer", "rms"] | None = "batch"
    dropout: float = 0.2
    residual: bool = False
    task: Literal["classification", "regression"] = "classification"

    of_data: ClassVar[tuple[str, ...]] = ("inputs", "outputs", "task")

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, (tuple, list)):
            raise ValueError(f"hidden is {self.hidden!r}, expected integers, (512, 256)")
        object.__setattr__(self, "hidden", tuple(self.hidden))  # JSON has lists
        for name, width in (
            ("inputs", self.inputs),
            ("outputs", self.outputs),
            *(("hidden", width) for width in self.hidden),
        ):
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise ValueError(f"{name} is {width!r}, expected an integer of at least 1")
        for name, value, known in (
            ("activation", self.activation, list(ACTIVATIONS)),
            ("norm", self.norm, [*NORMS, None]),
            ("task", self.task, ["classification", "regression"]),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {_listed(known)}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is {self.dropout!r}, expected a probability from 0 to below 1"
            )
        if not isinstance(self.residual, bool):
            raise ValueError(f"residual is {self.residual!r}, expected True or False")

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> MLPConfig:
        """The configuration for inputs of `shape` and `classes` classes (None: one value)."""
        fitted = {"inputs": math.prod(shape), "outputs": classes or 1, "task": task}
        return cls(**(fitted | overrides))


class MLP(layers.Module):
    """Inputs (N, ...) of any shape with `inputs` elements -> logits or values (N, outputs)."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.inputs, *config.hidden)
        self.flatten = layers.Flatten()
        self.blocks = layers.Sequential(
            *(Block(a, b, config) for a, b in zip(widths[:-1], widths[1:], strict=True))
        )
        self.head = layers.Linear(widths[-1], config.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(x)  # (N, inputs)
        x = self.blocks(x)  # (N, hidden[-1])
        return self.head(x)  # (N, outputs)


class Block(layers.Module):
    """x (N, inputs) -> dropout(activation(norm(linear(x)))) (N, outputs), plus x itself if
    residual.
    """

    def __init__(self, inputs: int, outputs: int, config: MLPConfig) -> None:
        super().__init__()
        # Batch norm subtracts the mean, and any bias with it.
        self.linear = layers.Linear(inputs, outputs, bias=config.norm != "batch")
        self.norm = NORMS[config.norm](outputs) if config.norm else layers.Identity()
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = layers.Dropout(config.dropout) if config.dropout else layers.Identity()
        self.shortcut = None
        if config.residual:
            same = inputs == outputs
            self.shortcut = (
                layers.Identity() if same else layers.Linear(inputs, outputs, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.activation(self.norm(self.linear(x))))  # (N, outputs)
        return y if self.shortcut is None else y + self.shortcut(x)


def _listed(names: list[Any]) -> str:
    return ", ".join("none" if name is None else str(name) for name in names)
