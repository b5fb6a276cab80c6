"""Attention on the CPU: how arrays are handed to the loops of attention.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array
from kernels.attention_call import Call, padded, placed
from kernels.cpu import attention as loops
from kernels.cpu.blas import address
from kernels.cpu.engine import numbers
from kernels.random import checked_place, dropout_constants


def forward(c: Call) -> tuple[Array, Array]:
    """out (B, H, T, E), which lies as (B, T, H, E), and lse (B, H, T)."""
    (B, H, T, narrow), S = c.out_shape, c.k.shape[2]
    c, D, E = _prepared(c)
    out, lse = _writable((B, H, T, E), E), np.empty((B, H, T), np.float32)
    given = _numbers(c, D, out, lse)
    tasks = numbers(B * H * -(-T // loops.ROWS))
    loops.forward(tasks, *given, work=B * H * T * S)
    return (out if E == narrow else out[..., :narrow]), lse


def gradient(
    c: Call, dout: Array, out: Array, lse: Array, places: tuple[Array | None, ...]
) -> tuple[Array, ...]:
    """dq, dk, dv, in `places` or in new arrays, and dmask, if there is a place for it."""
    narrow, (B, G), work = (c.q, c.k, c.v), c.k.shape[:2], c.q.shape[2] * c.k.shape[2]
    work *= B * c.q.shape[1]
    c, D, E = _prepared(c)
    out, dout = _readable(out, E), _readable(dout, E)
    lse = np.ascontiguousarray(lse, np.float32)
    made = [_writable(x.shape, n, y) for x, n, y in zip(narrow, (D, D, E), places, strict=False)]
    given = _numbers(c, D, out, lse, dout, *made)
    loops.backward(numbers(B * G), *given, loops.NOWHERE, work=work)
    results = tuple(
        x if x is y else placed(x[..., : a.shape[3]], y)
        for x, a, y in zip(made, narrow, places, strict=False)
    )
    if (dmask := places[3]) is None:
        return results
    assert c.mask is not None
    fits = dmask.dtype == np.float32 and not any(step & 3 for step in dmask.strides)
    sums = dmask if fits else np.empty(dmask.shape, np.float32)
    sums[...] = 0
    own = (1,) * (4 - dmask.ndim) + dmask.shape
    tiles = 1 if own[2] == 1 else -(-own[2] // loops.ROWS)
    steps = np.broadcast_to(sums, c.mask.shape).strides
    into = address(sums), *steps, *own[:2], tiles
    loops.backward(numbers(own[0] * own[1] * tiles), *given, into, work=work)
    return *results, placed(sums, dmask)


def _readable(x: Array, D: int) -> Array:
    """`x` as the loops can read it: rows of D floats that lie together, else a copy with zeros at
    the ends of rows.
    """
    strides = x.strides
    if x.shape[3] == D and strides[3] == 4 and not any(s & 3 for s in strides):
        return x
    copy = np.zeros((x.shape[0], x.shape[2], x.shape[1], D), np.float32).swapaxes(1, 2)
    copy[..., : x.shape[3]] = x
    return copy


def _writable(shape: tuple[int, ...], D: int, place: Array | None = None) -> Array:
    """`place` if the loops can write to it, else a new array that lies as (B, T, H, D)."""
    if place is not None and place.dtype == np.float32 and _readable(place, D) is place:
        return place
    B, H, T, _ = shape
    return np.empty((B, T, H, D), np.float32).swapaxes(1, 2)


def _numbers(c: Call, D: int, out: Array, lse: Array, *more: Array) -> tuple[Any, ...]:
    """What the loops are told: addresses, sizes, steps, the scale, and the place in the stream."""
    B, H, T, E = out.shape
    G, S = c.k.shape[1:3]
    kind, mask, mask_steps = 0, 0, (0, 0, 0, 0)
    if c.mask is not None:
        kind = 1 if c.mask.dtype.kind == "b" else 2
        mask, mask_steps = address(c.mask), c.mask.strides
    addresses = (
        *map(address, (c.q, c.k, c.v, out, lse)),
        mask,
        0 if c.lengths is None else address(c.lengths),
        0 if c.slopes is None else address(c.slopes),
        *map(address, more),
    )
    drop, kept = dropout_constants(c.p)
    thin = int(drop) if c.p > 0 else -1
    sizes = (B, H, T, S, D, G, int(c.causal), c.window, c.start, kind, thin, padded(S), E)
    steps = (
        *(step >> 2 for x in (c.q, c.k, c.v, out) for step in x.strides[:3]),
        *mask_steps,
        *(step >> 2 for x in more for step in x.strides[:3]),
    )
    seed, offset = checked_place(c.seed, c.offset)
    place = np.uint64(seed), np.uint64(offset), np.float32(kept)
    return addresses, sizes, steps, np.float32(c.scale), *place


def _whole_registers(columns: int) -> int:
    return -(-columns // 16) * 16


def _prepared(c: Call) -> tuple[Call, int, int]:
    """With arrays that the loops can read, and D and E in whole registers."""
    D, E = (_whole_registers(x.shape[3]) for x in (c.q, c.v))
    q, k, v = _readable(c.q, D), _readable(c.k, D), _readable(c.v, E)
    mask = c.mask
    if mask is not None and mask.dtype.kind != "b":
        if any(s & 3 for s in mask.strides):
            mask = mask.copy()
    lengths = None if c.lengths is None else np.ascontiguousarray(c.lengths, np.int64)
    slopes = None if c.slopes is None else np.ascontiguousarray(c.slopes, np.float32)
    return c._replace(q=q, k=k, v=v, mask=mask, lengths=lengths, slopes=slopes), D, E
