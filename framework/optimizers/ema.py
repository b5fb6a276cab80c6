"""EMA: an exponential moving average of a model's weights, which often generalises better than the
last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from framework.autograd import Tensor
from framework.autograd.casting import forget_copies
from framework.backend.device import device_of, to_device
from framework.backend.live import CaptureError, Recording, recording
from framework.layers import Module
from framework.layers.checks import in_range
from kernels.arrays import Array, array_module, is_floating
from kernels.optimizers import held, lerp_


class EMA:
    """average = decay * average + (1 - decay) * weights, at every `update` (Polyak & Juditsky
    1992).

    The floating-point parameters and buffers of `model` are averaged, others (counters) copied.
    With `warmup` the decay is at most (1 + n) / (10 + n) at update n (from 0), so that the first
    weights are soon forgotten.
    """

    def __init__(self, model: Module, decay: float = 0.999, warmup: bool = False) -> None:
        self.decay = in_range("EMA", "decay", decay, 0, 1)
        self.model, self.warmup = model, warmup
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: Tensor(x.data.copy()) for name, x in model.state_dict().items()
        }

    def update(self) -> None:
        """Take in the model's weights as they are now; call it after ``optimizer.step()``."""
        captured = recording()
        weight = self._next_weight() if captured is None else self._live_weight(captured)
        for mine, theirs in self._pairs():
            if not is_floating(mine.dtype):
                mine[...] = _unless_held(mine, theirs)
            elif mine.flags.c_contiguous and theirs.dtype == mine.dtype:
                lerp_(mine.reshape(-1), theirs.reshape(-1), weight)
            elif captured is None:
                new = mine + (weight * (theirs - mine)).astype(mine.dtype)
                mine[...] = _unless_held(mine, new)
            else:
                raise CaptureError("an EMA is captured where weights are in the average's dtype")

    def _next_weight(self) -> float:
        """What the weights of this update count."""
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        return 1 - decay

    def _live_weight(self, captured: Recording) -> Array:
        """The same on the device, where each replay is an update."""

        def arrays() -> list[Array]:
            return [array for pair in self._pairs() for array in pair]

        before = arrays()
        if any(array.dtype == "float64" for array in before):
            raise CaptureError("an EMA of float64 weights is not captured")

        def undo() -> None:
            self.updates -= 1

        def fits() -> bool:
            return all(a is b for a, b in zip(arrays(), before, strict=True))

        return captured.numbers("float32", lambda: [self._next_weight()], undo, fits)

    @contextmanager
    def swap(self) -> Iterator[Module]:
        """Within the block the model has the average weights; its own come back afterwards, also
        after an error.

        Changes made to the weights inside are lost.
        """
        kept = [theirs.copy() for _, theirs in self._pairs()]
        forget_copies()
        for mine, theirs in self._pairs():
            theirs[...] = mine
        try:
            yield self.model
        finally:
            forget_copies()
            for (_, theirs), own in zip(self._pairs(), kept, strict=True):
                theirs[...] = to_device(own, device_of(theirs))

    def _pairs(self) -> list[tuple[Array, Array]]:
        """The average and the model's array, for each name."""
        state = self.model.state_dict()
        if state.keys() != self.average.keys():
            changed = sorted(state.keys() ^ self.average.keys())
            raise ValueError(f"the model has changed since the EMA was made: {', '.join(changed)}")
        pairs = []
        for name, x in state.items():
            mine = self.average[name]
            if mine.device != x.device:
                mine = self.average[name] = mine.to(x.device)
            pairs.append((mine.data, x.data))
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """{"updates": their number, "average": tensors by the names of the model's state, not
        copied}.
        """
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError where names or shapes differ, and then nothing has been
        loaded.
        """
        if not {"updates", "average"} <= set(state):
            raise ValueError(f"the state of an EMA has updates and average, got {sorted(state)}")
        average = state["average"]
        problems = [f"{name}: missing" for name in self.average if name not in average]
        problems += [f"{name}: unexpected" for name in average if name not in self.average]
        problems += [
            f"{name}: shape {tuple(average[name].shape)} in the state, {x.shape} here"
            for name, x in self.average.items()
            if name in average and tuple(average[name].shape) != x.shape
        ]
        if problems:
            raise ValueError(
                "the state does not fit the EMA, nothing was loaded:\n  " + "\n  ".join(problems)
            )
        for name, x in self.average.items():
            value = average[name]
            array = value.data if isinstance(value, Tensor) else value
            x.data[...] = to_device(array, x.device)
        self.updates = int(state["updates"])


def _unless_held(before: Array, after: Array) -> Array:
    """`after`, or on the device `before` where it finds this update held (`held_by`)."""
    found = held()
    return after if found is None else array_module(after).where(found[0] != 0, before, after)
