"""The clock of a CUDA device: events on its stream, read after the fact; and ranges for Nsight.

The host only queues work for the device: what it measures is how long queueing took. An event is a
mark in the queue, to which the device writes the time when it gets there. Nothing waits for it
until the profile ends, so the program runs nearly as it would without.

The time from a span's first mark to its last is what the device took for it, and what it waited for
the host in between: of short kernels in a row mostly the latter.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from framework.backend.device import Device
from framework.profiler.spans import Span


class CudaClock:
    """Events of one device, and NVTX ranges around the spans."""

    def __init__(self, device: Device) -> None:
        self._cupy: Any = device.module
        self._device = device
        nvtx = self._cupy.cuda.nvtx
        self._nvtx = nvtx if nvtx.available else None  # CuPy may be built without
        self._zero: Any = None
        self._zero_ns = 0

    def start(self) -> None:
        """Tie the device's timeline to the host's: both are read when the device is idle."""
        with self._device.context():
            self._cupy.cuda.Device().synchronize()
            self._zero = self._cupy.cuda.Event()
            self._zero.record()
            self._zero.synchronize()
        self._zero_ns = perf_counter_ns()

    def push(self, span: Span) -> Any:
        """Open a range, and mark the place in the queue; None where there is no mark to be had."""
        if self._nvtx is not None:
            inside = span.layer and span.category != "layer"
            self._nvtx.RangePush(f"{span.layer}: {span.name}" if inside else span.name)
        return self._mark()

    def pop(self, span: Span) -> Any:
        """Mark the place in the queue, and close the range."""
        mark = None if span.begun is None else self._mark()
        if self._nvtx is not None:
            self._nvtx.RangePop()
        return mark

    def _mark(self) -> Any:
        cuda = self._cupy.cuda
        if cuda.runtime.getDevice() != self._device.index:
            return None  # an event of another device cannot be compared
        if cuda.get_current_stream().is_capturing():
            return None  # it would become a node of the graph, and have no time
        event = cuda.Event()
        event.record()
        return self._device.index, event

    def resolve(self, spans: list[Span]) -> None:
        """Turn the marks into nanoseconds on the host's clock, unless a profile inside this one
        has. Waits for the device.
        """
        with self._device.context():
            self._cupy.cuda.Device().synchronize()
            for span in spans:
                if self._is_mark(span.begun) and self._is_mark(span.ended):
                    span.begun, span.ended = self._ns(span.begun), self._ns(span.ended)

    def _is_mark(self, mark: Any) -> bool:
        return isinstance(mark, tuple) and mark[0] == self._device.index

    def _ns(self, mark: Any) -> int:
        milliseconds: float = self._cupy.cuda.get_elapsed_time(self._zero, mark[1])
        return self._zero_ns + round(milliseconds * 1e6)
