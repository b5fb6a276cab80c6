"""Recurrent layers over whole sequences: what RNN, LSTM (lstm.py) and GRU (gru.py) share, and RNN.

A call is one layer in one direction. x is (T, B, D): T steps of B rows of D
features. What comes from the input
is one product for all steps; then a sweep goes through time, a product of the state and a cell at
each step; the weights' gradients are one product over all steps. `weight_ih` is (G H, D),
`weight_hh` (G H, P) with the G gates of PyTorch in its order, P the size of the output.

`lengths` (B,), integers from 1 to T: row b ends after lengths[b] steps, without being sorted. From
there its outputs are 0 and its state stays, so that `hn` holds what it was at the row's end. With
`reverse` a row is read from its own end. Nothing flows out of the steps beyond: their gradients
are 0.

Each sweep exists three times: array maths, numba (kernels/cpu/recurrent.py) and CUDA
(kernels/cuda/recurrent.cu). Everything around it is here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import Array, array_module
from kernels.lazy import Lazy
from kernels.linear import linear_weight_grad
from kernels.matmul import matmul
from kernels.registry import kernel

loops = Lazy("kernels.cpu.recurrent")
kernels = Lazy("kernels.cuda.recurrent")

NONLINEARITIES = ("tanh", "relu")

CUDA_KERNELS = ("step", "step_grad", "arrive", "sweep", "sweep_grad")
_CELLS = ("Rnn", "Lstm", "Gru")
CUDA_TYPES = {"arrive": ("float",)} | dict.fromkeys(
    ("step", "step_grad", "sweep", "sweep_grad"), _CELLS
)


class Products(NamedTuple):
    """The matrix products around a sweep: the registry's, or array maths for a reference."""

    matmul: Callable[..., Any]
    weight_grad: Callable[..., Any]


TUNED = Products(matmul, linear_weight_grad)
REFERENCE = Products(matmul.reference, linear_weight_grad.reference)


# What the three share -----------------------------------------------------------------------------


def check(name: str, x: Array, n: int, P: int | None = None, /, **arrays: Array | None) -> None:
    """ValueError naming the argument whose shape does not fit a layer of n gates; P is H unless it
    projects.
    """
    weight_ih, weight_hh = arrays["weight_ih"], arrays["weight_hh"]
    assert weight_ih is not None
    assert weight_hh is not None
    if x.ndim != 3 or not x.shape[0]:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (steps, rows, features)")
    (T, B, D), G = x.shape, weight_hh.shape[0]
    H = G // n
    P = H if P is None else P
    shapes = {
        "weight_ih": (G, D), "weight_hh": (n * H, P), "bias_ih": (G,), "bias_hh": (G,),
        "h0": (B, P), "c0": (B, H), "lengths": (B,), "dy": (T, B, P), "dhn": (B, P),
        "dcn": (B, H), "y": (T, B, P), "gates": (T, B, G), "cells": (T, B, H), "u": (T, B, H),
        "weight_hr": (P, H), "peephole": (3, H),
    }  # fmt: skip
    for what, a in arrays.items():
        if a is not None and a.shape != shapes[what]:
            raise ValueError(
                f"{name}: {what} has shape {a.shape}, expected {shapes[what]} for x {x.shape} and "
                f"weight_hh {weight_hh.shape}"
            )


def from_input(x: Array, weight_ih: Array, bias: Array | None, products: Products) -> Array:
    """x W_ih^T + bias for all steps: (T, B, G H)."""
    T, B, D = x.shape
    y = products.matmul(x.reshape(T * B, D), weight_ih, False, True, bias)
    return y.reshape(T, B, weight_ih.shape[0])


def added(a: Array | None, b: Array | None) -> Array | None:
    """The sum of two biases, of which one or both may be missing."""
    return b if a is None else a if b is None else a + b


def steps(T: int, reverse: bool) -> Iterator[int]:
    """The steps in the order in which the layer takes them."""
    return iter(range(T - 1, -1, -1) if reverse else range(T))


def live_at(t: int, lengths: Array | None) -> Array | bool:
    """Which rows have a step t: (B, 1), or all of them."""
    return True if lengths is None else (lengths > t)[:, None]


