"""Positions: angles of rotary ones, and their turn."""

from __future__ import annotations

import numpy as np

from framework.autograd import Tensor, record
from framework.autograd.graph import in_dtype
from framework.functional.check import floating, tensor_argument
from kernels import positions as kernels


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x (B, H, T, D) turned by the angles of `rotary_angles`, cos and sin (T, D / 2), pair by pair.

    Pairs are columns i and i + D / 2, as in Llama, or with `interleaved` 2 i and 2 i + 1 (Su et al.
    2021). No gradient goes to the angles.
    """
    floating("rotary", x)
    for what, angle in (("cos", cos), ("sin", sin)):
        if tensor_argument("rotary", what, angle).requires_grad:
            raise ValueError(f"rotary: {what} requires a gradient, and gets none; detach() it")
    c, s = in_dtype(cos.data, x.dtype), in_dtype(sin.data, x.dtype)
    y = kernels.rotary(x.data, c, s, interleaved)
    return record(y, [x], lambda dy: [kernels.rotary_grad(dy, c, s, interleaved)])


def rotary_angles(
    length: int, dim: int, base: float = 10000.0, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (length, dim / 2) of position / base^(2 i / dim), positions from `start`."""
    if length < 0 or dim < 2 or dim % 2 or base <= 0 or start < 0:
        raise ValueError(
            f"rotary_angles: length={length}, dim={dim}, base={base}, start={start}: expected an "
            "even dim of at least 2, a positive base, the others at least 0"
        )
    angles = np.arange(start, start + length)[:, None] / base ** (np.arange(0, dim, 2) / dim)
    return Tensor(np.cos(angles).astype(np.float32)), Tensor(np.sin(angles).astype(np.float32))
