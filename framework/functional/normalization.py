"""Normalisation: zero mean and unit variance over a batch, a layer or a group of channels.

Under `framework.autocast` layer, RMS, group and instance norm give float32. Batch norm, which
stands between convolutions, keeps its input's dtype; its statistics are float32 either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from framework.autograd import Tensor, record
from framework.autograd.casting import state, widened
from framework.functional.activations import relu
from framework.functional.check import (
    array_of,
    at_least_zero,
    floating,
    optional_tensor,
    tensor_argument,
)
from kernels import norm_relu, normalization as kernels, residual_norm as residual_kernels
from kernels.arrays import Array, is_floating
from kernels.pooling import avg_pool, avg_pool_grad
from kernels.windows import neighbours


def _affine(
    name: str, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> list[Tensor]:
    """The affine parameters that are there, checked to have `shape`."""
    for what, p in (("weight", weight), ("bias", bias)):
        if optional_tensor(name, what, p) is not None and p.shape != shape:
            raise ValueError(f"{name}: {what} has shape {p.shape}, expected {shape}")
    return [p for p in (weight, bias) if p is not None]


def _given(gradients: tuple[Array, ...], weight: Tensor | None, bias: Tensor | None) -> list[Array]:
    """(dx, dweight, dbias) without those of absent parameters."""
    dx, dw, db = gradients
    return [dx, *([] if weight is None else [dw]), *([] if bias is None else [db])]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalise each channel (axis 1 of x: (N, C) or (N, C, *)) over all other axes (Ioffe &
    Szegedy 2015); then add `residual`, and with `activation` "relu" that, in training in one
    kernel.

    In training by the batch's own mean and (biased) variance, moving the running statistics in
    place by `momentum` (the running variance unbiased, as in PyTorch); otherwise by the running
    statistics.
    """
    floating("batch_norm", x)
    if x.ndim < 2:
        raise ValueError(f"batch_norm: input has shape {x.shape}, expected (N, C) or (N, C, ...)")
    at_least_zero("batch_norm", "eps", eps)
    _check_behind(x, activation, residual)
    inputs = [x, *_affine("batch_norm", weight, bias, (x.shape[1],))]
    for what, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        _check_running(what, statistic, x.shape[1])
    a, w, b = x.data, array_of(weight), array_of(bias)
    count = x.size // max(1, x.shape[1])
    if training or running_mean is None or running_var is None:
        if count < 2 and training:
            raise ValueError(
                f"batch_norm: one value per channel in training (input shape {x.shape}) has no "
                "variance; use a batch of at least 2, or eval()"
            )
        fused = activation == "relu"
        if fused:
            y, mean, var = norm_relu.batch_norm_relu(a, w, b, array_of(residual), eps)
        else:
            y, mean, var = kernels.batch_norm(a, w, b, eps)
        if training and running_mean is not None and running_var is not None:
            _move(running_mean, mean, momentum)
            _move(running_var, var * (count / (count - 1)), momentum)
        if fused:
            return _record_fused(y, inputs, residual, (a, w, mean, var, eps), weight, bias)
        out = record(
            y,
            inputs,
            lambda dy: _given(kernels.batch_norm_grad(dy, a, w, mean, var, eps), weight, bias),
        )
        return out if residual is None else out + residual
    mean, var = running_mean.data, running_var.data
    out = record(
        kernels.batch_norm_inference(a, w, b, mean, var, eps),
        inputs,
        lambda dy: _given(
            kernels.batch_norm_inference_grad(dy, a, w, mean, var, eps), weight, bias
        ),
    )
    out = out if residual is None else out + residual
    return out if activation is None else relu(out)


def _check_behind(x: Tensor, activation: str | None, residual: Tensor | None) -> None:
    if activation not in (None, "relu"):
        raise ValueError(f"batch_norm: activation={activation!r}, expected 'relu' or None")
    if optional_tensor("batch_norm", "residual", residual) is None:
        return
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"batch_norm: residual is {residual.dtype.name} of shape {residual.shape}, input "
            f"{x.dtype.name} of {x.shape}: expected the same"
        )


