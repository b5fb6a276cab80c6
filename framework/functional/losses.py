"""Losses: how far an output is from its target, one number per element or their mean or sum.

Classification losses take logits (scores before softmax), never probabilities. `reduction` is
"mean", "sum" or "none". Under `framework.autocast` they are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from framework.autograd import Tensor, is_grad_enabled, record
from framework.autograd.casting import compute_copy, product_dtype, state, widened
from framework.autograd.graph import as_array, in_dtype
from framework.functional.check import (
    array_of,
    broadcasts_to,
    floating,
    number,
    optional_tensor,
    same_shape,
    tensor_argument,
)
from kernels import linear_cross_entropy as fused_kernels, losses as kernels, reductions
from kernels.arrays import Array, array_module, is_floating
from kernels.checking import may_look

REDUCTIONS = ("mean", "sum", "none")

#: Elements of a gradient that are scaled and rounded at a time: 16 MiB in float32.
PART = 1 << 22


def reduce(losses: Tensor, reduction: str, name: str = "loss") -> Tensor:
    """Apply a `reduction` by name; `name` is the loss's, for the messages."""
    _check_reduction(name, reduction)
    if losses.size == 0 and reduction == "mean":
        raise ValueError(f"{name}: empty batch (shape {losses.shape}) has no mean")
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{name}: reduction={reduction!r}, expected one of {', '.join(REDUCTIONS)}"
        )


def _per_element(
    name: str,
    forward: Callable[..., Array],
    grad: Callable[..., Array],
    x: Tensor,
    target: Tensor,
    reduction: str,
    *options: float,
) -> Tensor:
    """An elementwise loss, reduced; its gradient goes to `x` (and, by symmetry, to targets via
    detach only).
    """
    _check_reduction(name, reduction)
    floating(name, x)
    same_shape(name, x, tensor_argument(name, "target", target))
    _check_constant(name, target)
    if state.dtype is not None:
        x = widened(x)
    a, t = x.data, target.data.astype(x.dtype, copy=False)
    losses = record(forward(a, t, *options), [x], lambda dy: [grad(dy, a, t, *options)])
    return reduce(losses, reduction, name)


def _check_constant(name: str, x: Tensor, argument: str = "target") -> None:
    if x.requires_grad:
        raise ValueError(f"{name}: the {argument} requires a gradient; pass {argument}.detach()")


def _may_look(target: Tensor) -> bool:
    """Whether values can be looked at: on CUDA that would make the CPU wait for the GPU."""
    return isinstance(target, Tensor) and target.size > 0 and may_look(target.data)


def mse_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(x - target)^2."""
    return _per_element("mse_loss", kernels.mse, kernels.mse_grad, x, target, reduction)


def l1_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|x - target|."""
    return _per_element("l1_loss", kernels.l1, kernels.l1_grad, x, target, reduction)


