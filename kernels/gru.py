"""Gated recurrent units over whole sequences (Cho et al. 2014). See kernels/recurrent.py.

Gates r, z, n in PyTorch's order. The reset gate stands after the product of the state, as in
PyTorch and cuDNN, or before it, as in the paper.
"""

from __future__ import annotations

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


def _gru(
    sweep, products, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, reset_after
):
    check(
        "gru", x, 3, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh,
        h0=h0, lengths=lengths,
    )  # fmt: skip
    xp, G = array_module(x), weight_hh.shape[0]
    H = G // 3
    bias_n = xp.zeros(H, x.dtype) if bias_hh is None else bias_hh[2 * H :]
    bias = added(bias_ih, bias_hh)
    if reset_after and bias_hh is not None:  # this part of it is reset too: it comes later
        rest = xp.zeros(H, x.dtype) if bias_ih is None else bias_ih[2 * H :]
        bias = xp.concatenate([bias[: 2 * H], rest])
    gates = from_input(x, weight_ih, bias, products)
    return sweep(gates, weight_hh, bias_n, h0, lengths, reverse, reset_after)


def _gru_grad(
    sweep, products, dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, lengths, reverse,
    reset_after, want_dx,
):  # fmt: skip
    check(
        "gru_grad", x, 3, weight_ih=weight_ih, weight_hh=weight_hh, h0=h0, lengths=lengths, dy=dy,
        dhn=dhn, y=y, gates=gates, u=u,
    )  # fmt: skip
    xp, (T, B, H) = array_module(x), y.shape
    d, dh0 = sweep(dy, dhn, weight_hh, h0, y, gates, u, lengths, reverse, reset_after)
    dx, dw_ih, db_ih = input_grads(d[..., H:], x, weight_ih, want_dx, products)
    if reset_after:
        dw = state_weight_grad(d[..., : 3 * H], y, h0, lengths, reverse, products)  # n, r, z
        dw_hh = xp.concatenate([dw[H:], dw[:H]])
    else:
        dw_rz = state_weight_grad(d[..., H : 3 * H], y, h0, lengths, reverse, products)
        dn = d[..., 3 * H :].reshape(T * B, H)
        dw_hh = xp.concatenate([dw_rz, products.matmul(dn, u.reshape(T * B, H), True)])
    dn = d[..., :H].reshape(T * B, H).sum(0).astype(x.dtype)
    return dx, dw_ih, dw_hh, db_ih, xp.concatenate([db_ih[: 2 * H], dn]), dh0


def _gru_sweep(pre, weight_hh, bias_n, h0, lengths, reverse, reset_after):
    xp, (T, B, G) = array_module(pre), pre.shape
    H = G // 3
    h, w_rz, w_n = state(h0, pre, H), weight_hh[: 2 * H], weight_hh[2 * H :]
    gates, y, saved = xp.zeros_like(pre), *(xp.zeros((T, B, H), pre.dtype) for _ in range(2))
    for t in steps(T, reverse):
        rz = sigmoid_array(pre[t, :, : 2 * H] + xp.matmul(h, w_rz.T))
        r, z = rz[:, :H], rz[:, H:]
        if reset_after:
            u = xp.matmul(h, w_n.T) + bias_n
            n = xp.tanh(pre[t, :, 2 * H :] + r * u)
        else:
            u = r * h
            n = xp.tanh(pre[t, :, 2 * H :] + xp.matmul(u, w_n.T))
        new = (1 - z) * n + z * h
        live = live_at(t, lengths)
        h = xp.where(live, new, h)
        y[t], saved[t] = xp.where(live, new, 0), xp.where(live, u, 0)
        gates[t] = xp.where(live, xp.concatenate([rz, n], axis=1), 0)
    return y, h, gates, saved


def _gru_grad_sweep(dy, dhn, weight_hh, h0, y, gates, saved, lengths, reverse, reset_after):
    """d (T, B, 4 H): gradients of what W_n gives, then of r, z, n before their functions; dh0."""
    xp, (T, B, H) = array_module(dy), y.shape
    first, dh, d = state(h0, y, H), state(dhn, y, H), xp.zeros((T, B, 4 * H), y.dtype)
    w_rz, w_n = weight_hh[: 2 * H], weight_hh[2 * H :]
    for t in steps(T, not reverse):
        live, dnew, u = live_at(t, lengths), dy[t] + dh, saved[t]
        before = previous(y, first, t, lengths, reverse)
        r, z, n = xp.split(gates[t], 3, axis=1)
        dz = dnew * (before - n) * (z * (1 - z))
        dn = dnew * (1 - z) * (1 - n * n)
        if reset_after:
            dr, du = dn * u * (r * (1 - r)), dn * r
            dbefore = dnew * z + xp.matmul(du, w_n)
        else:
            du, dreset = dn, xp.matmul(dn, w_n)
            dr = dreset * before * (r * (1 - r))
            dbefore = dnew * z + dreset * r
        d[t] = xp.where(live, xp.concatenate([du, dr, dz, dn], axis=1), 0)
        dh = xp.where(live, dbefore + xp.matmul(d[t, :, H : 3 * H], w_rz), dh)
    return d, dh


@kernel
def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    lengths: Array | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Array, Array, Array, Array]:
    """r, z = sigmoid(W x + b + W h + b); n = tanh(W x + b + r (W h + b)); h = (1 - z) n + z h.

    Without `reset_after` n is tanh(W x + b + W (r h) + b). x (T, B, D) -> y (T, B, H), hn (B, H),
    and for the gradient the gates (T, B, 3 H) and W h + b or r h (T, B, H) of all steps.
    """
    return _gru(
        _gru_sweep, REFERENCE,
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, reset_after,
    )  # fmt: skip


