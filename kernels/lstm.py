"""Long short-term memory over whole sequences (Hochreiter and Schmidhuber 1997, with the forget
gate of Gers, Schmidhuber and Cummins 2000), optionally with peepholes (Gers and Schmidhuber 2000)
and a projection of the output (Sak, Senior and Beaufays 2014). See kernels/recurrent.py.

Gates i, f, g, o in PyTorch's order; H the size of the cell, P of the output, which is H but for a
projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.recurrent import (
    REFERENCE,
    TUNED,
    added,
    check,
    cpu_lengths,
    cpu_state,
    cuda_lengths,
    cuda_state,
    from_input,
    input_grads,
    kernels,
    live_at,
    loops,
    previous,
    sample_layer,
    sample_lengths,
    state,
    state_weight_grad,
    steps,
)
from kernels.registry import kernel
from kernels.special import sigmoid_array


def _lstm(
    sweep, products, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, reverse,
    weight_hr, peephole,
):  # fmt: skip
    check(
        "lstm", x, 4, _output_size(weight_hr), weight_ih=weight_ih, weight_hh=weight_hh,
        bias_ih=bias_ih, bias_hh=bias_hh, h0=h0, c0=c0, lengths=lengths, weight_hr=weight_hr,
        peephole=peephole,
    )  # fmt: skip
    gates = from_input(x, weight_ih, added(bias_ih, bias_hh), products)
    return sweep(gates, weight_hh, h0, c0, lengths, reverse, weight_hr, peephole)


def _output_size(weight_hr: Array | None) -> int | None:
    return None if weight_hr is None else weight_hr.shape[0]


def _lstm_grad(
    sweep, products, dy, dhn, dcn, x, weight_ih, weight_hh, h0, c0, y, gates, cells, lengths,
    reverse, weight_hr, peephole, want_dx,
):  # fmt: skip
    check(
        "lstm_grad", x, 4, _output_size(weight_hr), weight_ih=weight_ih, weight_hh=weight_hh,
        h0=h0, c0=c0, lengths=lengths, weight_hr=weight_hr, peephole=peephole, dy=dy, dhn=dhn,
        dcn=dcn, y=y, gates=gates, cells=cells,
    )  # fmt: skip
    args = dy, dhn, dcn, weight_hh, c0, gates, cells, lengths, reverse, weight_hr, peephole
    d, dhidden, dh0, dc0 = sweep(*args)
    dx, dw_ih, db = input_grads(d, x, weight_ih, want_dx, products)
    dw_hh = state_weight_grad(d, y, h0, lengths, reverse, products)
    H, xp = cells.shape[2], array_module(x)
    dw_hr = dpeephole = None
    if weight_hr is not None:
        m = (gates[..., 3 * H :] * xp.tanh(cells)).reshape(-1, H)  # (T B, H)
        dw_hr = products.matmul(dhidden.reshape(-1, dy.shape[2]), m, True)
    if peephole is not None:
        dpeephole = _peephole_grad(d, c0, cells, lengths, reverse)
    return dx, dw_ih, dw_hh, db, dh0, dc0, dw_hr, dpeephole


def _peephole_grad(d, c0, cells, lengths, reverse):
    """Of i and f with the cell before each step, of o with the cell after it."""
    xp, (T, _, H) = array_module(d), cells.shape
    first = state(c0, cells, H)
    before = xp.stack([previous(cells, first, t, lengths, reverse) for t in range(T)])
    parts = zip(
        (d[..., :H], d[..., H : 2 * H], d[..., 3 * H :]), (before, before, cells), strict=True
    )
    return xp.stack([(a * b).reshape(-1, H).sum(0) for a, b in parts]).astype(d.dtype)


def _lstm_sweep(pre, weight_hh, h0, c0, lengths, reverse, weight_hr, peephole):
    xp, (T, B, _), P = array_module(pre), pre.shape, weight_hh.shape[1]
    H = pre.shape[2] // 4
    h, c = state(h0, pre, P), state(c0, pre, H)
    gates, cells = xp.zeros_like(pre), xp.zeros((T, B, H), pre.dtype)
    y = xp.zeros((T, B, P), pre.dtype)
    for t in steps(T, reverse):
        i, f, g, o = xp.split(pre[t] + xp.matmul(h, weight_hh.T), 4, axis=1)
        if peephole is not None:
            i, f = i + peephole[0] * c, f + peephole[1] * c
        i, f, g = sigmoid_array(i), sigmoid_array(f), xp.tanh(g)
        new_c = f * c + i * g
        o = sigmoid_array(o if peephole is None else o + peephole[2] * new_c)
        new_h = o * xp.tanh(new_c)
        if weight_hr is not None:
            new_h = xp.matmul(new_h, weight_hr.T)
        live = live_at(t, lengths)
        h, c = xp.where(live, new_h, h), xp.where(live, new_c, c)
        y[t], cells[t] = xp.where(live, new_h, 0), xp.where(live, new_c, 0)
        gates[t] = xp.where(live, xp.concatenate([i, f, g, o], axis=1), 0)
    return y, h, c, gates, cells


def _lstm_grad_sweep(
    dy, dhn, dcn, weight_hh, c0, gates, cells, lengths, reverse, weight_hr, peephole
):
    xp, (T, _, H), P = array_module(dy), cells.shape, dy.shape[2]
    first, dh, dc = state(c0, dy, H), state(dhn, dy, P), state(dcn, dy, H)
    d, dhidden = xp.zeros_like(gates), xp.zeros_like(dy)
    for t in steps(T, not reverse):
        live = live_at(t, lengths)
        before, s = previous(cells, first, t, lengths, reverse), xp.tanh(cells[t])
        i, f, g, o = xp.split(gates[t], 4, axis=1)
        dhidden[t] = xp.where(live, dy[t] + dh, 0)
        dm = dhidden[t] if weight_hr is None else xp.matmul(dhidden[t], weight_hr)
        do = dm * s * (o * (1 - o))
        dnew = dc + dm * o * (1 - s * s)
        if peephole is not None:
            dnew = dnew + do * peephole[2]
        di, df, dg = dnew * g * (i * (1 - i)), dnew * before * (f * (1 - f)), dnew * i * (1 - g * g)
        dbefore = dnew * f
        if peephole is not None:
            dbefore = dbefore + di * peephole[0] + df * peephole[1]
        d[t] = xp.where(live, xp.concatenate([di, df, dg, do], axis=1), 0)
        dh = xp.where(live, xp.matmul(d[t], weight_hh), dh)
        dc = xp.where(live, dbefore, dc)
    return d, dhidden, dh, dc


@kernel
def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    lengths: Array | None = None,
    reverse: bool = False,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """i, f, o = sigmoid, g = tanh of W_ih x + b_ih + W_hh h + b_hh; c = f c + i g; h = o tanh(c).

    With `weight_hr` (P, H) h is W_hr (o tanh(c)); with `peephole` (3, H) the gates i and f see the
    cell before the step, o the one after it, each times its row. x (T, B, D) -> y (T, B, P), hn
    (B, P), cn (B, H), and for the gradient the gates (T, B, 4 H) and cells (T, B, H) of all steps.
    """
    return _lstm(
        _lstm_sweep, REFERENCE, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, reverse,
        weight_hr, peephole,
    )  # fmt: skip


def _cpu_options(weight_hr, peephole, transposed):
    """Packed weight_hr and peephole, empty where a layer goes without."""
    packed = np.empty((0, 0), np.float32)
    if weight_hr is not None:
        packed = loops.pack(weight_hr, transposed)
    none = np.empty((0, 0), np.float32)
    return packed, none if peephole is None else np.ascontiguousarray(peephole)


@lstm.cpu
def _(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, c0=None, lengths=None,
    reverse=False, weight_hr=None, peephole=None,
):  # fmt: skip
    def sweep(gates, weight_hh, h0, c0, lengths, reverse, weight_hr, peephole):
        (T, B, G), P = gates.shape, weight_hh.shape[1]
        H = G // 4
        hn, cn = cpu_state(h0, gates, P), cpu_state(c0, gates, H)
        cells, y = np.empty((T, B, H), np.float32), np.empty((T, B, P), np.float32)
        loops.lstm(
            loops.groups(B), loops.pack(weight_hh, True), *_cpu_options(weight_hr, peephole, True),
            cpu_lengths(lengths, gates), reverse, gates, cells, y, hn, cn, np.empty_like(cn),
            work=gates.size * P,
        )  # fmt: skip
        return y, hn, cn, gates, cells

    return _lstm(
        sweep, TUNED, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, reverse,
        weight_hr, peephole,
    )  # fmt: skip


@lstm.cuda(dtypes=("float32",))
def _(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, c0=None, lengths=None,
    reverse=False, weight_hr=None, peephole=None,
):  # fmt: skip
    def sweep(gates, weight_hh, h0, c0, lengths, reverse, weight_hr, peephole):
        xp, (T, B, G), P = array_module(gates), gates.shape, weight_hh.shape[1]
        h, c = cuda_state(h0, gates, P), cuda_state(c0, gates, G // 4)
        y, cells = (xp.empty((T, B, n), np.float32) for n in (P, G // 4))
        aux = None if peephole is None else xp.ascontiguousarray(peephole)
        n = cuda_lengths(lengths)
        kernels.forward("Lstm", gates, weight_hh, weight_hr, aux, n, reverse, 0, cells, c, h, y)
        return y, h, c, gates, cells

    return _lstm(
        sweep, TUNED, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, reverse,
        weight_hr, peephole,
    )  # fmt: skip


@kernel
def lstm_grad(
    dy: Array,
    dhn: Array | None,
    dcn: Array | None,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    h0: Array | None,
    c0: Array | None,
    y: Array,
    gates: Array,
    cells: Array,
    lengths: Array | None = None,
    reverse: bool = False,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
    want_dx: bool = True,
) -> tuple[Array | None, ...]:
    """dx (None unless wanted), dW_ih, dW_hh, the gradient of either bias, dh0, dc0, dW_hr and
    dpeephole (None for a layer without them).

    `dhn` and `dcn` None: last states that nothing depends on. The tanh of the cells is computed
    anew: a quarter of what would be kept.
    """
    return _lstm_grad(
        _lstm_grad_sweep, REFERENCE, dy, dhn, dcn, x, weight_ih, weight_hh, h0, c0, y, gates, cells,
        lengths, reverse, weight_hr, peephole, want_dx,
    )  # fmt: skip


@lstm_grad.cpu
def _(
    dy, dhn, dcn, x, weight_ih, weight_hh, h0, c0, y, gates, cells, lengths=None, reverse=False,
    weight_hr=None, peephole=None, want_dx=True,
):  # fmt: skip
    def sweep(dy, dhn, dcn, weight_hh, c0, gates, cells, lengths, reverse, weight_hr, peephole):
        (T, B, H), P = cells.shape, dy.shape[2]
        dh, dc = cpu_state(dhn, dy, P), cpu_state(dcn, dy, H)
        d = np.empty((T, B, 4 * H), np.float32)
        dhidden = np.empty((0 if weight_hr is None else T, B, P), np.float32)
        dm, tanhs, back = (np.empty((B, n), np.float32) for n in (H, H, P))
        loops.lstm_grad(
            loops.groups(B), np.ascontiguousarray(dy), loops.pack(weight_hh, False),
            *_cpu_options(weight_hr, peephole, False), cpu_lengths(lengths, dy), reverse,
            np.ascontiguousarray(gates), np.ascontiguousarray(cells), cpu_state(c0, dy, H),
            d, dhidden, dh, dc, dm, back, tanhs, work=gates.size * P,
        )  # fmt: skip
        return d, dhidden, dh, dc

    return _lstm_grad(
        sweep, TUNED, dy, dhn, dcn, x, weight_ih, weight_hh, h0, c0, y, gates, cells, lengths,
        reverse, weight_hr, peephole, want_dx,
    )  # fmt: skip


@lstm_grad.cuda(dtypes=("float32",))
def _(
    dy, dhn, dcn, x, weight_ih, weight_hh, h0, c0, y, gates, cells, lengths=None, reverse=False,
    weight_hr=None, peephole=None, want_dx=True,
):  # fmt: skip
    def sweep(dy, dhn, dcn, weight_hh, c0, gates, cells, lengths, reverse, weight_hr, peephole):
        xp, (_, _, H), P = array_module(dy), cells.shape, dy.shape[2]
        dense, n = xp.ascontiguousarray, cuda_lengths(lengths)
        dy, weight_hh, gates, cells = map(dense, (dy, weight_hh, gates, cells))
        dh, dc, first = cuda_state(dhn, dy, P), cuda_state(dcn, dy, H), cuda_state(c0, dy, H)
        d, dhidden = xp.empty_like(gates), None if weight_hr is None else xp.empty_like(dy)
        aux = None if peephole is None else dense(peephole)
        kernels.backward(
            "Lstm", dy, gates, weight_hh, weight_hr, aux, n, reverse, 0, cells, cells, first, d,
            dh, dc, dhidden,
        )  # fmt: skip
        return d, dhidden, dh, dc

    return _lstm_grad(
        sweep, TUNED, dy, dhn, dcn, x, weight_ih, weight_hh, h0, c0, y, gates, cells, lengths,
        reverse, weight_hr, peephole, want_dx,
    )  # fmt: skip


# Samples ------------------------------------------------------------------------------------------


def _layer(draw: Any, shape: tuple[int, ...], options: bool) -> tuple[list[Any], list[Any]]:
    """The arguments up to c0, and those from lengths on, all there are if `options`."""
    (B, columns), H = shape, shape[1] // 8 + 1
    P = columns // 12 + 1 if options else H
    layer = [*sample_layer(draw, shape, 4, P), draw.normal(B, H)]
    scale = H**-0.5
    more = [sample_lengths(draw, B), True, draw.normal(P, H, scale=scale), draw.normal(3, H)]
    return layer, more if options else [None, False, None, None]


def _grad_sample(draw, shape, options):
    (x, weight_ih, weight_hh, b1, b2, h0, c0), more = _layer(draw, shape, options)
    y, hn, cn, gates, cells = lstm.reference(x, weight_ih, weight_hh, b1, b2, h0, c0, *more)
    d = draw.normal(y.shape), draw.normal(hn.shape), draw.normal(cn.shape)
    return (*d, x, weight_ih, weight_hh, h0, c0, y, gates, cells, *more)


@lstm.sample
def _(draw, shape):
    layer, more = _layer(draw, shape, False)
    return (*layer, *more)


@lstm.sample
def projected_peepholes_reverse_lengths(draw, shape):
    layer, more = _layer(draw, shape, True)
    return (*layer, *more)


@lstm_grad.sample
def _(draw, shape):
    return _grad_sample(draw, shape, False)


@lstm_grad.sample
def projected_peepholes_reverse_lengths(draw, shape):  # noqa: F811
    return _grad_sample(draw, shape, True)
