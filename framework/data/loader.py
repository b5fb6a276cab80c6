"""DataLoader: batches as Tensors, shuffled by (seed, epoch), made ahead by threads, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from framework.autograd.tensor import Tensor
from framework.backend.device import Device, choose_device, default_device, to_device
from framework.backend.transfer import send_ahead
from framework.data.dataset import Dataset
from framework.data.draws import augmentation_draws, permutation, uniform
from framework.data.errors import LoaderError
from framework.data.mixing import MixUp
from framework.data.samplers import Sampler
from framework.data.transforms import Compose
from framework.data.workers import in_order

Function = Callable[..., np.ndarray]

#: Seconds to look for the sample of a batch that fails.
SEARCH = 5.0


@dataclass
class Progress:
    """Where an iterator is: `position` batches of epoch `epoch` have been handed out."""

    epoch: int = 0
    position: int = 0
    started: bool = False


class DataLoader:
    """Batches of `dataset`: tuples of Tensors on `device`, one for each array of a sample.

    An iteration is an epoch; the next one has the next epoch's order, also after a ``break``. What
    a batch holds depends on (seed, epoch, position) alone, not on `workers`. A saved `state_dict`,
    also in the middle of an epoch, makes a new loader go on with the next batch.

    Args:
        dataset: the samples.
        batch_size: samples in a batch; the last one of an epoch may be smaller.
        shuffle: a new order each epoch, keyed by (seed, epoch).
        sampler: says which samples an epoch has and in which order, see `Sampler`; without
            `shuffle`.
        drop_last: leave out the last batch if it is smaller than `batch_size`.
        seed: key of the shuffle and of random transforms.
        workers: threads that make batches ahead; 0 makes them in the caller's thread.
        prefetch: batches that each worker may be ahead.
        transform: applied to the first array of every batch, a `Transform` or any function of an
            array.
        target_transform: the same for the second array.
        mix: then applied to the batch's first two arrays together, with draws: see `MixUp`.
        device: where the Tensors go; the default device if None.
        timeout: seconds to wait for a batch of the workers, None for no limit.

    Raises:
        LoaderError: while iterating, if the data set or a transform fails; names batch, samples and
            step, and the sample by itself where it fails alone too (``error.sample``), and has the
            original error as ``__cause__``. Or if a worker is stuck; says where.

    >>> from framework.data import ArrayDataset
    >>> data = ArrayDataset(np.arange(5, dtype=np.float32))
    >>> [x.shape for (x,) in DataLoader(data, batch_size=2)]
    [(2,), (2,), (1,)]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        drop_last: bool = False,
        seed: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        transform: Function | None = None,
        target_transform: Function | None = None,
        mix: MixUp | None = None,
        device: Device | str | None = None,
        timeout: float | None = 600.0,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"dataset is {type(dataset).__name__}, expected a Dataset; "
                "wrap arrays in ArrayDataset(x, y)"
            )
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
            ("prefetch", prefetch, 1),
            ("seed", seed, 0),
        ):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}, expected seconds above 0, or None")
        if len(dataset) == 0:
            raise ValueError("dataset has no samples")
        if sampler is not None and shuffle:
            raise ValueError("shuffle is True, but the sampler decides the order: leave out one")
        laid_out = None if sampler is None else sampler.batch_size
        if laid_out not in (None, batch_size):
            raise ValueError(
                f"batch_size is {batch_size}, but the {type(sampler).__name__} lays out batches of "
                f"{laid_out}"
            )
        self.dataset, self.sampler, self.batch_size = dataset, sampler, int(batch_size)
        if drop_last and batch_size > self._samples():
            raise ValueError(
                f"batch_size {batch_size} with drop_last leaves nothing of {self._samples()} "
                "samples: lower batch_size or keep the last batch"
            )
        self.shuffle, self.drop_last, self.seed = bool(shuffle), bool(drop_last), int(seed)
        self.workers, self.prefetch, self.device = workers, prefetch, device
        self.timeout = timeout
        self.transforms = [
            Compose(step) if step is not None else None for step in (transform, target_transform)
        ]
        self.mix = mix
        self._progress = Progress()
        self._fingerprint: tuple[Dataset, str | None] | None = None  # read when it is asked for

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self._samples(), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __repr__(self) -> str:
        batches = f"{len(self):,} batch{'es' * (len(self) != 1)} of {self.batch_size:,}"
        return f"DataLoader({self.dataset!r}, {batches})"

    def _samples(self) -> int:
        """Samples of an epoch."""
        return len(self.dataset if self.sampler is None else self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.batches_on(self.device)

    def batches_on(self, device: Device | str | None) -> Iterator[tuple[Tensor, ...]]:
        """An epoch, as iterating gives it, with the batches on `device`; None: the default device.

        To CUDA a batch is copied while the one before it is computed with (backend/transfer.py).
        """
        if self._progress.started:
            self._progress = Progress(self._progress.epoch + 1)
        # The iterator owns its Progress: an older one, if still used, does not disturb it.
        progress, progress.started = self._progress, True
        return self._epoch(progress, device)

    def upcoming(self) -> dict[str, Any]:
        """A `state_dict` of where the next iteration begins: after a ``break`` that is the next
        epoch.
        """
        state = self.state_dict()
        if self._progress.started:
            state |= {"epoch": self._progress.epoch + 1, "position": 0}
        return state

    def skip(self, batches: int) -> None:
        """Leave out the first `batches` of the next iteration; none of them is read."""
        state = self.upcoming()
        self.load_state_dict(state | {"position": state["position"] + batches})

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration epoch `epoch`, from its first batch."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected 0 or more")
        self._progress = Progress(epoch)

    @property
    def epoch(self) -> int:
        """The epoch that runs or, when none does, the next one; counted from 0."""
        return self._progress.epoch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches handed out in it, and the settings and data to which they belong."""
        return {
            "epoch": self._progress.epoch,
            "position": self._progress.position,
            **self._settings(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`: the next iteration gives the rest of its epoch.

        That is nothing if the state was saved in the loop, with the last batch in hand.

        Raises:
            ValueError: this loader has other settings or other data, so that the position means
                nothing in it.
        """
        for name, here in self._settings().items():
            if name == "fingerprint":
                if None not in (here, state.get(name)) and state[name] != here:
                    raise ValueError(
                        "the saved state is of other data: samples of this loader's data set "
                        "have changed"
                    )
            elif state.get(name) != here:
                raise ValueError(
                    f"the saved state has {name} {state.get(name)}, this loader {here}"
                )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(
                f"the saved state is at epoch {epoch}, batch {position} of {len(self)}"
            )
        self._progress = Progress(epoch, position)

    def _settings(self) -> dict[str, Any]:
        if self._fingerprint is None or self._fingerprint[0] is not self.dataset:
            self._fingerprint = self.dataset, self.dataset.fingerprint()
        return {
            "samples": len(self.dataset),
            "fingerprint": self._fingerprint[1],
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "seed": self.seed,
            **({} if self.sampler is None else self.sampler.settings()),
        }

    def _epoch(
        self, progress: Progress, where: Device | str | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """The batches of an epoch from ``progress.position`` on."""
        device = default_device() if where is None else choose_device(where)
        samples, epoch = len(self.dataset), progress.epoch
        order = np.arange(samples) if self.sampler is None else self.sampler(epoch)
        if self.shuffle:
            order = permutation(samples, self.seed, "shuffle", epoch)
        # Drawn here, not in the workers: a kernel's thread pool may allow one caller at a time.
        draws = [
            augmentation_draws(samples, step.draws, self.seed, epoch) if step else None
            for step in self.transforms
        ]
        mixing = None
        if self.mix is not None:
            mixing = uniform((samples, self.mix.draws), self.seed, "mixing", epoch)

        def indices_of(number: int) -> np.ndarray:
            return order[number * self.batch_size : (number + 1) * self.batch_size]

        def name(number: int) -> str:
            return f"batch {number} of epoch {epoch} ({_listed(indices_of(number))})"

        def make(number: int) -> tuple[np.ndarray, ...]:
            return self._make(indices_of(number), draws, mixing, partial(name, number))

        numbers = range(progress.position, len(self))
        ahead = self.workers, self.prefetch, self.timeout
        with (
            closing(in_order(make, numbers, *ahead, name)) as made,
            closing(_placed(made, device)) as batches,
        ):
            for batch in batches:
                tensors = tuple(Tensor(to_device(array, device)) for array in batch)
                progress.position += 1  # before the yield: a state saved in the loop counts it
                yield tensors
        progress.epoch, progress.position, progress.started = epoch + 1, 0, False

    def _make(
        self,
        indices: np.ndarray,
        draws: list[np.ndarray | None],
        mixing: np.ndarray | None,
        where: Callable[[], str],
    ) -> tuple[np.ndarray, ...]:
        """Read and transform one batch. Runs in a worker."""
        step = [f"reading {type(self.dataset).__name__}"]
        try:
            arrays = self._arrays(indices, draws, step)
            if self.mix is not None and mixing is not None:
                step.append(type(self.mix).__name__)
                arrays[:2] = self.mix(*arrays[:2], mixing[indices])
            return tuple(arrays)
        except Exception as error:
            notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
            sample = self._culprit(indices, draws, error)
            if sample is not None and not notes and len(indices) > 1:
                notes = f", at sample {sample}"
            explained = LoaderError(
                f"{where()}: {step[-1]} failed: {type(error).__name__}: {error}{notes}"
            )
            explained.sample = sample
            raise explained from error

    def _arrays(
        self, indices: np.ndarray, draws: list[np.ndarray | None], step: list[str]
    ) -> list[np.ndarray]:
        """The samples at `indices`, not yet mixed; what is being done is added to `step`."""
        arrays = list(self.dataset.batch(indices))
        for position, (transform, table) in enumerate(zip(self.transforms, draws, strict=True)):
            if transform is None or table is None:
                continue
            step.append(f"finding array {position} for its transform")
            x = arrays[position]
            for name, function in transform.steps(table[indices]):
                step.append(name)
                x = function(x)
            arrays[position] = x
        return arrays

    def _culprit(
        self, indices: np.ndarray, draws: list[np.ndarray | None], error: Exception
    ) -> int | None:
        """The first sample that fails by itself; None if none does, or after some seconds."""
        end = time.monotonic() + SEARCH
        for i in range(len(indices)) if not isinstance(error, MemoryError) else ():
            try:
                self._arrays(indices[i : i + 1], draws, [])
            except Exception as alone:
                return int(indices[i]) if type(alone) is type(error) else None
            if time.monotonic() > end:
                return None
        return None


def _listed(indices: np.ndarray) -> str:
    """The first of some samples, for a message."""
    return "samples " + ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")


def _placed(
    batches: Generator[tuple[np.ndarray, ...], None, None], device: Device
) -> Generator[tuple[np.ndarray, ...], None, None]:
    """`batches`, to CUDA one batch ahead."""
    return batches if device.kind == "cpu" else send_ahead(batches, device)
