"""Mixed precision: what a trainer's steps are computed in.

| name | products | weights, optimizer, losses | on the CPU |
| --- | --- | --- | --- |
| float32 | float32 | float32 | as it says |
| tf32 | float32 read as TF32 (10 bits of mantissa) | float32 | float32 |
| bf16-mixed | bfloat16, summed in float32 | float32 | the same numbers, slowly |
| fp16-mixed | float16, summed in float32, the loss scaled | float32 | the same numbers, slowly |

The design is a policy for each function (framework/autograd/casting.py), not a model whose
parameters are cast: the parameters that the user sees, saves and optimizes stay float32, in the
optimizer's flat buffer. A step opens one autocast block around its forward and backward passes;
within it, the first product casts that buffer to 16 bits, whole, and all products of the step read
their part of the copy. Gradients of weights come out of the products in float32, in the flat
gradient buffer. The model's output is widened to float32 before the loss, the metrics and the user
see it. `evaluate` and `predict` do the same.

float16 needs its loss scaled (framework/optimizers/loss_scaling.py). A step whose gradients
overflow is skipped: weights, buffers (batch norm's running statistics), optimizer state and its
step counters, the averaged weights, ``trainer.step`` and with it the schedule stay as they were;
``trainer.skipped`` counts it, callbacks hear `on_step_skipped` instead of `on_gradients` and
`on_step_end`. Its batches are not repeated; their losses are in the epoch's mean. bfloat16 has the
range of float32 and needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from framework.autograd import Tensor, autocast
from framework.autograd.casting import widened
from framework.layers import Module
from framework.optimizers import LossScaler, Optimizer
from kernels.arrays import Array
from kernels.precision import get_float32_matmul_precision, set_float32_matmul_precision

PRECISIONS = ("float32", "tf32", "bf16-mixed", "fp16-mixed")

_HALVES = {"bf16-mixed": "bfloat16", "fp16-mixed": "float16"}


def check_precision(name: Any) -> str:
    """`name`, if there is such a precision; else ValueError that lists them."""
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}, expected one of {', '.join(PRECISIONS)}")
    return str(name)


class ComputePrecision:
    """One of `PRECISIONS`, and with fp16-mixed the `scaler` (another may be put in its place)."""

    def __init__(self, name: str) -> None:
        self.name = check_precision(name)
        self.half = _HALVES.get(name)
        self.scaler = LossScaler() if name == "fp16-mixed" else None
        self.buffers: list[tuple[Tensor, Array]] = []  # as they were before the step

    def check(self, model: Module, optimizer: Optimizer) -> None:
        """ValueError or TypeError where model or optimizer do not go with it."""
        if self.half is not None:
            for name, parameter in model.named_parameters():
                if parameter.dtype != np.float32:
                    raise ValueError(
                        f"precision={self.name!r} computes on copies of float32 parameters, but "
                        f"{name} is {parameter.dtype.name}: model.to('float32') first"
                    )
        if self.scaler is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"precision={self.name!r} needs an optimizer of framework.optimizers, in whose "
                f"flat gradient buffers it looks for overflows; got a {type(optimizer).__name__}"
            )

    # Computing -----------------------------------------------------------------------------------

    def computing(self) -> AbstractContextManager[None]:
        """The block around forward and backward passes."""
        if self.name == "float32":
            return nullcontext()
        return _tf32() if self.half is None else _halves(self.half)

    def widened(self, output: Tensor) -> Tensor:
        """A model's output, in float32 where it has 16 bits."""
        return output if self.half is None else widened(output)

    # Scaling -------------------------------------------------------------------------------------

    def begin(self, model: Module) -> None:
        """Before the forward pass, which moves the statistics of batch norm. A step before that an
        error or the user ended halfway is forgotten.
        """
        if self.scaler is not None:
            self.scaler.reset()
            self.buffers = [(b, b.data.copy()) for b in model.buffers()]

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go back from."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> bool:
        """Bring the gradients back to size. False where they overflowed, and then the buffers are
        those before the step. With fp16-mixed this is where a step waits for the device.
        """
        if self.scaler is None:
            return True
        self.scaler.unscale_(optimizer)
        overflowed = self.scaler.overflowed()
        if overflowed:
            for buffer, before in self.buffers:
                buffer.data[...] = before
        self.buffers = []
        return not overflowed

    def update(self) -> None:
        """The scale for the next step."""
        if self.scaler is not None:
            self.scaler.update()

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Its name, and the scaler's state."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"name": self.name, "scaler": scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; ValueError where the names differ."""
        if state["name"] != self.name:
            raise ValueError(f"this run has precision {self.name}, the saved one {state['name']}")
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


@contextmanager
def _halves(dtype: str) -> Iterator[None]:
    # Gradients of a scaled loss may be infinite and their sums NaN; they are looked for later.
    with autocast(dtype), np.errstate(over="ignore", invalid="ignore"):
        yield


@contextmanager
def _tf32() -> Iterator[None]:
    """TF32 until the end of the block; the setting is the process's, not the thread's."""
    before = get_float32_matmul_precision()
    set_float32_matmul_precision("high")
    try:
        yield
    finally:
        set_float32_matmul_precision(before)
