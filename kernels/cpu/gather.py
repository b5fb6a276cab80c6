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
from kernels.cpu.lanes import LANES, each, load, select, store, turn
from kernels.cpu.tiles import P, R, clear, copy, multiply, padded, share

#: Places in a block: whole tiles, and enough for the weights to be read from L3 once for several.
BLOCK = 8 * R

ZERO = np.float32(0)


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
def _gather_block(
    x, sizes, channels, first_c, C, places, steps, block, n, runs, first, last, a, a0, lda,
):  # fmt: skip
    """Rows of a for n places from number `block` on."""
    image, d, h, w = _place(block, places)
    for r in range(n):
        _gather(
            x, sizes, channels, first_c, C, image, d * steps[0], h * steps[1], w * steps[2],
            runs, first, last, a, a0 + r * lda,
        )  # fmt: skip
        image, d, h, w = _next(image, d, h, w, places)


@jit
def _pack_columns(w, base, row, n, n_o, c, n_taps, places, n_in, u, u0, buffer, b0):
    """n columns of w, numbers that lie together, for 16 output channels `row` apart: column k is
    tap ``k % n_taps`` of input channel ``c + k // n_taps``. Output channels beyond n_o are 0.
    """
    tap = 0
    for k in range(0, n, LANES):
        if n_o >= LANES and base + k + (LANES - 1) * row + LANES <= w.shape[0]:
            turn(w, base + k, row, LANES, buffer, b0, LANES, LANES)
        else:
            for i in range(min(LANES, n - k)):
                for lane in range(LANES):
                    inside = lane < n_o
                    buffer[b0 + i * LANES + lane] = w[base + k + lane * row + i] if inside else ZERO
        for i in range(min(LANES, n - k)):
            if places[tap] >= 0:
                value = load(buffer, b0 + i * LANES, LANES)
                store(u, u0 + (places[tap] * n_in + c) * P, LANES, value)
            tap += 1
            if tap == n_taps:
                tap, c = 0, c + 1


@loop("workers")
def pack(
    workers, n_workers, w, groups, n_out, n_in, s_group, s_out, s_in, n_taps, places, K, u, scratch,
):  # fmt: skip
    """u (groups, panels, K, P) for `multiply`: the weights of tap t in rows ``places[t] * n_in``
    on, or nowhere. w's outputs are s_out apart, its inputs s_in, its taps lie together.
    """
    panels = padded(n_out, P) // P
    for worker in workers:
        b0 = worker * LANES * LANES
        first, last = share(groups * panels, worker, n_workers)
        for task in range(first, last):
            group = task // panels
            for lane in range(0, P, LANES):
                o = task % panels * P + lane
                base, u0 = group * s_group + o * s_out, task * K * P + lane
                if s_in == n_taps:  # all inputs of an output lie together
                    _pack_columns(
                        w, base, s_out, n_in * n_taps, n_out - o, 0, n_taps, places, n_in, u, u0,
                        scratch, b0,
                    )  # fmt: skip
                    continue
                for c in range(n_in):
                    _pack_columns(
                        w, base + c * s_in, s_out, n_taps, n_out - o, c, n_taps, places, n_in, u,
                        u0, scratch, b0,
                    )  # fmt: skip


@loop("workers")
def clear_all(workers, n_workers, y):
    """y = 0."""
    for worker in workers:
        first, last = share(y.shape[0] // LANES, worker, n_workers)
        if worker == n_workers - 1:
            clear(y, first * LANES, y.shape[0] - first * LANES)
        else:
            clear(y, first * LANES, (last - first) * LANES)


@loop("workers")
def products(
    workers, n_workers, x, sizes, channels, C, u, groups, OC, parts, runs, chunks, places, steps,
    images, bias, floor, y, out_sizes, out_channels, out_steps, out_starts, scratch, room,
):  # fmt: skip
    """y at ``place * out_steps + out_starts`` = products of what the places read with u, plus bias.

    A task is a block of places, a group, and one of `parts` of its output channels. A chunk is a
    few runs: (first run, last + 1, first column, columns).
    """
    panels = padded(OC, P) // P
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
            n, wide = min(BLOCK, total - block), min(OC - panel * P, ldc)
            if wide <= 0:
                continue
            for i in range(chunks.shape[0]):
                first, last, column, columns = (
                    chunks[i, 0],
                    chunks[i, 1],
                    chunks[i, 2],
                    chunks[i, 3],
                )
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
            first_o = group * OC + panel * P
            _put(
                scratch, c0, ldc, block, n, wide, first_o, bias, floor, places, y, out_sizes,
                out_channels, out_steps, out_starts,
            )  # fmt: skip


@jit
def _put(
    c, c0, ldc, block, n, wide, first_o, bias, floor, places, y, sizes, channels, steps, starts,
):  # fmt: skip
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
    workers, n_workers, x, sizes, channels, C, dy, out_channels, groups, OC, runs, chunks, places,
    steps, images, slots, parts, u, K, scratch, room,
):  # fmt: skip
    """u (slots, groups, K, padded OC) = what places read, transposed, times their dy: K counts taps
    times C, padded for each chunk.

    A task is a share of the blocks of places (a slot), a group, a chunk, whose rows of u are its
    own, and one of `parts` of the output channels.
    """
    ldz = padded(OC, P)
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
            n_o = min(per_part, OC - first_o)
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
                    from_o = (b * BLOCK + r) * out_channels + group * OC + first_o
                    copy(dy, from_o, scratch, z0 + r * per_part, n_o)
                multiply(
                    scratch, a0, 1, wide, wide, scratch, z0, per_part, P, n, n_o, u, to, ldz,
                    b > first,
                )  # fmt: skip


@loop("workers")
def unpack(
    workers, n_workers, u, slots, groups, OC, C, K, runs, chunks, run_chunk, taps, n_taps, dw,
    scratch,
):  # fmt: skip
    """dw (groups * OC, C, n_taps): the sum of the slots."""
    ldz, panels = padded(OC, P), padded(OC, LANES) // LANES
    for worker in workers:
        s0 = worker * LANES * LANES
        begin, end = share(groups * panels, worker, n_workers)
        for task in range(begin, end):
            group, o = task // panels, task % panels * LANES
            n_o = min(LANES, OC - o)
            for i in range(runs.shape[0]):
                chunk = run_chunk[i]
                for t in range(runs[i, 3]):
                    at = chunks[chunk, 4] + (runs[i, 4] - chunks[chunk, 2] + t) * C
                    tap = taps[runs[i, 4] + t]
                    for c in range(0, C, LANES):
                        n_c = min(LANES, C - c)
                        for k in range(n_c):
                            sums = each(ZERO)
                            for slot in range(slots):
                                place = ((slot * groups + group) * K + at + c + k) * ldz + o
                                sums += load(u, place, LANES)
                            store(scratch, s0 + k * LANES, LANES, sums)
                        for lane in range(n_o):
                            to = ((group * OC + o + lane) * C + c) * n_taps + tap
                            for k in range(n_c):
                                dw[to + k * n_taps] = scratch[s0 + k * LANES + lane]
