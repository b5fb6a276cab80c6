"""A live bar in a terminal, a plain line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from framework.trainer.callbacks.callback import Callback
from framework.waiting import shown_by

if TYPE_CHECKING:
    from rich.console import Console

    from framework.trainer.trainer import Trainer

REFRESH = 0.1  # seconds


class Progress(Callback):
    """Shows epoch, steps, loss, the first metric, the first score of the validation, samples per
    second.

    In a terminal one live line (the loss is read, which waits for a CUDA device, ten times a
    second); where the output is no terminal, one plain line an epoch.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.bar: Any = None
        self.scores = ""  # as they are shown
        self.waiting = ExitStack()  # while the bar is open, it says what is waited for
        self.shown = 0.0
        self.validation: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        from rich.console import Console

        self.console = self.console or Console(highlight=False)
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._open(trainer)

    def _open(self, trainer: Trainer) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        assert self.console is not None
        columns: list[Any] = [
            TextColumn("[bold]epoch {task.fields[epoch]}[/]"),
            BarColumn(self._bar_width(), complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[scores]}"),
            TextColumn("[dim]{task.fields[rate]}[/]"),
            TextColumn("[dim]{task.fields[left]}[/]"),
        ]
        self.bar = Progress(*columns, console=self.console, auto_refresh=False)
        try:
            per_epoch = -(-len(trainer.train_loader) // trainer.accumulate)  # type: ignore[arg-type]
        except TypeError:  # a loader without a length: the bar pulses
            per_epoch = None
        total = None if per_epoch is None else per_epoch * trainer.epochs
        self.task = self.bar.add_task(
            "",
            total=total,
            completed=trainer.step + trainer.skipped,
            epoch=f"{trainer.epoch + 1:>{len(str(trainer.epochs))}}/{trainer.epochs}",
            scores="",
            rate="",
            left="",
        )
        self.bar.start()
        self.waiting.enter_context(shown_by(self._wait))
        self.start, self.seen = time.perf_counter(), 0

    def _bar_width(self) -> int:
        """What is left beside the longest text: a score that joins later does not move the bar.
        Where there is too little for all, the bar shrinks first.
        """
        assert self.console is not None
        text = 89 if self._wide() else 75
        return min(60, max(6, self.console.width - text))

    def _wide(self) -> bool:
        return self.console is not None and self.console.width >= 100

    def _wait(self, text: str | None) -> None:
        """Kernels are being compiled: `text` stands where the scores were."""
        bar = self.bar
        if bar is None:
            return
        if text is None:
            bar.update(self.task, scores=self.scores, refresh=True)
        else:
            bar.update(self.task, scores=f"[dim]{text}[/]", refresh=True)

    def on_step_end(self, trainer: Trainer) -> None:
        if self.bar is None or time.perf_counter() - self.shown < REFRESH:
            return
        scores = {"loss": trainer.running.compute()}
        if trainer.metrics and trainer.metrics[0].name in ("accuracy", "r2"):
            scores[trainer.metrics[0].name] = trainer.metrics[0].compute()
        self._show(trainer, trainer.epoch + 1, scores)

    def on_epoch_end(self, trainer: Trainer) -> None:
        record = trainer.history[-1]
        self.validation = _validation(record)
        if self.bar is None:
            self._line(trainer, record)
        else:
            self.seen += trainer.samples
            self._show(trainer, trainer.epoch, _training(trainer, record), whole=True)

    def _show(
        self, trainer: Trainer, epoch: int, scores: dict[str, float], whole: bool = False
    ) -> None:
        self.shown = time.perf_counter()
        room = 3 if self._wide() else 2
        both = list(scores.items()) + list(self.validation.items())[-1:]
        if room < len(both) and self.validation:
            both = [both[0], both[-1]]
        samples = self.seen if whole else self.seen + trainer.samples
        rate = samples / (self.shown - self.start)
        self.scores = "  ".join(f"[dim]{name}[/] {value:.4f}" for name, value in both)
        self.bar.update(
            self.task,
            completed=trainer.step + trainer.skipped,
            epoch=f"{epoch:>{len(str(trainer.epochs))}}/{trainer.epochs}",
            scores=self.scores,
            rate=f"{_short(rate):>5} samples/s",
        )
        left = self.bar.tasks[0].time_remaining  # by the speed of the last half minute
        self.bar.update(
            self.task, left="" if left is None else f"{_duration(left)} left", refresh=True
        )

    def _line(self, trainer: Trainer, record: dict[str, Any]) -> None:
        scores = _training(trainer, record) | self.validation
        parts = [f"epoch {trainer.epoch:>{len(str(trainer.epochs))}}/{trainer.epochs}"]
        parts += [f"{name} {value:.4f}" for name, value in scores.items()]
        parts.append(f"{record['samples_per_second']:,.0f} samples/s")
        self._print("  ".join(parts))

    def _print(self, line: str) -> None:
        assert self.console is not None
        print(line, file=self.console.file or sys.stdout, flush=True)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.bar is not None:
            done = trainer.step + trainer.skipped
            if trainer.should_stop:
                self.bar.update(self.task, total=done, completed=done)
            took = time.perf_counter() - self.start
            self.bar.update(self.task, left=f"took {_duration(took)}", refresh=True)
        self._close()
        for line in filter(None, (c.remark(trainer) for c in trainer.callbacks)):
            self._print(line)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self.waiting.close()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _training(trainer: Trainer, record: dict[str, Any]) -> dict[str, float]:
    """The loss and the metrics that are single numbers."""
    names = ["loss", *(metric.name for metric in trainer.metrics)]
    return {name: record[name] for name in names if isinstance(record[name], float)}


def _validation(record: dict[str, Any]) -> dict[str, float]:
    """The scores of the validation, "test_accuracy" as "test accuracy"."""
    training = {"loss", "epoch", "step", "seconds", "samples_per_second"}
    return {
        name.replace("_", " "): value
        for name, value in record.items()
        if name not in training and isinstance(value, float) and "_" in name
    }


def _short(rate: float) -> str:
    """Three digits: 950, 12.3k, 456k, 1.2M."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if rate >= scale:
            value = rate / scale
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return f"{rate:.0f}"


def _duration(seconds: float) -> str:
    """Two digits or so: 48 s, 12 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
