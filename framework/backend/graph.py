"""Captured steps: a whole training step recorded once as a CUDA graph and replayed in one launch.

    step = fw.cuda.graph(step)      # step(x, target): forward, backward, optimizer.step() -> loss
    for x, target in loader:
        loss = step(x, target)

A small model's step is some hundred kernels of a few microseconds each, and launching them from
Python takes longer than they run. A graph launches them all at once, on the arguments they had when
they were captured: arrays at the same addresses, numbers by value. So inputs are copied into arrays
that stay, outputs come in arrays that stay, temporary ones lie in a memory pool of the graph's own,
and numbers that change lie on the device (live.py).
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from framework.backend.device import Device, choose_device, default_device, to_device
from framework.backend.live import (
    CaptureError,
    Recording,
    forget_kept,
    modes,
    recording,
    recording_to,
)
from framework.backend.memory import private_pool
from framework.backend.out_of_memory import release
from kernels.arrays import Array, is_array, is_cuda
from kernels.precision import tf32_is_allowed

log = logging.getLogger("framework")

#: Times that what was captured may turn out not to fit any more, before it is given up.
_MOST_RENEWALS = 8


def graph(
    step: Callable[..., Any],
    *,
    device: str | Device | None = None,
    warmup: int = 2,
    most: int = 8,
    strict: bool = False,
) -> Callable[..., Any]:
    """`step` as a CUDA graph: run as it is `warmup` times, then captured, then replayed.

    `step` takes Tensors or arrays (other arguments are part of the signature, and hashable) and
    returns a Tensor, an array, or a tuple, list or dict of them; `backward` belongs inside. For
    each signature of shapes, dtypes and other arguments, and each grad mode and autocast dtype, one
    graph is captured, `most` in all; further ones run as they are. What cannot be captured (it
    waits for the device, say) is said once, and the step goes on as it is (for inputs of that
    signature, if others have been captured before); with `strict` it is a CaptureError.

    A replay runs no Python. What the framework counts, it counts on: steps and learning rates of
    optimizers, the random stream, an EMA's updates; and gradients are where the step leaves them.
    All else that Python does in the step happens while it is captured and not again: draw the
    host's own random numbers, ask schedules and look at losses outside. Gradients start from None
    either always or never (``zero_grad()`` in the step, say).

    The tensors returned are cut off from the tape, and overwritten by the next call. Without a CUDA
    device (or with ``device="cpu"``) this is `step` itself.
    """
    home = default_device() if device is None else choose_device(device)
    if home.kind == "cpu":
        return step
    return CapturedStep(step, home, warmup, most, strict)


class CapturedStep:
    """What `graph` makes of a step. `captures` and `replays` count; `reason` says why it runs as it
    is, None where it does not.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        device: Device,
        warmup: int = 2,
        most: int = 8,
        strict: bool = False,
    ) -> None:
        if warmup < 1:  # kernels are compiled and buffers made by a first run, not in a capture
            raise ValueError(f"warmup is {warmup!r}, expected at least 1")
        self.step, self.device = step, device
        self.warmup, self.most, self.strict = warmup, most, strict
        self.captures = self.replays = self.renewals = 0
        self.reason: str | None = None
        self._known: dict[Any, _Captured] = {}
        self._full = self._refused_some = self._said_wanted = False

    def __call__(self, *inputs: Any) -> Any:
        if self.reason is not None or recording() is not None:  # within another capture: part of it
            return self._as_it_is(inputs)
        captured = None if self._wants_gradients(inputs) else self._find(inputs)
        if captured is None or captured.refused:
            return self._as_it_is(inputs)
        with _on_capture_stream(self.device) as stream:
            captured.fill(inputs, self.device, stream)
            if captured.graph is not None and self._is_refreshed(captured):
                captured.replay(stream)
                self.replays += 1
                return captured.outputs
            if captured.calls < self.warmup:
                captured.calls += 1
                return _detached(self.step(*captured.arguments))
            if not self._is_recorded(captured, stream):
                # after the except block, whose error holds the memory of what failed
                return _detached(self.step(*captured.arguments))
            self.captures += 1
            captured.replay(stream)
            self.replays += 1
            return captured.outputs

    @property
    def is_captured(self) -> bool:
        """Is there a graph now?"""
        return any(captured.graph is not None for captured in self._known.values())

    def forget(self) -> None:
        """Capture anew: something that the step does has changed."""
        self._known.clear()

    def _wants_gradients(self, inputs: tuple[Any, ...]) -> bool:
        """Does an input require a gradient? A copy of it would get that."""
        shape = next((x.shape for x in inputs if getattr(x, "requires_grad", False)), None)
        if shape is None:
            return False
        reason = (
            f"an input of shape {shape} requires a gradient, and a captured step's inputs are "
            "copied; pass x.detach(), and use parameters inside the step"
        )
        if self.strict:
            raise ValueError(reason)
        if not self._said_wanted:
            self._said_wanted = True
            log.warning("captured step: it runs as it is where %s", reason)
        return True

    def _find(self, inputs: tuple[Any, ...]) -> _Captured | None:
        key = (tf32_is_allowed(), modes(), *map(_signature, inputs))
        captured = self._known.get(key)
        if captured is None and len(self._known) < self.most:
            captured = self._known[key] = _Captured(inputs, self.device)
        elif captured is None and not self._full:
            self._full = True
            log.warning(
                "captured step: %d input shapes are captured; steps of other shapes run as they "
                "are (pad the batches, or drop_last=True)",
                self.most,
            )
        return captured

    def _is_recorded(self, captured: _Captured, stream: Any) -> bool:
        """Capture the step. Where that fails all that it took is free again."""
        try:
            captured.capture(self.step, self.device, stream)
        except CaptureError as error:
            reason = str(error)
            if self.strict:
                raise CaptureError(f"the step cannot be captured: {reason}") from error
            release(error)
        else:
            return True
        if self.captures == 0:
            self._give_up(reason)
            return False
        captured.drop(0)
        captured.refused = True  # what works for other inputs goes on
        if not self._refused_some:
            self._refused_some = True
            log.warning(
                "captured step: it cannot be captured for inputs of shape %s and runs as it is for "
                "such: %s",
                ", ".join(str(x.shape) for x in map(_array, captured.arguments) if is_array(x)),
                reason,
            )
        return False

    def _is_refreshed(self, captured: _Captured) -> bool:
        """Are the numbers of the next replay made? A graph that does not fit any more is dropped:
        one step as it is makes the buffers that a new one needs.
        """
        try:
            captured.refresh()
        except CaptureError as error:
            captured.drop(self.warmup - 1)
            self.renewals += 1
            if self.renewals > _MOST_RENEWALS:
                self._give_up(f"{error}, for the {self.renewals}th time")
            return False
        return True

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._known.clear()
        if self.strict:
            raise CaptureError(f"the step cannot be captured: {reason}")
        log.warning("the step is not captured into a CUDA graph and runs as it is: %s", reason)

    def _as_it_is(self, inputs: tuple[Any, ...]) -> Any:
        with self.device.context():
            return _detached(self.step(*(_moved(x, self.device) for x in inputs)))


