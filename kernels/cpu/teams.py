"""Loops over workers: each takes a fixed share of the tasks and has scratch memory of its own."""

from __future__ import annotations

import numba
import numpy as np

from kernels.cpu.engine import numbers


def workers() -> np.ndarray:
    """A number for each core: what a loop over workers cuts. Not for each thread that is asked for:
    LLVM may round differently in the serial twin.
    """
    return numbers(int(numba.config.NUMBA_NUM_THREADS))


def padded_to(n: int, unit: int) -> int:
    """n up to a multiple of `unit`."""
    return -(-n // unit) * unit
