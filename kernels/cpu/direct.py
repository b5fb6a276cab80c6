"""Convolutions that read images where they lie: no gathered rows, no planes.

A tile is the sums of ROWS places and of two registers of output channels, over all taps and input
channels. An element of x is found at the place's start plus the tap's step, both from tables; so
strides, dilations and the number of axes are in the tables. Images with borders are copied, with
the borders around them, to scratch memory in a core's L2. The gradient of the weights is the same
tile with taps for rows, and sums over places.

Images are flat, channels-last, with three spatial axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.cpu.engine import define, jit, loop
from kernels.cpu.lanes import LANES, each, load, load_each, prefetch, select, store, turn
from kernels.cpu.tiles import P, clear, copy, padded, share

#: Rows of a tile: LeNet's 100 places and 150 taps are whole tiles.
ROWS = 10 if P == 2 * LANES else 6

#: Tiles that read the same places, once for each panel of weights, before the next places' turn.
BLOCK = 8

#: Places that a gradient's tile sums over before its sums go back to memory.
PLACES = 128

#: Partial sums of a gradient: the images are cut in as many parts on any number of threads.
SLOTS = 8

ZERO = np.float32(0)
_NAMES = {
    "each": each, "load": load, "load_each": load_each, "prefetch": prefetch, "select": select,
    "store": store,
}  # fmt: skip


def _tile(vectors: int, gradient: bool) -> Any:
    """Sums of ``x[x0 + at[i0 + r] + steps[k0 + k]] * b[b0 + k * ldb + column]`` over K numbers k.

    A forward tile begins with c = bias and puts what is at least `floor` to ``y[y0 + to[i0 + r] +
    column]``, `n` columns; a gradient's tile adds to ``y[y0 + r * ldb + column]``.
    """
    name = f"{'gradient' if gradient else 'direct'}_tile_{vectors}"
    pairs = [(r, v) for r in range(ROWS) for v in range(vectors)]
    more = "ldy" if gradient else "bias, j, floor, to, n"
    lines = [f"def {name}(x, x0, at, i0, steps, k0, K, b, b0, ldb, y, y0, {more}):"]
    lines += [f"    at{r} = x0 + at[i0 + {r}]" for r in range(ROWS)]
    if gradient:
        to = {(r, v): f"y, y0 + {r} * ldy + {16 * v}, 16" for r, v in pairs}
        lines += [f"    s{r}_{v} = load({to[r, v]})" for r, v in pairs]
    else:
        to = {(r, v): f"y, y0 + to[i0 + {r}] + {16 * v}, n - {16 * v}" for r, v in pairs}
        lines += [f"    s{r}_{v} = load(bias, j + {16 * v}, 16)" for r, v in pairs]
    ahead = vectors > 1 and not gradient  # fetch what the next tile reads and writes
    if ahead:
        lines += [f"    prefetch(y, y0 + to[i0 + {ROWS + r}] + {16 * v})" for r, v in pairs]
    lines += ["    for k in range(K):", "        step = steps[k0 + k]"]
    lines += [f"        w{v} = load(b, b0 + k * ldb + {16 * v}, 16)" for v in range(vectors)]
    if ahead:
        lines += ["        if k % 16 == 0:"]
        lines += [f"            prefetch(x, x0 + at[i0 + {ROWS + r}] + step)" for r in range(ROWS)]
    for r in range(ROWS):
        lines += [f"        a = load_each(x, at{r} + step)"]
        lines += [f"        s{r}_{v} += a * w{v}" for v in range(vectors)]
    for r, v in pairs:
        s = f"s{r}_{v}"
        value = s if gradient else f"select({s} < floor, each(floor), {s})"
        lines += [f"    store({to[r, v]}, {value})"]
    return jit(define(name, "\n".join(lines) + "\n", **_NAMES))


_narrow, _wide = _tile(1, False), _tile(P // LANES, False)
_narrow_gradient, _wide_gradient = _tile(1, True), _tile(P // LANES, True)


@jit
def _fill(x, image, sizes, C, before, inside, y, y0):
    """An image into one with borders, of sizes `inside`, which are 0 already."""
    D, H, line = sizes[0], sizes[1], sizes[2] * C
    for d in range(D):
        for h in range(H):
            to = ((d + before[0]) * inside[1] + h + before[1]) * inside[2] + before[2]
            copy(x, ((image * D + d) * H + h) * line, y, y0 + to * C, line)


@loop("workers")
def products(
    workers, n_workers, x, N, sizes, C, before, inside, at, to, steps, bands, u, OC, bias, floor,
    y, y_image, scratch, room,
):  # fmt: skip
    """y = bias + products of what places read with u (panels, K, P), at least `floor`.

    A task is one of `bands` of the tiles of an image. No `room`: images have no borders.
    """
    K, tiles = steps.shape[0], at.shape[0] // ROWS - 1
    size = sizes[0] * sizes[1] * sizes[2] * C
    for worker in workers:
        first, last = share(N * bands, worker, n_workers)
        clear(scratch, worker * room, room)
        filled = -1
        for task in range(first, last):
            image, band = task // bands, task % bands
            source, x0 = x, image * size
            if room > 0:
                source, x0 = scratch, worker * room
                if filled != image:
                    _fill(x, image, sizes, C, before, inside, scratch, x0)
                    filled = image
            begin, end = share(tiles, band, bands)
            for block in range(begin, end, BLOCK):
                for j in range(0, OC, P):
                    for tile in range(block, min(end, block + BLOCK)):
                        if OC - j > LANES or P == LANES:
                            _wide(
                                source, x0, at, tile * ROWS, steps, 0, K, u, j * K, P,
                                y, image * y_image + j, bias, j, floor, to, OC - j,
                            )  # fmt: skip
                        else:
                            _narrow(
                                source, x0, at, tile * ROWS, steps, 0, K, u, j * K, P,
                                y, image * y_image + j, bias, j, floor, to, OC - j,
                            )  # fmt: skip


@jit
def _sum_up(
    workers, n_workers, x, N, sizes, C, before, inside, at, places, steps, dy, OC, slots, u, dw,
    scratch, room,
):  # fmt: skip
    """dw (OC, K) of all slots, turned."""
    K, rows, ldu = steps.shape[0], at.shape[0] - ROWS, padded(OC, P)
    for k in range(0, K):
        for o in range(0, ldu, LANES):
            at_o = k * ldu + o
            s = load(u, at_o, LANES)
            for slot in range(1, slots):
                s += load(u, slot * rows * ldu + at_o, LANES)
            store(u, at_o, LANES, s)
    for k in range(0, K, LANES):
        n = min(LANES, K - k)
        for o in range(0, OC, LANES):
            lines = min(LANES, OC - o)
            turn(u, k * ldu + o, ldu, n, scratch, 0, LANES, LANES)
            for i in range(lines):
                store(dw, (o + i) * K + k, n, load(scratch, i * LANES, LANES))


@loop("workers", finish=_sum_up)
def weight_products(
    workers, n_workers, x, N, sizes, C, before, inside, at, places, steps, dy, OC, slots, u, dw,
    scratch, room,
):  # fmt: skip
    """dw (OC, K): u (slots, K in whole tiles, OC in whole panels), a share of the images each,
    summed. Here `at` is of taps and `places` are what is summed over; steps are those of all taps.
    """
    rows, ldu, n_places = at.shape[0] - ROWS, padded(OC, P), places.shape[0]
    size, panels = sizes[0] * sizes[1] * sizes[2] * C, padded(OC, P) // P
    bordered = inside[0] * inside[1] * inside[2] * C if inside[0] > 0 else 0
    for worker in workers:
        p0 = worker * room
        z0 = p0 + padded(bordered, LANES)
        clear(scratch, p0, bordered)
        begin, end = share(slots, worker, n_workers)
        for slot in range(begin, end):
            u0 = slot * rows * ldu
            clear(u, u0, rows * ldu)
            first, last = share(N, slot, slots)
            for image in range(first, last):
                source, x0 = x, image * size
                if bordered > 0:
                    source, x0 = scratch, p0
                    _fill(x, image, sizes, C, before, inside, scratch, p0)
                for p in range(0, n_places, PLACES):
                    n, d0 = min(PLACES, n_places - p), (image * n_places + p) * OC
                    b, b0, ldb, panel = dy, d0, OC, 0
                    if OC != LANES and OC != P:
                        b, b0, ldb, panel = scratch, z0, P, PLACES * P
                        for i in range(n):
                            for j in range(0, OC, LANES):
                                value = load(dy, d0 + i * OC + j, min(LANES, OC - j))
                                z = z0 + j // P * panel + i * P + j % P
                                store(scratch, z, LANES, value)
                    for j in range(panels):
                        for k in range(0, rows, ROWS):
                            to = u0 + k * ldu + j * P
                            if OC - j * P > LANES or P == LANES:
                                _wide_gradient(
                                    source, x0, at, k, places, p, n, b, b0 + j * panel, ldb,
                                    u, to, ldu,
                                )  # fmt: skip
                            else:
                                _narrow_gradient(
                                    source, x0, at, k, places, p, n, b, b0 + j * panel, ldb,
                                    u, to, ldu,
                                )  # fmt: skip


# Tables -------------------------------------------------------------------------------------------


class Reads(NamedTuple):
    """Where places and taps read in an image with borders; int64."""

    before: np.ndarray
    #: Sizes with borders, zeros where there are none.
    inside: np.ndarray
    #: Floats of such an image.
    bordered: int
    starts: np.ndarray
    #: Steps of the taps, channel by channel, or those of the channels, tap by tap.
    taps: np.ndarray


def reads(
    sizes: tuple[int, ...],
    channels: int,
    places: tuple[int, ...],
    strides: tuple[int, ...],
    offsets: list[tuple[int, ...]],
    taps_last: bool,
) -> Reads:
    """Places read at ``place * stride + offset`` on each of three axes, for each of `offsets`."""
    axes = [list(axis) for axis in zip(*offsets, strict=True)]
    before = [max(0, -min(axis)) for axis in axes]
    inside = [
        b + max(n, (count - 1) * stride + max(axis) + 1)
        for b, n, count, stride, axis in zip(before, sizes, places, strides, axes, strict=True)
    ]
    units = np.array([inside[1] * inside[2], inside[2], 1]) * channels
    grid = np.stack(np.meshgrid(*map(np.arange, places), indexing="ij"), -1).reshape(-1, 3)
    starts = grid * strides @ units
    taps = (np.array(offsets) + before) @ units
    channel = np.arange(channels)
    steps = channel[:, None] + taps if taps_last else taps[:, None] + channel
    bare = inside == list(sizes)
    return Reads(
        _ints(before),
        _ints([0, 0, 0] if bare else inside),
        0 if bare else int(np.prod(inside)) * channels,
        _ints(starts),
        _ints(steps).reshape(-1),
    )


def in_tiles(table: np.ndarray) -> np.ndarray:
    """Whole tiles, filled with the last place once more (what it computes twice is the same), and
    one tile more, which is fetched and not computed.
    """
    return np.pad(table, (0, -table.size % ROWS + ROWS), mode="edge")


def _ints(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.int64)
