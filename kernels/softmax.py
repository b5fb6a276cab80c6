"""Softmax and its relatives along any axis. The maximum is subtracted first, so that no exponential
overflows.

A `mask` (booleans that broadcast to x's shape) leaves out the elements where it is False, as if the
axis were shorter: they are 0 in a softmax, -inf in a log-softmax, and have gradient 0, whatever x
holds there. So does a row with nothing left in: its softmax is 0 throughout and its log-sum-exp
-inf, never NaN.

Without a mask infinities go the IEEE way, as in PyTorch: a row of -inf, or with a +inf, has a
softmax of NaN; the log-sum-exp of those rows is -inf and +inf.
"""

# ruff: noqa: F811  (samples of one name belong to different kernels)

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.along_axis import NULL, check_mask, mask_rows, one_per_row, run_cpu, run_cuda
from kernels.arrays import Array, array_module, as_rows, from_rows
from kernels.lazy import Lazy
from kernels.registry import kernel

loops = Lazy("kernels.cpu.softmax")

#: Templates of kernels/cuda/softmax.cu, each with one type parameter.
CUDA_KERNELS = (
    "softmax_rows",
    "softmax_columns",
    "log_softmax_rows",
    "log_softmax_columns",
    "logsumexp_rows",
    "logsumexp_columns",
    "softmax_grad_rows",
    "softmax_grad_columns",
    "log_softmax_grad_rows",
    "log_softmax_grad_columns",
    "logsumexp_grad_rows",
)


@kernel
def softmax(x: Array, axis: int = -1, mask: Array | None = None) -> Array:
    """e^(x - max) / sum of e^(x - max) along `axis`; x's shape. Masked-out elements are 0."""
    xp = array_module(x)
    x = _masked(x, mask)
    e = xp.exp(x - _peak(x, axis))
    y = e / e.sum(axis=axis, keepdims=True)
    return y if mask is None else xp.where(mask, y, y.dtype.type(0))


@softmax.cpu
def _(x: Array, axis: int = -1, mask: Array | None = None) -> Array:
    return run_cpu(loops.softmax, loops.softmax_columns, (x,), axis, mask)


@softmax.cuda
def _(x: Array, axis: int = -1, mask: Array | None = None) -> Array:
    return run_cuda("softmax", (x,), axis, mask)


@softmax.sample
def _(draw, shape):
    return (draw.normal(shape, scale=3.0),)


@softmax.sample
def masked(draw, shape):
    return draw.normal(shape, scale=3.0), -1, draw.mask(shape)


@softmax.sample
def first_axis(draw, shape):
    return draw.normal(shape, scale=3.0), 0


@kernel
def softmax_grad(dy: Array, y: Array, axis: int = -1) -> Array:
    """(dy - sum of dy * y along `axis`) * y, from the output y of `softmax`."""
    return (dy - (dy * y).sum(axis=axis, keepdims=True)) * y


@softmax_grad.cpu
def _(dy: Array, y: Array, axis: int = -1) -> Array:
    return run_cpu(loops.softmax_grad, loops.softmax_grad_columns, (dy, y), axis)


@softmax_grad.cuda
def _(dy: Array, y: Array, axis: int = -1) -> Array:
    return run_cuda("softmax_grad", (dy, y), axis)


@softmax_grad.sample
def _(draw, shape):
    return draw.normal(shape), np.exp(_log_probabilities(draw, shape, -1))


@softmax_grad.sample
def first_axis(draw, shape):
    return draw.normal(shape), np.exp(_log_probabilities(draw, shape, 0)), 0


@kernel
def log_softmax(x: Array, axis: int = -1, mask: Array | None = None) -> Array:
    """(x - max) - log(sum of e^(x - max)) along `axis`; x's shape. Masked-out elements are -inf."""
    xp = array_module(x)
    x = _masked(x, mask)
    shifted = x - _peak(x, axis)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y if mask is None else xp.where(mask, y, y.dtype.type(-np.inf))


@log_softmax.cpu
def _(x: Array, axis: int = -1, mask: Array | None = None) -> Array:
    return run_cpu(loops.log_softmax, loops.log_softmax_columns, (x,), axis, mask)


@log_softmax.cuda
def _(x: Array, axis: int = -1, mask: Array | None = None) -> Array:
    return run_cuda("log_softmax", (x,), axis, mask)


log_softmax.samples.update(softmax.samples)


@kernel
def log_softmax_grad(dy: Array, y: Array, axis: int = -1) -> Array:
    """dy - e^y * (sum of dy along `axis`), from the output y of `log_softmax`.

    Where y is -inf the element was masked out (or its input was -inf): its dy counts nowhere and
    its gradient is 0.
    """
    xp = array_module(dy)
    dy = xp.where(y == -np.inf, dy.dtype.type(0), dy)
    return dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)


@log_softmax_grad.cpu
def _(dy: Array, y: Array, axis: int = -1) -> Array:
    return run_cpu(loops.log_softmax_grad, loops.log_softmax_grad_columns, (dy, y), axis)


@log_softmax_grad.cuda
def _(dy: Array, y: Array, axis: int = -1) -> Array:
    return run_cuda("log_softmax_grad", (dy, y), axis)


@log_softmax_grad.sample
def _(draw, shape):
    return draw.normal(shape), _log_probabilities(draw, shape, -1)