class _Captured:
    """A step for inputs of one signature: static inputs, and when it is captured the graph, its
    outputs and all that it needs to live.
    """

    def __init__(self, inputs: tuple[Any, ...], device: Device) -> None:
        with device.context():
            xp = device.module
            self.arguments = [
                _like(x, xp.empty(x.shape, x.dtype)) if is_array(_array(x)) else x for x in inputs
            ]
        self.calls = 0
        self.refused = False
        self.graph: Any = None
        self.outputs: Any = None
        self._recording: Recording | None = None
        self._memory: _Memory | None = None  # the last: it goes after the arrays

    def fill(self, inputs: tuple[Any, ...], device: Device, stream: Any) -> None:
        """Copy the inputs in. From the host nothing waits: the driver keeps a copy of its own."""
        for static, given in zip(map(_array, self.arguments), map(_array, inputs), strict=True):
            if not is_array(static):
                continue
            if is_cuda(given):
                static[...] = to_device(given, device)
            else:
                static.set(given, stream=stream)

    def capture(self, step: Callable[..., Any], device: Device, stream: Any) -> None:
        """Record the step. Nothing of it is run. CaptureError where that fails, and then nothing
        has been counted.
        """
        made, memory = Recording(device), _Memory(device)
        # what the warm-up used and freed is as much as the graph is about to ask for
        device.module.get_default_memory_pool().free_all_blocks()
        forget_kept()
        try:
            with memory.used(), recording_to(made):
                stream.begin_capture()
                try:
                    outputs = _detached(step(*self.arguments))
                except BaseException:
                    _abandon(stream)
                    raise
                captured = stream.end_capture()
            _check_outputs(outputs)
            made.check_arrays()
        except Exception as error:
            made.roll_back()
            raise CaptureError(_reason(error)) from error
        except BaseException:
            made.roll_back()
            raise
        finally:
            forget_kept()
        made.finish()
        self.graph, self.outputs, self._recording, self._memory = captured, outputs, made, memory

    def refresh(self) -> None:
        """Make the numbers of the next replay; those of the first are made by the capture."""
        assert self._recording is not None
        self._recording.refresh()

    def replay(self, stream: Any) -> None:
        """Run the captured step with the numbers that `refresh` made."""
        assert self._recording is not None
        self._recording.upload(stream)
        self.graph.launch(stream)
        forget_kept()
        self._recording.leave_gradients()

    def drop(self, calls: int) -> None:
        """Forget the graph; its memory goes after it. `calls` of the warm-up count as done."""
        self.graph = self.outputs = self._recording = None
        self._memory = None
        self.calls = calls


# Memory -------------------------------------------------------------------------------------------


