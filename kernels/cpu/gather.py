"""Convolutions as matrix products, a block of places at a time.

What a block of output places reads, tap by tap, is gathered into rows that stay in a core's L2
cache; the block is the product of those rows with the weights. Strides, dilations, borders and the
number of axes are in the tables of where to read, not in the loops.

Images are flat, channels-last, with three spatial axes. Place q of an axis reads at ``q * step +
offset`` for each tap's offset: in a forward pass step is the stride; the gradient of the input is
as many passes as there are remainders of a place by the stride, each with the taps that meet it,
and step 1.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, each, load, select, store
from kernels.cpu.tiles import P, R, clear, copy, multiply, padded, share

#: Places in a block: whole tiles, and enough for the weights to be read from L3 once for several.
BLOCK = 4 * R


@jit(forceinline=True)
def _place(p, places):
    """Image and place of number p."""
    p, w = p // places[2], p % places[2]
    p, h = p // places[1], p % places[1]
    return p // places[0], p % places[0], h, w


@jit(forceinline=True)
def _next(image, d, h, w, places):
    """The place after it, without a division."""
    w += 1
    if w == places[2]:
        w, h = 0, h + 1
        if h == places[1]:
            h, d = 0, d + 1
            if d == places[0]:
                d, image = 0, image + 1
    return image, d, h, w


@jit
def _gather(x, sizes, channels, first_c, C, image, d, h, w, runs, first, last, a, a0):
    """One row of a: the taps of `runs` (first to last) around the place whose reads begin at (d, h,
    w).

    A run is (offsets in d, h and w, taps, column): taps that lie side by side in x and in a row.
    """
    D, H, W = sizes[0], sizes[1], sizes[2]
    for i in range(first, last):
        z, y, left, taps = d + runs[i, 0], h + runs[i, 1], w + runs[i, 2], runs[i, 3]
        to = a0 + runs[i, 4] * C
        if not (0 <= z < D and 0 <= y < H):
            clear(a, to, taps * C)
            continue
        begin, end = min(taps, max(0, -left)), max(0, min(taps, W - left))
        if begin > 0:
            clear(a, to, begin * C)
        if end > begin:
            start = (((image * D + z) * H + y) * W + left + begin) * channels + first_c
            copy(x, start, a, to + begin * C, (end - begin) * C)
        if end < taps:
            end = max(begin, end)
            clear(a, to + end * C, (taps - end) * C)


@jit
def _gather_block(x, sizes, channels, first_c, C, places, steps, block, n, runs, first, last, a, a0, lda):
    """Rows of a for n places from number `block` on."""
    image, d, h, w = _place(block, places)
    for r in range(n):
        _gather(
            x, sizes, channels, first_c, C, image, d * steps[0], h * steps[1], w * steps[2],
            runs, first, last, a, a0 + r * lda,
        )  # fmt: skip
        image, d, h, w = _next(image, d, h, w, places)


@loop("workers")
def pack(workers, n_workers, w, groups, n_out, n_in, s_group, s_out, s_in, taps, u):
    """u (groups, panels, taps * in, P): the weights of `taps`, tap after tap, for `multiply`."""
    panels, K = padded(n_out, P) // P, taps.shape[0] * n_in
    for worker in workers:
        first, last = share(groups * panels, worker, n_workers)
        for task in range(first, last):
            group, o = task // panels, task % panels * P
            for l in range(P):
                base = group * s_group + (o + l) * s_out
                to = task * K * P + l
                for t in range(taps.shape[0]):
                    for c in range(n_in):
                        value = np.float32(0)
                        if o + l < n_out:
                            value = w[base + c * s_in + taps[t]]
                        u[to + (t * n_in + c) * P] = value


@loop("workers")
def products(
    workers, n_workers, x, sizes, channels, C, u, groups, O, parts, runs, chunks, places, steps,
    images, bias, floor, y, out_sizes, out_channels, out_steps, out_starts, scratch, room,
):  # fmt: skip
    """y at ``place * out_steps + out_starts`` = products of what the places read with u, plus bias.

    A task is a block of places, a group, and one of `parts` of its output channels. A chunk is a
    few runs: (first run, last + 1, first column, columns).
    """
    panels = padded(O, P) // P
    per_part = padded(panels, parts) // parts
    total = images * places[0] * places[1] * places[2]
    K = chunks[-1, 2] + chunks[-1, 3]
    widest = 0
    for i in range(chunks.shape[0]):
        widest = max(widest, chunks[i, 3])
    ldc = per_part * P
    for worker in workers:
        a0 = worker * room
        c0 = a0 + BLOCK * widest * C
        begin, end = share(padded(total, BLOCK) // BLOCK * groups * parts, worker, n_workers)
        for task in range(begin, end):
            block = task // (groups * parts) * BLOCK
            group, part = task // parts % groups, task % parts
            panel = part * per_part
            n, wide = min(BLOCK, total - block), min(O - panel * P, ldc)
            if wide <= 0:
                continue
            for i in range(chunks.shape[0]):
                first, last, column, columns = chunks[i, 0], chunks[i, 1], chunks[i, 2], chunks[i, 3]
                lda = columns * C
                _gather_block(
                    x, sizes, channels, group * C, C, places, steps, block, n, runs, first, last,
                    scratch, a0 - column * C, lda,
                )  # fmt: skip
                multiply(
                    scratch, a0, lda, 1, padded(n, R), u,
                    (group * panels + panel) * K * C * P + column * C * P, P, K * C * P, lda, wide,
                    scratch, c0, ldc, i > 0,
                )  # fmt: skip
            first_o = group * O + panel * P
            _put(scratch, c0, ldc, block, n, wide, first_o, bias, floor, places, y, out_sizes, out_channels, out_steps, out_starts)


@jit
def _put(c, c0, ldc, block, n, wide, first_o, bias, floor, places, y, sizes, channels, steps, starts):
    """Rows of c to their places in y."""
    image, d, h, w = _place(block, places)
    for r in range(n):
        z, v, u = d * steps[0] + starts[0], h * steps[1] + starts[1], w * steps[2] + starts[2]
        to = (((image * sizes[0] + z) * sizes[1] + v) * sizes[2] + u) * channels + first_o
        image, d, h, w = _next(image, d, h, w, places)
        for j in range(0, wide, LANES):
            value = load(c, c0 + r * ldc + j, LANES) + load(bias, first_o + j, LANES)
            value = select(value < floor, each(floor), value)
            if wide - j >= LANES:
                store(y, to + j, LANES, value)
            else:
                store(y, to + j, wide - j, value)


# The gradient of the weights ----------------------------------------------------------------------


@loop("workers")
def weight_products(
    workers, n_workers, x, sizes, channels, C, dy, out_channels, groups, O, runs, chunks, places,
    steps, images, slots, parts, u, K, scratch, room,
):  # fmt: skip
    """u (slots, groups, K, padded O) = what places read, transposed, times their dy: K counts taps
    times C, padded for each chunk.

    A task is a share of the blocks of places (a slot), a group, a chunk, whose rows of u are its
    own, and one of `parts` of the output channels.
    """
    ldz = padded(O, P)
    per_part = padded(padded(ldz // P, parts) // parts * P, P)
    total = images * places[0] * places[1] * places[2]
    blocks = padded(total, BLOCK) // BLOCK
    n_chunks = chunks.shape[0]
    widest = 0
    for i in range(n_chunks):
        widest = max(widest, padded(chunks[i, 3] * C, R))
    for worker in workers:
        a0 = worker * room
        z0 = a0 + BLOCK * widest
        begin, end = share(slots * groups * n_chunks * parts, worker, n_workers)
        for task in range(begin, end):
            rest, part = task // parts, task % parts
            rest, i = rest // n_chunks, rest % n_chunks
            slot, group = rest // groups, rest % groups
            column, columns = chunks[i, 2], chunks[i, 3] * C
            first_o, wide = part * per_part, padded(columns, R)
            n_o = min(per_part, O - first_o)
            to = ((slot * groups + group) * K + chunks[i, 4]) * ldz + first_o
            first, last = share(blocks, slot, slots)
            if n_o <= 0:
                continue
            for b in range(first, last):
                n = min(BLOCK, total - b * BLOCK)
                _gather_block(
                    x, sizes, channels, group * C, C, places, steps, b * BLOCK, n, runs,
                    chunks[i, 0], chunks[i, 1], scratch, a0 - column * C, wide,
                )  # fmt: skip
                for r in range(n):
                    from_o = (b * BLOCK + r) * out_channels + group * O + first_o
                    copy(dy, from_o, scratch, z0 + r * per_part, n_o)
                multiply(
                    scratch, a0, 1, wide, wide, scratch, z0, per_part, P, n, n_o, u, to, ldz,
                    b > first,
                )  # fmt: skip


@loop("workers")
def unpack(workers, n_workers, u, slots, groups, O, C, K, runs, chunks, run_chunk, taps, n_taps, dw, scratch):
    """dw (groups * O, C, n_taps): the sum of the slots."""
    ldz, panels = padded(O, P), padded(O, LANES) // LANES
    for worker in workers:
        s0 = worker * LANES * LANES
        begin, end = share(groups * panels, worker, n_workers)
        for task in range(begin, end):
            group, o = task // panels, task % panels * LANES
            n_o = min(LANES, O - o)
            for i in range(runs.shape[0]):
                chunk = run_chunk[i]
                for t in range(runs[i, 3]):
                    at = chunks[chunk, 4] + (runs[i, 4] - chunks[chunk, 2] + t) * C
                    tap = taps[runs[i, 4] + t]
                    for c in range(0, C, LANES):
                        n_c = min(LANES, C - c)
                        for k in range(n_c):
                            sums = each(np.float32(0))
                            for slot in range(slots):
                                place = ((slot * groups + group) * K + at + c + k) * ldz + o
                                sums += load(u, place, LANES)
                            store(scratch, s0 + k * LANES, LANES, sums)
                        for l in range(n_o):
                            to = ((group * O + o + l) * C + c) * n_taps + tap
                            for k in range(n_c):
                                dw[to + k * n_taps] = scratch[s0 + k * LANES + l]
