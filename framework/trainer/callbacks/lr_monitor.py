"""Put the learning rates into the records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


class LRMonitor(Callback):
    """Adds ``lr``, the learning rate of the epoch's last step (lr0, lr1, ... where groups differ)."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        rates = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        record = trainer.history[-1]
        names = ["lr"] if len(set(rates)) == 1 else [f"lr{i}" for i in range(len(rates))]
        record |= dict(zip(names, rates, strict=False))
