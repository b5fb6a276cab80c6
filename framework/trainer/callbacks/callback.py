"""What a callback can do: act at the moments of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


class Callback:
    """Override any of the moments below; each gets the trainer, and does nothing by default.

    ``trainer.history[-1]`` is the last epoch's record, to which a callback may add in
    `on_epoch_end`. Setting ``trainer.should_stop`` ends the run. An error raised in a callback ends
    it too.
    """

    #: Does it write files? Then a fast_dev_run leaves it out.
    writes = False

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first epoch; after a resume, with the history so far."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before an epoch's first batch; ``trainer.epoch`` epochs are done."""

    def on_step_start(self, trainer: Trainer) -> None:
        """Before the forward passes over ``trainer.window``, the batches of the step."""

    def on_gradients(self, trainer: Trainer) -> None:
        """The gradients are there, summed and clipped; the weights are still the old ones."""

    def looks_at_gradients(self) -> bool:
        """Does `on_gradients` do anything? A captured step is cut in two there."""
        return acts(self, "on_gradients")

    def on_step_end(self, trainer: Trainer) -> None:
        """After the weights have moved."""

    def on_settle(self, trainer: Trainer) -> None:
        """Before an epoch's record, before `on_exception`, and before anybody takes the state of
        the run: what is looked at late is looked at now.
        """

    def on_step_skipped(self, trainer: Trainer) -> None:
        """Instead of `on_gradients` and `on_step_end` where float16 gradients overflowed
        (fp16-mixed): nothing has moved.
        """

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After the validation; the record is in the history."""

    def on_epoch_complete(self, trainer: Trainer) -> None:
        """After all callbacks' `on_epoch_end`: records are final, here they and checkpoints are
        written.
        """

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Instead of `on_fit_end` where an error or Ctrl-C ended the run; it is raised again
        afterwards.
        """

    def remark(self, trainer: Trainer) -> str | None:
        """A line on how the run has ended, which Progress shows at its end."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What has to survive in a checkpoint: arrays and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""


def score_of(trainer: Trainer, monitor: str, who: str) -> float:
    """The last record's `monitor`; ValueError that lists what there is."""
    record = trainer.history[-1]
    if monitor not in record:
        raise ValueError(f"{who} monitors {monitor!r}; the records have: {', '.join(record)}")
    return float(record[monitor])


class Best:
    """The best score so far: lowest or highest, as `mode` says ("auto" goes by the name)."""

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor is {monitor!r}, expected a score's name, such as 'val_loss'")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode is {mode!r}, expected 'auto', 'min' or 'max'")
        if not min_delta >= 0:
            raise ValueError(f"min_delta is {min_delta!r}, expected 0 or more")
        lower = mode == "min" or (mode == "auto" and monitor.endswith(("loss", "error")))
        self.sign, self.min_delta = (-1.0 if lower else 1.0), min_delta
        self.score: float | None = None

    def improves(self, score: float) -> bool:
        """Take `score` as the best if it is better by more than `min_delta`; NaN never is."""
        if score != score:
            return False
        if self.score is None or self.sign * (score - self.score) > self.min_delta:
            self.score = score
            return True
        return False


def acts(callback: Callback, hook: str) -> bool:
    """Has it something of its own for this moment?"""
    mine = getattr(callback, hook)
    return getattr(mine, "__func__", mine) is not getattr(Callback, hook)
