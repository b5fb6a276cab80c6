"""3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3): 36 multiplications for 16 results instead
of 144.

    y = A^T [(G w G^T) * (B^T x B)] A        (Lavin, Gray 2015; Winograd 1980)

for every tile of 4x4 results, x the 6x6 elements that they read: the sum over channels makes 36
matrix products of the elementwise one. The polynomials are interpolated at 0, +-1/sqrt(2),
+-sqrt(2) and infinity: at the customary 0, +-1, +-2 the largest error is 4 times as large
(measured, 64 channels: 9e-6 against 4e-5 at results of up to 6).

Images lie channels-last. Tiles are worked on in blocks, transformed, multiplied and transformed
back while they are in a core's L2 cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu.engine import define, jit, loop
from kernels.cpu.lanes import LANES, each, load, select, store, turn
from kernels.cpu.tiles import P, R, clear, copy, multiply, padded, share, spaced

#: Results of a tile and what they read, each way; products of a tile.
OUT, IN = 4, 6
PRODUCTS = IN * IN

_F = np.float32
#: The two positive points, with their squares and cubes.
A1, A2, A3 = _F(0.5**0.5), _F(0.5), _F(0.5**1.5)
B1, B2, B3 = _F(2**0.5), _F(2), _F(2**1.5)
#: Sum of the squares; their product is 1.
SUM = _F(2.5)
#: 1 / f'(a) and 1 / f'(b) of f = x (x^2 - a^2) (x^2 - b^2).
GA, GB = _F(1 / (2 * 0.5 * (0.5 - 2))), _F(1 / (2 * 2 * (2 - 0.5)))
ZERO = _F(0)


# The transforms of six, four or three numbers -----------------------------------------------------


@jit(forceinline=True)
def _into(d0, d1, d2, d3, d4, d5):
    """B^T d."""
    e1, o1 = d4 - d2 * B2, (d3 - d1 * B2) * A1
    e2, o2 = d4 - d2 * A2, (d3 - d1 * A2) * B1
    return d4 - d2 * SUM + d0, e1 + o1, e1 - o1, e2 + o2, e2 - o2, d5 - d3 * SUM + d1


@jit(forceinline=True)
def _out_of(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    s1, d1, s2, d2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s1 + s2, d1 * A1 + d2 * B1, s1 * A2 + s2 * B2, d1 * A3 + d2 * B3 + m5


@jit(forceinline=True)
def _of_weights(g0, g1, g2):
    """G g."""
    e1, o1 = (g0 + g2 * A2) * GA, g1 * (A1 * GA)
    e2, o2 = (g0 + g2 * B2) * GB, g1 * (B1 * GB)
    return g0, e1 + o1, e1 - o1, e2 + o2, e2 - o2, g2


@jit(forceinline=True)
def _spread(y0, y1, y2, y3):
    """A y."""
    e1, o1 = y0 + y2 * A2, y1 * A1 + y3 * A3
    e2, o2 = y0 + y2 * B2, y1 * B1 + y3 * B3
    return y0, e1 + o1, e1 - o1, e2 + o2, e2 - o2, y3


@jit(forceinline=True)
def _to_weights(u0, u1, u2, u3, u4, u5):
    """G^T u."""
    s1, d1, s2, d2 = (u1 + u2) * GA, (u1 - u2) * GA, (u3 + u4) * GB, (u3 - u4) * GB
    return u0 + s1 + s2, d1 * A1 + d2 * B1, s1 * A2 + s2 * B2 + u5


# ... and of squares of them -----------------------------------------------------------------------


def _two_ways(one: Any, n_in: int, n_out: int, finish: str = "{}") -> Any:
    """A compiled function: `one` along the columns and rows of n_in x n_in registers of x, whose
    n_out x n_out results go to y. `finish` is what is done to each of them.
    """
    name = f"two_ways{one.__name__}"
    lines = [f"def {name}(x, x0, row, column, y, y0, yrow, ycolumn, n, bias, b0, floor):"]
    if finish != "{}":
        lines += ["    b = load(bias, b0, n)"]
    for i in range(n_in):
        lines += [f"    g{j} = load(x, x0 + {i} * row + {j} * column, n)" for j in range(n_in)]
        given = ", ".join(f"g{j}" for j in range(n_in))
        lines += ["    " + ", ".join(f"t{i}{j}" for j in range(n_out)) + f" = one({given})"]
    for j in range(n_out):
        given = ", ".join(f"t{i}{j}" for i in range(n_in))
        lines += ["    " + ", ".join(f"r{i}" for i in range(n_out)) + f" = one({given})"]
        for i in range(n_out):
            result = finish.format(f"r{i}")
            lines += [f"    store(y, y0 + {i} * yrow + {j} * ycolumn, n, {result})"]
    names = {"one": one, "load": load, "store": store, "at_least": _at_least}
    return jit(define(name, "\n".join(lines) + "\n", **names), forceinline=True)


@jit(forceinline=True)
def _at_least(x, floor):
    """max(x, floor), NaN where x is."""
    return select(x < floor, each(floor), x)


_square_into = _two_ways(_into, 6, 6)
_square_spread = _two_ways(_spread, 4, 6)
_square_out_of = _two_ways(_out_of, 6, 4, "at_least({} + b, floor)")
_square_of_weights = _two_ways(_of_weights, 3, 6)
_square_to_weights = _two_ways(_to_weights, 6, 3)


# Images to products and back ----------------------------------------------------------------------


@jit
def _patch_to_products(x, x0, row, column, C, v, v0, apart, spread):
    """A patch of C channels from x[x0] on to its 36 products, `apart` from each other in v."""
    for c in range(0, C, LANES):
        n = min(LANES, C - c)
        v1 = v0 + c
        if spread and n == LANES:
            _square_spread(x, x0 + c, row, column, v, v1, IN * apart, apart, LANES, x, 0, ZERO)
        elif spread:
            _square_spread(x, x0 + c, row, column, v, v1, IN * apart, apart, n, x, 0, ZERO)
        elif n == LANES:  # a constant: plain loads and stores
            _square_into(x, x0 + c, row, column, v, v1, IN * apart, apart, LANES, x, 0, ZERO)
        else:
            _square_into(x, x0 + c, row, column, v, v1, IN * apart, apart, n, x, 0, ZERO)


@jit
def _to_products(
    x, H, W, C, before_h, before_w, down, across, first, last, spread, v, v0, ldv, apart, patch, p0,
):  # fmt: skip
    """Tiles `first` to `last` of x (N, H, W, C): tile t goes to row t - first of each product's
    matrix, whose rows are `ldv` apart. Patches that reach beyond x are made up in `patch`.

    `spread` tells gradients of results, of 4x4 and with A, from images, of 6x6 and with B^T.
    """
    side = OUT if spread else IN
    for t in range(first, last):
        image, i, j = t // (down * across), t // across % down, t % across
        top, left = OUT * i - before_h, OUT * j - before_w
        target = v0 + (t - first) * ldv
        if top >= 0 and left >= 0 and top + side <= H and left + side <= W:
            x0 = ((image * H + top) * W + left) * C
            _patch_to_products(x, x0, W * C, C, C, v, target, apart, spread)
            continue
        for a in range(side):
            h = top + a
            for b in range(side):
                w = left + b
                if 0 <= h < H and 0 <= w < W:
                    copy(x, ((image * H + h) * W + w) * C, patch, p0 + (a * side + b) * C, C)
                else:
                    clear(patch, p0 + (a * side + b) * C, C)
        _patch_to_products(patch, p0, side * C, C, C, v, target, apart, spread)


@jit
def _from_products(
    m, m0, ldm, apart, y, H, W, C, first_c, n_c, down, across, first, last, bias, floor, patch, p0,
):  # fmt: skip
    """The inverse, plus bias: channels first_c to first_c + n_c of y (N, H, W, C)."""
    for t in range(first, last):
        image, i, j = t // (down * across), t // across % down, t % across
        top, left = OUT * i, OUT * j
        source = m0 + (t - first) * ldm
        whole = top + OUT <= H and left + OUT <= W
        y0 = ((image * H + top) * W + left) * C + first_c
        for c in range(0, n_c, LANES):
            n = min(LANES, n_c - c)
            if whole and n == LANES:
                _square_out_of(
                    m, source + c, IN * apart, apart, y, y0 + c, W * C, C, LANES, bias, first_c +
                    c, floor,
                )  # fmt: skip
            else:
                _square_out_of(
                    m, source + c, IN * apart, apart, patch, p0, OUT * LANES, LANES, LANES, bias,
                    first_c + c, floor,
                )  # fmt: skip
                for a in range(min(OUT, H - top)):
                    for b in range(min(OUT, W - left)):
                        value = load(patch, p0 + (a * OUT + b) * LANES, LANES)
                        store(y, y0 + (a * W + b) * C + c, n, value)


#: Floats of scratch for the 9 taps of 16 input by 16 output channels, or for a tile's results.
TAPS_ROOM = 9 * LANES * LANES


@jit
def _taps_of(w, s_out, s_in, flip, o, n_o, c, n_c, taps, t0):
    """taps (n_c, 9, 16) = w of n_c input channels from c on, and of 16 output channels from o on:
    those beyond n_o are 0.
    """
    base = o * s_out + c * s_in
    if n_o >= LANES and n_c == LANES and s_in == 9:
        for j in range(9):  # 16 output channels times 144 numbers that lie together
            turn(w, base + j * LANES, s_out, LANES, taps, t0 + j * LANES * LANES, LANES, LANES)
        return
    for i in range(n_c):
        start = base + i * s_in
        if n_o >= LANES and start + (LANES - 1) * s_out + LANES <= w.shape[0] and i + 1 < n_c:
            # the next one overwrites lines 10 to 16
            turn(w, start, s_out, LANES, taps, t0 + i * 9 * LANES, LANES, LANES)
            continue
        for t in range(9):
            for lane in range(LANES):
                inside = lane < n_o
                taps[t0 + (i * 9 + t) * LANES + lane] = (
                    w[start + lane * s_out + t] if inside else ZERO
                )


@jit
def _weights_to_products(w, s_out, s_in, flip, first_o, n_o, first_c, n_c, u, u0, apart, taps, t0):
    """Panel u (36, n_c, P) of the weights of output channels `first_o` on and input channels
    `first_c` on; those beyond n_o are 0.
    """
    row, column = (-3 * LANES, -LANES) if flip else (3 * LANES, LANES)
    first = 8 * LANES if flip else 0
    for c in range(0, n_c, LANES):
        n = min(LANES, n_c - c)
        for o in range(0, P, LANES):
            _taps_of(w, s_out, s_in, flip, first_o + o, n_o - o, first_c + c, n, taps, t0)
            for i in range(n):
                _square_of_weights(
                    taps, t0 + i * 9 * LANES + first, row, column,
                    u, u0 + (c + i) * P + o, IN * apart, apart, LANES, w, 0, ZERO,
                )  # fmt: skip


# Forward, and the gradient of the input, which is a forward with turned weights -------------------


@loop("workers")
def weights_to_products(workers, n_workers, w, s_out, s_in, flip, n_out, n_in, u, scratch):
    """u (36, panels, in, P) of w, whose outputs are s_out apart and inputs s_in."""
    panels = padded(n_out, P) // P
    for worker in workers:
        first, last = share(panels, worker, n_workers)
        for panel in range(first, last):
            o = panel * P
            _weights_to_products(
                w, s_out, s_in, flip, o, n_out - o, 0, n_in, u, o * n_in, panels * P * n_in,
                scratch, worker * TAPS_ROOM,
            )  # fmt: skip


@loop("workers")
def by_tiles(
    workers, n_workers, x, H, W, C, before_h, before_w, u, bias, floor, y, OH, OW, OC, N, block,
    scratch, room,
):  # fmt: skip
    """Blocks of tiles, each from x to y. scratch: `room` for each worker."""
    down, across = padded(OH, OUT) // OUT, padded(OW, OUT) // OUT
    tiles, panels = N * down * across, padded(OC, P) // P
    ldm = panels * P
    v_apart, m_apart = spaced(block * C), spaced(block * ldm)
    blocks = padded(tiles, block) // block
    for worker in workers:
        v0 = worker * room
        m0 = v0 + PRODUCTS * v_apart
        p0 = m0 + PRODUCTS * m_apart
        begin, end = share(blocks, worker, n_workers)
        for b in range(begin, end):
            first, last = b * block, min(tiles, (b + 1) * block)
            _to_products(
                x, H, W, C, before_h, before_w, down, across, first, last, False, scratch, v0, C,
                v_apart, scratch, p0,
            )  # fmt: skip
            rows = padded(last - first, R)
            for e in range(PRODUCTS):
                multiply(
                    scratch, v0 + e * v_apart, C, 1, rows, u, e * panels * P * C, P, P * C, C, OC,
                    scratch, m0 + e * m_apart, ldm, False,
                )  # fmt: skip
            _from_products(
                scratch, m0, ldm, m_apart, y, OH, OW, OC, 0, OC, down, across, first, last, bias,
                floor, scratch, p0,
            )  # fmt: skip


@loop("workers")
def images_to_products(
    workers, n_workers, x, H, W, C, before_h, before_w, down, across, first, last, spread, v, ldv,
    apart, scratch, room,
):  # fmt: skip
    """Tiles `first` to `last` into v (36, tiles, ldv)."""
    for worker in workers:
        begin, end = share(last - first, worker, n_workers)
        _to_products(
            x, H, W, C, before_h, before_w, down, across, first + begin, first + end, spread, v,
            begin * ldv, ldv, apart, scratch, worker * room,
        )  # fmt: skip


@loop("workers")
def by_panels(
    workers, n_workers, v, C, tiles, w, s_out, s_in, flip, chunk, bias, floor, y, OH, OW, OC, first,
    scratch, room,
):  # fmt: skip
    """Panels of output channels for a few tiles, given their products v (36, tiles, C): the weights
    are transformed where they are used, for they are larger than the images.
    """
    down, across = padded(OH, OUT) // OUT, padded(OW, OUT) // OUT
    rows, panels = padded(tiles, R), padded(OC, P) // P
    v_apart, u_apart, m_apart = spaced(rows * C), spaced(chunk * P), spaced(rows * P)
    for worker in workers:
        u0 = worker * room
        m0 = u0 + PRODUCTS * u_apart
        p0 = m0 + PRODUCTS * m_apart
        begin, end = share(panels, worker, n_workers)
        for panel in range(begin, end):
            o = panel * P
            n_o = min(P, OC - o)
            for c in range(0, C, chunk):
                n_c = min(chunk, C - c)
                _weights_to_products(
                    w, s_out, s_in, flip, o, n_o, c, n_c, scratch, u0, u_apart, scratch, p0,
                )  # fmt: skip
                for e in range(PRODUCTS):
                    multiply(
                        v, e * v_apart + c, C, 1, rows, scratch, u0 + e * u_apart, P, 0, n_c, n_o,
                        scratch, m0 + e * m_apart, P, c > 0,
                    )  # fmt: skip
            _from_products(
                scratch, m0, P, m_apart, y, OH, OW, OC, o, n_o, down, across, first, first + tiles,
                bias, floor, scratch, p0,
            )  # fmt: skip


# The gradient of the weights ----------------------------------------------------------------------


@jit
def _products_to_weights(u, u0, ldu, apart, dw, OC, C, o, n_o, c, n_c, taps, t0):
    """G^T u G of input channels c to c + n_c and output channels o to o + n_o into dw (OC, C, 3,
    3).
    """
    for i in range(0, n_c, LANES):
        n = min(LANES, n_c - i)
        for j in range(0, n_o, LANES):
            for k in range(n):
                _square_to_weights(
                    u, u0 + (i + k) * ldu + j, IN * apart, apart,
                    taps, t0 + k * 9 * LANES, 3 * LANES, LANES, LANES, u, 0, ZERO,
                )  # fmt: skip
            to = ((o + j) * C + c + i) * 9
            if n == LANES and n_o - j >= LANES:
                for k in range(9):
                    turn(
                        taps, t0 + k * LANES * LANES, LANES, LANES, dw, to + k * LANES, C * 9, LANES
                    )
                continue
            for lane in range(min(LANES, n_o - j)):
                for k in range(9 * n):
                    dw[to + lane * C * 9 + k] = taps[t0 + k * LANES + lane]


@loop("workers")
def weight_products(workers, n_workers, v, ldv, z, ldz, rows, tiles, C, OC, u, add):
    """u (36, C, ldz) (+)= v^T z of v (36, rows, ldv) and z (36, rows, ldz), product by product."""
    wide = padded(C, R)
    v_apart, z_apart, u_apart = spaced(rows * ldv), spaced(rows * ldz), spaced(wide * ldz)
    for worker in workers:
        first, last = share(PRODUCTS, worker, n_workers)
        for e in range(first, last):
            multiply(
                v, e * v_apart, 1, ldv, wide, z, e * z_apart, ldz, P, tiles, OC,
                u, e * u_apart, ldz, add,
            )  # fmt: skip


@loop("workers")
def products_to_weights(workers, n_workers, u, ldu, OC, C, dw, scratch):
    """dw (OC, C, 3, 3) of u (36, C, ldu)."""
    apart = spaced(padded(C, R) * ldu)
    panels = padded(OC, LANES) // LANES
    for worker in workers:
        first, last = share(panels, worker, n_workers)
        for panel in range(first, last):
            o = panel * LANES
            _products_to_weights(
                u, o, ldu, apart, dw, OC, C, o, min(LANES, OC - o), 0, C,
                scratch, worker * TAPS_ROOM,
            )  # fmt: skip


@loop("workers")
def weights_by_blocks(
    workers, n_workers, v, ldv, z, ldz, rows, tiles, C, OC, block, dw, scratch, room,
):  # fmt: skip
    """dw of few tiles, in blocks of input channels and panels of output channels: its products
    never leave the cache.
    """
    panels, blocks = padded(OC, P) // P, padded(C, block) // block
    v_apart, z_apart, u_apart = spaced(rows * ldv), spaced(rows * ldz), spaced(block * P)
    for worker in workers:
        u0 = worker * room
        p0 = u0 + PRODUCTS * u_apart
        first, last = share(panels * blocks, worker, n_workers)
        for task in range(first, last):
            o, c = task // blocks * P, task % blocks * block
            n_o, n_c = min(P, OC - o), min(block, C - c)
            for e in range(PRODUCTS):
                multiply(
                    v, e * v_apart + c, 1, ldv, padded(n_c, R), z, e * z_apart + o, ldz, P, tiles,
                    n_o,
                    scratch, u0 + e * u_apart, P, False,
                )  # fmt: skip
            _products_to_weights(scratch, u0, P, u_apart, dw, OC, C, o, n_o, c, n_c, scratch, p0)
