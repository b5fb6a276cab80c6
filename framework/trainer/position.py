"""Where a run is in its training data: the batches of the running epoch that its steps have used.

Counted by the trainer, not read off the loader: a loader is ahead where it prefetches, and has
ended its epoch before a smaller last window is trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from framework.autograd import Tensor
from framework.backend.device import Device
from framework.data import DataLoader
from framework.data.prefetch import batches_on
from framework.interop.atomic import FileError

log = logging.getLogger("framework")


class Position:
    """`batches` of the running epoch are done; 0 between epochs."""

    def __init__(self) -> None:
        self.batches = 0
        self.loader: Any = ()
        self._start: Any = None  # the loader's state at the start of the running epoch
        self._waits = False  # `_start` is a restored one, for the loader that comes

    def attach(self, loader: Iterable[Any]) -> None:
        """Train on `loader` from here on. A restored position becomes its own; ValueError where it
        is a loader of other data or other batches. Without one an epoch begins.
        """
        self.loader, restored, self._waits = loader, self._waits, False
        if not restored:
            self.batches = 0
        elif self._start is not None and hasattr(loader, "load_state_dict"):
            try:
                loader.load_state_dict(self._start)
            except ValueError as error:
                raise FileError(f"the run cannot go on with this data: {error}") from error

    @property
    def saved_batch_size(self) -> int | None:
        """Of the loader of a restored run, before `attach`."""
        saved = self._start if self._waits and isinstance(self._start, dict) else {}
        return saved.get("batch_size")

    def rest(self, device: Device) -> Iterator[Sequence[Tensor]]:
        """The batches of the epoch that are not done yet."""
        self._start = self._upcoming()
        if self.batches and isinstance(self.loader, DataLoader):
            self.loader.skip(self.batches)
            return batches_on(self.loader, device)
        return islice(batches_on(self.loader, device), self.batches, None)

    def _upcoming(self) -> Any:
        """Where the loader's next epoch starts; None for a loader without a state."""
        if isinstance(self.loader, DataLoader):
            return self.loader.upcoming()
        return self.loader.state_dict() if hasattr(self.loader, "state_dict") else None

    def state_dict(self) -> dict[str, Any]:
        """Two entries: the loader's state at the start of the epoch, and the batches since."""
        began = self._waits or self.batches > 0
        return {"loader": self._start if began else self._upcoming(), "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the loader's part waits for `attach`."""
        batches = state["batches"]
        if not isinstance(batches, int) or batches < 0:
            raise ValueError(f"batches is {batches!r}, expected an integer of at least 0")
        self.batches, self._start, self._waits = batches, state["loader"], True


def attached(before: Mapping[str, Position], loaders: Mapping[str, Any]) -> dict[str, Position]:
    """A position for each of the loaders to evaluate, by name. The order of one that shuffles goes
    on where that of a restored run was.
    """
    positions = {}
    for name, loader in loaders.items():
        if loader is None:
            continue
        positions[name] = where = before.get(name) or Position()
        try:
            where.attach(loader)
        except ValueError as error:  # no reason to end: the training does not depend on it
            log.warning("the loader %r is another than the saved run's: %s", name, error)
    return positions
