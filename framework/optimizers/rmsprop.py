"""RMSprop."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.optimizers.optimizer import Optimizer, Parameters, fraction, not_negative
from kernels import optimizers as kernels
from kernels.arrays import Array


class RMSprop(Optimizer):
    """p -= lr * g / (sqrt(v) + eps), v the running mean of g^2 (Hinton 2012, lecture 6e).

    `centered` subtracts the square of the running mean of g from v (Graves 2013); `momentum`
    accumulates steps.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(parameters, defaults)

    def check(self, group: dict[str, Any]) -> None:
        """Ranges of the options."""
        fraction("alpha", group["alpha"])
        for name in ("eps", "weight_decay", "momentum"):
            not_negative(name, group[name])

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        """The mean square, and the momentum and the mean where they are used."""
        names = ["square_avg"]
        names += ["momentum_buffer"] if group["momentum"] else []
        names += ["grad_avg"] if group["centered"] else []
        return dict.fromkeys(names, 0.0)

    def numbers(self, group: dict[str, Any], step: int) -> list[np.float32]:
        """Learning rate, decay of the means and the rest."""
        names = ("lr", "alpha", "eps", "weight_decay", "momentum")
        return kernels.rmsprop_numbers(*(group[name] for name in names))

    def update(
        self,
        group: dict[str, Any],
        p: Array,
        g: Array,
        state: dict[str, Array],
        step: int,
        scale: Any,
        live: Array | None = None,
    ) -> None:
        """One step of a flat slice."""
        kernels.rmsprop_step(
            p,
            g,
            state["square_avg"],
            state["momentum_buffer"] if group["momentum"] else None,
            state["grad_avg"] if group["centered"] else None,
            group["lr"],
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
            group["centered"],
            scale=scale,
            live=live,
        )