def state(given: Array | None, x: Array, columns: int) -> Array:
    """An initial state or a gradient: `given`, or zeros (B, columns)."""
    if given is not None:
        return given
    return array_module(x).zeros((x.shape[1], columns), x.dtype)


def previous(states: Array, first: Array, t: int, lengths: Array | None, reverse: bool) -> Array:
    """What the state was before step t (B, H), of `states` (T, B, H) after each and the first."""
    xp, T = array_module(states), states.shape[0]
    if not reverse:
        return states[t - 1] if t else first
    if lengths is None:
        return states[t + 1] if t < T - 1 else first
    later = states[min(t + 1, T - 1)]
    return xp.where((lengths == t + 1)[:, None], first, later)


def initial(d: Array, lengths: Array | None, reverse: bool) -> Array:
    """The rows (B, G) of d (T, B, G) at the step which sees the initial state."""
    if not reverse:
        return d[0]
    if lengths is None:
        return d[-1]
    xp = array_module(d)
    return xp.take_along_axis(d, (lengths - 1)[None, :, None], 0)[0]


def state_weight_grad(
    d: Array, y: Array, h0: Array | None, lengths: Array | None, reverse: bool, products: Products
) -> Array:
    """The gradient of W_hh: of every step d[t] (B, G) with the state before it, summed.

    Outputs beyond a row's end are 0, so that in reverse its first step adds nothing either; the
    initial state's part comes on top.
    """
    now, before = (d[:-1], y[1:]) if reverse else (d[1:], y[:-1])
    T, B, G = now.shape
    dw = products.matmul(now.reshape(T * B, G), before.reshape(T * B, y.shape[2]), True)
    if h0 is not None:
        dw += products.matmul(initial(d, lengths, reverse), h0, True)
    return dw


def input_grads(
    d: Array, x: Array, weight_ih: Array, want_dx: bool, products: Products
) -> tuple[Array | None, Array, Array]:
    """dx (None unless wanted), the gradient of W_ih, and the sum of d's rows, a bias's."""
    T, B, D = x.shape
    d = d.reshape(T * B, d.shape[2])
    dw, db = products.weight_grad(d, x.reshape(T * B, D))
    dx = products.matmul(d, weight_ih).reshape(x.shape) if want_dx else None
    return dx, dw, db


def cpu_state(given: Array | None, x: Array, columns: int) -> Array:
    """A copy of a state, for a loop to go on with."""
    if given is None:
        return np.zeros((x.shape[1], columns), np.float32)
    return np.array(given, np.float32, order="C")


def cuda_state(given: Array | None, x: Array, columns: int) -> Array:
    """A dense copy of a state, for the kernels to go on with."""
    return array_module(x).ascontiguousarray(state(given, x, columns)).copy()


def cuda_lengths(lengths: Array | None) -> Array | None:
    """Dense int64, None where there are none."""
    if lengths is None:
        return None
    return array_module(lengths).ascontiguousarray(lengths.astype(np.int64, copy=False))


def cpu_lengths(lengths: Array | None, x: Array) -> Array:
    """Contiguous int64, T for every row where there are none."""
    if lengths is None:
        return np.full(x.shape[1], x.shape[0], np.int64)
    return np.ascontiguousarray(lengths, np.int64)


# RNN ----------------------------------------------------------------------------------------------


def _rnn(sweep, products, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, kind):
    arrays = {"bias_ih": bias_ih, "bias_hh": bias_hh, "h0": h0, "lengths": lengths}
    check("rnn", x, 1, weight_ih=weight_ih, weight_hh=weight_hh, **arrays)
    if kind not in NONLINEARITIES:
        raise ValueError(f"rnn: nonlinearity={kind!r}, expected one of {NONLINEARITIES}")
    pre = from_input(x, weight_ih, added(bias_ih, bias_hh), products)
    return sweep(pre, weight_hh, h0, lengths, reverse, kind)


