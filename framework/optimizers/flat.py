"""Parameters side by side in one flat buffer, so that one kernel call updates a whole model.

Each parameter's array becomes a view of the buffer, and its gradient is written by `backward`
straight into a second flat buffer (`Tensor.slot`). Every parameter starts at a multiple of 64
bytes, which cuBLAS and wide vector loads want; the few elements in between are updated along with
the rest and mean nothing. Those of the gradients are set to 0 before somebody reads them
(`gradients`, `joined`): a scale of NaN leaves NaN there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from framework.autograd import Tensor
from framework.backend.device import Device, device_of, to_device
from kernels.arrays import Array, address, is_array, is_floating

_ALIGNMENT = 64  # bytes


class FlatParameters:
    """Parameters of one device and dtype, their gradients and their optimizer state, in flat
    buffers.

    `names` are the state buffers to keep, with their initial values.
    """

    def __init__(self, parameters: Sequence[Tensor], names: dict[str, float]) -> None:
        self.parameters = list(parameters)
        self.steps = [0] * len(self.parameters)
        self.state: dict[str, Array] = {}
        self._allocate()
        self.provide(names)

    def __getstate__(self) -> dict[str, Any]:
        # For deepcopy and pickle, which do not know views: only what `_allocate` cannot make.
        self.gather()
        return {"parameters": self.parameters, "steps": self.steps, "state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()

    def _allocate(self) -> None:
        """Make the buffers where the parameters are now, and move the parameters in."""
        first = self.parameters[0].data
        self.device, self.dtype = device_of(first), first.dtype
        unit = max(1, _ALIGNMENT // self.dtype.itemsize)
        self.starts: list[int] = []
        self.ends: list[int] = []
        size = 0
        for p in self.parameters:
            self.starts.append(size)
            self.ends.append(size + p.size)
            size += math.ceil(p.size / unit) * unit
        xp = self.device.module
        with self.device.context():
            self.data = xp.zeros(size, self.dtype)
            self.grad = xp.zeros(size, self.dtype)
        self._views = [self.view(self.data, i) for i in range(len(self.parameters))]
        self._slots = [self.view(self.grad, i) for i in range(len(self.parameters))]
        self._places = list(zip(self.parameters, self._views, self._slots, strict=True))
        for i in range(len(self.parameters)):
            self._take(i)

    def provide(self, names: dict[str, float]) -> None:
        """Make the state buffers that are not there yet."""
        for name, value in names.items():
            if name not in self.state:
                with self.device.context():
                    self.state[name] = self.device.module.full(self.data.size, value, self.dtype)

    def view(self, flat: Array, i: int) -> Array:
        """Parameter `i`'s part of a flat buffer, in its shape."""
        return flat[self.starts[i] : self.ends[i]].reshape(self.parameters[i].shape)

    def _take(self, i: int) -> None:
        """Copy parameter `i` and its gradient into the buffers, and point it at them."""
        p, view, slot = self.parameters[i], self._views[i], self._slots[i]
        if p.data.shape != view.shape:
            raise ValueError(
                f"parameter {i} had shape {view.shape} when the optimizer was made and has "
                f"{p.data.shape} now; make a new optimizer"
            )
        if p.data is not view:
            view[...] = p.data
            p.data = view
        p.slot = slot
        if p.grad is not None and p.grad.data is not slot:
            if p.grad.shape != slot.shape:
                raise ValueError(
                    f"parameter {i}: gradient of shape {p.grad.shape} for {slot.shape}"
                )
            slot[...] = to_device(p.grad.data, self.device)
            p.grad = Tensor(slot)

    def gather(self) -> None:
        """Take up what was assigned to ``p.data`` or ``p.grad`` since, also on another device or in
        another dtype.
        """
        if self.is_settled():
            return
        for i, p in enumerate(self.parameters):
            data = p.data
            if data is not self._views[i] and self._is_elsewhere(data):
                self._move()
                break
            grad = p.grad
            if data is not self._views[i] or (grad is not None and grad.data is not self._slots[i]):
                self._take(i)
            elif p.slot is not self._slots[i]:
                p.slot = self._slots[i]

    def is_settled(self) -> bool:
        """Are all parameters and gradients in the buffers: is there nothing to gather?"""
        for p, view, slot in self._places:  # twice a step: all() of a generator takes twice as long
            grad = p.grad
            if p.data is not view or p.slot is not slot:
                return False
            if grad is not None and grad.data is not slot:
                return False
        return True

    def _is_elsewhere(self, data: Array) -> bool:
        return bool(data.dtype != self.dtype) or device_of(data) != self.device

    def _move(self) -> None:
        """Follow the parameters to another device or dtype, with the state."""
        kinds = {(device_of(p.data), p.dtype) for p in self.parameters}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype.name} on {device}" for device, dtype in kinds))
            raise ValueError(
                f"parameters that the optimizer holds in one buffer are now {found}; move all "
                "of them, or make a new optimizer"
            )
        check_dtype(self.parameters[0])
        starts, ends = self.starts, self.ends
        self._allocate()
        for name, old in self.state.items():
            new = self.device.module.zeros(self.data.size, self.dtype)
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                new[self.starts[i] : self.ends[i]] = to_device(old[start:end], self.device)
            self.state[name] = new

    def gradients(self) -> list[Array]:
        """The gradients, each run of neighbours that have one as one array; gaps in it are 0."""
        self.gather()
        return joined(self.parameters)

    def runs(self, phase: Callable[[int], Any]) -> Iterator[tuple[slice, int]]:
        """Slices of the buffers to update, and the number of this step for them.

        One for each run of neighbours that have a gradient and agree in ``phase(steps so far)``:
        normally one for everything. Their step counts go up.
        """
        for run in self.stretches(phase):
            self.count(run, 1)
            yield self.part(run), self.steps[run.start]

    def stretches(self, phase: Callable[[int], Any]) -> Iterator[range]:
        """The parameters of each of `runs`, by their numbers here."""
        n = len(self.parameters)
        i = 0
        while i < n:
            if self.parameters[i].grad is None:
                i += 1
                continue
            first, now = i, phase(self.steps[i])
            while i < n and self.parameters[i].grad is not None and phase(self.steps[i]) == now:
                i += 1
            yield range(first, i)

    def part(self, run: range) -> slice:
        """Where parameters that are neighbours lie in the buffers."""
        return slice(self.starts[run.start], self.ends[run.stop - 1])

    def count(self, run: range, steps: int) -> None:
        """Their step counts go up by `steps`."""
        for i in run:
            self.steps[i] += steps


