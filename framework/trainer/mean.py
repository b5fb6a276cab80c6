"""A running mean whose sum stays on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framework.autograd import Tensor
from framework.backend.device import Device
from framework.backend.live import recording
from kernels.arrays import array_module, is_array
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
