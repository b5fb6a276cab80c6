"""Batches of any loader on the device where they are computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from framework.autograd import Tensor
from framework.backend.device import Device
from framework.backend.transfer import send_ahead
from framework.data.loader import DataLoader
from kernels.arrays import is_cuda


def batches_on(loader: Iterable[Sequence[Tensor]], device: Device) -> Iterator[Sequence[Tensor]]:
    """Go through `loader`; on CUDA its tensors are copied to `device` beside the computation.

    A DataLoader's state stays that of the batches handed out, and nothing is read ahead of an
    iterable that might notice: a generator that looks at the model, say. On the CPU the loader
    itself is gone through.
    """
    if device.kind == "cpu":
        return iter(loader)
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        return loader.batches_on(device)
    ahead = 1 if isinstance(loader, (list, tuple)) else 0
    sent = send_ahead((list(map(_to_send, batch)) for batch in loader), device, ahead)
    return (tuple(x if isinstance(x, Tensor) else Tensor(x) for x in batch) for batch in sent)


def _to_send(x: Any) -> Any:
    """A tensor's array where that is on the host; what has a gradient's path to keep goes its own
    way.
    """
    plain = isinstance(x, Tensor) and not x.requires_grad and not is_cuda(x.data)
    return x.data if plain else x
