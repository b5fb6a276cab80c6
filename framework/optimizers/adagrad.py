"""Adagrad."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.optimizers.optimizer import Optimizer, Parameters, not_negative
from kernels import optimizers as kernels
from kernels.arrays import Array


class Adagrad(Optimizer):
    """p -= lr / (1 + (step - 1) lr_decay) * g / (sqrt(sum of g^2 so far) + eps) (Duchi et al.
    2011).
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(parameters, defaults)

    def check(self, group: dict[str, Any]) -> None:
        """Ranges of the options."""
        for name in ("lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            not_negative(name, group[name])

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        """The sum of squares."""
        return {"sum": group["initial_accumulator_value"]}

    def phase(self, steps: int) -> Any:
        """The decay depends on the number of steps."""
        return steps

    def numbers(self, group: dict[str, Any], step: int) -> list[np.float32]:
        """The decayed learning rate and the rest."""
        options = [group[name] for name in ("lr", "lr_decay", "eps", "weight_decay")]
        return kernels.adagrad_numbers(*options, step)

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
        kernels.adagrad_step(
            p,
            g,
            state["sum"],
            group["lr"],
            group["lr_decay"],
            group["eps"],
            group["weight_decay"],
            step,
            scale=scale,
            live=live,
        )
