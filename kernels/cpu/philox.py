"""Philox4x32-10 for compiled loops; see kernels/random.py."""

from __future__ import annotations

import numpy as np

from kernels.cpu.engine import jit

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@jit(forceinline=True)
def philox(c0, c1, c2, c3, k0, k1):
    """One counter to four words, each in the low half of a uint64.

    The high halves are left dirty: AVX's 32x32-bit multiply ignores them, which is twice as fast as
    uint32.
    """
    for _ in range(10):
        p = _M0 * (c0 & LOW)
        q = _M1 * (c2 & LOW)
        c0 = (q >> SHIFT) ^ c1 ^ k0
        c2 = (p >> SHIFT) ^ c3 ^ k1
        c1 = q
        c3 = p
        k0 = (k0 + _W0) & LOW
        k1 = (k1 + _W1) & LOW
    return c0, c1, c2, c3
