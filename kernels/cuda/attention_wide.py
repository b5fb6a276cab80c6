"""Attention on CUDA with heads of more columns than attention.cu's tiles hold: the reference in
float32, some queries of a head at a time, so that memory stays linear in the length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import Array, array_module
from kernels.attention_call import Call, padded

#: Scores at a time, at most, but for one query's: 64 MiB of each array of them.
SCORES = 1 << 24


class Block(NamedTuple):
    """Queries `t` of head `h`, which has keys `g`, of sequence `b`; all slices."""

    b: slice
    h: slice
    g: slice
    t: slice


def _blocks(c: Call) -> Iterator[tuple[Block, Call]]:
    """Each with the call that is its own, in float32."""
    (B, H, T, _), (G, S) = c.q.shape, c.k.shape[1:3]
    rows = max(1, SCORES // max(S, 1))
    for b in range(B):
        for h in range(H):
            for t in range(0, T, rows):
                first = ((b * H + h) * T + t) * padded(S) // 8  # of the stream
                at = Block(*(slice(i, i + 1) for i in (b, h, h // (H // G))), slice(t, t + rows))
                yield (
                    at,
                    c._replace(
                        q=c.q[at.b, at.h, at.t].astype(np.float32),
                        k=c.k[at.b, at.g].astype(np.float32),
                        v=c.v[at.b, at.g].astype(np.float32),
                        mask=None if c.mask is None else _mask(c.mask[at.b, at.h, at.t]),
                        lengths=None if c.lengths is None else c.lengths[at.b],
                        slopes=None if c.slopes is None else c.slopes[at.h],
                        start=c.start + t,
                        offset=c.offset + first,
                    ),
                )


def _mask(mask: Array) -> Array:
    return mask if mask.dtype.kind == "b" else mask.astype(np.float32)


def forward(reference: Callable[..., Any], c: Call) -> tuple[Array, Array]:
    """out (B, H, T, E) and lse (B, H, T) float, by the reference of attention."""
    xp = array_module(c.q)
    B, H, T, E = c.out_shape
    out = xp.empty((B, T, H, E), c.q.dtype).swapaxes(1, 2)
    lse = xp.empty((B, H, T), np.float32)
    for at, part in _blocks(c):
        y, lse[at.b, at.h, at.t] = reference(part.q, part.k, part.v, *part.rest())
        out[at.b, at.h, at.t] = y.astype(out.dtype, copy=False)
    return out, lse


def gradient(
    reference: Callable[..., Any],
    c: Call,
    dout: Array,
    out: Array,
    lse: Array,
    mask_shape: tuple[int, ...] | None = None,
) -> tuple[Array, ...]:
    """dq, dk, dv and, where a shape for it is given, dmask in that, by the reference of
    attention_grad.
    """
    xp = array_module(c.q)
    shapes = [c.q.shape, c.k.shape, c.v.shape, *([] if mask_shape is None else [mask_shape])]
    made = [xp.zeros(shape, np.float32) for shape in shapes]
    own = None
    if mask_shape is not None:  # of all four axes
        own = made[3].reshape((1,) * (4 - len(mask_shape)) + mask_shape)
    for at, part in _blocks(c):
        options = part.rest()
        places = (None, None, None, None if own is None else xp.empty_like(options[0]))
        dy, y, shift = (a[at.b, at.h, at.t].astype(np.float32) for a in (dout, out, lse))
        parts = reference(dy, part.q, part.k, part.v, y, shift, *options, *places)
        made[0][at.b, at.h, at.t] = parts[0]
        made[1][at.b, at.g] += parts[1]
        made[2][at.b, at.g] += parts[2]
        if own is not None:
            every = slice(None)
            axes = (at.b, at.h, at.t, every)
            there = tuple(i if n > 1 else every for i, n in zip(axes, own.shape, strict=True))
            ds = parts[3]
            for axis in (2, 3):
                ds = ds.sum(axis, keepdims=True) if own.shape[axis] == 1 else ds
            own[there] += ds
    return tuple(x.astype(c.q.dtype, copy=False) for x in made)
