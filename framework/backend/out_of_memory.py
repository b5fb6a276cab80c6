"""The error for memory that ran out: who asked for how much, what holds the rest, what to lower.

CuPy and NumPy say how much was asked for. The layer, or the backward pass, that the error leaves
adds where; a Trainer adds what its optimizer holds and what to lower. All of it is put together
when somebody reads the message: nothing is kept for it while memory lasts.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from framework.backend.device import CPU, Device
from framework.backend.memory import memory_used, private_bytes


class OutOfMemoryError(MemoryError):
    """Memory of `device` ran out. The original error is its ``__cause__``.

    Attributes:
        device: where.
        requested: bytes that were asked for, None if unknown.
        where: which layer or operation asked.
        pool: on CUDA, bytes that the pools have "reserved", that of these are "used" by arrays and
            captured graphs, and by "graphs" alone, and "free" and "total" of the device (and the
            default pool's "limit", 0 without one).
        used: bytes in use when it happened, `memory_used`.
        held: of these by "weights", "gradients", "optimizer state", and, after a Trainer's step, by
            "activations", as far as known.
        leaves: the parameters, if any, that the failed gradient is for (`relation` is "of"), or the
            nearest ones among what its inputs were computed from ("after").
        advice: what to lower.
    """

    def __init__(self, device: Device, requested: int | None, details: str = "") -> None:
        super().__init__(details)
        self.device, self.requested, self.details = device, requested, details
        self.where = "an operation outside the model's layers"
        self.pool = _pool_of(device)
        self.used = self.pool["used"] if self.pool else memory_used(device)
        self.held: dict[str, int] = {}
        self.leaves: list[Any] = []
        self.relation = "of"
        self.advice = ["the batch size"]

    @classmethod
    def of(cls, error: MemoryError) -> OutOfMemoryError:
        """What there is to say about CuPy's or NumPy's error, right where it arose."""
        cupy = sys.modules.get("cupy")
        if cupy is not None and isinstance(error, cupy.cuda.memory.OutOfMemoryError):
            device = Device(f"cuda:{cupy.cuda.runtime.getDevice()}")
            return cls(device, getattr(error, "_size", None))
        shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
        if shape is None or dtype is None:
            return cls(CPU, None, str(error))
        size = dtype.itemsize
        for n in shape:
            size *= n
        return cls(CPU, int(size), f"an array {tuple(shape)} of {dtype.name}")

    def __str__(self) -> str:
        asked = "more than there is" if self.requested is None else size(self.requested)
        details = f" ({self.details})" if self.details else ""
        lines = [f"out of memory on {self.device}: {self.where} asked for {asked}{details}"]
        if self.pool:
            lines.append(_describe(self.pool, self.device))
        else:
            lines.append(f"the process holds {size(self.used)}")
        if self.held:
            rest = max(0, self.used - sum(self.held.values()))
            known = ", ".join(f"{name} {size(n)}" for name, n in self.held.items())
            others = "batches, the program itself, ..."
            if "activations" not in self.held:
                others = "activations, batches, ..."
            lines.append(f"held by {known}, the rest ({others}) {size(rest)}")
        lines.append(f"lower {' or '.join(self.advice)}")
        return "\n".join(lines)


def _pool_of(device: Device) -> dict[str, int]:
    if device.kind == "cpu":
        return {}
    with device.context():
        pool = device.module.get_default_memory_pool()
        free, total = device.module.cuda.runtime.memGetInfo()
        graphs = private_bytes()
        figures = {
            "reserved": pool.total_bytes() + graphs,
            "used": pool.used_bytes() + graphs,
            "graphs": graphs,
            "free": free,
            "total": total,
            "limit": pool.get_limit(),
        }
    return {name: int(figure) for name, figure in figures.items()}


def _describe(pool: dict[str, int], device: Device) -> str:
    unused = pool["reserved"] - pool["used"]
    limit = f", limited to {size(pool['limit'])}" if pool["limit"] else ""
    pools, graphs = "pool holds", ""
    if pool["graphs"]:
        pools, graphs = "pools hold", f"{size(pool['graphs'])} in captured graphs, "
    return (
        f"CuPy's {pools} {size(pool['reserved'])} of the {size(pool['total'])} of {device}"
        f"{limit}: {size(pool['used'] - pool['graphs'])} in arrays, {graphs}"
        f"{size(unused)} in blocks that do not fit; "
        f"{size(pool['free'])} of the device are free"
    )


def size(count: int) -> str:
    """Bytes in the unit that makes a short number.

    >>> size(1000), size(5 << 20), size(1288490189)
    ('1000 bytes', '5.0 MiB', '1.2 GiB')
    """
    if count < 1 << 10:
        return f"{count} bytes"
    for unit, bits in (("KiB", 10), ("MiB", 20), ("GiB", 30)):
        if count < 1 << (bits + 10):
            return f"{count / (1 << bits):.1f} {unit}"
    return f"{count / (1 << 40):.1f} TiB"


def release(error: BaseException | None) -> None:
    """Let go of what the frames that `error` and its causes left behind hold: the activations.

    An error keeps the local variables of every function it left, for as long as somebody looks at
    it: a smaller batch, tried where the error is caught, would find the memory taken. A frame also
    keeps its function, and a backward closure its arrays: from the first closure on, the traceback
    becomes text, a note at the error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            if place.tb_next.tb_frame.f_code.co_freevars:
                below = "".join(traceback.format_tb(place.tb_next)).rstrip()
                error.add_note(f"raised below, in\n{below}")
                place.tb_next = None
            place = place.tb_next
        error = error.__cause__ or error.__context__
