"""Loss functions, one value a row or an element: reductions and their scales are the caller's.

Cross-entropy is one pass over each row that leaves the loss and its gradient. Losses of single
elements (`mse`, `huber`, ...) are in kernels/pointwise_losses.py and can be imported from here.
Definitions are PyTorch's.
"""

# ruff: noqa: F811  (samples of one name belong to different kernels)

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, is_floating
from kernels.checking import looked_at
from kernels.lazy import Lazy
from kernels.pointwise_losses import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_grad as binary_cross_entropy_with_logits_grad,
    hinge as hinge,
    hinge_grad as hinge_grad,
    huber as huber,
    huber_grad as huber_grad,
    kl_div as kl_div,
    kl_div_grad as kl_div_grad,
    kl_div_log_target as kl_div_log_target,
    kl_div_log_target_grad as kl_div_log_target_grad,
    l1 as l1,
    l1_grad as l1_grad,
    mse as mse,
    mse_grad as mse_grad,
    smooth_l1 as smooth_l1,
    smooth_l1_grad as smooth_l1_grad,
)
from kernels.registry import kernel

loops = Lazy("kernels.cpu.losses")

#: Templates of kernels/cuda/losses.cu, each with one type parameter.
CUDA_KERNELS = ("cross_entropy_rows", "cross_entropy_grad_rows", "nll_rows", "nll_grad_rows")

IGNORE_INDEX = -100


# Cross-entropy ------------------------------------------------------------------------------------


@kernel(statistics=(0,))
def cross_entropy(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    with_grad: bool = True,
) -> tuple[Array, Array | None]:
    """Loss of each row and its gradient: losses (N,), dlogits (N, C) or None without `with_grad`.

    With log-probabilities p = log_softmax(logits) (N, C), smoothing s and class weights w (C,), 1
    by default,

        losses[r] = -sum over c of q[r, c] * p[r, c]
        q[r, c] = w[c] * ((1 - s) * t[r, c] + s / C)        t given as probabilities (N, C)
        q[r, c] = (1 - s) * w[t] * (c == t) + s / C * w[c]  t = targets[r], integers (N,)

    as in torch.nn.functional.cross_entropy with reduction="none" (label smoothing: Szegedy et al.
    2016). dlogits is d losses[r] / d logits[r] = softmax * (sum of q) - q. Where q is 0 a term is
    0, whatever p is. Rows with targets[r] == ignore_index have loss and gradient 0. 16-bit logits
    get float32 losses.

    An index outside [0, C) raises an IndexError with its position and value on the CPU, and within
    `check_indices`; on CUDA, where looking would mean waiting for the device, the loss and gradient
    of its row are NaN.
    """
    xp = array_module(logits)
    _check_cross_entropy(logits, targets, weight)
    N, C = logits.shape
    peak = logits.max(axis=1, keepdims=True) if C else logits.sum(axis=1, keepdims=True)
    shifted = logits - peak
    e = xp.exp(shifted)
    s = e.sum(axis=1, keepdims=True)
    log_p = shifted - xp.log(s)  # (N, C)
    w = xp.ones(C, logits.dtype) if weight is None else weight.astype(logits.dtype, copy=False)
    if is_floating(targets.dtype):
        q = w * (
            targets.astype(logits.dtype, copy=False) * (1 - label_smoothing)
            + label_smoothing / max(C, 1)
        )
        ignored = invalid = xp.zeros((N, 1), bool)
    else:
        check_indices(targets, C, ignore_index)
        t = targets[:, None]
        ignored = t == ignore_index  # (N, 1)
        invalid = ((t < 0) | (t >= C)) & ~ignored
        hit = xp.arange(C) == t  # (N, C)
        q = xp.where(hit, w * (1 - label_smoothing), w.dtype.type(0)) + w * (
            label_smoothing / max(C, 1)
        )
    zero, nan = logits.dtype.type(0), logits.dtype.type(np.nan)
    losses = -xp.where(q == 0, zero, q * log_p).sum(axis=1)
    losses = xp.where(ignored[:, 0], zero, xp.where(invalid[:, 0], nan, losses))
    if not with_grad:
        return losses, None
    dlogits = e / s * q.sum(axis=1, keepdims=True) - q
    return losses, xp.where(ignored, zero, xp.where(invalid, nan, dlogits))