class _Memory:
    """The memory pool of one graph. Blocks that the step frees go back to it and to nobody else's
    arrays: a replay writes to them again.
    """

    def __init__(self, device: Device) -> None:
        self._cuda = device.module.cuda
        self._pool = private_pool(device)  # which `memory_used` counts

    def used(self) -> Any:
        """Within the block this thread's arrays are from the pool."""
        return self._cuda.using_allocator(self._pool.malloc)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        # CuPy's arrays need their pool: it stays while somebody holds one, a result or a gradient.
        for pool in (pools := [*_retired, self._pool]):
            pool.free_all_blocks()
        _retired[:] = [pool for pool in pools if pool.used_bytes()]


#: Pools of graphs that are gone, in which there are arrays yet.
_retired: list[Any] = []


# The stream ---------------------------------------------------------------------------------------


@cache
def _capture_stream(device: Device) -> tuple[Any, Any, Any]:
    """One for all graphs of a device, and two events. It cannot be the default stream; and products
    keep 32 MiB of workspace for each stream.
    """
    with device.context():
        cuda = device.module.cuda
        return cuda.Stream(non_blocking=True), *(cuda.Event(disable_timing=True) for _ in "io")


@contextmanager
def _on_capture_stream(device: Device) -> Iterator[Any]:
    """Within the block work goes to the capture stream, after all that the current one was given,
    and what comes later on the current one after it. The host does not wait.
    """
    stream, before, after = _capture_stream(device)
    with device.context():
        current = device.module.cuda.get_current_stream()
        if current == stream:
            yield stream
            return
        stream.wait_event(current.record(before))
        try:
            with stream:
                yield stream
        finally:
            current.wait_event(stream.record(after))


def _abandon(stream: Any) -> None:
    """End a capture that went wrong: the stream takes ordinary work again."""
    try:
        stream.end_capture()
    except Exception as error:  # it says that the capture was invalid, which is known
        log.debug("ending a failed capture: %s", error)


# Arguments and results ----------------------------------------------------------------------------
#
# A Tensor is known by its `data` and `requires_grad`: this folder is below the one of its class.


def _array(x: Any) -> Any:
    """The array of a Tensor; anything else as it is."""
    return x.data if hasattr(x, "requires_grad") else x


def _like(x: Any, array: Array) -> Any:
    """`array` as a Tensor where `x` is one."""
    return type(x)(array) if hasattr(x, "requires_grad") else array


def _moved(x: Any, device: Device) -> Any:
    """`x` on `device`, if it is a Tensor or an array; differentiably if it requires a gradient."""
    if getattr(x, "requires_grad", False):
        return x.to(device)
    array = _array(x)
    return _like(x, to_device(array, device)) if is_array(array) else x


def _signature(x: Any) -> Any:
    array = _array(x)
    return (type(x), array.shape, array.dtype) if is_array(array) else (type(x), x)


def _detached(outputs: Any) -> Any:
    """The same structure with tensors that are cut off from the tape."""
    if isinstance(outputs, dict):
        return {name: _detached(x) for name, x in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(map(_detached, outputs))
    return outputs.detach() if hasattr(outputs, "requires_grad") else outputs


def _check_outputs(outputs: Any) -> None:
    """TypeError for a result that a replay would not renew."""
    if isinstance(outputs, (tuple, list, dict)):
        for x in outputs.values() if isinstance(outputs, dict) else outputs:
            _check_outputs(x)
    elif outputs is not None and not is_cuda(_array(outputs)):
        raise TypeError(f"it returns a {type(outputs).__name__}, expected tensors on the device")


# Reasons ------------------------------------------------------------------------------------------

#: Words of an error, and what they mean.
_MEANINGS = (
    ("StreamCaptureImplicit", "it uses the default stream"),
    ("StreamCapture", "it waits for the device or copies from the host"),
    ("is capturing", "it waits for the device or copies from the host"),
    ("cuBLAS", "a matrix product does not go through cuBLASLt"),
)


def _reason(error: Exception) -> str:
    """One line: what is not possible, where, and what was raised."""
    if isinstance(error, CaptureError):
        return str(error)
    text = " ".join(str(error).split())
    words = f"{type(error).__name__}: {text}"
    meaning = next((m for key, m in _MEANINGS if key in words), "it failed while captured")
    return f"{meaning}{_place(error)} ({words[:160]})"


def _place(error: Exception) -> str:
    """The line that called into this framework, or else into CuPy, before the error: its user's."""
    here = Path(__file__).resolve().parents[2]
    ours = tuple(str(here / name) for name in ("framework", "kernels"))
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame.filename.startswith(ours) for frame in frames]
    users = [i for i, mine in enumerate(inside) if not mine and "cupy" not in frames[i].filename]
    callers = [i for i in users if i + 1 < len(frames) and inside[i + 1]]
    last = (callers or users)[-1:]
    return f" at {Path(frames[last[0]].filename).name}:{frames[last[0]].lineno}" if last else ""
