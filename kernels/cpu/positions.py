"""The loop of kernels/positions.py."""

from __future__ import annotations

from kernels.cpu.engine import jit, loop
from kernels.cpu.lanes import LANES, floats_at, load, store


@jit
def _turn_halves(x, i, cos, sin, angle, sign, y, j, half):
    for d in range(0, half, LANES):
        n = min(LANES, half - d)
        a, b = load(x, i + d, n), load(x, i + half + d, n)
        c, s = load(cos, angle + d, n), load(sin, angle + d, n) * sign
        store(y, j + d, n, a * c - b * s)
        store(y, j + half + d, n, b * c + a * s)


@jit
def _turn_pairs(x, i, cos, sin, angle, sign, y, j, half):
    for d in range(half):
        a, b = x[i + 2 * d], x[i + 2 * d + 1]
        c, s = cos[angle + d], sin[angle + d] * sign
        y[j + 2 * d] = a * c - b * s
        y[j + 2 * d + 1] = b * c + a * s


@loop("rows")
def rotate(rows, places, sizes, steps, sign):
    """Rows (b, t) by number, all heads of each; y lies as (B, T, H, D)."""
    x, y = floats_at(places[0]), floats_at(places[1])
    cos, sin = floats_at(places[2]), floats_at(places[3])
    H, T, D, interleaved = sizes
    for row in rows:
        b, t = row // T, row % T
        for h in range(H):
            i = b * steps[0] + h * steps[1] + t * steps[2]
            j = (row * H + h) * D
            if interleaved:
                _turn_pairs(x, i, cos, sin, t * (D // 2), sign, y, j, D // 2)
            else:
                _turn_halves(x, i, cos, sin, t * (D // 2), sign, y, j, D // 2)
