"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.optimizers.optimizer import Optimizer, Parameters, finite, not_negative
from kernels import optimizers as kernels
from kernels.arrays import Array


class SGD(Optimizer):
    """p -= lr * b with b = momentum * b + (1 - dampening) * (g + weight_decay * p); the first b is
    g.

    `nesterov` steps by g + momentum * b instead (Sutskever et al. 2013). Without momentum, b is g.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(parameters, defaults)

    def check(self, group: dict[str, Any]) -> None:
        """Ranges of the options."""
        not_negative("momentum", group["momentum"])
        finite("dampening", group["dampening"])
        not_negative("weight_decay", group["weight_decay"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov=True with momentum={group['momentum']} and "
                f"dampening={group['dampening']}, expected a positive momentum and no dampening"
            )

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        """The momentum, if there is one."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def phase(self, steps: int) -> Any:
        """The first step differs from all others."""
        return steps == 0

    def numbers(self, group: dict[str, Any], step: int) -> list[np.float32]:
        """Learning rate, momentum and the rest."""
        options = [group[name] for name in ("lr", "momentum", "dampening", "weight_decay")]
        return kernels.sgd_numbers(*options, first=step == 1)

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
        kernels.sgd_step(
            p,
            g,
            state["momentum_buffer"] if group["momentum"] else None,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            scale=scale,
            live=live,
            first=step == 1,
        )
