"""How many samples fit into memory: steps with a few are measured, and those with more foreseen, as
memory grows by the same amount with each sample.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.autograd import Tensor
from framework.backend.device import Device
from framework.backend.memory import (
    give_back_freed_memory,
    memory_reserved,
    memory_used,
    peak_memory,
    reset_peak_memory,
)
from framework.backend.out_of_memory import OutOfMemoryError, release
from framework.backend.random import default_generator
from framework.data import DataLoader
from framework.layers.carry import carries
from framework.trainer.arguments import check_loader
from kernels.arrays import array_module

if TYPE_CHECKING:
    from framework.trainer.trainer import Batch, Loader, Trainer

log = logging.getLogger("framework")

#: The share of what is free that a batch may take.
SHARE = 0.8
#: Bytes that a size has to take more than its half to show what a sample takes: a process has some
#: that its allocator has kept, and grows by pages and arenas.
GROWTH = 24 << 20
MOST = 1 << 16
#: Files of a control group's memory, as a container sees its own: of version 2, and of version 1.
GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file ",
    ),
)
LEAST = 2  # one sample has no variance for batch norm


def find_batch_size(
    trainer: Trainer, loader: Loader, limit: int | None = None, most: int = MOST
) -> int:
    """The largest batch whose step fits into `limit` bytes more than are in use (None: 80% of what
    is free), at most `most`; above 8 a multiple of 8.

    Steps forward and backward with 2, 4, 8, ... samples of the loader's first batch are measured
    until their growth shows what a sample takes; weights, buffers, carried state, optimizer,
    generator and the order of a DataLoader stay as they are. On the CPU that is Linux only.

    Raises:
        OutOfMemoryError: not even two samples fit.
        ValueError: the loader has no batches.
    """
    check_loader("loader", loader)
    if isinstance(loader, DataLoader):
        place = loader.upcoming()
        first: Batch | None = next(iter(loader), None)
        loader.load_state_dict(place)
    else:
        first = next(iter(loader), None)
    if first is None:
        raise ValueError("the loader has no batches")
    batch = trainer._here(first)
    room = int(SHARE * _free(trainer.device)) if limit is None else limit
    found = _largest(trainer, batch, room, most)
    if found is None:
        raise OutOfMemoryError(
            trainer.device, None, f"a batch of {LEAST} samples in {room:,} bytes"
        )
    return found


def set_batch_size(trainer: Trainer, loader: Any) -> None:
    """Give a DataLoader the trainer's `batch_size`; with "auto" a resumed run's, else the largest
    that fits, which then is the trainer's.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"batch_size={trainer.batch_size!r} needs a DataLoader, got a {type(loader).__name__}"
        )
    sampler = loader.sampler
    laid_out = None if sampler is None else sampler.batch_size
    if laid_out not in (None, trainer.batch_size):
        raise ValueError(
            f"batch_size is {trainer.batch_size!r}, but the loader's {type(sampler).__name__} lays "
            f"out batches of {laid_out}: leave batch_size out, or make a sampler for another"
        )
    if trainer.batch_size == "auto":
        saved = trainer.position.saved_batch_size
        most = min(MOST, len(loader.dataset))
        trainer.batch_size = saved or find_batch_size(trainer, loader, most=most)
        log.info("batch size %d", trainer.batch_size)
    loader.batch_size = int(trainer.batch_size or loader.batch_size)


def fitting(trainer: Trainer, batch: Batch) -> int | None:
    """After a step with `batch` ran out of memory: how many of its samples would fit? None where
    that cannot be said.
    """
    with suppress(MemoryError, NotImplementedError):
        room = int(SHARE * _free(trainer.device))
        return _largest(trainer, batch, room, len(batch[-1]) - 1)
    return None


def _largest(trainer: Trainer, batch: Batch, room: int, most: int) -> int | None:
    """By measured steps with 2, 4, 8, ... samples; None where not even those fit."""
    give_back_freed_memory()  # a step that finds its memory kept ready does not show what it takes
    base, fits, before, size = memory_used(trainer.device), 0, 0, min(LEAST, most)
    while size <= most:
        try:
            taken = _peak_of_step(trainer, _resized(batch, size)) - base
        except OutOfMemoryError as error:
            release(error)
            break
        if taken > room:
            break
        fits, grown, before = size, taken - before, taken
        # the first step also makes gradients, and loads what it needs: that is no sample's
        if (size > LEAST and grown > GROWTH) or size * 2 > most:
            if size > LEAST and grown > 0:
                fits = min(most, size + int((room - taken) / (grown / (size / 2))))
            else:
                fits = most
            break
        size *= 2
    if not fits:
        return None
    return fits if fits < 8 else fits - fits % 8


def _peak_of_step(trainer: Trainer, batch: Batch) -> int:
    """The most memory in use during forward and backward; nothing of them stays."""
    buffers = [(b, b.data.copy()) for b in trainer.model.buffers()]
    carried = [(carry, [x.copy() for x in carry.kept()]) for carry in carries(trainer.model)]
    generator = default_generator.state()
    modes = [(module, module.training) for module in trainer.model.modules()]
    trainer.model.train()
    try:
        reset_peak_memory(trainer.device)
        trainer.compute_gradients([batch], lambda *_: None)
        return peak_memory(trainer.device)
    except MemoryError as error:
        if isinstance(error, OutOfMemoryError):
            raise
        raise OutOfMemoryError.of(error) from error
    finally:
        trainer.optimizer.zero_grad()
        default_generator.load_state(generator)
        for buffer, then in buffers:
            buffer.data[...] = then
        for carry, kept in carried:
            carry.restore(kept)
        for module, training in modes:
            module.training = training


def _resized(batch: Batch, size: int) -> list[Tensor]:
    """`size` samples of a batch, repeated where it has fewer."""
    resized = []
    for x in batch:
        xp = array_module(x.data)
        resized.append(Tensor(x.data[xp.arange(size) % len(x.data)]))
    return resized


def _free(device: Device) -> int:
    if device.kind == "cuda":
        return _pool_room(device)
    free = _entry("/proc/meminfo", "MemAvailable:")
    if free is None:
        raise NotImplementedError("this system does not say how much memory is free: give a limit")
    return max(0, min([free, *_limits()]))


def _limits() -> list[int]:
    """What ``ulimit -v`` and the control group of a container leave of the machine's memory."""
    import resource  # not on Windows

    found = []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - (_entry("/proc/self/status", "VmSize:") or 0))
    for folder, most, now, cache in GROUPS:
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            most_bytes, used = (int(Path(folder, name).read_bytes()) for name in (most, now))
            reclaimed = (_entry(f"{folder}/memory.stat", cache) or 0) // 1024
            found.append(most_bytes - used + reclaimed)
    return found


def _entry(path: str, name: str) -> int | None:
    """A line of `path` that begins with `name`, its KiB as bytes."""
    with suppress(OSError), open(path) as lines:
        for line in lines:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def _pool_room(device: Device) -> int:
    """What a CUDA device could still give to CuPy's pools, and what they have free."""
    if device.kind != "cuda":
        return 0
    with device.context():
        free, _ = device.module.cuda.runtime.memGetInfo()
    return int(free) + memory_reserved(device) - memory_used(device)
