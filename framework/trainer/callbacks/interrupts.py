"""Ctrl-C and SIGTERM end a run between two steps, where its state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from framework.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to end, and did so between two steps."""


class Interrupts(Callback):
    """The first Ctrl-C or SIGTERM lets the step (or the evaluation after an epoch) end, then raises
    `Stopped`, upon which a ModelCheckpoint saves. A second one interrupts at once, as without this.

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
        for each in self._before:
            signal.signal(each, signal.default_int_handler)

    def on_step_end(self, trainer: Trainer) -> None:
        if self.asked:
            self._stop(trainer)

    def on_epoch_complete(self, trainer: Trainer) -> None:
        if self.asked:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        trainer.settle()  # an error of the last step is an error, and none while saving
        raise Stopped

    def on_fit_end(self, trainer: Trainer) -> None:
        self._give_back()  # all is done: a signal has come too late

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)
