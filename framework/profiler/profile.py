"""`fw.profile`: record while a ``with`` block runs, then look at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from framework.backend import memory
from framework.backend.device import Device, choose_device, default_device
from framework.layers.module import Module
from framework.profiler import hooks
from framework.profiler.clock import CudaClock
from framework.profiler.spans import CATEGORIES, Span, begin, end

if TYPE_CHECKING:
    from framework.profiler.report import KernelRow, LayerRow, PhaseRow


class Profile:
    """Records all that runs inside its ``with`` block, in all threads: the forward and backward of
    each layer, kernels, optimizer steps, the making of batches, memory.

    >>> import framework as fw
    >>> layer = fw.layers.Linear(3, 2)
    >>> with fw.profile() as p:
    ...     layer(fw.ones((4, 3))).sum().backward()
    >>> [(row.name, row.calls) for row in p.layers() if row.calls]
    [('Linear', 1)]

    The same profile can be entered again, and then goes on; profiles can be nested, and each has
    all that is inside of it. A span costs about 2 us, and some 300 bytes while the profile is kept:
    profile steps, not days. Outside of the block nothing is left behind: the hooks are removed
    (hooks.py).

    Args:
        model: names the layers (``blocks.0.linear``). Without it, whatever module is called first
            is taken for the model.
        device: whose time is measured; None: the default device. On "cuda" times are the device's,
            by events on its stream, and every span is a range in Nsight.
    """

    def __init__(self, model: Module | None = None, device: Device | str | None = None) -> None:
        if model is not None and not isinstance(model, Module):
            raise TypeError(f"model is a {type(model).__name__}, expected a Module or None")
        self.model = model
        self.device = default_device() if device is None else choose_device(device)
        self.clock = CudaClock(self.device) if self.device.kind == "cuda" else None
        self.spans: list[Span] = []
        #: (nanoseconds, bytes in use) after a forward, a backward, a batch, a step.
        self.samples: list[tuple[int, int]] = []
        #: Nanoseconds from and to when it recorded, one pair for each time it was entered.
        self.intervals: list[tuple[int, int]] = []
        self._since: int | None = None
        self._resolved = 0

    # Recording ------------------------------------------------------------------------------------

    @property
    def recording(self) -> bool:
        """Is it inside its ``with`` block?"""
        return self._since is not None

    def __enter__(self) -> Profile:
        if self.recording:
            raise RuntimeError("this profile records already: nest another fw.profile() instead")
        if self.clock is not None:
            self.clock.start()
        self._since = perf_counter_ns()
        self._sample()
        hooks.start(self)
        if self.model is not None:
            hooks.names.add(self.model)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._since is not None
        hooks.stop(self)
        since, self._since = self._since, None
        if self.clock is not None:
            self.clock.resolve(self.spans[self._resolved :])
        self._resolved = len(self.spans)
        self._sample()
        self.intervals.append((since, perf_counter_ns()))

    def take(self, span: Span) -> None:
        """A span has ended; one that outlives the block is not complete and left out."""
        if not self.recording:
            return
        self.spans.append(span)
        # Asking for it takes 20 us: seldom, and not inside of what is being timed.
        seldom = span.category != "kernel" and span.detail != "optimizer"
        if seldom and self.is_outermost(span):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((perf_counter_ns(), memory.memory_used(self.device)))

    @contextmanager
    def range(self, name: str, category: str = "step") -> Iterator[Span]:
        """A span of your own around a block: ``with p.range("step 3"):``."""
        if category not in CATEGORIES:
            raise ValueError(f"category is {category!r}, expected one of {', '.join(CATEGORIES)}")
        span = begin(category, name)
        try:
            yield span
        finally:
            end(span)

    def leave_out(self, since: int) -> None:
        """Forget what began at `since` (nanoseconds of time.perf_counter_ns) or later, and the time
        from then to now: an evaluation between two steps, say.
        """
        if self._since is None:
            raise RuntimeError("the profile does not record: there is nothing to leave out of it")
        self.spans = [span for span in self.spans if span.start < since]
        self.samples = [sample for sample in self.samples if sample[0] < since]
        self.intervals.append((self._since, max(since, self._since)))
        self._since = perf_counter_ns()
        self._sample()

    # Looking --------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long it recorded."""
        return sum(to - since for since, to in self.intervals) / 1e9

    def is_outermost(self, span: Span) -> bool:
        """Is there nothing around the span, but a whole training step?"""
        around = span.parent
        if around is None or self not in around.profiles:
            return True
        return self.is_step(around)

    def nanoseconds(self, span: Span) -> int:
        """How long it took: on the device where that is what is measured, else on the host."""
        if self.has_device_time(span):
            return int(span.ended - span.begun)
        return span.end - span.start

    def has_device_time(self, span: Span) -> bool:
        """Not while a CUDA graph was captured, nor on another device."""
        return self.clock is not None and type(span.begun) is type(span.ended) is int

    def layers(self) -> list[LayerRow]:
        """Forward and backward time of each layer, without the layers inside it; the longest
        first.
        """
        from framework.profiler import report

        return report.layers(self._finished())

    def kernels(self) -> list[KernelRow]:
        """Calls and time of each kernel, the longest first."""
        from framework.profiler import report

        return report.kernels(self._finished())

    def phases(self) -> list[PhaseRow]:
        """Forward, backward, optimizer, data, and the rest of the steps where these are known."""
        from framework.profiler import report

        return report.phases(self._finished())

    def is_step(self, span: Span) -> bool:
        """Is it a whole training step, or another range around other phases?"""
        return span.category == "step" and span.detail != "optimizer"

    @property
    def memory(self) -> tuple[int, int, int]:
        """Bytes in use at the beginning, at the end, and the most that was seen in between.

        On CUDA of live arrays, on the CPU of the whole process; seen after each forward of a model,
        backward and batch. `fw.peak_memory` counts every allocation.
        """
        values = [used for _, used in self._finished().samples]
        return (values[0], values[-1], max(values)) if values else (0, 0, 0)

    def tables(self, limit: int | None = None) -> list[Any]:
        """Tables for a rich console; `limit` is the number of rows of each."""
        from framework.profiler import report

        return report.tables(self._finished(), limit)

    def text(self, width: int = 100) -> str:
        """All tables as plain text."""
        from framework.profiler import report

        return report.text(self._finished(), width)

    def __str__(self) -> str:
        return self.text()

    def export(self, path: str | Path) -> None:
        """Write a trace in the Chrome format, for ui.perfetto.dev and chrome://tracing.

        Raises:
            FileError: it cannot be written.
        """
        from framework.profiler import trace

        trace.write(self._finished(), path)

    def _finished(self) -> Profile:
        if self.recording:
            raise RuntimeError("the profile still records: leave its with block first")
        return self
