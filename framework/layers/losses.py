"""Losses as modules. Classification losses take logits, never probabilities.

`reduction` is "mean" (of the elements that count), "sum" or "none"; KLDivLoss has "batchmean" too.
"""

from __future__ import annotations

from framework import functional as F
from framework.autograd import Tensor
from framework.layers.checks import in_range, one_of
from framework.layers.module import Module


class _Loss(Module):
    reductions: tuple[str, ...] = ("mean", "sum", "none")

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = one_of(type(self).__name__, "reduction", reduction, self.reductions)

    def extra_repr(self) -> str:
        """The arguments that are plain values."""
        options = {
            k: v
            for k, v in vars(self).items()
            if isinstance(v, (int, float, str)) and k != "training"
        }
        return ", ".join(f"{k}={v!r}" for k, v in options.items())


class CrossEntropyLoss(_Loss):
    """-log softmax(x)[target]: x (N, C) or (N, C, *) logits, target class indices (N, *) or
    probabilities like x.

    `weight` (C,) scales the classes, targets equal to `ignore_index` do not count,
    `label_smoothing` mixes the target with the uniform distribution.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = in_range(
            "CrossEntropyLoss", "label_smoothing", label_smoothing, 0, 1
        )

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or (N, *) for reduction "none"."""
        return F.cross_entropy(
            x, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )


class NLLLoss(_Loss):
    """-x[target]: x (N, C) or (N, C, *) log-probabilities, target class indices (N, *)."""

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or (N, *) for reduction "none"."""
        return F.nll_loss(x, target, self.weight, self.ignore_index, self.reduction)


class MSELoss(_Loss):
    """(x - target)^2."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.mse_loss(x, target, self.reduction)


class L1Loss(_Loss):
    """|x - target|."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.l1_loss(x, target, self.reduction)


class HuberLoss(_Loss):
    """Half the square up to `delta`, linear beyond (Huber 1964)."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"HuberLoss: delta={delta}, expected a positive number")
        self.delta = delta

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.huber_loss(x, target, self.reduction, self.delta)


class SmoothL1Loss(_Loss):
    """The Huber loss over `beta`: slope 1 beyond it (Girshick 2015)."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = in_range("SmoothL1Loss", "beta", beta)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.smooth_l1_loss(x, target, self.reduction, self.beta)


class BCEWithLogitsLoss(_Loss):
    """-(pos_weight * t * log sigmoid(x) + (1 - t) * log(1 - sigmoid(x))), targets t in [0, 1].

    `weight` (broadcast to x) multiplies the elements.
    """

    def __init__(
        self, weight: Tensor | None = None, reduction: str = "mean", pos_weight: float = 1.0
    ) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.pos_weight = in_range("BCEWithLogitsLoss", "pos_weight", pos_weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.binary_cross_entropy_with_logits(
            x, target, self.weight, self.reduction, self.pos_weight
        )


class KLDivLoss(_Loss):
    """target * (log target - x), x log-probabilities; `log_target`: the target is log-probabilities
    too.

    "batchmean" divides the sum by the rows: the mathematical divergence, averaged over a batch.
    """

    reductions = ("mean", "batchmean", "sum", "none")

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.kl_div(x, target, self.reduction, self.log_target)


class HingeLoss(_Loss):
    """max(0, margin - target * x), targets -1 or 1: the loss of support vector machines."""

    def __init__(self, reduction: str = "mean", margin: float = 1.0) -> None:
        super().__init__(reduction)
        self.margin = margin

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A 0-d tensor, or x's shape for reduction "none"."""
        return F.hinge_loss(x, target, self.reduction, self.margin)
