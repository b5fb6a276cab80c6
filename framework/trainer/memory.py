"""A trainer whose memory ran out: the error explained, the memory given back, nothing half done."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from framework.backend import cuda
from framework.backend.memory import give_back_freed_memory, memory_used
from framework.backend.out_of_memory import OutOfMemoryError, release
from framework.layers.errors import held_by, name_leaves
from framework.optimizers import Optimizer
from framework.trainer.batch_size import fitting

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

Method = TypeVar("Method", bound=Callable[..., Any])


def explains_memory(method: Method) -> Method:
    """A trainer's method that ends in an OutOfMemoryError where it would in NumPy's or CuPy's.

    Weights and optimizer are those of the last good step (running statistics of batch norm may have
    seen the batch that was too large), half-summed gradients and captured steps are forgotten. The
    error's traceback holds no local variables any more: the activations are free even while the
    error is looked at, so that a smaller batch can be tried in its ``except`` block.
    """

    @functools.wraps(method)
    def run(trainer: Trainer, *args: Any, **options: Any) -> Any:
        try:
            return method(trainer, *args, **options)
        except OutOfMemoryError as error:
            _explain(error, trainer)
            raise
        except MemoryError as error:
            explained = OutOfMemoryError.of(error)
            explained.__cause__ = error
            _explain(explained, trainer)
            raise explained from error

    return cast(Method, run)


def _explain(error: OutOfMemoryError, trainer: Trainer) -> None:
    name_leaves(error, trainer.model)
    error.held = held_by(trainer.model)
    if isinstance(trainer.optimizer, Optimizer):
        error.held |= trainer.optimizer.memory_held()
    error.advice = _advice(trainer, None)
    trainer.optimizer.zero_grad()
    release(error)
    give_back_freed_memory()
    # what is free now: on the CPU also what the allocator had kept of the steps before
    error.held["activations"] = max(0, error.used - memory_used(error.device))
    if trainer._captured is not None:
        trainer._captured.forget()  # each graph keeps a step's activations, of one shape
    if error.device.kind == "cuda":
        # what the failed step left in the pool has the failed step's sizes
        cuda.empty_cache(error.device)
    if trainer.window and error.device == trainer.device:  # with memory free again
        largest = max(trainer.window, key=lambda batch: len(batch[-1]))
        fits = fitting(trainer, trainer._here(largest))
        error.advice = _advice(trainer, fits)


def _advice(trainer: Trainer, fits: int | None) -> list[str]:
    samples = max((len(batch[-1]) for batch in trainer.window), default=None)
    batch = "the batch size"
    if samples is not None:
        about = "" if fits is None else f"; {fits} would fit"
        steps = f"accumulate={2 * trainer.accumulate} for the same steps"
        batch += f" ({samples} samples{about}), with {steps}"
    precision = trainer.precision
    halves = ["the precision (precision='bf16-mixed')"] if precision.half is None else []
    return [batch, *halves, "the model's size"]
