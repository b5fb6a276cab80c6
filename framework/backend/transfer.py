"""Batches on their way to a CUDA device: copied beside the computation instead of before it.

    host array --memcpy--> pinned buffer --copy stream--> device array --event--> compute stream

A copy runs beside kernels only if it comes from page-locked memory and on a stream of its own.
Three orders make that safe, and each is an event:

- a kernel reads after the copy: the compute stream waits for `copied` before a batch is handed out;
- a pinned buffer is refilled after the copy out of it: the host waits for that `copied`;
- a copy overwrites a block of device memory after the kernels that used the block before (they may
  still wait on the device when the host has long freed it): the copy stream waits for an event
  recorded on the compute stream when the block was taken, `consumed`.

Device blocks come from CuPy's pool, one batch ahead and in the sizes of the last batch: after the
first batches the device is asked for nothing, and a batch that somebody keeps (a list of a loader's
batches, a window of accumulated ones) is not overwritten, as it would be in buffers of our own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from framework.backend.device import Device
from framework.backend.out_of_memory import OutOfMemoryError
from kernels.arrays import Array


class Form(NamedTuple):
    """Shape, dtype and memory order of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str

    @staticmethod
    def of(array: np.ndarray[Any, Any]) -> Form:
        """As `cupy.asarray` has it: columns stay columns, any other layout becomes rows."""
        order = "F" if array.flags.fnc else "C"
        return Form(array.shape, array.dtype.newbyteorder("="), order)


class Blocks(NamedTuple):
    """Device arrays to fill, and the event after which nobody else uses their memory."""

    forms: list[Form]
    arrays: list[Array]
    consumed: Any


class Sent(NamedTuple):
    """A batch under way: its device arrays are not to be used before the event `copied`."""

    batch: list[Any]
    forms: list[Form]
    copied: Any


class PinnedBuffer:
    """Page-locked memory for one batch, and the event of the last copy out of it."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.parts: list[np.ndarray[Any, Any]] = []
        # blocking: the thread sleeps until then, and leaves its core to the loader's threads
        self.copied = transfer.module.cuda.Event(block=True, disable_timing=True)
        self.used = False

    def fill(self, arrays: Sequence[np.ndarray[Any, Any]], forms: Sequence[Form]) -> list[Any]:
        """Copies of `arrays`, once the last copy out of this buffer is done."""
        if self.used:
            self.copied.synchronize()
        self.used = True
        filled = []
        for i, (array, form) in enumerate(zip(arrays, forms, strict=True)):
            if i == len(self.parts):
                self.parts.append(np.empty(0, np.uint8))
            if self.parts[i].size < array.nbytes:
                self.parts[i] = self.transfer.empty_pinned(array.nbytes, np.uint8)
            flat = self.parts[i][: array.nbytes].view(form.dtype)
            staged = flat.reshape(form.shape, order=form.order)  # type: ignore[call-overload]
            staged[...] = array
            filled.append(staged)
        return filled


class Transfer:
    """Sends batches of NumPy arrays to `device`; at most `ahead` + 1 are under way.

    Batches are computed with on the stream that is current when they are handed out.
    """

    def __init__(self, device: Device, ahead: int) -> None:
        import cupyx

        self.device, self.module, self.ahead = device, device.module, ahead
        self.empty_pinned = cupyx.empty_pinned
        with device.context():
            # non-blocking: the default stream, on which people compute, would wait for the other
            self.stream = self.module.cuda.Stream(non_blocking=True)
            # one is filled while `ahead` + 1 are copied from
            self.pinned = deque(PinnedBuffer(self) for _ in range(ahead + 2))
        self.spare: Blocks | None = None

    def _take(self, forms: list[Form]) -> Blocks:
        """Device memory, free once the kernels launched so far are done."""
        xp = self.module
        arrays = [xp.empty(form.shape, form.dtype, order=form.order) for form in forms]
        event = xp.cuda.Event(disable_timing=True)
        event.record(xp.cuda.get_current_stream())
        return Blocks(forms, arrays, event)

    def send(self, batch: Sequence[Any]) -> Sent:
        """Start to copy a batch. What is no NumPy array stays as it is."""
        places = [i for i, x in enumerate(batch) if isinstance(x, np.ndarray)]
        sent = list(batch)
        if not places:
            return Sent(sent, [], None)
        hosts = [batch[i] for i in places]
        with self.device.context():
            forms = [Form.of(host) for host in hosts]
            blocks, self.spare = self.spare, None
            if blocks is None or blocks.forms != forms:
                blocks = None  # its memory may do for the new ones
                try:
                    blocks = self._take(forms)
                except MemoryError as error:
                    explained = OutOfMemoryError.of(error)
                    explained.where = "a batch on its way to the device"
                    raise explained from error
            buffer = self.pinned[0]
            self.pinned.rotate(-1)
            staged = buffer.fill(hosts, forms)
            self.stream.wait_event(blocks.consumed)
            for i, array, host in zip(places, blocks.arrays, staged, strict=True):
                if host.size:
                    array.set(host, stream=self.stream)
                sent[i] = array
            buffer.copied.record(self.stream)
        return Sent(sent, forms, buffer.copied)

    def receive(self, sent: Sent) -> tuple[Any, ...]:
        """A batch that was sent, to be computed with on the current stream from now on."""
        if sent.copied is not None:
            with self.device.context():
                self.module.cuda.get_current_stream().wait_event(sent.copied)
                # Taken before the kernels of this batch are launched: the next copy need not wait
                # for them. Where memory is short, it waits.
                try:
                    self.spare = self._take(sent.forms)
                except MemoryError:
                    self.spare = None
        return tuple(sent.batch)

    def close(self) -> None:
        """Wait for copies under way: they write to memory that is about to be freed."""
        with self.device.context():
            self.stream.synchronize()
        self.pinned.clear()
        self.spare = None


def send_ahead(
    batches: Iterable[Sequence[Any]], device: Device, ahead: int = 1
) -> Generator[tuple[Any, ...], None, None]:
    """`batches` with their NumPy arrays on the CUDA `device`, in order, each copied while the one
    before it is computed with.

    `ahead` batches are asked for before they are needed, so that their copies start before the
    kernels of the batch in hand are launched; with 0 a copy is hidden only as far as the host is
    ahead of the device. An error of `batches` comes after the batches before it, as it is. To stop
    early is safe at any batch. Takes `ahead` + 2 batches of pinned memory and, beside the batches
    that the caller holds, as many of device memory.
    """
    source = iter(batches)
    transfer = Transfer(device, ahead)
    under_way: deque[Sent] = deque()
    failure: Exception | None = None
    more = True
    try:
        while more or under_way:
            while more and len(under_way) <= ahead:
                try:
                    under_way.append(transfer.send(next(source)))
                except StopIteration:
                    more = False
                except Exception as error:
                    failure, more = error, False
            if under_way:
                yield transfer.receive(under_way.popleft())
        if failure is not None:
            raise failure
    finally:
        failure = None  # its traceback holds this frame: a cycle
        transfer.close()
        under_way.clear()
