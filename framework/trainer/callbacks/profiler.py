"""Profile a few steps of a run: where its time goes, as tables and as a trace."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from framework.interop.atomic import write_text
from framework.profiler import Profile, Span
from framework.profiler.spans import begin, end
from framework.trainer.callbacks.callback import Callback
from framework.trainer.folders import make_folder

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

TEXT, TRACE = "profile.txt", "trace.json"


class Profiler(Callback):
    """Skips `warmup` steps, records the next `steps` (or as many as there are), and writes
    profile.txt and trace.json into `folder` (None: nothing). `profile` has it all.

    The first steps compile kernels and make buffers: their time says nothing about the others'.
    Evaluations between epochs are left out. On CUDA the recorded steps are not replayed as a graph,
    for a replay calls no layer: they take what they take with ``capture=False``.

    Put it first among the callbacks: what the others do within a step is then part of the step, and
    what they do after it of the wait for the next batch.

    Raises:
        FileError: `folder` cannot be written.
    """

    writes = True

    def __init__(self, folder: str | Path | None = None, warmup: int = 3, steps: int = 20) -> None:
        for name, value, least in (("warmup", warmup, 0), ("steps", steps, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
        self.folder = None if folder is None else Path(folder)
        self.warmup, self.steps = warmup, steps
        self.profile: Profile | None = None
        self.seen = 0  # steps, the skipped ones too
        self._span: Span | None = None  # the step, or the wait for the next one

    @property
    def recorded(self) -> int:
        """Steps in the profile."""
        return max(0, min(self.seen, self.warmup + self.steps) - self.warmup)

    def on_fit_start(self, trainer: Trainer) -> None:
        if self.folder is not None:
            make_folder(self.folder)
        self.profile, self.seen = Profile(trainer.model, trainer.device), 0

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._wait()

    def on_step_start(self, trainer: Trainer) -> None:
        self._close()
        if self._recording:
            self._span = begin("step", f"step {trainer.step + 1}")

    def on_step_end(self, trainer: Trainer) -> None:
        self._close()
        self.seen += 1
        if self._recording and self.seen == self.warmup + self.steps:
            self._finish()
        self._wait()

    def on_step_skipped(self, trainer: Trainer) -> None:
        self.on_step_end(trainer)  # all was done but the last part

    def on_epoch_end(self, trainer: Trainer) -> None:
        # What was taken for the wait for a next batch was the evaluation.
        if self._recording and self.profile is not None:
            since = self._span.start if self._span is not None else perf_counter_ns()
            self._close()
            self.profile.leave_out(since)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._recording:
            self._finish()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        # The hooks go; nothing is written: the steps are not complete, and another error would
        # hide this one.
        if self._recording and self.profile is not None:
            self._close()
            self.profile.__exit__()

    @property
    def _recording(self) -> bool:
        return self.profile is not None and self.profile.recording

    def _wait(self) -> None:
        """Between two steps, where there are some to record: begin, and time the wait."""
        if self.profile is None or not self.warmup <= self.seen < self.warmup + self.steps:
            return
        if not self.profile.recording:
            self.profile.__enter__()
        self._span = begin("data", "next batch")

    def _close(self) -> None:
        if self._span is not None:
            end(self._span)
            self._span = None

    def _finish(self) -> None:
        assert self.profile is not None
        self._close()
        self.profile.__exit__()
        if self.folder is not None:
            title = f"{self.recorded} steps, after {self.warmup} of warm-up\n\n"
            write_text(self.folder / TEXT, title + self.profile.text())
            self.profile.export(self.folder / TRACE)