def _rnn_grad(
    sweep, products, dy, dhn, x, weight_ih, weight_hh, h0, y, lengths, reverse, kind, want_dx
):
    arrays = {"dy": dy, "dhn": dhn, "h0": h0, "y": y, "lengths": lengths}
    check("rnn_grad", x, 1, weight_ih=weight_ih, weight_hh=weight_hh, **arrays)
    d, dh0 = sweep(dy, dhn, weight_hh, y, lengths, reverse, kind)
    dx, dw_ih, db = input_grads(d, x, weight_ih, want_dx, products)
    return dx, dw_ih, state_weight_grad(d, y, h0, lengths, reverse, products), db, dh0


def _rnn_sweep(pre, weight_hh, h0, lengths, reverse, kind):
    xp = array_module(pre)
    y, h = xp.zeros_like(pre), state(h0, pre, pre.shape[2])
    for t in steps(pre.shape[0], reverse):
        a = pre[t] + xp.matmul(h, weight_hh.T)
        new = xp.tanh(a) if kind == "tanh" else xp.where(a < 0, 0, a).astype(a.dtype)
        live = live_at(t, lengths)
        h = xp.where(live, new, h)
        y[t] = xp.where(live, new, 0)
    return y, h


def _rnn_grad_sweep(dy, dhn, weight_hh, y, lengths, reverse, kind):
    xp = array_module(dy)
    d, dh = xp.zeros_like(y), state(dhn, y, y.shape[2])
    for t in steps(y.shape[0], not reverse):
        live, dnew = live_at(t, lengths), dy[t] + dh
        da = dnew * (1 - y[t] * y[t]) if kind == "tanh" else xp.where(y[t] > 0, dnew, 0)
        d[t] = xp.where(live, da, 0)
        dh = xp.where(live, xp.matmul(d[t], weight_hh), dh)
    return d, dh