def huber_loss(x: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """Half the square up to `delta`, linear beyond (Huber 1964)."""
    if number("huber_loss", "delta", delta) <= 0:
        raise ValueError(f"huber_loss: delta={delta}, expected a positive number")
    return _per_element(
        "huber_loss", kernels.huber, kernels.huber_grad, x, target, reduction, delta
    )


def smooth_l1_loss(x: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """The Huber loss over `beta`: slope 1 beyond it (Girshick 2015)."""
    if number("smooth_l1_loss", "beta", beta) < 0:
        raise ValueError(f"smooth_l1_loss: beta={beta}, expected at least 0")
    return _per_element(
        "smooth_l1_loss", kernels.smooth_l1, kernels.smooth_l1_grad, x, target, reduction, beta
    )


def binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: float = 1.0,
) -> Tensor:
    """-(pos_weight * t * log sigmoid(x) + (1 - t) * log(1 - sigmoid(x))), targets t in [0, 1].

    `weight` (x's shape, or broadcastable to it) multiplies the elements. On the CPU a target
    outside [0, 1] raises ValueError; on CUDA, where looking would wait for the GPU, it does not.
    """
    name = "binary_cross_entropy_with_logits"
    _check_reduction(name, reduction)
    number(name, "pos_weight", pos_weight)
    if optional_tensor(name, "weight", weight) is not None and not broadcasts_to(
        weight.shape, floating(name, x).shape
    ):
        raise ValueError(
            f"{name}: weight has shape {weight.shape}, which does not broadcast to the input's "
            f"{x.shape}"
        )
    if _may_look(target):
        low, high = float(target.data.min()), float(target.data.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name}: targets from {low:g} to {high:g}, expected 0 to 1")
    losses = _per_element(
        name,
        kernels.binary_cross_entropy_with_logits,
        kernels.binary_cross_entropy_with_logits_grad,
        x,
        target,
        "none",
        pos_weight,
    )
    return reduce(losses if weight is None else losses * weight, reduction, name)


def kl_div(x: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target * (log target - x), x log-probabilities; reduction "batchmean" divides the sum by the
    rows.
    """
    if log_target:
        forward, grad = kernels.kl_div_log_target, kernels.kl_div_log_target_grad
    else:
        forward, grad = kernels.kl_div, kernels.kl_div_grad
    if reduction == "batchmean":
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(f"kl_div: empty batch (shape {x.shape}) has no mean")
        return _per_element("kl_div", forward, grad, x, target, "sum") / x.shape[0]
    return _per_element("kl_div", forward, grad, x, target, reduction)


def hinge_loss(x: Tensor, target: Tensor, reduction: str = "mean", margin: float = 1.0) -> Tensor:
    """max(0, margin - target * x), targets -1 or 1: the loss of support vector machines.

    On the CPU another target raises ValueError; on CUDA, where looking would wait for the GPU, it
    does not.
    """
    number("hinge_loss", "margin", margin)
    if _may_look(target):
        wrong = target.data[(target.data != 1) & (target.data != -1)]
        if wrong.size:
            raise ValueError(f"hinge_loss: a target is {float(wrong[0])}, expected -1 or 1")
    return _per_element(
        "hinge_loss", kernels.hinge, kernels.hinge_grad, x, target, reduction, margin
    )


def _as_rows(name: str, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...], bool]:
    """Logits (N, C, *) and their targets as rows, (M, C) and (M,) or (M, C); the shape of the
    losses; whether the targets are probabilities.
    """
    tensor_argument(name, "target", target)
    if isinstance(x, Tensor) and not is_floating(x.dtype) and is_floating(target.dtype):
        raise TypeError(
            f"{name}: input is {x.dtype.name} {x.shape} and target {target.dtype.name} "
            f"{target.shape}: they seem swapped, expected {name}(logits, labels)"
        )
    floating(name, x)
    _check_constant(name, target)
    if state.dtype is not None:
        x = widened(x)
    single = x.ndim == 1
    if single:
        if target.shape != (x.shape if is_floating(target.dtype) else ()):
            raise ValueError(
                f"{name}: input has shape {x.shape}, so the target is a class index () or "
                f"probabilities {x.shape}; got {target.dtype.name} {target.shape}"
            )
        x = x.reshape(1, -1)
        target = target.reshape(1, -1) if is_floating(target.dtype) else target.reshape(1)
    if x.ndim < 2:
        raise ValueError(f"{name}: input has shape {x.shape}, expected (N, C) or (N, C, ...)")
    probabilities = is_floating(target.dtype)
    expected = x.shape if probabilities else (x.shape[0], *x.shape[2:])
    if x.shape[1] == 0:
        raise ValueError(f"{name}: input has shape {x.shape}, which has no classes (axis 1)")
    if target.shape != expected:
        kind = "probabilities" if probabilities else "class indices"
        raise ValueError(
            f"{name}: input has shape {x.shape}, so {kind} need {expected}; got {target.shape}"
        )
    if not probabilities and target.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: target is {target.dtype.name}, expected integers or probabilities"
        )
    positions = () if single else (x.shape[0], *x.shape[2:])
    if x.ndim > 2:
        order = (0, *range(2, x.ndim), 1)
        x = x.permute(*order).reshape(-1, x.shape[1])
        target = (
            target.permute(*order).reshape(-1, x.shape[1]) if probabilities else target.reshape(-1)
        )
    return x, target, positions, probabilities


def _weighted_mean(
    name: str,
    losses: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    probabilities: bool,
) -> Tensor:
    """Sum over the weights of the classes that were not ignored, as PyTorch's mean."""
    if losses.size == 0:
        raise ValueError(f"{name}: an empty batch has no mean loss")
    a, t, xp = losses.data, target.data, array_module(losses.data)
    if probabilities:
        total = a.size
    elif weight is None:
        total = t.size - xp.count_nonzero(t == ignore_index)
    else:
        counts = t != ignore_index
        inside = xp.where(counts & (t >= 0) & (t < weight.size), t, 0)
        total = xp.where(counts, weight.data[inside], 0).sum()
    total = xp.asarray(total, dtype=a.dtype)
    share = as_array(1 / xp.where(total == 0, total.dtype.type(1), total))
    mean = as_array(_over(reductions.sum(a), total))
    return record(mean, [losses], lambda dy: [xp.broadcast_to(dy * share, a.shape)])


def _over(total: Array, count: Array) -> Array:
    """The mean. That of nothing, where everything is ignored, is NaN, as PyTorch's; its gradient is
    0, for nothing has a part in it.
    """
    with np.errstate(all="ignore"):
        return total / count


def _finish(
    name: str,
    losses: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    probabilities: bool,
    reduction: str,
    positions: tuple[int, ...],
) -> Tensor:
    if reduction == "mean":
        return _weighted_mean(name, losses, target, weight, ignore_index, probabilities)
    return losses.sum() if reduction == "sum" else losses.reshape(positions)


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(x)[target], softmax and logarithm fused: x (N, C) or (N, C, *) logits.

    `target`: class indices (N, *), or probabilities in x's shape. `weight` (C,) scales the classes;
    targets equal to `ignore_index` do not count; `label_smoothing` mixes the target with the
    uniform distribution. The mean is over the weights of the targets that count. On the CPU, and
    within `fw.check_indices`, an index outside [0, C) raises IndexError, and a weight or
    probability below 0 ValueError; on CUDA an index outside gives NaN.
    """
    _check_reduction("cross_entropy", reduction)
    if not 0 <= number("cross_entropy", "label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"cross_entropy: label_smoothing={label_smoothing}, expected 0 to 1")
    rows, target, positions, probabilities = _as_rows("cross_entropy", x, target)
    _check_class_weight("cross_entropy", weight, rows.shape[1])
    if probabilities:
        _check_not_negative("cross_entropy", "a target probability", target)
    want_grad = rows.requires_grad and is_grad_enabled()
    t = target.data.astype(rows.dtype, copy=False) if probabilities else target.data
    losses, dlogits = kernels.cross_entropy(
        rows.data, t, array_of(weight), ignore_index, label_smoothing, want_grad
    )
    out = record(losses, [rows], lambda dy: [_scaled(dy, dlogits)])
    return _finish(
        "cross_entropy", out, target, weight, ignore_index, probabilities, reduction, positions
    )


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``cross_entropy(linear(x, weight, bias), target)`` without the logits: x (*, D), weight (V,
    D), a tied embedding say, target (*) class indices below V, bias (V,).

    Rows go by in chunks, and leave their gradients at once: nothing as large as the logits of a
    batch exists. Only "mean" (over the targets that count) and "sum".
    """
    name = "linear_cross_entropy"
    floating(name, x)
    floating(name, tensor_argument(name, "weight", weight))
    _check_constant(name, tensor_argument(name, "target", target))
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{name}: reduction={reduction!r}, expected 'mean' or 'sum'")
    if not 0 <= number(name, "label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"{name}: label_smoothing={label_smoothing}, expected 0 to 1")
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"{name}: x {x.shape}, weight {weight.shape}: expected (*, D), (V, D)")
    if target.shape != x.shape[:-1] or target.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: target is {target.dtype.name} {target.shape}, expected integers "
            f"{x.shape[:-1]}"
        )
    if optional_tensor(name, "bias", bias) is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias {bias.shape}, weight {weight.shape}: expected (V,), (V, D)")
    inputs = [x, weight] if bias is None else [x, weight, bias]
    half = None if state.dtype is None else product_dtype(*inputs)
    if half is not None:
        a, w, b = (None if i is None else compute_copy(i, half) for i in (x, weight, bias))
    elif len({i.dtype for i in inputs}) == 1:
        a, w, b = x.data, weight.data, array_of(bias)
    else:
        dtypes = ", ".join(i.dtype.name for i in inputs)
        raise TypeError(f"{name}: x, weight (and bias) are {dtypes}; use .to(...)")
    rows, t = a.reshape(-1, x.shape[-1]), target.data.reshape(-1)
    want_grad = is_grad_enabled() and any(i.requires_grad for i in inputs)
    losses, dx, dw, db = fused_kernels.linear_cross_entropy(
        rows, w, t, b, ignore_index, label_smoothing, want_grad
    )
    shape, xp = x.shape, array_module(losses)
    total, count = reductions.sum(losses), None
    if reduction == "mean":
        if t.size == 0:
            raise ValueError(f"{name}: an empty batch has no mean loss")
        count = xp.asarray(t.size - xp.count_nonzero(t == ignore_index), dtype=losses.dtype)
        total = _over(total, count)

    def backward(dy: Array) -> list[Array]:
        # all losses have one factor: new arrays each time, for it may come a second time
        if count is not None:
            dy = dy / xp.maximum(count, 1)
        gradients = [_times(g, dy, i.dtype) for g, i in zip((dx, dw, db), inputs, strict=False)]
        gradients[0] = gradients[0].reshape(shape)
        return gradients

    return record(as_array(total), inputs, backward)


def _times(gradient: Array, factor: Array, dtype: np.dtype[Any]) -> Array:
    """gradient * factor, a new array of `dtype`, rounded once and after that; a part at a time, so
    that no second float32 array as large as a vocabulary's gradient is there.
    """
    xp, n = array_module(gradient), len(gradient)
    if gradient.ndim == 1:
        return in_dtype(gradient * factor, dtype)
    factors = xp.broadcast_to(factor, n)
    if gradient.dtype == dtype:
        return kernels.cross_entropy_grad(factors, gradient)
    out, rows = xp.empty(gradient.shape, dtype), max(1, PART // max(gradient.shape[1], 1))
    for i in range(0, n, rows):
        wide = gradient[i : i + rows].astype(np.float32, copy=False)
        out[i : i + rows] = in_dtype(kernels.cross_entropy_grad(factors[i : i + rows], wide), dtype)
    return out


def _check_class_weight(name: str, weight: Tensor | None, classes: int) -> None:
    if optional_tensor(name, "weight", weight) is None:
        return
    if weight.shape != (classes,):
        raise ValueError(f"{name}: weight has shape {weight.shape}, expected ({classes},)")
    _check_constant(name, weight, "weight")
    _check_not_negative(name, "a weight", weight)


def _check_not_negative(name: str, what: str, x: Tensor) -> None:
    if _may_look(x):
        low = float(x.data.min())
        if not low >= 0:
            raise ValueError(f"{name}: {what} is {low:g}, expected at least 0")


def _scaled(dy: Array, dlogits: Array) -> Array:
    return kernels.cross_entropy_grad(dy.astype(dlogits.dtype, copy=False), dlogits)


def nll_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-x[target], x (N, C) or (N, C, *) log-probabilities, target class indices (N, *)."""
    _check_reduction("nll_loss", reduction)
    rows, target, positions, probabilities = _as_rows("nll_loss", x, target)
    if probabilities:
        raise TypeError(f"nll_loss: target is {target.dtype.name}, expected class indices")
    a, t, w = rows.data, target.data, array_of(weight)
    classes = a.shape[1]
    _check_class_weight("nll_loss", weight, classes)
    losses = kernels.nll(a, t, w, ignore_index)
    out = record(losses, [rows], lambda dy: [kernels.nll_grad(dy, t, classes, w, ignore_index)])
    return _finish("nll_loss", out, target, weight, ignore_index, False, reduction, positions)
