"""How precisely products are computed: float32 matrices on CUDA in float32 or in TF32; 3x3
convolutions on the CPU as they are written, or by Winograd's algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: "medium" allows bfloat16 in PyTorch, which falls back to "high" where there is no such
#: algorithm; ours has none, so the two mean the same.
PRECISIONS = ("highest", "high", "medium")

_precision = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """ "highest" (the default): float32 products in float32. "high" or "medium": on CUDA in TF32,
    which reads 10 bits of each factor's mantissa and is several times faster. The CPU is always
    exact.
    """
    global _precision
    if precision not in PRECISIONS:
        expected = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"float32 matmul precision {precision!r}: expected one of {expected}")
    _precision = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` was last given, "highest" before that."""
    return _precision


def tf32_is_allowed() -> bool:
    """May float32 products be computed in TF32?"""
    return _precision != "highest"


_exact_convolution = False


@contextmanager
def exact_convolution() -> Iterator[None]:
    """Within this block 3x3 convolutions on the CPU are computed as they are written, not by
    Winograd's algorithm: two to four times slower, and with an error of 1e-6 of the largest result
    instead of 2e-6 to 5e-6.
    """
    global _exact_convolution
    previous, _exact_convolution = _exact_convolution, True
    try:
        yield
    finally:
        _exact_convolution = previous


def convolution_is_exact() -> bool:
    """Is it asked for?"""
    return _exact_convolution
