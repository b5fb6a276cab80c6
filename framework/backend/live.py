"""Numbers that change from step to step, where a captured step finds them: in device memory.

A CUDA graph is launched with the arguments that its kernels had when they were captured. What
changes (Adam's t, the learning rate, the place in the random stream) is counted on the host, by the
same code whether a step is captured or not: bits and checkpoints cannot differ. While a step is
captured, that code asks for a place on the device (`Recording.numbers`) and leaves how its numbers
are made; before every replay they are made anew, in the order of the step, and go to the device in
one copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from framework.backend.device import Device
from kernels.arrays import Array

#: Bytes for the numbers of one captured step; a model's thousand dropout layers need half of it.
CAPACITY = 32 << 10

#: Each place begins at a multiple of this, so that a kernel may read it in one load.
_ALIGNMENT = 16


class CaptureError(RuntimeError):
    """A step cannot be captured, or what was captured does not fit any more."""


class _Entry(NamedTuple):
    """Numbers of one place, or what the host counts beside the step."""

    host: np.ndarray[Any, Any] | None  # None: counted on the host only
    make: Callable[[], Any]
    undo: Callable[[], None]
    fits: Callable[[], bool]


class Recording:
    """What one captured step takes from the host at every replay, and what it leaves in Python."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._host = np.zeros(CAPACITY, np.uint8)
        with device.context():
            self._device = device.module.zeros(CAPACITY, "uint8")
        self._used = 0
        self._entries: list[_Entry] = []
        #: Leaves of the captured backward passes, each with its gradient before.
        self.leaves: dict[int, tuple[Any, Any]] = {}
        self._gradients: list[tuple[Any, Any, Array]] = []
        self._arrays: dict[int, tuple[Any, Array]] = {}  # of the leaves

    def numbers(
        self,
        dtype: Any,
        make: Callable[[], Sequence[Any]],
        undo: Callable[[], None],
        fits: Callable[[], bool] = lambda: True,
    ) -> Array:
        """An array on the device with what ``make()`` gives now, and again before every replay.

        `make` counts whatever it counts, unless it raises; `undo` takes one such call back. `fits`
        says before a replay, and without counting, whether the captured step is still right.
        """
        values = np.asarray(make(), dtype)
        start, end = self._used, self._used + values.nbytes
        if end > CAPACITY:
            undo()
            raise CaptureError(f"a captured step has room for {CAPACITY} bytes of numbers")
        host = self._host[start:end].view(values.dtype)
        host[...] = values
        self._entries.append(_Entry(host, make, undo, fits))
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return self._device[start:end].view(values.dtype)

    def each_time(self, count: Callable[[], None], undo: Callable[[], None]) -> None:
        """Count now, and at every replay; `undo` takes one such call back."""
        count()
        self._entries.append(_Entry(None, count, undo, lambda: True))

    def note_leaf(self, leaf: Any) -> None:
        """A backward pass is about to add to ``leaf.grad``."""
        self.leaves.setdefault(id(leaf), (leaf, leaf.grad))
        self._arrays.setdefault(id(leaf), (leaf, leaf.data))

    def check_arrays(self) -> None:
        """CaptureError where a leaf has another array than in its backward pass: replays would go
        on from the old one.
        """
        for leaf, array in self._arrays.values():
            if leaf.data is not array:
                raise CaptureError(
                    f"a tensor of shape {leaf.shape} that requires a gradient is given another "
                    "array (write into it: w.data[...] = ...)"
                )

    def finish(self) -> None:
        """The step has been captured: remember the gradients that it leaves.

        Their arrays, not the tensors: `zero_grad` gives a tensor that somebody holds another array.
        """
        self._gradients = [
            (leaf, type(leaf.grad), leaf.grad.data)
            for leaf, _ in self.leaves.values()
            if leaf.grad is not None
        ]
        self.leaves = {key: (leaf, None) for key, (leaf, _) in self.leaves.items()}

    def roll_back(self) -> None:
        """Nothing of the step was run: take back what it counted, and the gradients it left."""
        for entry in reversed(self._entries):
            entry.undo()
        for leaf, grad in self.leaves.values():
            leaf.grad = grad
        for leaf, array in self._arrays.values():
            leaf.data = array

    def refresh(self) -> None:
        """Make the numbers of the next replay.

        Raises:
            CaptureError: the step has changed since it was captured; nothing has been counted.
        """
        self.check_arrays()
        if not all(entry.fits() for entry in self._entries):
            raise CaptureError("what the step works on has changed since it was captured")
        made: list[_Entry] = []
        try:
            for entry in self._entries:
                values = entry.make()
                made.append(entry)
                if entry.host is not None:
                    entry.host[...] = values
        except BaseException:
            for entry in reversed(made):
                entry.undo()
            raise

    def upload(self, stream: Any) -> None:
        """Copy the numbers to the device, on `stream`. The host does not wait: the driver has taken
        a copy of its own when this returns.
        """
        if self._used:
            self._device[: self._used].set(self._host[: self._used], stream=stream)

    def leave_gradients(self) -> None:
        """What the step's Python would have left in ``.grad``."""
        for leaf, tensor, array in self._gradients:
            if leaf.grad is None or leaf.grad.data is not array:
                leaf.grad = tensor(array)


# What the folders above keep from step to step, told by them --------------------------------------

#: Let go of what was computed once and is used again: a replay would not compute it.
_forgetting: list[Callable[[], None]] = []


def forget_around_captures(forget: Callable[[], None]) -> None:
    """Call ``forget()`` before and after each capture, so that the step computes anew what it would
    find kept and nobody finds what is the graph's, and after each replay, which changes parameters
    without any Python.
    """
    _forgetting.append(forget)


def forget_kept() -> None:
    """A capture begins or has ended, or a replay has been launched."""
    for forget in _forgetting:
        forget()


#: This thread's modes, such as grad mode.
_modes: list[Callable[[], Any]] = []


def capture_by_mode(mode: Callable[[], Any]) -> None:
    """What ``mode()`` returns decides what a step does: each has a graph of its own."""
    _modes.append(mode)


def modes() -> tuple[Any, ...]:
    """All modes of this thread."""
    return tuple(mode() for mode in _modes)


# The recording of this thread ---------------------------------------------------------------------


class _State(threading.local):
    recording: Recording | None = None


_state = _State()


def recording() -> Recording | None:
    """The recording of the step that this thread is capturing; None if it is not."""
    return _state.recording


@contextmanager
def recording_to(made: Recording) -> Iterator[None]:
    """Within the block this thread captures a step."""
    previous, _state.recording = _state.recording, made
    try:
        yield
    finally:
        _state.recording = previous
