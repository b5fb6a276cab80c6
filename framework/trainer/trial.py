"""Steps that are taken back: the block after which a trainer is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from framework.data import DataLoader
from framework.trainer.position import Position
from framework.trainer.state import copied_state, put_back

if TYPE_CHECKING:
    from framework.trainer.trainer import Loader, Record, Trainer


@contextmanager
def trial(trainer: Trainer, *loaders: Any) -> Iterator[None]:
    """Within the block the trainer may train; afterwards it, its modes and its callbacks are as
    they were, and each DataLoader of `loaders` goes on where it was.
    """
    before, places = copied_state(trainer), [_place(loader) for loader in loaders]
    modes = [(module, module.training) for module in trainer.model.modules()]
    callbacks, resumed, position = trainer.callbacks, trainer._resumed, trainer.position
    try:
        yield
    finally:
        trainer.callbacks = callbacks
        put_back(trainer, before)
        trainer.position, trainer._resumed = position, resumed
        trainer.optimizer.zero_grad()
        for module, training in modes:
            module.training = training
        for loader, place in zip(loaders, places, strict=True):
            if place is not None:
                loader.load_state_dict(place)


def dry_run(
    trainer: Trainer, train_loader: Loader, loaders: Mapping[str, Loader | None], batches: int
) -> list[Record]:
    """`batches` of each loader through all of an epoch, without the callbacks that write files;
    nothing of it stays. Returns the history that it would have made.
    """
    few = [_first(train_loader, batches)]
    others = {name: _first(x, batches) for name, x in loaders.items() if x is not None}
    with trial(trainer, train_loader, *loaders.values()):
        trainer.callbacks = [c for c in trainer.callbacks if not c.writes]
        trainer.position, trainer.should_stop = Position(), False  # a resumed run's wait for it
        return list(trainer.fit(few[0], others, trainer.epoch + 1)[-1:])


def _first(loader: Loader, batches: int) -> list[Any]:
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == batches:
            break
    return found


def _place(loader: Any) -> Any:
    return loader.upcoming() if isinstance(loader, DataLoader) else None
