"""From planes to channels-last: NumPy's copy takes one thread, and an element at a time."""

from __future__ import annotations

import numpy as np

from kernels.channels import channel_axis_last
from kernels.cpu.engine import loop, workers
from kernels.cpu.lanes import LANES, turn
from kernels.cpu.tiles import share

#: Places of a task.
PLACES = 4096


@loop("workers")
def _turn_planes(workers, n_workers, x, N, C, L, y):
    """y (N, L, C) = x (N, C, L), flat."""
    parts = (L + PLACES - 1) // PLACES
    for worker in workers:
        first, last = share(N * parts, worker, n_workers)
        for task in range(first, last):
            image, start = task // parts, task % parts * PLACES
            stop = min(L, start + PLACES)
            for place in range(start, stop, LANES):
                for c in range(0, C, LANES):
                    at, to = (image * C + c) * L + place, (image * L + place) * C + c
                    n_c, n = min(LANES, C - c), min(LANES, stop - place)
                    if n == LANES and n_c == LANES:
                        turn(x, at, L, LANES, y, to, C, LANES)
                    elif C < LANES and (place + LANES - 1) * C + LANES <= stop * C:
                        # what a line writes beyond its C channels the next one overwrites
                        turn(x, at, L, C, y, to, C, LANES)
                    else:
                        for k in range(n):
                            for i in range(n_c):
                                y[to + k * C + i] = x[at + i * L + k]


def channels_last(x: np.ndarray) -> np.ndarray:
    """float32 (N, C, *size) as C-contiguous (N, *size, C): x itself where it lies so."""
    last = channel_axis_last(x)
    if last.flags.c_contiguous or not x.flags.c_contiguous or x.size == 0:
        return np.ascontiguousarray(last)
    y, team = np.empty(last.shape, np.float32), workers()
    N, C = x.shape[:2]
    L = x.size // (N * C)
    _turn_planes(team, len(team), x.reshape(-1), N, C, L, y.reshape(-1), work=x.size)
    return y
