"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.optimizers.optimizer import Optimizer, Parameters, fraction, not_negative
from kernels import optimizers as kernels
from kernels.arrays import Array


class Adam(Optimizer):
    """p -= lr * m / (sqrt(v) + eps), m and v the bias-corrected running means of g and g^2 (Kingma
    & Ba 2015).

    `weight_decay` is added to the gradient (g + weight_decay * p); see `AdamW` for the decoupled
    one. `amsgrad` divides by the largest v so far (Reddi et al. 2018).
    """

    decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(parameters, defaults)

    def check(self, group: dict[str, Any]) -> None:
        """Ranges of the options."""
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas={betas!r}, expected two numbers")
        for i, beta in enumerate(betas):
            fraction(f"betas[{i}]", beta)
        not_negative("eps", group["eps"])
        not_negative("weight_decay", group["weight_decay"])

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        """Both running means, and the largest second one for amsgrad."""
        names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if group["amsgrad"] else [])
        return dict.fromkeys(names, 0.0)

    def phase(self, steps: int) -> Any:
        """The bias correction depends on the number of steps."""
        return steps

    def numbers(self, group: dict[str, Any], step: int) -> list[np.float32]:
        """Learning rate, bias corrections and the rest."""
        eps, decay = group["eps"], group["weight_decay"]
        return kernels.adam_numbers(group["lr"], *group["betas"], eps, decay, step, self.decoupled)

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
        kernels.adam_step(
            p,
            g,
            state["exp_avg"],
            state["exp_avg_sq"],
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            step,
            decoupled=self.decoupled,
            vmax=state["max_exp_avg_sq"] if group["amsgrad"] else None,
            scale=scale,
            live=live,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: p -= lr * weight_decay * p beside the step (Loshchilov &
    Hutter 2019).
    """

    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad)