@kernel
def rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    lengths: Array | None = None,
    reverse: bool = False,
    nonlinearity: str = "tanh",
) -> tuple[Array, Array]:
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh) at each step, or relu (Elman 1990).

    x (T, B, D), h0 (B, H) or None for zeros -> y (T, B, H), hn (B, H).
    """
    return _rnn(
        _rnn_sweep, REFERENCE,
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, nonlinearity,
    )  # fmt: skip


@rnn.cpu
def _(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, lengths=None, reverse=False,
    nonlinearity="tanh",
):  # fmt: skip
    def sweep(y, weight_hh, h0, lengths, reverse, kind):
        T, B, H = y.shape
        hn, relu = cpu_state(h0, y, H), kind == "relu"
        args = loops.pack(weight_hh, True), cpu_lengths(lengths, y), reverse, relu, y, hn
        loops.rnn(loops.groups(B), *args, work=y.size * H)
        return y, hn

    args = x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, nonlinearity
    return _rnn(sweep, TUNED, *args)


@rnn.cuda(dtypes=("float32",))
def _(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, lengths=None, reverse=False,
    nonlinearity="tanh",
):  # fmt: skip
    def sweep(y, weight_hh, h0, lengths, reverse, kind):
        h, n = cuda_state(h0, y, y.shape[2]), cuda_lengths(lengths)
        kernels.forward(
            "Rnn", y, weight_hh, None, None, n, reverse, kind == "relu", None, None, h, y
        )
        return y, h

    args = x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, nonlinearity
    return _rnn(sweep, TUNED, *args)


@kernel
def rnn_grad(
    dy: Array,
    dhn: Array | None,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    h0: Array | None,
    y: Array,
    lengths: Array | None = None,
    reverse: bool = False,
    nonlinearity: str = "tanh",
    want_dx: bool = True,
) -> tuple[Array | None, Array, Array, Array, Array]:
    """dx (None unless wanted), dW_ih, dW_hh, the gradient of either bias, dh0.

    Back through time: dh = d W_hh with d = (dy + dh) tanh'. `dhn` None is a last state that
    nothing depends on.
    """
    return _rnn_grad(
        _rnn_grad_sweep, REFERENCE,
        dy, dhn, x, weight_ih, weight_hh, h0, y, lengths, reverse, nonlinearity, want_dx,
    )  # fmt: skip


@rnn_grad.cpu
def _(
    dy, dhn, x, weight_ih, weight_hh, h0, y, lengths=None, reverse=False, nonlinearity="tanh",
    want_dx=True,
):  # fmt: skip
    def sweep(dy, dhn, weight_hh, y, lengths, reverse, kind):
        (T, B, H), relu = y.shape, kind == "relu"
        dh, back = cpu_state(dhn, y, H), np.empty((B, H), np.float32)
        d = np.empty((T, B, H), np.float32)
        packed, lengths = loops.pack(weight_hh, False), cpu_lengths(lengths, y)
        dy, y = np.ascontiguousarray(dy), np.ascontiguousarray(y)
        loops.rnn_grad(
            loops.groups(B), dy, packed, lengths, reverse, relu, y, d, dh, back, work=y.size * H
        )
        return d, dh

    args = dy, dhn, x, weight_ih, weight_hh, h0, y, lengths, reverse, nonlinearity, want_dx
    return _rnn_grad(sweep, TUNED, *args)


@rnn_grad.cuda(dtypes=("float32",))
def _(
    dy, dhn, x, weight_ih, weight_hh, h0, y, lengths=None, reverse=False, nonlinearity="tanh",
    want_dx=True,
):  # fmt: skip
    def sweep(dy, dhn, weight_hh, y, lengths, reverse, kind):
        dense = array_module(dy).ascontiguousarray
        dy, weight_hh, y, n = dense(dy), dense(weight_hh), dense(y), cuda_lengths(lengths)
        d, dh = array_module(y).empty_like(y), cuda_state(dhn, y, y.shape[2])
        kernels.backward(
            "Rnn", dy, y, weight_hh, None, None, n, reverse, kind == "relu", None, None, None, d,
            dh, None, None,
        )  # fmt: skip
        return d, dh

    args = dy, dhn, x, weight_ih, weight_hh, h0, y, lengths, reverse, nonlinearity, want_dx
    return _rnn_grad(sweep, TUNED, *args)


# Samples ------------------------------------------------------------------------------------------

#: Steps of a sample: the first, the last, and some between.
SAMPLE_STEPS = 4


def sample_layer(draw: Any, shape: tuple[int, ...], gates: int, P: int | None = None) -> list[Any]:
    """x, weights, biases and h0 of a layer for (rows, columns): weights of PyTorch's size, so that
    nothing saturates.
    """
    B, columns = shape
    D, H = columns // 16 + 2, columns // 8 + 1
    P = H if P is None else P
    scale, G = H**-0.5, gates * H
    weights = [draw.normal(G, n, scale=scale) for n in (D, P)]
    biases = [draw.normal(G, scale=scale) for _ in range(2)]
    return [draw.normal(SAMPLE_STEPS, B, D), *weights, *biases, draw.normal(B, P)]


def sample_lengths(draw: Any, B: int) -> np.ndarray:
    """Lengths from 1 to the number of steps."""
    return 1 + draw.integers(SAMPLE_STEPS, B)


@rnn.sample
def _(draw, shape):
    return tuple(sample_layer(draw, shape, 1))


@rnn.sample
def relu_reverse_lengths(draw, shape):
    layer = sample_layer(draw, shape, 1)
    return (*layer, sample_lengths(draw, shape[0]), True, "relu")


def _grad_sample(draw, shape, lengths=None, reverse=False, kind="tanh"):
    x, weight_ih, weight_hh, b1, b2, h0 = sample_layer(draw, shape, 1)
    y, hn = rnn.reference(x, weight_ih, weight_hh, b1, b2, h0, lengths, reverse, kind)
    dy, dhn = draw.normal(y.shape), draw.normal(hn.shape)
    return dy, dhn, x, weight_ih, weight_hh, h0, y, lengths, reverse, kind


@rnn_grad.sample
def _(draw, shape):
    return _grad_sample(draw, shape)


@rnn_grad.sample
def relu_reverse_lengths(draw, shape):  # noqa: F811
    return _grad_sample(draw, shape, sample_lengths(draw, shape[0]), True, "relu")
