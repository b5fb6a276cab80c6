"""Put the learning rates into the records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


class LRMonitor(Callback):
    """Adds ``lr``, the learning rate of the epoch's last step (lr0, ... where groups differ)."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        rates = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        record = trainer.history[-1]
        if len(set(rates)) == 1:
            record["lr"] = rates[0]
        else:
            record |= {f"lr{i}": rate for i, rate in enumerate(rates)}
