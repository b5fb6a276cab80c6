"""How precisely float32 matrix products are computed on CUDA: in float32, or in TF32."""

from __future__ import annotations

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
