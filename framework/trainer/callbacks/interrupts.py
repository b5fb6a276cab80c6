"""Ctrl-C, SIGTERM and SIGHUP end a run between two steps, where its state is whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from framework.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

#: Ctrl-C, kill, and (not on Windows) a terminal that was closed, or a connection to it.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
#: Those that interrupt at once the second time. A closed terminal sends its signal twice, through
#: the shell and by itself.
IMPATIENT = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to end, and did so between two steps: after `step`, its state `saved` by a
    ModelCheckpoint in that folder.
    """

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.saved: Path | None = None

    def __str__(self) -> str:
        after = "stopped" if self.step is None else f"stopped after step {self.step}"
        if self.saved is not None:
            return (
                f"{after}, saved in {self.saved}; go on with fit(..., resume={str(self.saved)!r})"
            )
        return (
            f"{after}, not saved by a ModelCheckpoint; fit(...) of the same trainer goes on from "
            "its weights"
        )


class Interrupts(Callback):
    """The first Ctrl-C, SIGTERM or SIGHUP lets the step (or the evaluation after an epoch) end and
    then raises `Stopped`, upon which a ModelCheckpoint saves. A second one interrupts at once, as
    without this; a terminal is told so.

    Put it last: the others have seen the step then. In threads other than the main one, and where
    signals have handlers that are not Python's own, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        self.asked = False
        if threading.current_thread() is not threading.main_thread():
            return
        usual = (signal.default_int_handler, signal.SIG_DFL)
        for number in SIGNALS:
            if (before := signal.getsignal(number)) in usual:
                self._before[number] = before
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if sys.stderr.isatty():  # the step may compile for long; no print, which is not reentrant
            with suppress(OSError):  # the terminal is gone
                os.write(2, b"\nstopping when this step is done; once more stops at once\n")
        for each in self._before:
            if each in IMPATIENT:
                signal.signal(each, signal.default_int_handler)

    def on_step_end(self, trainer: Trainer) -> None:
        if self.asked:
            self._stop(trainer)

    def on_epoch_complete(self, trainer: Trainer) -> None:
        if self.asked:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        trainer.settle()  # an error of the last step is an error, and none while saving
        raise Stopped(trainer.step)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._give_back()  # all is done: a signal has come too late

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)
