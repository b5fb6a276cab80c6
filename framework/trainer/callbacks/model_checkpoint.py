"""Save the run as it goes: the last state to resume from, the best weights to use."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.interop import safetensors
from framework.trainer import checkpoint
from framework.trainer.callbacks.callback import Best, Callback, score_of
from framework.trainer.folders import make_folder

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

LAST = "last.safetensors"
BEST = "best.safetensors"


class ModelCheckpoint(Callback):
    """After an epoch, `folder`/last.safetensors is the state of the run, and best.safetensors the
    weights of the best epoch so far by `monitor` (None: no best).

    Each is written whole or not at all. `every_seconds` saves the disk where epochs are short: the
    first state is written at once; in between, the state is kept in memory (one copy), and written
    when the run ends, also by an error or by Ctrl-C.

    Raises:
        FileError: `folder` cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        mode: str = "auto",
        every_seconds: float = 0.0,
    ) -> None:
        if not every_seconds >= 0:
            raise ValueError(f"every_seconds is {every_seconds!r}, expected 0 or more")
        self.folder, self.monitor, self.every_seconds = Path(folder), monitor, every_seconds
        self.best = Best(monitor or "", mode)
        self.written = -math.inf  # the first state is written at once
        self.pending: bytes | None = None
        self.epoch = 0  # epochs done in the last state taken

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / LAST

    def on_fit_start(self, trainer: Trainer) -> None:
        make_folder(self.folder)
        self.written = -math.inf

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self.monitor is None:
            return
        if self.best.improves(score_of(trainer, self.monitor, "ModelCheckpoint")):
            with trainer.evaluating():
                safetensors.save(trainer.model.state_dict(), self.folder / BEST)

    def on_epoch_complete(self, trainer: Trainer) -> None:
        self.pending, self.epoch = checkpoint.to_bytes(trainer.state_dict()), trainer.epoch
        if time.monotonic() - self.written >= self.every_seconds:
            self._write()

    def on_fit_end(self, trainer: Trainer) -> None:
        self._write()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._write()

    def _write(self) -> None:
        if self.pending is not None:
            checkpoint.write(self.last, self.pending)
            self.written, self.pending = time.monotonic(), None

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.best.score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.score = state["score"]
