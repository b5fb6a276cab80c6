"""What the kernels of attention.py are called with, checked and with its defaults filled in; what
the arguments mean stands there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from kernels.arrays import Array, array_module, is_floating

#: On CUDA a thread has so many columns, every 16th: heads of up to 64 and 128 columns.
CUDA_WIDTHS = (4, 8)


class Call(NamedTuple):
    """The arguments of either kernel."""

    q: Array
    k: Array
    v: Array
    mask: Array | None  # broadcast to (B, H, T, S)
    lengths: Array | None
    slopes: Array | None
    causal: bool
    window: int  # 0: none
    start: int
    scale: float
    p: float
    seed: Any
    offset: int

    def rest(self) -> tuple[Any, ...]:
        """What follows q, k, v (or lse), as the kernels take it."""
        return self._replace(window=self.window or None)[3:]  # type: ignore[arg-type]

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(B, H, T, E)."""
        return (*self.q.shape[:3], self.v.shape[3])


def padded(S: int) -> int:
    """Keys as dropout counts them: whole lines of eight."""
    return -(-S // 8) * 8


def checked(
    name: str,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    lengths: Array | None = None,
    slopes: Array | None = None,
    causal: bool = False,
    window: int | None = None,
    start: int = 0,
    scale: float | None = None,
    p: float = 0.0,
    seed: Any = 0,
    offset: int = 0,
) -> Call:
    """ValueError where shapes or numbers do not fit."""
    if (
        not q.ndim == k.ndim == v.ndim == 4
        or k.shape[:3] != v.shape[:3]
        or q.shape[::3] != k.shape[::3]
    ):
        raise ValueError(
            f"{name}: q {q.shape}, k {k.shape}, v {v.shape}: expected (B, H, T, D), (B, G, S, D) "
            "and (B, G, S, E)"
        )
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    if G == 0 or H % G:
        raise ValueError(
            f"{name}: q {q.shape}, k {k.shape}: {G} heads of keys and values do not divide {H} "
            "heads of queries"
        )
    if mask is not None:
        if mask.dtype.kind != "b":
            if not is_floating(mask.dtype):
                raise TypeError(f"{name}: mask is {mask.dtype}, expected booleans or floats")
            mask = mask.astype(q.dtype, copy=False)
        try:
            mask = array_module(q).broadcast_to(mask, (B, H, T, S))
        except ValueError:
            raise ValueError(
                f"{name}: mask has shape {mask.shape}, which does not broadcast to {(B, H, T, S)}"
            ) from None
    if lengths is not None and (lengths.shape != (B,) or lengths.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: lengths are {lengths.dtype}{lengths.shape}, expected integers ({B},)"
        )
    if slopes is not None and slopes.shape != (H,):
        raise ValueError(f"{name}: slopes have shape {slopes.shape}, expected ({H},), one a head")
    if window is not None and window < 1:
        raise ValueError(f"{name}: window={window}, expected at least 1 key")
    if start < 0:
        raise ValueError(f"{name}: start={start}, expected a position of at least 0")
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p={p}, expected a probability in [0, 1]")
    scale = 1 / math.sqrt(max(D, 1)) if scale is None else float(scale)
    causal, window = bool(causal), window or 0
    return Call(q, k, v, mask, lengths, slopes, causal, window, start, scale, p, seed, offset)


def check_gradient(
    c: Call, dout: Array, out: Array, lse: Array, mask: Array | None, dmask: Array | None
) -> None:
    """ValueError where what attention_grad takes besides does not fit the call. `mask`: as given,
    before it was broadcast.
    """
    shape = c.out_shape
    if dout.shape != shape or out.shape != shape or lse.shape != shape[:3]:
        raise ValueError(
            f"attention_grad: dout {dout.shape}, out {out.shape}, lse {lse.shape}: expected twice "
            f"{shape}, the shape of the result, and {shape[:3]}"
        )
    if dmask is None:
        return
    if mask is None or mask.dtype.kind == "b":
        what = "no mask" if mask is None else "a mask of booleans"
        raise ValueError(f"attention_grad: dmask is given with {what}, expected one of numbers")
    if dmask.shape != mask.shape:
        raise ValueError(
            f"attention_grad: dmask has shape {dmask.shape}, expected the mask's, {mask.shape}"
        )


def placed(gradient: Array, place: Array | None) -> Array:
    """`gradient`, in the place given for it if there is one."""
    if place is None or gradient is place:
        return gradient
    place[...] = gradient
    return place