def _record_fused(
    y: Array,
    inputs: list[Tensor],
    residual: Tensor | None,
    saved: tuple[Any, ...],
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The result of batch_norm_relu, and how it is differentiated."""
    x, w, mean, var, eps = saved
    added = residual is not None

    def backward(dy: Array) -> list[Array]:
        dx, dr, dw, db = norm_relu.batch_norm_relu_grad(dy, x, y, w, mean, var, eps, added)
        return [*_given((dx, dw, db), weight, bias), *([dr] if added else [])]

    return record(y, inputs if residual is None else [*inputs, residual], backward)


def _check_running(what: str, statistic: Tensor | None, channels: int) -> None:
    """Both are checked before either is moved."""
    if optional_tensor("batch_norm", what, statistic) is None:
        return
    if statistic.shape != (channels,):
        raise ValueError(
            f"batch_norm: {what} has shape {statistic.shape}, expected ({channels},), "
            "the channels (axis 1) of the input"
        )
    if not is_floating(statistic.dtype):
        raise TypeError(
            f"batch_norm: {what} is {statistic.dtype.name}, expected floating-point values"
        )


def _move(running: Tensor, now: Array, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * now, in place."""
    running.data *= 1 - momentum
    running.data += (momentum * now).astype(running.dtype, copy=False)


def layer_norm(
    x: Tensor,
    normalized_shape: int | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last axes, which have `normalized_shape` (Ba, Kiros & Hinton 2016)."""
    if state.dtype is not None:
        x = widened(tensor_argument("layer_norm", "", x))
    shape, rows = _rows("layer_norm", x, normalized_shape)
    at_least_zero("layer_norm", "eps", eps)
    inputs = [x, *_affine("layer_norm", weight, bias, shape)]
    w, b = _flat(weight), _flat(bias)
    y, mean, rstd = kernels.layer_norm(rows, w, b, eps)

    def backward(dy: Array) -> list[Array]:
        dx, dw, db = kernels.layer_norm_grad(dy.reshape(rows.shape), rows, w, mean, rstd)
        return _given((dx.reshape(dy.shape), dw.reshape(shape), db.reshape(shape)), weight, bias)

    return record(y.reshape(x.shape), inputs, backward)


def rms_norm(
    x: Tensor,
    normalized_shape: int | tuple[int, ...],
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """x over its root mean square along the last axes (Zhang & Sennrich 2019)."""
    if state.dtype is not None:
        x = widened(tensor_argument("rms_norm", "", x))
    shape, rows = _rows("rms_norm", x, normalized_shape)
    at_least_zero("rms_norm", "eps", eps)
    inputs = [x, *_affine("rms_norm", weight, None, shape)]
    w = _flat(weight)
    y, rstd = kernels.rms_norm(rows, w, eps)

    def backward(dy: Array) -> list[Array]:
        dx, dw = kernels.rms_norm_grad(dy.reshape(rows.shape), rows, w, rstd)
        return [dx.reshape(dy.shape), *([] if weight is None else [dw.reshape(shape)])]

    return record(y.reshape(x.shape), inputs, backward)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    normalized_shape: int | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """x + residual, and its layer norm over the last axes, in one pass, forward and backward."""
    name = "add_layer_norm"
    x, residual, shape, a, b = _summands(name, x, residual, normalized_shape)
    at_least_zero(name, "eps", eps)
    parameters = _affine(name, weight, bias, shape)
    w = _flat(weight)
    total, y, mean, rstd = residual_kernels.add_layer_norm(a, b, w, _flat(bias), eps)

    def gradients(dy: Array, dtotal: Array | None) -> list[Array]:
        dy = dy.reshape(a.shape)
        dx, dw, db = residual_kernels.add_layer_norm_grad(dy, dtotal, total, w, mean, rstd)
        return _given((dx, dw.reshape(shape), db.reshape(shape)), weight, bias)

    return _sum_and_norm(x, residual, parameters, total, y, gradients)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    normalized_shape: int | tuple[int, ...],
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """x + residual, and its RMS norm over the last axes, in one pass, forward and backward."""
    name = "add_rms_norm"
    x, residual, shape, a, b = _summands(name, x, residual, normalized_shape)
    at_least_zero(name, "eps", eps)
    parameters = _affine(name, weight, None, shape)
    w = _flat(weight)
    total, y, rstd = residual_kernels.add_rms_norm(a, b, w, eps)

    def gradients(dy: Array, dtotal: Array | None) -> list[Array]:
        dy = dy.reshape(a.shape)
        dx, dw = residual_kernels.add_rms_norm_grad(dy, dtotal, total, w, rstd)
        return [dx, *([] if weight is None else [dw.reshape(shape)])]

    return _sum_and_norm(x, residual, parameters, total, y, gradients)


def _summands(
    name: str, x: Tensor, residual: Tensor, normalized_shape: int | tuple[int, ...]
) -> tuple[Tensor, Tensor, tuple[int, ...], Array, Array]:
    """Both in one dtype, the normalised shape, and both as rows."""
    floating(name, x)
    floating(name, tensor_argument(name, "residual", residual))
    if residual.shape != x.shape:
        raise ValueError(f"{name}: residual has shape {residual.shape}, the input {x.shape}")
    if state.dtype is not None:
        x, residual = widened(x), widened(residual)
    if residual.dtype != x.dtype:
        raise TypeError(
            f"{name}: input is {x.dtype.name}, residual {residual.dtype.name}; use .to(...)"
        )
    shape, a = _rows(name, x, normalized_shape)
    return x, residual, shape, a, residual.data.reshape(a.shape)


def _sum_and_norm(
    x: Tensor,
    residual: Tensor,
    parameters: list[Tensor],
    total: Array,
    y: Array,
    gradients: Callable[[Array, Array | None], list[Array]],
) -> tuple[Tensor, Tensor]:
    """The two tensors of a sum and its norm.

    Whoever uses the sum is newer than the norm, so that the norm's turn comes when the sum's
    gradient has all the rest. Then the norm leaves its own to the sum's turn, which computes both
    in one pass; alone, or where somebody looks at the sum's gradient, it does not.
    """
    shape = x.shape
    waiting: list[tuple[Array, Array]] = []  # the norm's gradient, and the sum's when it came

    def of_sum(dtotal: Array) -> list[Array | None]:
        if waiting and waiting[0][1] is dtotal:
            dx, *rest = gradients(waiting.pop()[0], dtotal.reshape(total.shape))
            dx = dx.reshape(shape)
            return [dx, dx, *rest]
        waiting.clear()
        return [dtotal, dtotal, *([None] * len(parameters))]

    s = record(total.reshape(shape), [x, residual, *parameters], of_sum)
    node = s.node

    def of_norm(dy: Array) -> list[Array | None]:
        waiting.clear()
        if node is not None and node.grad is not None and not (node.hooks or node.retained):
            waiting.append((dy, node.grad))
            return [None] * (1 + len(parameters))
        dx, *rest = gradients(dy, None)
        return [dx.reshape(shape), *rest]

    return s, record(y.reshape(shape), [s, *parameters], of_norm)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each sample over each of `num_groups` groups of channels (Wu & He 2018); x is (N,
    C, *).
    """
    floating("group_norm", x)
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(
            f"group_norm: {num_groups} groups do not divide the channels (axis 1) of {x.shape}"
        )
    return _group_norm("group_norm", x, num_groups, weight, bias, eps)


def _group_norm(
    name: str, x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`group_norm` under the name of its caller, for the messages."""
    at_least_zero(name, "eps", eps)
    if state.dtype is not None:
        x = widened(x)
    inputs = [x, *_affine(name, weight, bias, (x.shape[1],))]
    a, w, b = x.data, array_of(weight), array_of(bias)
    y, mean, rstd = kernels.group_norm(a, num_groups, w, b, eps)
    return record(
        y,
        inputs,
        lambda dy: _given(kernels.group_norm_grad(dy, a, num_groups, w, mean, rstd), weight, bias),
    )


def instance_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each channel of each sample over its positions (Ulyanov et al. 2016): groups of one
    channel.
    """
    if floating("instance_norm", x).ndim < 3:
        raise ValueError(
            f"instance_norm: input has shape {x.shape}, expected (N, C, ...) with positions"
        )
    return _group_norm("instance_norm", x, x.shape[1], weight, bias, eps)


def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha m)^beta, m the mean of x^2 over the `size` channels around each one, zeros
    beyond the first and last (Krizhevsky et al. 2012, whose alpha is alpha / size here).
    """
    if floating("local_response_norm", x).ndim < 3:
        raise ValueError(f"local_response_norm: input has shape {x.shape}, expected (N, C, *)")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"local_response_norm: size={size!r}, expected an integer of at least 1")
    if state.dtype is not None:
        x = widened(x)
    N, C = x.shape[:2]
    windows = neighbours(C, size, x.size // max(1, N * C))
    square = (x * x).reshape(N, 1, C, -1 if x.size else 0)
    mean = record(
        avg_pool(square.data, windows), [square], lambda dy: [avg_pool_grad(dy, windows)]
    ).reshape(*x.shape)
    return x / (mean * alpha + k) ** beta


def _rows(
    name: str, x: Tensor, normalized_shape: int | tuple[int, ...]
) -> tuple[tuple[int, ...], Array]:
    """The normalised shape as a tuple, and x as rows of that many elements."""
    floating(name, x)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[x.ndim - len(shape) :] != shape:
        raise ValueError(
            f"{name}: normalized_shape {shape} is not the end of the input's shape {x.shape}"
        )
    columns = math.prod(shape)
    return shape, x.data.reshape(x.size // columns if columns else 0, columns)


def _flat(p: Tensor | None) -> Array | None:
    return None if p is None else p.data.reshape(-1)
