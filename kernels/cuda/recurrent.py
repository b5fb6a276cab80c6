"""The sweeps of RNN, LSTM and GRU on CUDA: one launch for all steps where the recurrent weights fit
on chip, else a product and one or two kernels for each step; see recurrent.cu. Both can be captured
into a graph.

`cell` is the name of a cell in recurrent.cu. All arrays are dense float32; states are overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.cuda import launch
from kernels.matmul import matmul
from kernels.recurrent import steps

NULL = np.uintp(0)

#: Rows of the batch that a block of a persistent kernel takes (ROWS in recurrent.cu).
ROWS = 4

#: Most threads of such a block (THREADS there): up to 128 registers each.
THREADS = 512


@cache
def shared_memory(device: int) -> int:
    """Bytes of shared memory that one block may ask for."""
    import cupy

    return int(cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


def held_lines(lines: int, width: int, rest: int, device: int) -> int:
    """How many of `lines` of `width` weights fit on chip beside `rest` floats; 0 if less than half
    would: reading the others from L2 at every step would take longer than a product.
    """
    held = min(lines, max(0, shared_memory(device) // 4 - rest) // width)
    return held if 2 * held >= lines else 0


def _or_null(a: Array | None) -> Any:
    return NULL if a is None else a


def _launch(name: str, n: int, like: Array, args: Sequence[Any]) -> None:
    launch.run("recurrent", name, launch.grid_stride(4 * n, like), launch.BLOCK, args)


def _launch_sweep(name: str, B: int, columns: int, floats: int, args: Sequence[Any]) -> None:
    threads = min(THREADS, -(-columns // 32) * 32)
    launch.run("recurrent", name, -(-B // ROWS), threads, args, shared=4 * floats)


def arrive(a: Array, b: Array | None, lengths: Array | None, t: int, state: Any, out: Any) -> None:
    """state = a + b for rows that are live at step t, `out` the same or 0; either may be None."""
    sizes = np.int64(a.shape[0]), np.int64(a.shape[1]), np.int64(t)
    pointers = a, _or_null(b), _or_null(lengths), _or_null(state), _or_null(out)
    _launch("arrive<float>", a.size, a, [*pointers, *sizes])


def forward(
    cell: str, gates: Array, weight_hh: Array, weight_hr: Array | None, aux: Array | None,
    lengths: Array | None, reverse: bool, kind: int, saved: Array | None, c: Array | None,
    h: Array, y: Array,
) -> None:  # fmt: skip
    """All steps: gates' inputs in `gates` become gates, h and c the last states."""
    xp, (T, B, N) = array_module(y), gates.shape
    H = N // {"Rnn": 1, "Lstm": 4, "Gru": 3}[cell]
    if not B:
        return
    rest = ROWS * (2 * H + N)
    held = held_lines(H, N, rest, y.device.id) if weight_hr is None else 0
    if held:
        weights = xp.ascontiguousarray(weight_hh.T)  # (H, N)
        pointers = gates, weights, _or_null(aux), _or_null(lengths), _or_null(saved), _or_null(c)
        sizes = [np.int64(n) for n in (T, B, H, held)]
        args = [*pointers, h, y, *sizes, np.int32(reverse), np.int32(kind)]
        _launch_sweep(f"sweep<{cell}>", B, N, held * N + rest, args)
        return
    product = xp.empty((B, N), np.float32)
    m, projected = (None, None) if weight_hr is None else (xp.empty_like(c), xp.empty_like(h))
    for t in steps(T, reverse):
        matmul(h, weight_hh, False, True, None, product)
        outputs = (NULL, NULL, m) if m is not None else (h, y[t], NULL)
        kept = NULL if saved is None else saved[t]
        pointers = gates[t], product, _or_null(aux), _or_null(lengths), kept, _or_null(c)
        sizes = np.int64(B), np.int64(H), np.int64(t), np.int32(kind)
        _launch(f"step<{cell}>", B * H, y, [*pointers, *outputs, *sizes])
        if m is not None:
            matmul(m, weight_hr, False, True, None, projected)
            arrive(projected, None, lengths, t, h, y[t])


def backward(
    cell: str, dy: Array, gates: Array, weights: Array, weight_hr: Array | None,
    aux: Array | None, lengths: Array | None, reverse: bool, kind: int, saved: Array | None,
    states: Array | None, first: Array | None, d: Array, dh: Array, dc: Array | None,
    dhidden: Array | None,
) -> None:  # fmt: skip
    """All steps back: d (T, B, grads H); dh and dc become the gradients of the first states.

    `weights` (products H, P) is W_hh with its lines in the order of d. `states` (T, B, H) after
    each step and `first` before all are what a cell asks for, None for RNN.
    """
    xp, (T, B, _), (N, P) = array_module(d), d.shape, weights.shape
    H = N // {"Rnn": 1, "Lstm": 4, "Gru": 3}[cell]
    if not B:
        return
    rest = ROWS * (2 * H + 2 * N)
    held = held_lines(N, H, rest, d.device.id) if weight_hr is None else 0
    if held:
        pointers = dy, gates, weights, *map(_or_null, (aux, lengths, saved, states, first))
        sizes = [np.int64(n) for n in (T, B, H, held)]
        args = [*pointers, d, dh, _or_null(dc), *sizes, np.int32(reverse), np.int32(kind)]
        _launch_sweep(f"sweep_grad<{cell}>", B, N, held * H + rest, args)
        return
    back = xp.empty((B, P), np.float32)
    straight = xp.empty((B, H), np.float32) if cell == "Gru" else None
    dm = None if weight_hr is None else xp.empty((B, H), np.float32)
    for t in steps(T, not reverse):
        earlier = min(max(t + 1 if reverse else t - 1, 0), T - 1)
        arriving: tuple[Any, Any] = (dy[t], dh)
        if dm is not None:
            assert dhidden is not None
            arrive(dy[t], dh, lengths, t, None, dhidden[t])
            arriving = matmul(dhidden[t], weight_hr, False, False, None, dm), NULL
        kept, before = (NULL if a is None else a[k] for a, k in ((saved, t), (states, earlier)))
        pointers = gates[t], before, _or_null(first), kept, _or_null(aux), _or_null(lengths)
        sizes = [np.int64(n) for n in (B, H, T, t)]
        args = [*arriving, *pointers, d[t], _or_null(dc), _or_null(straight), *sizes]
        _launch(f"step_grad<{cell}>", B * H, d, [*args, np.int32(reverse), np.int32(kind)])
        matmul(d[t][:, :N], weights, False, False, None, back)
        arrive(back, straight, lengths, t, dh, None)
