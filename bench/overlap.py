"""How much of the copying of batches to a GPU the computation hides.

Ways through the same batches, in turns: the computation alone, on a batch that is there already;
the transfers alone, which are a copy by the host into pinned memory and one by the device out of
it; both one after the other, as without the pipeline; both through it. What a way takes beyond the
computation alone is transfer that shows. The device's part of a transfer is timed too, for its
bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.measure import Spread
from framework.backend.device import Device, choose_device, to_device
from framework.backend.transfer import send_ahead

#: Rows and columns of a batch: 64 MiB of float32, some milliseconds of copying.
SHAPE = (4096, 4096)


def measure_overlap(
    device: Device | str = "cuda",
    shape: tuple[int, int] = SHAPE,
    batches: int = 12,
    turns: int = 7,
    load: float = 1.5,
) -> dict[str, Any]:
    """Shares of the transfers' time that are hidden, and what they come from; seconds are a
    batch's.

    The computation is as many matrix products as take `load` times as long as a transfer. Both
    paths are compared bit for bit before anything is timed.

    Returns:
        "hidden" (pipeline) and "hidden_plain" (without it), from 0 to 1; "copy" (the device's),
        "transfer", "compute", "pipeline" and "plain", each a spread of seconds; "bytes" of a batch,
        "bandwidth" of the device's copies in bytes a second, "products" in a batch.

    Raises:
        RuntimeError: the two paths do not agree.
    """
    place = choose_device(device)
    if place.kind != "cuda":
        raise ValueError(f"device is {place}: there is nothing to copy to, expected 'cuda'")
    with place.context():
        return _measure(place, shape, batches, turns, load)


def _measure(
    place: Device, shape: tuple[int, int], batches: int, turns: int, load: float
) -> dict[str, Any]:
    xp = place.module
    rng = np.random.default_rng(0)
    hosts = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    weight = xp.asarray(rng.standard_normal((shape[1], shape[1]), np.float32) / shape[1])

    def source() -> Iterator[tuple[np.ndarray]]:
        return ((hosts[i % len(hosts)],) for i in range(batches))

    def plain() -> Iterator[Any]:
        return (to_device(x, place) for (x,) in source())

    def pipeline() -> Iterator[Any]:
        return (x for (x,) in send_ahead(source(), place))

    def compute(x: Any, products: int) -> Any:
        for _ in range(products):
            x = xp.matmul(x, weight)
        return x

    def consume(arrays: Iterator[Any], products: int) -> None:
        for x in arrays:
            compute(x, products)

    pairs = zip(plain(), pipeline(), strict=True)
    if any(compute(a, 1).get().tobytes() != compute(b, 1).get().tobytes() for a, b in pairs):
        raise RuntimeError("batches through the pipeline differ from those without it")

    resident = xp.asarray(hosts[0])
    product = _seconds(place, lambda: compute(resident, 4)) / 4
    transfer = _seconds(place, lambda: consume(plain(), 0)) / batches
    products = max(1, round(load * transfer / product))
    ways: dict[str, Callable[[], Any]] = {
        "copy": _copies(place, hosts, batches),
        "transfer": lambda: consume(plain(), 0),
        "compute": lambda: consume(iter([resident] * batches), products),
        "plain": lambda: consume(plain(), products),
        "pipeline": lambda: consume(pipeline(), products),
    }
    laps: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            seconds = _seconds(place, way) / batches
            if turn:  # the first one fills pools and plans
                laps[name].append(seconds)
    spreads = {name: Spread.of(values) for name, values in laps.items()}
    medians = {name: spread.median for name, spread in spreads.items()}

    def hidden(way: str) -> float:
        shown = medians[way] - medians["compute"]
        return min(1.0, max(0.0, 1.0 - shown / medians["transfer"]))

    return {
        "hidden": hidden("pipeline"),
        "hidden_plain": hidden("plain"),
        **{name: spread.as_dict() for name, spread in spreads.items()},
        "bytes": hosts[0].nbytes,
        "bandwidth": hosts[0].nbytes / medians["copy"],
        "products": products,
    }


def _copies(place: Device, hosts: list[np.ndarray], batches: int) -> Callable[[], None]:
    """The copies alone: from pinned memory, on a stream of their own, one after the other."""
    import cupyx

    xp = place.module
    pinned = cupyx.empty_pinned(hosts[0].shape, hosts[0].dtype)
    pinned[...] = hosts[0]
    there = xp.empty(pinned.shape, pinned.dtype)
    stream = xp.cuda.Stream(non_blocking=True)

    def copies() -> None:
        for _ in range(batches):
            there.set(pinned, stream=stream)
        stream.synchronize()

    return copies


def _seconds(place: Device, work: Callable[[], Any]) -> float:
    """Of `work` until the device is done with it."""
    current = place.module.cuda.get_current_stream()
    current.synchronize()
    start = time.perf_counter()
    work()
    current.synchronize()
    return time.perf_counter() - start
