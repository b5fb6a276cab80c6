"""Say in plain words what goes wrong before it is NaN: gradients that explode or vanish, units that
are dead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.autograd import Tensor
from framework.layers import Module, activation
from framework.trainer.callbacks.callback import Callback
from kernels.arrays import to_numpy

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

log = logging.getLogger("framework")

#: A gradient norm so many times the median of those before explodes.
EXPLODES = 100.0
#: One of so small a share of the largest matrix's vanishes (root mean squares of elements).
VANISHES = 1e-6
#: Looks before something is said: one batch is no proof.
LOOKS = 3
#: The share of a layer's units that have to be dead.
DEAD = 0.1
#: As far from its ends a tanh or sigmoid is not saturated.
SATURATED = 1e-3


class Health(Callback):
    """Looks at gradients and activations after every `every` steps, and logs what is unhealthy,
    once for each layer; `reports` keeps it all.

    - exploding: the norm of all gradients (after clipping) is 100 times its median so far
    - vanishing: a weight matrix's gradient is a millionth of the largest one's, or zero
    - dead: in all looks of an epoch at least a tenth of an activation's units gave zero for every
      sample (relu and its like), or the same end of their range (tanh, sigmoid)

    A look at activations is at those of the step itself, or where steps are replayed as CUDA graphs
    at a forward pass in evaluation mode over a batch of it; at one in 100 steps all of it costs
    0.2%, or below 1%.
    """

    def __init__(self, every: int = 100) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every is {every!r}, expected an integer of at least 1")
        self.every = every
        self.reports: list[str] = []
        self._norms: list[float] = []
        self._vanished: dict[str, int] = {}  # looks in a row
        self._alive: dict[str, Any] = {}  # of the running epoch, by layer
        self._looks = 0  # of the running epoch
        self._now: dict[str, Any] = {}  # of the step that is looked at
        self._removers: list[Callable[[], None]] = []
        self._told: set[tuple[str, str]] = set()

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._alive, self._looks = {}, 0

    def on_step_start(self, trainer: Trainer) -> None:
        if (trainer.step + 1) % self.every == 0 and trainer._captured is None:
            self._begin(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.step % self.every == 0:
            self._look_at_gradients(trainer)
            if trainer._captured is not None:
                self._begin(trainer)
                with trainer.evaluating(), trainer.precision.computing():
                    trainer.model(*trainer._here(trainer.window[0])[:-1])
            self._take_in()

    def on_step_skipped(self, trainer: Trainer) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._end()

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self._looks < LOOKS:
            return
        for name, alive in self._alive.items():
            dead = int((~alive).sum())
            if dead >= max(1.0, DEAD * alive.size):
                self._tell(
                    trainer, "dead", name,
                    f"{dead} of {alive.size} units of {name} are dead: they gave the same for "
                    f"every sample in {self._looks} batches of this epoch, and learn no more. "
                    "Lower the learning rate, or take an activation that has a slope everywhere, "
                    "such as leaky_relu or gelu",
                )  # fmt: skip

    def _look_at_gradients(self, trainer: Trainer) -> None:
        squares, sizes = 0.0, {}
        for name, p in trainer.model.named_parameters():
            if p.grad is not None and p.size:
                x = p.grad.data.reshape(-1)
                total = float((x @ x).item())
                squares += total
                if p.ndim > 1:  # not biases: before a norm theirs is zero by design
                    sizes[name] = math.sqrt(total / p.size)
        norm = math.sqrt(squares)
        if len(self._norms) >= LOOKS and norm > EXPLODES * median(self._norms) > 0:
            self._tell(
                trainer, "exploding", "",
                f"the gradients explode: their norm is {norm:.3g}, {norm / median(self._norms):.0f}"
                " times what it was. Clip them (clip_norm=1.0), or lower the learning rate",
            )  # fmt: skip
        self._norms = [*self._norms[-99:], norm]
        largest = max(sizes, key=sizes.__getitem__, default="")
        for name, size in sizes.items():
            small = size <= VANISHES * sizes[largest]
            self._vanished[name] = self._vanished.get(name, 0) + 1 if small else 0
            if small and self._vanished[name] == LOOKS:
                how = "is zero" if size == 0 else f"is {size / sizes[largest]:.0e} of that"
                self._tell(
                    trainer, "vanishing", name,
                    f"the gradient of {name} vanishes: it {how} of {largest}, so it learns hardly "
                    "anything. Normalise between the layers, add residual connections, or take "
                    "an activation that saturates less",
                )  # fmt: skip

    def _begin(self, trainer: Trainer) -> None:
        """Watch the activations of the forward passes to come."""
        self._end()
        self._now = {}
        self._removers = [
            module.register_forward_hook(self._watch(name))
            for name, module in trainer.model.named_modules()
            if type(module).__module__ == activation.__name__
        ]

    def _end(self) -> None:
        while self._removers:
            self._removers.pop()()

    def _take_in(self) -> None:
        """What has been watched, as a look of this epoch."""
        self._looks += bool(self._removers)
        self._end()
        for name, now in self._now.items():
            self._alive[name] = _either(now, self._alive.get(name))

    def _watch(self, name: str) -> Any:
        def look(module: Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 1:
                now = to_numpy(_alive(module, output.data))
                self._now[name] = _either(now, self._now.get(name))

        return look

    def _tell(self, trainer: Trainer, kind: str, layer: str, text: str) -> None:
        if (kind, layer) not in self._told:
            self._told.add((kind, layer))
            self.reports.append(f"step {trainer.step}: {text}")
            log.warning("%s", self.reports[-1])


def _either(now: Any, before: Any) -> Any:
    fits = before is not None and before.shape == now.shape
    return now | before if fits else now


def _alive(module: Module, y: Any) -> Any:
    """Which units of (N, C), (N, C, H, W) or (N, T, C) are not stuck, as booleans (C,)."""
    y = y.astype(np.float32, copy=False)
    units = 2 if y.ndim == 3 else 1
    others = tuple(axis for axis in range(y.ndim) if axis != units)
    if isinstance(module, activation.Tanh):
        return (abs(y) < 1 - SATURATED).any(axis=others)
    if isinstance(module, activation.Sigmoid):
        return ((y > SATURATED) & (y < 1 - SATURATED)).any(axis=others)
    return (y != 0).any(axis=others)
