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
    last = (
        kernel
        if start + (kernel - 1) * dilation < size
        else (size - start + dilation - 1) // dilation
    )
    return first, max(first, last)


@jit(forceinline=True)
def _place(x, x0, row, column, w, w0, KW, C, top, bottom, left, right, n):
    """Sum over the taps top to bottom, left to right."""
    s = each(ZERO)
    for i in range(top, bottom):
        for j in range(left, right):
            s += load(x, x0 + i * row + j * column, n) * load(w, w0 + (i * KW + j) * C, n)
    return s


@jit
def _line_3x3(x, x0, row, column, step, w, w0, C, b, floor, y, y0, y_step, n):
    """n places of a line, all of whose 9 taps are inside, with the weights in registers."""
    w00, w01, w02 = load(w, w0, LANES), load(w, w0 + C, LANES), load(w, w0 + 2 * C, LANES)
    w10, w11, w12 = (
        load(w, w0 + 3 * C, LANES),
        load(w, w0 + 4 * C, LANES),
        load(w, w0 + 5 * C, LANES),
    )
    w20, w21, w22 = (
        load(w, w0 + 6 * C, LANES),
        load(w, w0 + 7 * C, LANES),
        load(w, w0 + 8 * C, LANES),
    )
    for k in range(n):
        i0 = x0 + k * step
        i1, i2 = i0 + row, i0 + 2 * row
        s0 = b + load(x, i0, LANES) * w00
        s1 = load(x, i1, LANES) * w10
        s2 = load(x, i2, LANES) * w20
        s0 += load(x, i0 + column, LANES) * w01
        s1 += load(x, i1 + column, LANES) * w11
        s2 += load(x, i2 + column, LANES) * w21
        s0 += load(x, i0 + 2 * column, LANES) * w02
        s1 += load(x, i1 + 2 * column, LANES) * w12
        s2 += load(x, i2 + 2 * column, LANES) * w22
        s = s0 + s1 + s2
        store(y, y0 + k * y_step, LANES, select(s < floor, each(floor), s))


@loop("workers")
def forward(
    workers, n_workers, x, N, H, W, C, w, KH, KW, sh, sw, ph, pw, dh, dw, bias, floor, y, OH, OW,
):  # fmt: skip
    """y (N, OH, OW, C) = x * w + bias, at least `floor`."""
    row, column = dh * W * C, dw * C
    # places all of whose taps are inside of the line
    begin = min(OW, (pw + sw - 1) // sw)
    end = max(begin, min(OW, (W - 1 + pw - (KW - 1) * dw) // sw + 1))
    for worker in workers:
        first, last = share(N * OH, worker, n_workers)
        for line in range(first, last):
            image, oh = line // OH, line % OH
            h = oh * sh - ph
            top, bottom = _taps(h, dh, KH, H)
            for c in range(0, C, LANES):
                n = min(LANES, C - c)
                b = load(bias, c, n)
                x0, y0 = ((image * H + h) * W - pw) * C + c, line * OW * C + c
                fast = n == LANES and KH == 3 and KW == 3 and bottom - top == 3
                if fast:
                    _line_3x3(
                        x, x0 + begin * sw * C, row, column, sw * C, w, c, C, b, floor,
                        y, y0 + begin * C, C, end - begin,
                    )  # fmt: skip
                for ow in range(OW):
                    if fast and begin <= ow < end:
                        continue
                    left, right = _taps(ow * sw - pw, dw, KW, W)
                    s = b + _place(
                        x, x0 + ow * sw * C, row, column, w, c, KW, C, top, bottom, left, right, n,
                    )  # fmt: skip
                    store(y, y0 + ow * C, n, select(s < floor, each(floor), s))


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


@jit
def _line_gradient_3x3(dy, d0, x, x0, row, column, step, u, u0, C, n):
    """n places of a line, all of whose 9 taps are inside: nine sums side by side, where one would
    wait for each of its additions.
    """
    s00, s01, s02 = load(u, u0, LANES), load(u, u0 + C, LANES), load(u, u0 + 2 * C, LANES)
    s10, s11, s12 = (
        load(u, u0 + 3 * C, LANES),
        load(u, u0 + 4 * C, LANES),
        load(u, u0 + 5 * C, LANES),
    )
    s20, s21, s22 = (
        load(u, u0 + 6 * C, LANES),
        load(u, u0 + 7 * C, LANES),
        load(u, u0 + 8 * C, LANES),
    )
    for k in range(n):
        d, i0 = load(dy, d0 + k * C, LANES), x0 + k * step
        i1, i2 = i0 + row, i0 + 2 * row
        s00 += d * load(x, i0, LANES)
        s10 += d * load(x, i1, LANES)
        s20 += d * load(x, i2, LANES)
        s01 += d * load(x, i0 + column, LANES)
        s11 += d * load(x, i1 + column, LANES)
        s21 += d * load(x, i2 + column, LANES)
        s02 += d * load(x, i0 + 2 * column, LANES)
        s12 += d * load(x, i1 + 2 * column, LANES)
        s22 += d * load(x, i2 + 2 * column, LANES)
    store(u, u0, LANES, s00)
    store(u, u0 + C, LANES, s01)
    store(u, u0 + 2 * C, LANES, s02)
    store(u, u0 + 3 * C, LANES, s10)
    store(u, u0 + 4 * C, LANES, s11)
    store(u, u0 + 5 * C, LANES, s12)
    store(u, u0 + 6 * C, LANES, s20)
    store(u, u0 + 7 * C, LANES, s21)
    store(u, u0 + 8 * C, LANES, s22)


@loop("workers")
def weight_grad(
    workers, n_workers, dy, N, OH, OW, C, x, H, W, KH, KW, sh, sw, ph, pw, dh, dw, slots, u,
):  # fmt: skip
    """u (slots, KH * KW, C): a share of the lines of dy each, to be added up."""
    # places all of whose taps are inside of the line, as in `forward`
    near = min(OW, (pw + sw - 1) // sw)
    far = max(near, min(OW, (W - 1 + pw - (KW - 1) * dw) // sw + 1))
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
                fast = KH == 3 and KW == 3 and bottom - top == 3
                # channels in whole registers go the fast way
                fast_C = C // LANES * LANES if fast else 0
                for c in range(0, fast_C, LANES):
                    _line_gradient_3x3(
                        dy, (line * OW + near) * C + c,
                        x, ((image * H + h) * W + near * sw - pw) * C + c, dh * W * C, dw * C,
                        sw * C, u, u0 + c, C, far - near,
                    )  # fmt: skip
                for i in range(top, bottom):
                    for j in range(KW):
                        from_w = j * dw - pw
                        left = 0 if from_w >= 0 else (-from_w + sw - 1) // sw
                        right = min(OW, (W - 1 - from_w) // sw + 1)
                        x0 = ((image * H + h + i * dh) * W + from_w) * C
                        for c in range(0, C, LANES):
                            n = min(LANES, C - c)
                            at = u0 + (i * KW + j) * C + c
                            s = load(u, at, n)
                            stop, start = right, right  # of what the fast way has left out
                            if c < fast_C:
                                stop, start = min(right, near), max(left, far)
                            for ow in range(left, stop):
                                read = load(x, x0 + ow * sw * C + c, n)
                                s += load(dy, (line * OW + ow) * C + c, n) * read
                            for ow in range(start, right):
                                read = load(x, x0 + ow * sw * C + c, n)
                                s += load(dy, (line * OW + ow) * C + c, n) * read
                            store(u, at, n, s)
