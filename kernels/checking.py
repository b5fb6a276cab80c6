"""Labels, ids, places and lengths out of range: looked at on the CPU, on CUDA where asked for.

To look at values on CUDA means to wait for the device, in every step. So kernels there do not, and
make NaN of such an index, where the result can show it. `check_indices` is for who wants to know
which it was: within it the checks of the CPU are made on CUDA too, with the same errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kernels.arrays import Array, is_cuda, to_numpy

_asked = os.environ.get("FRAMEWORK_CHECK", "0")
if _asked not in ("0", "1"):
    raise ValueError(f"FRAMEWORK_CHECK={_asked!r}: expected '0' or '1'")

_looking = _asked == "1"


@contextmanager
def check_indices() -> Iterator[None]:
    """Within the block labels, ids, places and lengths on CUDA are checked before they are used, as
    on the CPU: IndexError or ValueError with position and value. Each check waits for the device,
    so steps are not captured. FRAMEWORK_CHECK=1 is the same for a whole process.
    """
    global _looking
    previous, _looking = _looking, True
    try:
        yield
    finally:
        _looking = previous


def may_look(x: Array) -> bool:
    """May the values of `x` be looked at? On the CPU always, on CUDA within `check_indices`."""
    return _looking or not is_cuda(x)


def looked_at(x: Array) -> np.ndarray | None:
    """`x` on the host, if `may_look`; else None."""
    return to_numpy(x) if may_look(x) else None
