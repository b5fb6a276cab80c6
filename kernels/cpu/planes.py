"""Convolutions of stride 1 with few channels: 16 neighbouring places in a register, not channels.

An image becomes planes (C, rows, width) with its borders in them, in L2. Then the tap (c, i, j) of
a place is read at that place plus the tap's offset, for 16 places at once, also across the ends of
rows: what is computed between them is left out at the end. LeNet's first layer has 1 channel in
and 6 out; with channels in registers 10 lanes of 16 would be idle.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.cpu.engine import define, jit, loop, workers
from kernels.cpu.lanes import LANES, each, load, load_each, select, store, total, turn
from kernels.cpu.tiles import P, clear, copy, padded, padded_to, share

#: Output channels and registers of places in a tile (24 sums on AVX-512, 6 of two registers
#: without).
ROWS, VECTORS = 6, 4 if P == 2 * LANES else 1
#: The same for more channels than that.
MORE_ROWS, LESS_VECTORS = (8, 3) if P == 2 * LANES else (6, 1)
#: Taps of a tile of the gradient, which are as many sums with ROWS.
TAPS = VECTORS

#: Partial sums of a gradient: the images are cut in as many parts on any number of threads.
SLOTS = 8

#: What planes and results have room for: whole tiles, and 16 rows and columns of a turn.
ROOM_ROWS, ROOM_PLACES = 3 * LANES, 12 * LANES

ZERO = np.float32(0)
_NAMES = {"each": each, "load": load, "load_each": load_each, "store": store, "LANES": LANES}


def _forward_tile(rows: int, vectors: int) -> Any:
    """c[c0 + r * ldc + place] = sum over k of w[w0 + r * K + k] times x[x0 + offsets[k] + place]
    for `rows` r and 16 * `vectors` places.
    """
    name = f"planes_tile_{rows}x{vectors}"
    lines = [f"def {name}(w, w0, K, x, x0, offsets, c, c0, ldc):"]
    pairs = [(r, v) for r in range(rows) for v in range(vectors)]
    lines += [f"    s{r}_{v} = each(ZERO)" for r, v in pairs]
    lines += ["    for k in range(K):", "        at = x0 + offsets[k]"]
    lines += [f"        y{v} = load(x, at + {LANES * v}, LANES)" for v in range(vectors)]
    for r in range(rows):
        lines += [f"        a = load_each(w, w0 + {r} * K + k)"]
        lines += [f"        s{r}_{v} += a * y{v}" for v in range(vectors)]
    lines += [f"    store(c, c0 + {r} * ldc + {LANES * v}, LANES, s{r}_{v})" for r, v in pairs]
    return jit(define(name, "\n".join(lines) + "\n", ZERO=ZERO, **_NAMES))


def _gradient_tile() -> Any:
    """u[u0 + (r * ldu + t) * 16 + lane] += sum over places of dy[d0 + r * ldd + place] times x[x0 +
    offsets[k + t] + place], for ROWS r and TAPS t.
    """
    parameters = "dy, d0, ldd, images, size, places, x, x0, offsets, k, u, u0, ldu"
    lines = [f"def planes_gradient_tile({parameters}):"]
    pairs = [(r, t) for r in range(ROWS) for t in range(TAPS)]
    lines += [f"    at{t} = x0 + offsets[k + {t}]" for t in range(TAPS)]
    at = {(r, t): f"u, u0 + ({r} * ldu + {t}) * LANES, LANES" for r, t in pairs}
    lines += [f"    s{r}_{t} = load({at[r, t]})" for r, t in pairs]
    lines += ["    for image in range(images):"]
    lines += ["        for q in range(image * size, image * size + places, LANES):"]
    lines += [f"            y{t} = load(x, at{t} + q, LANES)" for t in range(TAPS)]
    for r in range(ROWS):
        lines += [f"            a = load(dy, d0 + {r} * ldd + q, LANES)"]
        lines += [f"            s{r}_{t} += a * y{t}" for t in range(TAPS)]
    lines += [f"    store({at[r, t]}, s{r}_{t})" for r, t in pairs]
    return jit(define("planes_gradient_tile", "\n".join(lines) + "\n", **_NAMES))


_few, _more = _forward_tile(ROWS, VECTORS), _forward_tile(MORE_ROWS, LESS_VECTORS)
_gradient = _gradient_tile()


@jit
def _fill(x, image, H, W, C, planes, p0, plane, width, before_h, before_w, buffer, b0):
    """The inside of an image's planes; what is around it is 0 already."""
    for h in range(H):
        row = (image * H + h) * W * C
        to = p0 + (h + before_h) * width + before_w
        if C == 1:
            copy(x, row, planes, to, W)
            continue
        for w in range(0, W, LANES):
            n = min(LANES, W - w)
            for c in range(0, C, LANES):
                start = row + w * C + c
                if start + (LANES - 1) * C + LANES <= x.shape[0]:
                    turn(x, start, C, LANES, buffer, b0, LANES, LANES)
                    for i in range(min(LANES, C - c)):
                        value = load(buffer, b0 + i * LANES, LANES)
                        store(planes, to + (c + i) * plane + w, n, value)
                else:
                    for i in range(min(LANES, C - c)):
                        for k in range(n):
                            planes[to + (c + i) * plane + w + k] = x[start + k * C + i]


