"""Depthwise convolutions: each channel has a kernel of its own. 16 channels in a register.

There is one multiply-add for each element that is loaded, so that these loops wait for memory and
not for arithmetic. Images are (N, H, W, C), flat; weights (taps, C).
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, each, load, select, store
from kernels.cpu.tiles import clear, share

ZERO = np.float32(0)


@jit(forceinline=True)
def _taps(start, dilation, kernel, size):
    """First and last + 1 of the taps of a place that reads from `start` on inside of an axis."""
    first = 0 if start >= 0 else (-start + dilation - 1) // dilation
    last = kernel if start + (kernel - 1) * dilation < size else (size - start + dilation - 1) // dilation
    return first, max(first, last)


@jit(forceinline=True)
def _place(x, x0, row, column, w, w0, KW, C, top, bottom, left, right, n):
    """Sum over the taps top to bottom, left to right."""
    s = each(ZERO)
    for i in range(top, bottom):
        for j in range(left, right):
            s += load(x, x0 + i * row + j * column, n) * load(w, w0 + (i * KW + j) * C, n)
    return s


@loop("workers")
def forward(workers, n_workers, x, N, H, W, C, w, KH, KW, sh, sw, ph, pw, dh, dw, bias, floor, y, OH, OW):
    """y (N, OH, OW, C) = x * w + bias, at least `floor`."""
    for worker in workers:
        first, last = share(N * OH, worker, n_workers)
        for line in range(first, last):
            image, oh = line // OH, line % OH
            h = oh * sh - ph
            top, bottom = _taps(h, dh, KH, H)
            for c in range(0, C, LANES):
                n = min(LANES, C - c)
                b = load(bias, c, n)
                for ow in range(OW):
                    left_w = ow * sw - pw
                    left, right = _taps(left_w, dw, KW, W)
                    x0 = ((image * H + h) * W + left_w) * C + c
                    if n == LANES and KH == 3 and KW == 3 and right - left == 3 and bottom - top == 3:
                        s = _place(x, x0, dh * W * C, dw * C, w, c, 3, C, 0, 3, 0, 3, LANES)
                    else:
                        s = _place(x, x0, dh * W * C, dw * C, w, c, KW, C, top, bottom, left, right, n)
                    s += b
                    store(y, (line * OW + ow) * C + c, n, select(s < floor, each(floor), s))


@loop("workers")
def input_grad(workers, n_workers, dy, OH, OW, C, w, KH, KW, sh, sw, ph, pw, dh, dw, dx, N, H, W):
    """dx (N, H, W, C): line by line, the sum over the taps through which a place was read."""
    for worker in workers:
        first, last = share(N * H, worker, n_workers)
        for line in range(first, last):
            image, h = line // H, line % H
            clear(dx, line * W * C, W * C)
            for i in range(KH):
                oh = h + ph - i * dh
                if oh < 0 or oh % sh or oh // sh >= OH:
                    continue
                oh //= sh
                for j in range(KW):
                    # the places ow that read w = ow * sw - pw + j * dw inside of the line
                    start = j * dw - pw
                    begin = 0 if start >= 0 else (-start + sw - 1) // sw
                    end = min(OW, (W - 1 - start) // sw + 1)
                    for ow in range(begin, end):
                        from_y = ((image * OH + oh) * OW + ow) * C
                        to = (line * W + ow * sw + start) * C
                        for c in range(0, C, LANES):
                            n = min(LANES, C - c)
                            product = load(dy, from_y + c, n) * load(w, (i * KW + j) * C + c, n)
                            store(dx, to + c, n, load(dx, to + c, n) + product)


@loop("workers")
def weight_grad(workers, n_workers, dy, N, OH, OW, C, x, H, W, KH, KW, sh, sw, ph, pw, dh, dw, slots, u):
    """u (slots, KH * KW, C): a share of the lines of dy each, to be added up."""
    for worker in workers:
        begin, end = share(slots, worker, n_workers)
        for slot in range(begin, end):
            u0 = slot * KH * KW * C
            clear(u, u0, KH * KW * C)
            first, last = share(N * OH, slot, slots)
            for line in range(first, last):
                image, oh = line // OH, line % OH
                h = oh * sh - ph
                top, bottom = _taps(h, dh, KH, H)
                for i in range(top, bottom):
                    for j in range(KW):
                        start = j * dw - pw
                        left = 0 if start >= 0 else (-start + sw - 1) // sw
                        right = min(OW, (W - 1 - start) // sw + 1)
                        x0 = ((image * H + h + i * dh) * W + start) * C
                        for c in range(0, C, LANES):
                            n = min(LANES, C - c)
                            at = u0 + (i * KW + j) * C + c
                            s = load(u, at, n)
                            for ow in range(left, right):
                                read = load(x, x0 + ow * sw * C + c, n)
                                s += load(dy, (line * OW + ow) * C + c, n) * read
                            store(u, at, n, s)
