"""Winograd's algorithm from Python: which of the loops of winograd.py, on how much memory.

Many tiles: they are worked on in blocks, and the weights are transformed once. Few tiles of many
channels: the weights are larger than the images, and are transformed in pieces where they are used.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import workers
from kernels.cpu.tiles import P, R, padded_to, spaced
from kernels.cpu.winograd import (
    OUT,
    PRODUCTS,
    TAPS_ROOM,
    ZERO,
    by_panels,
    by_tiles,
    images_to_products,
    products_to_weights,
    weight_products,
    weights_by_blocks,
    weights_to_products,
)

#: Bytes of products that a block of tiles may take: they have to stay in a core's L2 cache.
BLOCK_BYTES = 600_000

#: Bytes of transformed weights up to which they are kept in memory; beyond, `by_panels`.
KEPT_WEIGHTS = 5_000_000

#: Tiles times channels whose products are in memory at a time (2.4 MB), and the fewest tiles.
MOST_PRODUCTS, MOST_TILES = 16_384, 256


def _tiles(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // OUT), -(-size[1] // OUT)


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    turned: bool,
    before: tuple[int, int],
    y: np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
) -> None:
    """y (N, OH, OW, OC) = x (N, H, W, C) * w (OC, C, 3, 3) + bias, all C-contiguous.

    `turned`: w is (C, OC, 3, 3) and its taps are in the opposite order, for the gradient of the
    input.
    """
    N, H, W, C = x.shape
    _, OH, OW, OC = y.shape
    s_out, s_in = (9, 9 * OC) if turned else (9 * C, 9)
    floor = ZERO if relu else np.float32(-np.inf)
    wide = padded_to(OC, P)
    b = np.zeros(wide, np.float32)
    if bias is not None:
        b[:OC] = bias
    down, across = _tiles((OH, OW))
    tiles, team = N * down * across, workers()
    flat_x, flat_w, flat_y = x.reshape(-1), w.reshape(-1), y.reshape(-1)
    work = tiles * C * OC
    if PRODUCTS * 4 * C * wide <= KEPT_WEIGHTS or tiles < R:
        block = max(R, min(8 * R, BLOCK_BYTES // (PRODUCTS * 4 * (C + wide)) // R * R))
        u = np.empty(PRODUCTS * C * wide, np.float32)
        room = PRODUCTS * (spaced(block * C) + spaced(block * wide) + C)
        scratch = np.empty(len(team) * max(room, TAPS_ROOM), np.float32)
        weights_to_products(
            team, len(team), flat_w, s_out, s_in, turned, OC, C, u, scratch, work=work,
        )  # fmt: skip
        by_tiles(
            team, len(team), flat_x, H, W, C, *before, u, b, floor, flat_y, OH, OW, OC, N, block,
            scratch, room, work=work,
        )  # fmt: skip
        return
    most = min(MOST_TILES, tiles)
    rows = padded_to(most, R)
    chunk = min(C, 64)
    v = np.empty(PRODUCTS * spaced(rows * C), np.float32)
    room = PRODUCTS * (spaced(chunk * P) + spaced(rows * P)) + TAPS_ROOM
    scratch = np.empty(len(team) * max(room, PRODUCTS * C), np.float32)
    for first in range(0, tiles, most):
        n = min(most, tiles - first)
        images_to_products(
            team, len(team), flat_x, H, W, C, *before, down, across, first, first + n, False, v, C,
            spaced(padded_to(n, R) * C), scratch, PRODUCTS * C, work=work,
        )  # fmt: skip
        by_panels(
            team, len(team), v, C, n, flat_w, s_out, s_in, turned, chunk, b, floor, flat_y, OH, OW,
            OC, first, scratch, room, work=work,
        )  # fmt: skip


def weight_grad(dy: np.ndarray, x: np.ndarray, before: tuple[int, int], dw: np.ndarray) -> None:
    """dw (OC, C, 3, 3) of dy (N, OH, OW, OC) and x (N, H, W, C), all C-contiguous."""
    N, H, W, C = x.shape
    _, OH, OW, OC = dy.shape
    down, across = _tiles((OH, OW))
    tiles, team = N * down * across, workers()
    most = min(max(MOST_TILES, MOST_PRODUCTS // max(C, OC)), tiles)
    ldz, wide = padded_to(OC, P), padded_to(C, R)
    v = np.empty(PRODUCTS * spaced(most * C) + R, np.float32)
    z = np.empty(PRODUCTS * spaced(most * ldz), np.float32)
    scratch = np.empty(len(team) * max(PRODUCTS * max(C, OC), TAPS_ROOM), np.float32)
    flat_x, flat_dy, flat_dw = x.reshape(-1), dy.reshape(-1), dw.reshape(-1)
    work = tiles * C * OC
    together = tiles > most or PRODUCTS * wide * ldz * 4 <= KEPT_WEIGHTS
    u = np.empty(PRODUCTS * spaced(wide * ldz) if together else 0, np.float32)
    for first in range(0, tiles, most):
        n = min(most, tiles - first)
        for array, sizes, starts, spread, out, ld in (
            (flat_x, (H, W, C), before, False, v, C),
            (flat_dy, (OH, OW, OC), (0, 0), True, z, ldz),
        ):
            images_to_products(
                team, len(team), array, *sizes, *starts, down, across, first, first + n, spread,
                out, ld, spaced(most * ld), scratch, PRODUCTS * max(C, OC), work=work,
            )  # fmt: skip
        if together:
            weight_products(team, len(team), v, C, z, ldz, most, n, C, OC, u, first > 0, work=work)
    if together:
        products_to_weights(team, len(team), u, ldz, OC, C, flat_dw, scratch, work=work)
    else:
        block = 4 * R
        room = PRODUCTS * spaced(block * P) + TAPS_ROOM
        scratch = np.empty(len(team) * room, np.float32)
        weights_by_blocks(
            team, len(team), v, C, z, ldz, most, tiles, C, OC, block, flat_dw, scratch, room,
            work=work,
        )  # fmt: skip
