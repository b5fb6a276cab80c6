"""The neuron, a layer of them at a time: weighted sums plus bias.

Under `framework.autocast` products run in 16 bits, and gradients of float32 weights come out of
them in float32: they are not rounded on their way into the optimizer's buffer.
"""

from __future__ import annotations

import math

import numpy as np

from framework.autograd import Tensor, record
from framework.autograd.arithmetic import einsum
from framework.autograd.casting import compute_copy, lowered, product_dtype, state
from framework.autograd.graph import in_dtype
from framework.functional.check import array_of, floating, optional_tensor, tensor_argument
from kernels import reductions
from kernels.arrays import Array, array_module
from kernels.linear import linear_gelu, linear_gelu_grad, linear_weight_grad
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
    half = None if state.dtype is None else product_dtype(x, weight, bias)
    if half is not None:
        a, w, b = (None if t is None else compute_copy(t, half) for t in (x, weight, bias))
    elif x.dtype == weight.dtype:
        a, w, b = x.data, weight.data, array_of(bias)
    else:
        raise TypeError(
            f"linear: input is {x.dtype.name}, weight {weight.dtype.name}; use .to(...)"
        )
    out_features = weight.shape[0]
    rows = a.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # (N, in)
    y = matmul(rows, w, transpose_b=True, bias=b)  # (N, out)
    shape = x.shape
    want_x, want_w = x.requires_grad, weight.requires_grad
    n = rows.shape[0]
    rows, w = rows if want_w else None, w if want_x else None  # what the gradients need
    # dx and dw of one tensor add up, so neither may be the place where the other is computed
    slot_of = place_of if x is not weight else lambda *_: None
    inputs = [x, weight] if bias is None else [x, weight, bias]

    def backward(dy: Array) -> list[Array | None]:
        dy = dy.reshape(n, out_features)
        dx = matmul(dy, w).reshape(shape) if want_x else None
        if want_w and bias is not None:
            gradients = [dx, *linear_weight_grad(dy, rows, slot_of(weight, dy))]
        else:
            dw = matmul(dy, rows, transpose_a=True, out=slot_of(weight, dy)) if want_w else None
            gradients = [dx, dw] if bias is None else [dx, dw, reductions.sum(dy, 0)]
        return gradients if half is None else fitted(gradients, inputs)

    return record(y.reshape(*shape[:-1], out_features), inputs, backward)


def place_of(weight: Tensor, dy: Array) -> Array | None:
    """Where the product that is a weight's gradient goes; None: to a new array of dy's dtype."""
    place = weight.free_slot()
    if dy.dtype == weight.dtype:
        return place
    if weight.dtype != np.float32:  # 16 bits of the other kind
        return None
    return array_module(dy).empty(weight.shape, np.float32) if place is None else place


def fitted(gradients: list[Array | None], inputs: list[Tensor]) -> list[Array | None]:
    """Gradients in the dtypes of what they are the gradients of."""
    pairs = zip(gradients, inputs, strict=True)
    return [None if d is None else in_dtype(d, x.dtype) for d, x in pairs]


def feed_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """linear, gelu(approximate="tanh"), linear: the MLP of a transformer block as one operation.

    x (*, in), weight1 (hidden, in), bias1 (hidden,), weight2 (out, hidden), bias2 (out,) ->
    (*, out). On CUDA bias and GELU, forward and backward, are part of the matrix products.
    """
    floating("feed_forward", x)
    inputs = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    for name, value in inputs.items():
        tensor_argument("feed_forward", name, value)
    hidden, out_features = weight1.shape[:1], weight2.shape[:1]
    expected = (*hidden, *x.shape[-1:]), hidden, (*out_features, *hidden), out_features
    if x.ndim == 0 or expected != tuple(value.shape for value in inputs.values()):
        shapes = ", ".join(f"{name} {value.shape}" for name, value in inputs.items())
        raise ValueError(
            f"feed_forward: x {x.shape}, {shapes}: expected (*, in), (hidden, in), (hidden,), "
            "(out, hidden), (out,)"
        )
    half = None if state.dtype is None else product_dtype(x, *inputs.values())
    if half is not None:
        a, w1, b1, w2, b2 = (compute_copy(t, half) for t in (x, *inputs.values()))
    elif all(value.dtype == x.dtype for value in inputs.values()):
        a, w1, b1, w2, b2 = (t.data for t in (x, *inputs.values()))
    else:
        dtypes = ", ".join(value.dtype.name for value in inputs.values())
        raise TypeError(f"feed_forward: x is {x.dtype.name}, the rest {dtypes}; use .to(...)")
    rows = a.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # (N, in)
    h, pre = linear_gelu(rows, w1, b1)  # (N, hidden)
    y = matmul(h, w2, transpose_b=True, bias=b2)  # (N, out)
    shape, want_x, tensors = x.shape, x.requires_grad, [x, *inputs.values()]
    w1 = w1 if want_x else None  # the gradients of the parameters do not need it
    # as in `linear`: gradients of one tensor add up, and need a place each
    distinct = len({id(t) for t in (x, weight1, weight2)}) == 3
    slot_of = place_of if distinct else lambda *_: None

    def backward(dy: Array) -> list[Array | None]:
        dy = dy.reshape(rows.shape[0], *out_features)
        dpre, db1 = linear_gelu_grad(dy, w2, pre)
        dw2, db2 = linear_weight_grad(dy, h, slot_of(weight2, dy))
        dw1 = matmul(dpre, rows, transpose_a=True, out=slot_of(weight1, dy))
        dx = matmul(dpre, w1).reshape(shape) if want_x else None
        gradients = [dx, dw1, db1, dw2, db2]
        return gradients if half is None else fitted(gradients, tensors)

    return record(y.reshape(*shape[:-1], *out_features), tensors, backward)


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
    if state.dtype is not None:
        x1, x2, weight, bias = lowered(x1, x2, weight, bias)
    y = einsum("...i,kij,...j->...k", x1, weight, x2)
    return y if bias is None else y + bias