def check_dtype(parameter: Tensor) -> None:
    """TypeError for integers, and for 16-bit parameters: a step smaller than their rounding would
    be lost.
    """
    if not is_floating(parameter.dtype):
        raise TypeError(
            f"an optimizer was given {parameter.dtype.name} parameters, expected float32 or float64"
        )
    if parameter.dtype.name in ("float16", "bfloat16"):
        raise TypeError(
            f"an optimizer was given {parameter.dtype.name} parameters, whose rounding swallows "
            "small steps: keep them in float32, model.to('float32'), and use the trainer's mixed "
            "precision"
        )


def joined(parameters: Iterable[Tensor]) -> list[Array]:
    """The gradients that there are, in order; those that lie one after the other in one optimizer's
    buffer as one array.

    Only a parameter's slot is joined: of an array of somebody else's nobody knows what lies between
    its parts. Gaps of alignment are joined over and set to 0.
    """
    out: list[Array] = []
    buffer: Any = None  # what the last array is a part of, and from where to where
    start = end = 0
    for p in parameters:
        if p.grad is None:
            continue
        array: Array = p.grad.data
        base: Array = array.base
        own = array is p.slot
        if not own or not is_array(base) or base.ndim != 1 or base.dtype != array.dtype:
            buffer = None
            out.append(array)
            continue
        at = (address(array) - address(base)) // base.itemsize
        if base is buffer and 0 <= at - end < _ALIGNMENT // base.itemsize:
            if at > end:
                buffer[end:at] = 0
            end = at + array.size
            out[-1] = buffer[start:end]
        else:
            buffer, start, end = base, at, at + array.size
            out.append(array)
    return out


def place_of(parameter: Tensor) -> tuple[Device, Any]:
    """What parameters in one buffer have in common."""
    return parameter.device, parameter.dtype
