"""Attention on CUDA by our own kernels, attention.cu: what they are launched with."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, is_array
from kernels.attention_call import CUDA_WIDTHS, Call
from kernels.cuda import launch
from kernels.random import checked_place, dropout_constants

#: Rows of a tile, and floats from one column of it to the next in shared memory.
TILE, ROW = 64, 65


def forward(c: Call) -> tuple[Array, Array]:
    """out (B, H, T, E), which lies as (B, T, H, E), and lse (B, H, T) float."""
    xp = array_module(c.q)
    B, H, T, E = c.out_shape
    if 0 in (*c.out_shape, c.k.shape[2]):
        return xp.zeros(c.out_shape, c.q.dtype), xp.full((B, H, T), -np.inf, np.float32)
    start = _Launch(c)
    out, lse = xp.empty((B, T, H, E), c.q.dtype), xp.empty((B, H, T), np.float32)
    corners = map(_corner, start.inputs)
    start("attention_forward", B * H * _tiles(T), 2, 1, *corners, out, lse)
    return out.swapaxes(1, 2), lse


def gradient(
    c: Call, dout: Array, out: Array, lse: Array, mask_shape: tuple[int, ...] | None = None
) -> tuple[Array, ...]:
    """dq, dk, dv and, where a shape for it is given, dmask in that."""
    xp, kind = array_module(c.q), c.q.dtype
    if 0 in (*c.out_shape, c.k.shape[2]):
        shapes = (c.q.shape, c.k.shape, c.v.shape)
        shapes += () if mask_shape is None else (mask_shape,)
        return tuple(xp.zeros(shape, kind) for shape in shapes)
    start = _Launch(c)
    (B, H, T, D), (G, S, E) = c.q.shape, c.v.shape[1:]
    lse = xp.ascontiguousarray(lse).astype(np.float32, copy=False)
    delta = xp.empty((B, H, T), np.float32)
    to_q, to_k, to_v = (
        xp.empty(shape, kind) for shape in ((B, T, H, D), (B, S, G, D), (B, S, G, E))
    )
    dense, corners = _by_position(dout), [_corner(x) for x in start.inputs]
    given = (dense, *corners, _by_position(out), lse, delta, to_q)
    start("attention_dq", B * H * _tiles(T), 4, 2, *given)
    given = (dense, *corners, lse, delta, to_k, to_v)
    start("attention_dkv", B * G * _tiles(S), 4, 2, *given)
    made = tuple(x.swapaxes(1, 2) for x in (to_q, to_k, to_v))
    if mask_shape is None:
        return made
    dmask = xp.empty(mask_shape, kind)
    own = (1,) * (4 - len(mask_shape)) + mask_shape
    given = (dense, *corners, lse, delta, dmask, *map(np.int64, (B, *own)))
    grid = own[0] * own[1] * _tiles(own[2]) * _tiles(own[3])
    start("attention_dmask", grid, 4, 2, *given)
    return *made, dmask


def _tiles(length: int) -> int:
    return -(-length // TILE)


def _by_position(x: Array) -> Array:
    """(B, H, T, D) as contiguous (B, T, H, D), copied if it does not lie so."""
    return array_module(x).ascontiguousarray(x.swapaxes(1, 2))


def _corner(x: Array) -> Array:
    """The first element as an array of one: a pointer for what reads by strides."""
    return x[tuple(slice(1) for _ in x.shape)]


def _steps(*arrays: Array) -> list[np.int64]:
    return [np.int64(step // x.itemsize) for x in arrays for step in x.strides[:3]]


class _Launch:
    """What the kernels are launched with."""

    def __init__(self, c: Call) -> None:
        self.xp = array_module(c.q)
        widest = max(c.q.shape[3], c.v.shape[3])
        self.inputs = [self._readable(x) for x in (c.q, c.k, c.v)]
        self.width = next(w for w in CUDA_WIDTHS if 16 * w >= widest)
        self.kind = f"<{launch.type_name(c.q.dtype)}, {self.width}>"
        self.steps = _steps(*self.inputs)
        self.pattern = self._pattern(c)

    def _readable(self, x: Array) -> Array:
        whole = x.strides[3] == x.itemsize and not any(step % x.itemsize for step in x.strides)
        return x if whole or x.size == 0 else self.xp.ascontiguousarray(x)

    def _pattern(self, c: Call) -> list[Any]:
        null: Any = np.uintp(0)
        boolean = c.mask is not None and c.mask.dtype.kind == "b"
        corner = null if c.mask is None else _corner(c.mask)
        mask_steps = (0, 0, 0, 0)
        if c.mask is not None:
            mask_steps = tuple(step // c.mask.itemsize for step in c.mask.strides)
        lengths = null if c.lengths is None else self.xp.ascontiguousarray(c.lengths, np.int64)
        slopes = null if c.slopes is None else self.xp.ascontiguousarray(c.slopes, np.float32)
        H, T, D = c.q.shape[1:]
        G, S, E = c.v.shape[1:]
        sizes = (*mask_steps, H, G, T, S, D, E, c.start, c.window)
        drop, kept = dropout_constants(c.p)
        place, seed = null, c.seed
        if is_array(seed):
            place, seed = seed, 0
        seed, offset = checked_place(seed, c.offset)
        return [
            *((corner, null) if boolean else (null, corner)),
            lengths,
            slopes,
            *map(np.int64, sizes),
            np.int32(c.causal),
            np.float32(c.scale),
            np.int32(drop if c.p > 0 else -1),
            np.float32(kept),
            np.uint64(seed),
            np.uint64(offset),
            place,
        ]

    def __call__(self, name: str, grid: int, tiles: int, weights: int, *args: Any) -> None:
        """Launch `name` with shared memory for so many tiles of inputs and of weights."""
        shared = 4 * ROW * (tiles * 16 * self.width + weights * TILE)
        given = (*args, *self.steps, *self.pattern)
        launch.run("attention", f"{name}{self.kind}", grid, 256, given, shared)