@cross_entropy.cpu
def _(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    with_grad: bool = True,
) -> tuple[Array, Array | None]:
    _check_cross_entropy(logits, targets, weight)
    N, C = logits.shape
    logits = np.ascontiguousarray(logits)
    losses = np.empty(N, np.float32)
    dlogits = np.empty((N, C), np.float32) if with_grad else loops.NO_GRADIENT
    result = losses, (dlogits if with_grad else None)
    classes = not is_floating(targets.dtype)
    if classes:
        t = np.ascontiguousarray(targets, np.int64)
        if loops.first_outside(t, C, ignore_index) >= 0:
            check_indices(targets, C, ignore_index)
        if weight is None and label_smoothing == 0:
            scratch = np.empty_like(losses)
            loops.cross_entropy_indices(logits, t, ignore_index, scratch, losses, dlogits)
            return result
    w = loops.NO_WEIGHT if weight is None else np.ascontiguousarray(weight, np.float32)
    smoothing = np.float32(label_smoothing)
    if classes:
        loops.cross_entropy_weighted(logits, t, w, ignore_index, smoothing, losses, dlogits)
    else:
        p = np.ascontiguousarray(targets, np.float32)
        loops.cross_entropy_probabilities(logits, p, w, smoothing, losses, dlogits)
    return result


@cross_entropy.cuda
def _(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    with_grad: bool = True,
) -> tuple[Array, Array | None]:
    from kernels.along_axis import row_grid
    from kernels.cuda import launch

    _check_cross_entropy(logits, targets, weight)
    xp = array_module(logits)
    N, C = logits.shape
    null = np.uint64(0)
    losses = xp.empty(N, np.float32)
    dlogits = xp.empty((N, C), logits.dtype) if with_grad else None
    if is_floating(targets.dtype):
        indices, probabilities = null, xp.ascontiguousarray(targets.astype(np.float32, copy=False))
    else:
        check_indices(targets, C, ignore_index)
        indices, probabilities = xp.ascontiguousarray(targets.astype(np.int64, copy=False)), null
    w = null if weight is None else xp.ascontiguousarray(weight.astype(np.float32, copy=False))
    grid, block = row_grid(N, C)
    launch.run(
        "losses",
        f"cross_entropy_rows<{launch.type_name(logits.dtype)}>",
        grid,
        block,
        (
            xp.ascontiguousarray(logits),
            indices,
            probabilities,
            w,
            losses,
            null if dlogits is None else dlogits,
            np.int64(ignore_index),
            np.float32(label_smoothing),
            np.int64(N),
            np.int64(C),
        ),
    )
    return losses, dlogits


@cross_entropy.sample
def _(draw, shape):
    return draw.normal(shape, scale=3.0), _indices(draw, shape)


@cross_entropy.sample
def loss_only(draw, shape):
    return draw.normal(shape, scale=3.0), _indices(draw, shape), None, IGNORE_INDEX, 0.0, False


@cross_entropy.sample
def weighted_and_smoothed(draw, shape):
    targets = np.where(draw.mask(shape[0]), _indices(draw, shape, -1), -1)
    weight = draw.uniform(shape[1], low=0.2, high=2.0)
    return draw.normal(shape, scale=3.0), targets, weight, -1, 0.1


@cross_entropy.sample
def probabilities(draw, shape):
    p = draw.uniform(shape)
    p /= np.maximum(p.sum(axis=1, keepdims=True), 1e-30)
    return (
        draw.normal(shape, scale=3.0),
        p,
        draw.uniform(shape[1], low=0.2, high=2.0),
        IGNORE_INDEX,
        0.2,
    )


@kernel
def cross_entropy_grad(dy: Array, dlogits: Array) -> Array:
    """dlogits * dy[:, None]: the chain rule for `cross_entropy`. dy (N,), dlogits (N, C); a new
    array like dlogits.
    """
    return (dlogits * dy[:, None]).astype(dlogits.dtype, copy=False)