@log_softmax_grad.sample
def first_axis(draw, shape):
    return draw.normal(shape), _log_probabilities(draw, shape, 0), 0


@log_softmax_grad.sample
def masked(draw, shape):
    return draw.normal(shape), _log_probabilities(draw, shape, -1, draw.mask(shape))


@kernel
def logsumexp(x: Array, axis: int = -1, keepdims: bool = False, mask: Array | None = None) -> Array:
    """log(sum of e^x) along `axis`, which leaves the shape (or stays as 1 with `keepdims`)."""
    xp = array_module(x)
    x = _masked(x, mask)
    peak = _peak(x, axis)
    shift = xp.where(xp.isfinite(peak), peak, peak.dtype.type(0))
    y = xp.log(xp.exp(x - shift).sum(axis=axis, keepdims=True)) + shift
    return y if keepdims else y.squeeze(axis)


@logsumexp.cpu
def _(x: Array, axis: int = -1, keepdims: bool = False, mask: Array | None = None) -> Array:
    return run_cpu(
        loops.logsumexp, loops.logsumexp_columns, (x,), axis, mask, reduces=True, keepdims=keepdims
    )


@logsumexp.cuda
def _(x: Array, axis: int = -1, keepdims: bool = False, mask: Array | None = None) -> Array:
    return run_cuda("logsumexp", (x,), axis, mask, reduces=True, keepdims=keepdims)


@logsumexp.sample
def _(draw, shape):
    return (draw.normal(shape, scale=3.0),)


@logsumexp.sample
def masked(draw, shape):
    return draw.normal(shape, scale=3.0), -1, False, draw.mask(shape)


@logsumexp.sample
def first_axis(draw, shape):
    return draw.normal(shape, scale=3.0), 0, True


@kernel
def logsumexp_grad(
    dy: Array,
    x: Array,
    y: Array,
    axis: int = -1,
    keepdims: bool = False,
    mask: Array | None = None,
) -> Array:
    """dy * e^(x - y), from the input x and the output y of `logsumexp`; x's shape. 0 where masked
    out.
    """
    xp = array_module(x)
    if not keepdims:
        dy, y = xp.expand_dims(dy, axis), xp.expand_dims(y, axis)
    dx = dy * xp.exp(x - y)
    return dx if mask is None else xp.where(mask, dx, dx.dtype.type(0))


@logsumexp_grad.cpu
def _(
    dy: Array,
    x: Array,
    y: Array,
    axis: int = -1,
    keepdims: bool = False,
    mask: Array | None = None,
) -> Array:
    rows, shape = as_rows(x, axis)
    out = np.empty_like(rows)
    loops.logsumexp_grad(
        *one_per_row(dy, y, shape=shape, axis=axis, keepdims=keepdims),
        rows,
        mask_rows(mask, x, axis, loops.NO_MASK),
        out,
        work=out.size,
    )
    return from_rows(out, shape, axis)


@logsumexp_grad.cuda
def _(
    dy: Array,
    x: Array,
    y: Array,
    axis: int = -1,
    keepdims: bool = False,
    mask: Array | None = None,
) -> Array:
    from kernels.cuda import launch

    rows, shape = as_rows(x, axis)
    out = array_module(x).empty_like(rows)
    count, columns = out.shape
    launch.run(
        "softmax",
        f"logsumexp_grad_rows<{launch.type_name(x.dtype)}>",
        -(-count // 8) if columns else 0,
        launch.BLOCK,
        (
            *one_per_row(dy, y, shape=shape, axis=axis, keepdims=keepdims),
            rows,
            mask_rows(mask, x, axis, NULL),
            out,
            np.int64(count),
            np.int64(columns),
        ),
    )
    return from_rows(out, shape, axis)


@logsumexp_grad.sample
def _(draw, shape):
    return draw.normal(shape[:-1]), draw.normal(shape), draw.uniform(shape[:-1], low=2.0, high=4.0)


@logsumexp_grad.sample
def masked(draw, shape):
    y = draw.uniform(shape[:-1], low=2.0, high=4.0)
    return draw.normal(shape[:-1]), draw.normal(shape), y, -1, False, draw.mask(shape)


@logsumexp_grad.sample
def first_axis(draw, shape):
    y = draw.uniform(shape[1:], low=2.0, high=4.0)
    return draw.normal(shape[1:]), draw.normal(shape), y, 0


# Shared -------------------------------------------------------------------------------------------


def _masked(x: Array, mask: Array | None) -> Array:
    """x with -inf where it is masked out."""
    if mask is None:
        return x
    check_mask(mask, x)
    return array_module(x).where(mask, x, x.dtype.type(-np.inf))


def _peak(x: Array, axis: int) -> Array:
    """The maximum along `axis`; -inf where the axis is empty (CuPy's `max` knows no `initial`)."""
    if x.shape[axis]:
        return x.max(axis=axis, keepdims=True)
    return array_module(x).full_like(x.sum(axis=axis, keepdims=True), -np.inf)


def _log_probabilities(draw: Any, shape: Any, axis: int, mask: Any = None) -> np.ndarray:
    """Outputs of `log_softmax` for the samples of gradients."""
    with np.errstate(all="ignore"):
        return log_softmax.reference(draw.normal(shape, scale=3.0), axis, mask)
