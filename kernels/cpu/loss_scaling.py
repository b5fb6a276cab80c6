"""The loop of kernels/loss_scaling.py over a flat float32 buffer: read and written once."""

from __future__ import annotations

import numpy as np

from kernels.cpu import engine

_ZERO = np.float32(0)
_ONE = np.float32(1)


# Without fast-math, which assumes that there are no NaN and infinities to be found.
@engine.loop("g", fastmath=False)
def unscale(g, factor, state):
    bad = 0
    for i in range(g.shape[0]):
        x = g[i] * factor
        g[i] = x
        bad |= int(x - x != _ZERO)  # inf - inf and NaN - NaN are NaN: a vector's test of both
    if bad:
        state[2] = _ONE  # several threads may: they all write the same
