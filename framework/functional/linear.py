"""The neuron, a layer of them at a time: weighted sums plus bias."""

from __future__ import annotations

import math

from framework.autograd import Tensor, record
from framework.autograd.arithmetic import einsum
from framework.functional.check import array_of, floating, optional_tensor, tensor_argument
from kernels import reductions
from kernels.arrays import Array
from kernels.matmul import matmul


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b: x (*, in), weight (out, in), bias (out,) -> (*, out)."""
    floating("linear", x)
    tensor_argument("linear", "weight", weight)
    optional_tensor("linear", "bias", bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"linear: bias has shape {bias.shape}, the weight {weight.shape} needs "
            f"{weight.shape[:1]}"
        )
    if x.ndim == 0 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: the input has {x.shape[-1] if x.ndim else 'no'} features (shape {x.shape}), "
            f"the weight expects {weight.shape[-1]} (shape {weight.shape})"
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"linear: input is {x.dtype.name}, weight {weight.dtype.name}; use .to(...)"
        )
    w, out_features = weight.data, weight.shape[0]
    rows = x.data.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # (N, in)
    y = matmul(rows, w, transpose_b=True, bias=array_of(bias))  # (N, out)
    shape = x.shape
    want_x, want_w = x.requires_grad, weight.requires_grad
    # dx and dw of one tensor add up, so neither may be the place where the other is computed
    slot_of = Tensor.free_slot if x is not weight else lambda _: None
    inputs = [x, weight] if bias is None else [x, weight, bias]

    def backward(dy: Array) -> list[Array | None]:
        dy = dy.reshape(rows.shape[0], out_features)
        dx = matmul(dy, w).reshape(shape) if want_x else None
        dw = matmul(dy, rows, transpose_a=True, out=slot_of(weight)) if want_w else None
        return [dx, dw] if bias is None else [dx, dw, reductions.sum(dy, 0)]

    return record(y.reshape(*shape[:-1], out_features), inputs, backward)


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_k = x1^T W_k x2 + b_k: x1 (*, in1), x2 (*, in2), weight (out, in1, in2), bias (out,) -> (*,
    out).
    """
    floating("bilinear", x1)
    tensor_argument("bilinear", "x2", x2)
    tensor_argument("bilinear", "weight", weight)
    optional_tensor("bilinear", "bias", bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bilinear: bias has shape {bias.shape}, the weight {weight.shape} needs "
            f"{weight.shape[:1]}"
        )
    if x1.shape[:-1] != x2.shape[:-1] or weight.shape[1:] != (x1.shape[-1], x2.shape[-1]):
        raise ValueError(
            f"bilinear: inputs {x1.shape} and {x2.shape} do not fit the weight {weight.shape}, "
            "which is (out, in1, in2)"
        )
    y = einsum("...i,kij,...j->...k", x1, weight, x2)
    return y if bias is None else y + bias