@loop("workers")
def forward(
    workers, n_workers, x, N, H, W, C, before_h, before_w, height, width, w, offsets, OC, bias,
    floor, y, OH, OW, scratch, room,
):  # fmt: skip
    """y (N, OH, OW, OC): planes of an image, products, and back to channels-last. Rows of w are
    padded to tiles, offsets are the taps' in planes of height x width.
    """
    K = offsets.shape[0]
    plane, rows = height * width, padded(OC, ROOM_ROWS)
    places = (OH - 1) * width + OW
    ldc = padded(places + LANES, ROOM_PLACES)
    for worker in workers:
        p0 = worker * room
        c0 = p0 + C * plane + ROOM_PLACES
        b0 = c0 + rows * ldc
        clear(scratch, p0, room)
        first, last = share(N, worker, n_workers)
        for image in range(first, last):
            _fill(x, image, H, W, C, scratch, p0, plane, width, before_h, before_w, scratch, b0)
            if OC <= ROWS:
                for q in range(0, places, LANES * VECTORS):
                    _few(w, 0, K, scratch, p0 + q, offsets, scratch, c0 + q, ldc)
            else:
                for q in range(0, places, LANES * LESS_VECTORS):
                    for o in range(0, OC, MORE_ROWS):
                        _more(w, o * K, K, scratch, p0 + q, offsets, scratch, c0 + o * ldc + q, ldc)
            for h in range(OH):
                for left in range(0, OW, LANES):
                    for o in range(0, OC, LANES):
                        turn(
                            scratch,
                            c0 + o * ldc + h * width + left,
                            ldc,
                            LANES,
                            scratch,
                            b0,
                            LANES,
                            LANES,
                        )
                        b, n = load(bias, o, LANES), min(LANES, OC - o)
                        to = ((image * OH + h) * OW + left) * OC + o
                        for i in range(min(LANES, OW - left)):
                            value = load(scratch, b0 + i * LANES, LANES) + b
                            store(y, to + i * OC, n, select(value < floor, each(floor), value))


@jit
def _sum_up(
    workers, n_workers, x, N, H, W, C, before_h, before_w, height, width, dy, offsets, OC, OH, OW,
    K, u, dw, scratch, room, together,
):  # fmt: skip
    """dw (OC, K) of the lanes of all slots."""
    ldu, rows = padded(K, TAPS), padded(OC, ROWS)
    for o in range(OC):
        for k in range(K):
            lanes = each(ZERO)
            for slot in range(SLOTS):
                lanes += load(u, ((slot * rows + o) * ldu + k) * LANES, LANES)
            dw[o * K + k] = total(lanes)


@loop("workers", finish=_sum_up)
def weight_grad_loop(
    workers, n_workers, x, N, H, W, C, before_h, before_w, height, width, dy, offsets, OC, OH, OW,
    K, u, dw, scratch, room, together,
):  # fmt: skip
    """u (SLOTS, OC, K, 16), with OC and K padded to tiles, is summed by `_sum_up`. `together`:
    images whose places are one long row.
    """
    ldu, rows = padded(K, TAPS), padded(OC, ROWS)
    size = padded(height * width, LANES)
    plane = size * together
    groups = (N + together - 1) // together
    places = (OH - 1) * width + OW
    for worker in workers:
        p0 = worker * room
        d0 = p0 + C * plane + size + LANES
        ldd = padded(plane + LANES, LANES)
        b0 = d0 + rows * ldd
        clear(scratch, p0, room)
        begin, end = share(SLOTS, worker, n_workers)
        for slot in range(begin, end):
            u0 = slot * rows * ldu * LANES
            clear(u, u0, rows * ldu * LANES)
            first, last = share(groups, slot, SLOTS)
            for group in range(first, last):
                images = min(together, N - group * together)
                for i in range(images):
                    image = group * together + i
                    _fill(
                        x, image, H, W, C, scratch, p0 + i * size, plane, width, before_h,
                        before_w, scratch, b0,
                    )  # fmt: skip
                    _fill(
                        dy, image, OH, OW, OC, scratch, d0 + i * size, ldd, width, 0, 0,
                        scratch, b0,
                    )  # fmt: skip
                for o in range(0, OC, ROWS):
                    for k in range(0, K, TAPS):
                        _gradient(
                            scratch, d0 + o * ldd, ldd, images, size, places,
                            scratch, p0, offsets, k,
                            u, u0 + (o * ldu + k) * LANES, ldu,
                        )  # fmt: skip