@cross_entropy_grad.cpu
def _(dy: Array, dlogits: Array) -> Array:
    if dlogits.dtype != np.float32:  # 16-bit logits have float32 losses, so dy is float32
        return (dlogits.astype(np.float32) * dy[:, None]).astype(dlogits.dtype)
    dlogits = np.ascontiguousarray(dlogits)
    out = np.empty_like(dlogits)
    loops.cross_entropy_grad(dlogits, np.ascontiguousarray(dy), out)
    return out


@cross_entropy_grad.cuda
def _(dy: Array, dlogits: Array) -> Array:
    from kernels.cuda import launch

    xp = array_module(dy)
    dy = xp.ascontiguousarray(dy.astype(np.float32, copy=False))
    dlogits = xp.ascontiguousarray(dlogits)
    out = xp.empty_like(dlogits)
    N, C = dlogits.shape
    kind = launch.type_name(dlogits.dtype)
    sizes = (np.int64(N), np.int64(C))
    grid = -(-N // 8) if C else 0
    launch.run(
        "losses", f"cross_entropy_grad_rows<{kind}>", grid, launch.BLOCK, (dy, dlogits, out, *sizes)
    )
    return out


@cross_entropy_grad.sample
def _(draw, shape):
    return draw.normal(shape[0]), draw.normal(shape)


# Negative log-likelihood --------------------------------------------------------------------------


@kernel
def nll(
    log_probs: Array, targets: Array, weight: Array | None = None, ignore_index: int = IGNORE_INDEX
) -> Array:
    """-weight[t] * log_probs[r, t] with t = targets[r]: losses (N,) of log_probs (N, C). 0 where t
    is ignore_index.

    An index outside [0, C): an IndexError on the CPU, NaN on CUDA.
    """
    _check_cross_entropy(log_probs, targets, weight, name="log_probs")
    xp = array_module(log_probs)
    t, factor = _nll_factors(targets, log_probs.shape[1], weight, ignore_index, log_probs.dtype)
    if not log_probs.size:
        return xp.zeros(log_probs.shape[0], log_probs.dtype)
    picked = log_probs[xp.arange(t.shape[0]), t]
    return xp.where(factor == 0, log_probs.dtype.type(0), -factor * picked)


@nll.cuda
def _(
    log_probs: Array, targets: Array, weight: Array | None = None, ignore_index: int = IGNORE_INDEX
) -> Array:
    from kernels.cuda import launch

    _check_cross_entropy(log_probs, targets, weight, name="log_probs")
    xp = array_module(log_probs)
    out = xp.empty(log_probs.shape[0], log_probs.dtype)
    _run_nll(
        "nll_rows",
        xp.ascontiguousarray(log_probs),
        targets,
        weight,
        ignore_index,
        out,
        log_probs.shape,
        launch,
    )
    return out


@nll.sample
def _(draw, shape):
    return -draw.uniform(shape, low=0.1, high=5.0), _indices(draw, shape)


@nll.sample
def weighted(draw, shape):
    targets = np.where(draw.mask(shape[0]), _indices(draw, shape, -1), -1)
    return (
        -draw.uniform(shape, low=0.1, high=5.0),
        targets,
        draw.uniform(shape[1], low=0.2, high=2.0),
        -1,
    )


@kernel
def nll_grad(
    dy: Array,
    targets: Array,
    classes: int,
    weight: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Array:
    """Gradient (N, classes) of `nll` for dy (N,): -weight[t] * dy[r] at [r, t], 0 elsewhere."""
    xp = array_module(dy)
    t, factor = _nll_factors(targets, classes, weight, ignore_index, dy.dtype)
    dx = xp.zeros((dy.shape[0], classes), dy.dtype)
    if dx.size:
        dx[xp.arange(t.shape[0]), t] = xp.where(factor == 0, dy.dtype.type(0), -factor * dy)
    return dx


@nll_grad.cuda
def _(
    dy: Array,
    targets: Array,
    classes: int,
    weight: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Array:
    from kernels.cuda import launch

    xp = array_module(dy)
    dx = xp.empty((dy.shape[0], classes), dy.dtype)
    _run_nll(
        "nll_grad_rows",
        xp.ascontiguousarray(dy),
        targets,
        weight,
        ignore_index,
        dx,
        dx.shape,
        launch,
    )
    return dx


@nll_grad.sample
def _(draw, shape):
    return draw.normal(shape[0]), _indices(draw, shape), shape[1]


@nll_grad.sample
def weighted(draw, shape):
    targets = np.where(draw.mask(shape[0]), _indices(draw, shape, -1), -1)
    return draw.normal(shape[0]), targets, shape[1], draw.uniform(shape[1], low=0.2, high=2.0), -1


# Class indices ------------------------------------------------------------------------------------


def check_indices(targets: Array, classes: int, ignore_index: int = IGNORE_INDEX) -> None:
    """IndexError if a class index is outside [0, classes) and is not `ignore_index`. CUDA arrays
    pass unread, but within kernels.checking.check_indices.
    """
    seen = looked_at(targets)
    if seen is None:
        return
    bad = ((seen < 0) | (seen >= classes)) & (seen != ignore_index)
    if bad.any():
        r = int(bad.argmax())
        raise IndexError(f"target {int(seen[r])} at row {r} is outside [0, {classes})")


def _check_cross_entropy(
    logits: Array, targets: Array, weight: Array | None, name: str = "logits"
) -> None:
    if logits.ndim != 2:
        raise ValueError(f"{name} has shape {logits.shape}: expected (rows, classes)")
    if is_floating(targets.dtype) and name == "logits":
        if targets.shape != logits.shape:
            raise ValueError(
                f"targets has shape {targets.shape}: probabilities need that of logits, "
                f"{logits.shape} (class indices are integers)"
            )
    elif targets.dtype.kind not in "iu":
        raise TypeError(f"targets is {targets.dtype}: expected integer class indices")
    elif targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets has shape {targets.shape}, {name} {logits.shape}: expected one index a row"
        )
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ValueError(
            f"weight has shape {weight.shape}: expected ({logits.shape[1]},), one a class"
        )


def _nll_factors(
    targets: Array, classes: int, weight: Array | None, ignore_index: int, dtype: Any
) -> tuple[Array, Array]:
    """A class index within range for every row, and the row's weight: 0 if ignored, NaN if out of
    range.
    """
    xp = array_module(targets)
    check_indices(targets, classes, ignore_index)
    ignored = targets == ignore_index
    inside = (targets >= 0) & (targets < classes)
    t = xp.where(inside & ~ignored, targets, 0)
    if weight is None or not classes:
        factor = xp.ones(t.shape, dtype)
    else:
        factor = weight.astype(dtype, copy=False)[t]
    factor = xp.where(inside, factor, dtype.type(np.nan))
    return t, xp.where(ignored, dtype.type(0), factor)


def _run_nll(
    name: str,
    source: Array,
    targets: Array,
    weight: Array | None,
    ignore_index: int,
    out: Array,
    shape: tuple[int, ...],
    launch: Any,
) -> None:
    xp = array_module(source)
    check_indices(targets, shape[1], ignore_index)
    w = (
        np.uint64(0)
        if weight is None
        else xp.ascontiguousarray(weight.astype(np.float32, copy=False))
    )
    t = xp.ascontiguousarray(targets.astype(np.int64, copy=False))
    sizes = (np.int64(ignore_index), np.int64(shape[0]), np.int64(shape[1]))
    grid = -(-out.size // launch.BLOCK)
    launch.run(
        "losses",
        f"{name}<{launch.type_name(source.dtype)}>",
        grid,
        launch.BLOCK,
        (source, t, w, out, *sizes),
    )


def _indices(draw: Any, shape: tuple[int, ...], ignore_index: int = IGNORE_INDEX) -> np.ndarray:
    """Sample targets; all ignored where there is no class to point at."""
    return draw.integers(shape[1], shape[0]) if shape[1] else np.full(shape[0], ignore_index)
