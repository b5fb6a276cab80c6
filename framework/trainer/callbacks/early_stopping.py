"""Stop when a score no longer improves, and go back to the weights that had the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framework.trainer.callbacks.callback import Best, Callback, score_of
from framework.trainer.callbacks.interrupts import Stopped

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


class EarlyStopping(Callback):
    """Ends the run after `patience` epochs without improvement; the best weights are restored.

    They are restored always, also where the epochs ran out before the patience did, and where an
    error or Ctrl-C ended the run; Progress says at the end which they were. With an EMA the best
    weights are the averaged ones, and the model has them at the end.

    Args:
        monitor: a key of the records, "val_loss", "val_accuracy", ...
        patience: epochs without improvement after which the run ends.
        min_delta: an improvement is larger than this.
        mode: "min", "max", or "auto": lower is better for names that end in loss or error.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
    ) -> None:
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise ValueError(f"patience is {patience!r}, expected an integer of at least 1")
        self.monitor, self.patience = monitor, patience
        self.best = Best(monitor, mode, min_delta)
        self.best_epoch = 0
        self.waited = 0
        self.weights: dict[str, Any] | None = None

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self.best.improves(score_of(trainer, self.monitor, "EarlyStopping")):
            self.waited, self.best_epoch = 0, trainer.epoch
            with trainer.evaluating():
                state = trainer.model.state_dict()
                self.weights = {name: x.data.copy() for name, x in state.items()}
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer) -> None:
        self._restore(trainer)

    def remark(self, trainer: Trainer) -> str | None:
        """Which weights the model has, where they are not those of the last epoch."""
        if self.weights is None or self.best_epoch == trainer.epoch:
            return None
        best = f"{self.monitor} was best in epoch {self.best_epoch}, whose weights are restored"
        stopped = self.waited >= self.patience
        return f"stopped after epoch {trainer.epoch}: {best}" if stopped else best

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if not isinstance(error, Stopped):  # such a run is to go on from where it is
            self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if self.weights is None:
            return
        trainer.model.load_state_dict(self.weights)
        if trainer.ema is not None:  # what evaluation and prediction use
            updates = trainer.ema.updates
            trainer.ema.load_state_dict({"updates": updates, "average": self.weights})

    def state_dict(self) -> dict[str, Any]:
        return {
            "score": self.best.score,
            "best_epoch": self.best_epoch,
            "waited": self.waited,
            "weights": self.weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.score = state["score"]
        self.best_epoch, self.waited = state["best_epoch"], state["waited"]
        self.weights = state["weights"]
