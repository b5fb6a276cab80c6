"""The loss that a model computes itself, without its output as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework.autograd import Tensor
from framework.layers import Module
from framework.layers.errors import note_place


class ModelLoss:
    """As a Trainer's loss: ``model.loss(*inputs, target, **options)``, the mean over the batch.

    For models whose output is the largest array of a step and is wanted for its loss alone, as the
    logits of a vocabulary are: see `framework.functional.linear_cross_entropy`. There is no output
    then: no metrics, and no call of the model as a whole (hooks of its layers run, its own do not).
    Prediction calls the model as ever.

        trainer = Trainer(gpt, ModelLoss(label_smoothing=0.1), optimizer)
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self, model: Any, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        try:
            loss: Tensor = model.loss(*inputs, target, **self.options)
        except Exception as error:
            note_place(error, model, (*inputs, target))
            raise
        return loss

    def check(self, model: Module, metrics: Sequence[Any]) -> None:
        """TypeError where the model has no loss, ValueError where there are metrics."""
        if not callable(getattr(model, "loss", None)):
            raise TypeError(
                f"loss is a ModelLoss, but {type(model).__name__} has no loss(*inputs, target)"
            )
        if metrics:
            raise ValueError(
                f"metrics are {', '.join(m.name for m in metrics)}, but loss is a ModelLoss: there "
                "is no output to compute them from"
            )
