"""A running mean whose sum stays on the device, and the highest of what passed there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from framework.autograd import Tensor
from framework.backend.device import Device
from framework.backend.live import recording
from kernels.arrays import Array, array_module, is_array
from kernels.optimizers import held


class Mean:
    """A weighted mean of numbers or 0-d arrays; sums in float64, on the device of the values."""

    def __init__(self) -> None:
        self._held = False
        self.total: Any = 0.0
        self.reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Mean:
        copy = type(self)()
        copy.total, copy.weight = self.total + 0.0, self.weight
        return copy

    def reset(self) -> None:
        """Forget all values."""
        if self._held:
            self.total.fill(0)
        else:
            self.total = 0.0
        self.weight: Any = 0.0

    def hold(self, device: Device) -> None:
        """Keep the sum in one array of `device` from now on, to which a captured step can add."""
        if not self._held:
            with device.context():
                total = device.module.zeros((), "float64")
                total += self.total
            self.total, self._held = total, True

    def update(self, value: Any, weight: float = 1.0) -> None:
        """Take in `value` (a number, a 0-d array or Tensor), which counts `weight` times."""
        array = value.data if isinstance(value, Tensor) else value
        if is_array(array):
            if array.size != 1:
                raise ValueError(f"value has shape {array.shape}, expected a single number")
            array = array.reshape(()).astype("float64")
        self.add(array * weight, weight)

    def add(self, total: Any, weight: Any) -> None:
        """Take in a sum over `weight` values; both may be 0-d arrays."""
        if self._held:
            found = held()
            if found is not None:  # a bad step's sum is left out by the device
                total = array_module(found).where(found[0] != 0, 0.0, total)
            self.total += total
        else:
            self.total = self.total + total
        captured = recording()
        if captured is None:
            self.weight = self.weight + weight
        else:
            captured.each_time(lambda: self._count(weight), lambda: self._count(-weight))

    def _count(self, weight: Any) -> None:
        self.weight = self.weight + weight

    def state_dict(self) -> dict[str, float]:
        """Sum and weight, for a checkpoint. Waits for the device."""
        return {"total": float(self.total), "weight": float(self.weight)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what `state_dict` gave."""
        total, self.weight = float(state["total"]), float(state["weight"])
        if self._held:
            self.total.fill(total)
        else:
            self.total = total

    def kept(self) -> Any:
        """What `restore` goes back to, without waiting. The array of `hold` is not in it: to that a
        bad step has added nothing.
        """
        return None if self._held else self.total, self.weight

    def restore(self, kept: Any) -> None:
        """Go back to what `kept` gave."""
        total, self.weight = kept
        if not self._held:
            self.total = total

    def compute(self) -> float:
        """The mean. Waits for the device."""
        if not self.weight:
            raise ValueError("there is no mean of no values")
        return float(self.total) / float(self.weight)


class Highest:
    """The highest of the 0-d uint64 arrays that it was given, 0 without one; on their device."""

    def __init__(self) -> None:
        self._held = False
        self.value: Any = np.uint64(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Highest:
        copy = type(self)()
        copy.value = self.value + np.uint64(0)
        return copy

    def reset(self) -> None:
        """Forget all."""
        self._set(np.uint64(0))

    def hold(self, device: Device) -> None:
        """As `Mean.hold`."""
        if not self._held:
            with device.context():
                value = device.module.zeros((), "uint64")
                value[...] = self.value
            self.value, self._held = value, True

    def add(self, value: Array) -> None:
        """Take in `value`."""
        xp = array_module(value)
        if self._held:
            found = held()
            if found is not None:  # a bad step's is left out by the device
                value = xp.where(found[0] != 0, np.uint64(0), value)
            self.value[...] = xp.maximum(self.value, value)
        else:
            self.value = xp.maximum(value, self.value)

    def state_dict(self) -> dict[str, int]:
        """Its value, for a checkpoint. Waits for the device."""
        return {"value": int(self.value)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` gave."""
        self._set(np.uint64(state["value"]))

    def kept(self) -> Any:
        """As `Mean.kept`."""
        return None if self._held else self.value

    def restore(self, kept: Any) -> None:
        """Go back to what `kept` gave."""
        if not self._held:
            self.value = kept

    def _set(self, value: Any) -> None:
        if self._held:
            self.value[...] = value
        else:
            self.value = value
