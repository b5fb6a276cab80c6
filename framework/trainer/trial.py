"""Steps that are taken back: the block after which a trainer is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from framework.data import DataLoader
from framework.trainer.batch_size import set_batch_size
from framework.trainer.position import Position
from framework.trainer.state import copied_state, put_back

if TYPE_CHECKING:
    from framework.trainer.trainer import Loader, Record, Trainer


@contextmanager
def trial(trainer: Trainer, *loaders: Any) -> Iterator[None]:
    """Within the block the trainer may train; afterwards it, its modes and its callbacks are as
    they were, and each of `loaders` that has a state goes on where it was.
    """
    before, ways_back = copied_state(trainer), [_way_back(loader) for loader in loaders]
    modes = [(module, module.training) for module in trainer.model.modules()]
    callbacks, resumed, batch_size = trainer.callbacks, trainer._resumed, trainer.batch_size
    position, validation, epochs = trainer.position, trainer.validation, trainer.epochs
    try:
        yield
    finally:
        trainer.callbacks = callbacks
        put_back(trainer, before)
        trainer.position, trainer.validation, trainer.epochs = position, validation, epochs
        trainer._resumed, trainer.batch_size = resumed, batch_size
        trainer.optimizer.zero_grad()
        for module, training in modes:
            module.training = training
        for go_back in ways_back:
            go_back()


def dry_run(
    trainer: Trainer, train_loader: Loader, loaders: Mapping[str, Loader | None], batches: int
) -> list[Record]:
    """`batches` of each loader through all of an epoch, without the callbacks that write files;
    nothing of it stays. Returns the history that it would have made.
    """
    with trial(trainer, train_loader, *loaders.values()):
        trainer.callbacks = [c for c in trainer.callbacks if not c.writes]
        if trainer.batch_size is not None:
            set_batch_size(trainer, train_loader)
        trainer.batch_size = None  # which a list of batches has not
        trainer.position, trainer.should_stop = Position(), False  # a resumed run's wait for it
        trainer.validation = {}
        few = _first(train_loader, batches)
        others = {name: _first(x, batches) for name, x in loaders.items() if x is not None}
        return list(trainer.fit(few, others, trainer.epoch + 1)[-1:])


def _first(loader: Loader, batches: int) -> list[Any]:
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == batches:
            break
    return found


def _way_back(loader: Any) -> Callable[[], None]:
    """What puts a loader back to where it is now; nothing for one without a state."""
    if isinstance(loader, DataLoader):
        batch_size, place = loader.batch_size, loader.upcoming()

        def go_back() -> None:
            loader.batch_size = batch_size
            loader.load_state_dict(place)

        return go_back
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return partial(loader.load_state_dict, loader.state_dict())
    return lambda: None
