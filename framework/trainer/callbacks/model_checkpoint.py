"""Save the run as it goes: the last states to resume from, the best weights to use."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.interop import safetensors
from framework.interop.atomic import FileError
from framework.interop.lock import FolderLock
from framework.trainer import checkpoint
from framework.trainer.callbacks.callback import Best, Callback, score_of
from framework.trainer.callbacks.interrupts import Stopped
from framework.trainer.folders import make_folder
from framework.trainer.store import Store, checkpoints_in

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

log = logging.getLogger("framework")

BEST = "best.safetensors"

#: Seconds between saves, at least, for each second that a save takes: saving costs below 1%.
REST = 100


class ModelCheckpoint(Callback):
    """Saves the state of the run into `folder` (see framework/trainer/store.py), and the weights of
    the best epoch so far by `monitor` (None: no best) as best.safetensors.

    ``trainer.fit(..., resume=folder)`` goes on from the newest. After every epoch, and within one
    after every `every_steps` steps, or when `every_seconds` have passed since the last save; where
    neither is given, after epochs only. `every_seconds` also spares the disk where epochs are
    short: then the first state is written at once, later ones so many seconds apart, and in between
    the last epoch's is kept in memory (one copy), and written when the run ends, also by an error.
    These times grow with what a save takes, so that saving costs below 1%. After Ctrl-C or SIGTERM
    (with `Interrupts`) the state where the run stopped is written.

    Where a file cannot be written (disk full, folder gone) that is logged once, training goes on,
    the checkpoints before stay whole, and what was to be written is kept for the next time. Put it
    after the callbacks whose state it is to save.

    Args:
        keep: states that stay, the older ones for the case that the newest is damaged.

    Raises:
        FileError: at the start: `folder` cannot be made, another run has it, or it holds
            checkpoints of one that this run does not go on from.
    """

    writes = True

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        mode: str = "auto",
        every_seconds: float | None = None,
        every_steps: int | None = None,
        keep: int = 2,
    ) -> None:
        if every_seconds is not None and not every_seconds >= 0:
            raise ValueError(f"every_seconds is {every_seconds!r}, expected 0 or more")
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            wrong = not isinstance(value, int) or isinstance(value, bool) or value < 1
            if wrong and not (name == "every_steps" and value is None):
                raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")
        self.folder, self.monitor = Path(folder), monitor
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self.store, self.lock = Store(folder, keep), FolderLock(folder)
        self.best = Best(monitor or "", mode)
        self.due = 0.0  # by time.monotonic
        self.begun = False  # has a state of this run been written, or tried to be?
        self.saved: int | None = None  # step of the last state that was written
        self.pending: tuple[bytes, dict[str, int]] | None = None
        self.told = False
        self.cost = 0.0  # seconds of the last save

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        return next(iter(checkpoints_in(self.folder)), None)

    def on_fit_start(self, trainer: Trainer) -> None:
        make_folder(self.folder)
        self.lock.acquire()
        self._check_owner(trainer)
        self.store.begin(goes_on=trainer.step > 0)
        self.pending, self.told, self.begun, self.saved = None, False, trainer.step > 0, None
        self.due = time.monotonic() + (self.every_seconds or 0.0)

    def _check_owner(self, trainer: Trainer) -> None:
        """FileError where the folder's checkpoints are another run's: they would be replaced."""
        where = self.folder.resolve()
        if where not in trainer.folders and checkpoints_in(where):
            raise FileError(
                f"{self.folder} holds checkpoints of another run: go on from them with "
                f"fit(..., resume={str(self.folder)!r}), choose another folder, or delete it"
            )
        trainer.folders.add(where)

    def on_step_end(self, trainer: Trainer) -> None:
        if self.every_steps is not None and trainer.step % self.every_steps == 0:
            self._take(trainer)
            self._write()
        elif self.every_seconds is not None and time.monotonic() >= self.due:
            self._take(trainer)
            self._write()

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self.monitor is None:
            return
        if self.best.improves(score_of(trainer, self.monitor, "ModelCheckpoint")):
            with trainer.evaluating():
                data = safetensors.to_bytes(trainer.model.state_dict())
            self._try(lambda: checkpoint.write(self.folder / BEST, data))

    def on_epoch_complete(self, trainer: Trainer) -> None:
        self._take(trainer)
        if self.every_seconds is None or not self.begun or time.monotonic() >= self.due:
            self._write()

    def on_fit_end(self, trainer: Trainer) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if isinstance(error, Stopped):
            self._take(trainer)
        self._end()
        if isinstance(error, Stopped) and self.saved == trainer.step:
            error.saved = self.folder

    def _end(self) -> None:
        try:
            self._write()
        finally:
            self.lock.release()

    def _take(self, trainer: Trainer) -> None:
        began = time.monotonic()
        about = {"epoch": trainer.epoch, "batch": trainer.position.batches, "step": trainer.step}
        self.pending = checkpoint.to_bytes(trainer.state_dict()), about
        self.cost = time.monotonic() - began

    def _write(self) -> None:
        if self.pending is None:
            return
        (data, about), began = self.pending, time.monotonic()
        if self._try(lambda: self.store.save(data, **about)):
            self.pending, self.saved = None, about["step"]
        now, self.begun = time.monotonic(), True
        self.cost += now - began
        self.due = now + max(self.every_seconds or 0.0, REST * self.cost)

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
            return True
        except FileError as error:
            if not self.told:
                self.told = True
                log.warning("%s; training goes on, earlier checkpoints are not touched", error)
            return False

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else {"score": self.best.score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.score = state["score"]
