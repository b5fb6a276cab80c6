"""The machine's own roof over arithmetic: float32 multiply-adds that touch no memory."""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import loop
from kernels.cpu.lanes import LANES, each, store

#: Independent chains: a multiply-add takes 4 cycles and two are begun in each, so 8 at least.
CHAINS = 12
#: Multiply-adds of a chain.
ROUNDS = 20_000


@loop("out")
def multiply_add(out, x, y):
    """Each row of `out`, (rows, LANES), from chains of a = a x + y."""
    for row in range(out.shape[0]):
        x_, y_ = each(x), each(y)
        a, b, c, d, e, f = y_, y_ + x_, x_, x_ * x_, x_ * y_, y_ * y_
        g, h, i, j, k, m = a + d, b + d, c + d, a + e, b + e, c + e
        for _ in range(ROUNDS):
            a, b, c, d = a * x_ + y_, b * x_ + y_, c * x_ + y_, d * x_ + y_
            e, f, g, h = e * x_ + y_, f * x_ + y_, g * x_ + y_, h * x_ + y_
            i, j, k, m = i * x_ + y_, j * x_ + y_, k * x_ + y_, m * x_ + y_
        total = a + b + c + d + e + f + g + h + i + j + k + m
        store(out[row], 0, LANES, total)


def run(out: np.ndarray) -> int:
    """Fill `out`, (rows, LANES); the multiplications and additions that it took."""
    count = 2 * out.size * CHAINS * ROUNDS
    multiply_add(out, np.float32(0.5), np.float32(0.25), work=count)  # work: on all threads
    return count