# From Python --------------------------------------------------------------------------------------


@lru_cache  # 15 us to make
def _offsets(
    kernel: tuple[int, int], dilation: tuple[int, int], C: int, plane: int, width: int
) -> np.ndarray:
    c, i, j = np.ogrid[:C, : kernel[0], : kernel[1]]
    return (c * plane + i * dilation[0] * width + j * dilation[1]).reshape(-1).astype(np.int64)


def _planes(
    size: tuple[int, ...],
    output: tuple[int, ...],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    before: tuple[int, ...],
) -> tuple[int, int]:
    """Height and width of planes that hold all that is read, and the image."""
    read = (o + d * (k - 1) for o, d, k in zip(output, dilation, kernel, strict=True))
    inside = (b + n for b, n in zip(before, size, strict=True))
    height, width = (max(pair) for pair in zip(read, inside, strict=True))
    return height, width


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    before: tuple[int, ...],
    dilation: tuple[int, ...],
    y: np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
) -> None:
    """y (N, OH, OW, OC) = x (N, H, W, C) * w (OC, C, KH, KW) + bias, C-contiguous."""
    N, H, W, C = x.shape
    _, OH, OW, OC = y.shape
    height, width = _planes((H, W), (OH, OW), w.shape[2:], dilation, before)
    offsets = _offsets(w.shape[2:], dilation, C, height * width, width)
    rows = padded_to(OC, ROOM_ROWS)
    padded_w, b = np.zeros((rows, offsets.size), np.float32), np.zeros(rows, np.float32)
    padded_w[:OC] = w.reshape(OC, -1)
    if bias is not None:
        b[:OC] = bias
    ldc = padded_to((OH - 1) * width + OW + LANES, ROOM_PLACES)
    room = C * height * width + ROOM_PLACES + rows * ldc + LANES * LANES
    room = padded_to(room, LANES)
    team = workers()
    forward(
        team, len(team), x.reshape(-1), N, H, W, C, *before, height, width, padded_w.reshape(-1),
        offsets, OC, b, np.float32(0 if relu else -np.inf), y.reshape(-1), OH, OW,
        np.empty(len(team) * room, np.float32), room, work=y.size * offsets.size,
    )  # fmt: skip


def weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    before: tuple[int, ...],
    dilation: tuple[int, ...],
    dw: np.ndarray,
) -> None:
    """dw (OC, C, KH, KW) of dy (N, OH, OW, OC) and x (N, H, W, C), all C-contiguous."""
    N, H, W, C = x.shape
    _, OH, OW, OC = dy.shape
    kernel = dw.shape[2:]
    height, width = _planes((H, W), (OH, OW), kernel, dilation, before)
    size = padded_to(height * width, LANES)
    together = max(1, min(-(-N // (2 * SLOTS)), 2048 // size))
    plane = together * size
    offsets = _offsets(kernel, dilation, C, plane, width)
    K = offsets.size
    offsets = np.append(offsets, [0] * (-K % TAPS))
    u = np.empty(SLOTS * padded_to(OC, ROWS) * padded_to(K, TAPS) * LANES, np.float32)
    room = C * plane + size + LANES + padded_to(OC, ROWS) * padded_to(plane + LANES, LANES)
    room, team = padded_to(room + LANES * LANES, LANES), workers()
    weight_grad_loop(
        team, len(team), x.reshape(-1), N, H, W, C, *before, height, width, dy.reshape(-1),
        offsets, OC, OH, OW, K, u, dw.reshape(-1), np.empty(len(team) * room, np.float32), room,
        together, work=dy.size * K,
    )  # fmt: skip
