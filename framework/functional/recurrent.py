"""Recurrent layers: one layer in one direction over a whole sequence; the formulas are in
kernels/recurrent.py, lstm.py and gru.py.

x is (T, B, D), steps first. `lengths`: how many steps each of the B rows has (a list, an array or a
tensor); outputs beyond are 0, and the last state is that at the row's end. Lengths on the host are
checked; those on a CUDA device are not looked at, for that would wait for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.autograd import Tensor
from framework.autograd.casting import lowered
from framework.autograd.several import record_several
from framework.backend.device import to_device
from framework.functional.check import array_of, floating, optional_tensor, tensor_argument
from kernels import gru as gru_kernels, lstm as lstm_kernels, recurrent as rnn_kernels
from kernels.arrays import Array, is_array
from kernels.checking import looked_at


def _operands(
    function: str, x: Tensor, weights: dict[str, Tensor], others: dict[str, Tensor | None]
) -> tuple[list[Any], list[Any]]:
    """The tensors, in autocast's dtype, and their arrays."""
    floating(function, x)
    for name, value in weights.items():
        tensor_argument(function, name, value)
    for name, value in others.items():
        optional_tensor(function, name, value)
    if x.ndim != 3:
        raise ValueError(f"{function}: input has shape {x.shape}, expected (steps, rows, features)")
    tensors = list(lowered(x, *weights.values(), *others.values()))
    for name, t in zip(("input", *weights, *others), tensors, strict=True):
        if t is not None and t.dtype != tensors[0].dtype:
            raise TypeError(
                f"{function}: input is {tensors[0].dtype.name}, {name} {t.dtype.name}; use .to(...)"
            )
    return tensors, [array_of(t) for t in tensors]


def sequence_lengths(function: str, lengths: Any, x: Tensor, steps: int, rows: int) -> Any:
    """`lengths` as an int64 array (rows,) on the device of x, checked to be from 1 to `steps`; if
    they are on CUDA, within `check_indices` only.
    """
    if lengths is None:
        return None
    a: Array = lengths.data if isinstance(lengths, Tensor) else lengths
    a = a if is_array(a) else np.asarray(a)
    if a.shape != (rows,) or a.dtype.kind not in "iu":
        raise ValueError(
            f"{function}: lengths are {a.dtype.name} of shape {a.shape}, expected an integer for "
            f"each of the {rows} rows"
        )
    seen = looked_at(a)
    if seen is not None and seen.size:
        wrong = np.flatnonzero((seen < 1) | (seen > steps))
        if wrong.size:
            shown = ", ".join(f"lengths[{i}]={seen[i]}" for i in wrong[:5])
            more = f" and {wrong.size - 5} more" if wrong.size > 5 else ""
            raise ValueError(
                f"{function}: {shown}{more}: expected 1 to {steps}, the steps of the input"
            )
    return to_device(a.astype(np.int64, copy=False), x.device)


def _chosen(gradients: list[Any], there: list[bool]) -> list[Any]:
    """Those of the tensors that are there."""
    return [g for g, is_there in zip(gradients, there, strict=True) if is_there]


def rnn(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    h0: Tensor | None = None,
    lengths: Any = None,
    reverse: bool = False,
    nonlinearity: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """Outputs (T, B, H) and last state (B, H) of a plain recurrent layer, tanh or relu.

    x (T, B, D), weight_ih (H, D), weight_hh (H, H), biases (H,), h0 (B, H), zeros if None.
    """
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh}
    others = {"bias_ih": bias_ih, "bias_hh": bias_hh, "h0": h0}
    tensors, (a, wi, wh, bi, bh, first) = _operands("rnn", x, weights, others)
    n = sequence_lengths("rnn", lengths, x, *x.shape[:2])
    y, hn = rnn_kernels.rnn(a, wi, wh, bi, bh, first, n, reverse, nonlinearity)
    there, want_dx = [t is not None for t in tensors], x.requires_grad

    def backward(dy: Array, dhn: Array | None) -> list[Any]:
        args = dy, dhn, a, wi, wh, first, y, n, reverse, nonlinearity, want_dx
        dx, dwi, dwh, db, dh0 = rnn_kernels.rnn_grad(*args)
        return _chosen([dx, dwi, dwh, db, db, dh0], there)

    return record_several((y, hn), _chosen(tensors, there), backward)  # type: ignore[return-value]


def lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    lengths: Any = None,
    reverse: bool = False,
    weight_hr: Tensor | None = None,
    peephole: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (T, B, P), last output (B, P) and last cell (B, H) of an LSTM layer.

    x (T, B, D), weight_ih (4 H, D), weight_hh (4 H, P), biases (4 H,), h0 (B, P), c0 (B, H), zeros
    if None. `weight_hr` (P, H) projects the outputs, otherwise P = H; `peephole` (3, H) lets the
    gates i, f and o see the cell.
    """
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh}
    others = {
        "bias_ih": bias_ih, "bias_hh": bias_hh, "h0": h0, "c0": c0, "weight_hr": weight_hr,
        "peephole": peephole,
    }  # fmt: skip
    tensors, (a, wi, wh, bi, bh, h, c, wr, p) = _operands("lstm", x, weights, others)
    n = sequence_lengths("lstm", lengths, x, *x.shape[:2])
    y, hn, cn, gates, cells = lstm_kernels.lstm(a, wi, wh, bi, bh, h, c, n, reverse, wr, p)
    there, want_dx = [t is not None for t in tensors], x.requires_grad

    def backward(dy: Array, dhn: Array | None, dcn: Array | None) -> list[Any]:
        args = dy, dhn, dcn, a, wi, wh, h, c, y, gates, cells, n, reverse, wr, p, want_dx
        dx, dwi, dwh, db, dh0, dc0, dwr, dp = lstm_kernels.lstm_grad(*args)
        return _chosen([dx, dwi, dwh, db, db, dh0, dc0, dwr, dp], there)

    results = y, hn, cn
    return record_several(results, _chosen(tensors, there), backward)  # type: ignore[return-value]


def gru(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    h0: Tensor | None = None,
    lengths: Any = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """Outputs (T, B, H) and last state (B, H) of a GRU layer.

    x (T, B, D), weight_ih (3 H, D), weight_hh (3 H, H), biases (3 H,), h0 (B, H), zeros if None.
    `reset_after`: the reset gate multiplies W h + b, as in PyTorch; otherwise h.
    """
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh}
    others = {"bias_ih": bias_ih, "bias_hh": bias_hh, "h0": h0}
    tensors, (a, wi, wh, bi, bh, first) = _operands("gru", x, weights, others)
    n = sequence_lengths("gru", lengths, x, *x.shape[:2])
    y, hn, gates, u = gru_kernels.gru(a, wi, wh, bi, bh, first, n, reverse, reset_after)
    there, want_dx = [t is not None for t in tensors], x.requires_grad

    def backward(dy: Array, dhn: Array | None) -> list[Any]:
        args = dy, dhn, a, wi, wh, first, y, gates, u, n, reverse, reset_after, want_dx
        return _chosen(list(gru_kernels.gru_grad(*args)), there)

    return record_several((y, hn), _chosen(tensors, there), backward)  # type: ignore[return-value]