@gru.cpu
def _(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, lengths=None, reverse=False,
    reset_after=True,
):  # fmt: skip
    def sweep(gates, weight_hh, bias_n, h0, lengths, reverse, reset_after):
        T, B, G = gates.shape
        H = G // 3
        hn, y, u = cpu_state(h0, gates, H), *(np.empty((T, B, H), np.float32) for _ in range(2))
        loops.gru(
            loops.groups(B), loops.pack(weight_hh[: 2 * H], True),
            loops.pack(weight_hh[2 * H :], True), np.ascontiguousarray(bias_n),
            cpu_lengths(lengths, gates), reverse, reset_after, gates, u, y, hn,
            work=gates.size * H,
        )  # fmt: skip
        return y, hn, gates, u

    args = x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, reset_after
    return _gru(sweep, TUNED, *args)


@gru.cuda(dtypes=("float32",))
def _(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, lengths=None, reverse=False,
    reset_after=True,
):  # fmt: skip
    def sweep(gates, weight_hh, bias_n, h0, lengths, reverse, reset_after):
        if not reset_after:  # which is rare: array maths, of CUDA arrays
            return _gru_sweep(gates, weight_hh, bias_n, h0, lengths, reverse, reset_after)
        xp, (T, B, G) = array_module(gates), gates.shape
        h, n = cuda_state(h0, gates, G // 3), cuda_lengths(lengths)
        y, u = (xp.empty((T, B, G // 3), np.float32) for _ in range(2))
        aux = xp.ascontiguousarray(bias_n)
        kernels.forward("Gru", gates, weight_hh, None, aux, n, reverse, 0, u, None, h, y)
        return y, h, gates, u

    args = x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, reverse, reset_after
    return _gru(sweep, TUNED, *args)


@kernel
def gru_grad(
    dy: Array,
    dhn: Array | None,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    h0: Array | None,
    y: Array,
    gates: Array,
    u: Array,
    lengths: Array | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    want_dx: bool = True,
) -> tuple[Array | None, ...]:
    """dx (None unless wanted), dW_ih, dW_hh, db_ih, db_hh, dh0; `y`, `gates` and `u` of `gru`."""
    return _gru_grad(
        _gru_grad_sweep, REFERENCE, dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, lengths,
        reverse, reset_after, want_dx,
    )  # fmt: skip


@gru_grad.cpu
def _(
    dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, lengths=None, reverse=False,
    reset_after=True, want_dx=True,
):  # fmt: skip
    def sweep(dy, dhn, weight_hh, h0, y, gates, u, lengths, reverse, reset_after):
        T, B, H = y.shape
        dh, d = cpu_state(dhn, y, H), np.empty((T, B, 4 * H), np.float32)
        back, du = (np.empty((B, H), np.float32) for _ in range(2))
        loops.gru_grad(
            loops.groups(B), np.ascontiguousarray(dy), loops.pack(weight_hh[: 2 * H], False),
            loops.pack(weight_hh[2 * H :], False), cpu_lengths(lengths, y), reverse, reset_after,
            *map(np.ascontiguousarray, (gates, u, y)), cpu_state(h0, y, H), d, dh, back, du,
            work=gates.size * H,
        )  # fmt: skip
        return d, dh

    return _gru_grad(
        sweep, TUNED, dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, lengths, reverse,
        reset_after, want_dx,
    )  # fmt: skip


@gru_grad.cuda(dtypes=("float32",))
def _(
    dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, lengths=None, reverse=False,
    reset_after=True, want_dx=True,
):  # fmt: skip
    def sweep(dy, dhn, weight_hh, h0, y, gates, u, lengths, reverse, reset_after):
        if not reset_after:
            args = dy, dhn, weight_hh, h0, y, gates, u, lengths, reverse, reset_after
            return _gru_grad_sweep(*args)
        xp, (T, B, H) = array_module(dy), y.shape
        dy, gates, u, y = map(xp.ascontiguousarray, (dy, gates, u, y))
        dh, first, n = cuda_state(dhn, y, H), cuda_state(h0, y, H), cuda_lengths(lengths)
        d = xp.empty((T, B, 4 * H), np.float32)
        # n, r, z as in d
        lines = xp.ascontiguousarray(xp.concatenate([weight_hh[2 * H :], weight_hh[: 2 * H]]))
        kernels.backward(
            "Gru", dy, gates, lines, None, None, n, reverse, 0, u, y, first, d, dh, None, None
        )
        return d, dh

    return _gru_grad(
        sweep, TUNED, dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, lengths, reverse,
        reset_after, want_dx,
    )  # fmt: skip


# Samples ------------------------------------------------------------------------------------------


def _grad_sample(draw, shape, lengths=None, reverse=False, reset_after=True):
    x, weight_ih, weight_hh, b1, b2, h0 = sample_layer(draw, shape, 3)
    options = lengths, reverse, reset_after
    y, hn, gates, u = gru.reference(x, weight_ih, weight_hh, b1, b2, h0, *options)
    dy, dhn = draw.normal(y.shape), draw.normal(hn.shape)
    return (dy, dhn, x, weight_ih, weight_hh, h0, y, gates, u, *options)


@gru.sample
def _(draw, shape):
    return tuple(sample_layer(draw, shape, 3))


@gru.sample
def reset_before_reverse_lengths(draw, shape):
    return (*sample_layer(draw, shape, 3), sample_lengths(draw, shape[0]), True, False)


@gru_grad.sample
def _(draw, shape):
    return _grad_sample(draw, shape)


@gru_grad.sample
def reset_before_reverse_lengths(draw, shape):  # noqa: F811
    return _grad_sample(draw, shape, sample_lengths(draw, shape[0]), True, False)
