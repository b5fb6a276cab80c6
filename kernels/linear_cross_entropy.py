"""Cross-entropy of a linear layer's output, without the output: for vocabularies, whose logits (N,
V) would be the largest array of a language model, and their gradient another one.

Rows go by in chunks: the logits of a chunk, their losses and gradients, and at once what becomes of
these, so that one chunk of logits and one of gradients exist at a time. Computing the gradients in
the forward pass takes three products; to compute them in the backward pass would take a fourth.
"""

from __future__ import annotations

import numpy as np

from kernels import reductions
from kernels.arrays import Array, array_module, is_half
from kernels.losses import IGNORE_INDEX, check_indices, cross_entropy
from kernels.matmul import add_product, matmul, product_for_more
from kernels.registry import kernel

#: Logits of a chunk: 64 MiB in float32. Fewer rows make the products slower (each adds to the whole
#: of dweight); more rows no faster.
CHUNK = 1 << 24

Result = tuple[Array, Array | None, Array | None, Array | None]


def _check(x: Array, weight: Array, targets: Array, bias: Array | None) -> None:
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_cross_entropy: x {x.shape}, weight {weight.shape}: expected (N, D), (V, D)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"linear_cross_entropy: bias {bias.shape}, weight {weight.shape}: expected (V,), (V, D)"
        )
    if targets.shape != x.shape[:1] or targets.dtype.kind not in "iu":
        raise ValueError(
            f"linear_cross_entropy: targets are {targets.dtype}{targets.shape}, expected integers "
            f"{x.shape[:1]}"
        )


@kernel(statistics=(0, 2, 3))
def linear_cross_entropy(
    x: Array,
    weight: Array,
    targets: Array,
    bias: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    with_grad: bool = True,
) -> Result:
    """`cross_entropy` of x weight^T + bias: losses (N,), and the gradients of their sum, dx (N, D),
    dweight (V, D) and dbias (V,); without `with_grad` those are None, and dbias without a bias.

    x (N, D), weight (V, D), targets (N,) integers below V, or `ignore_index`, bias (V,). Of 16-bit
    x the losses, dweight and dbias are float32: sums over N rows may be beyond float16, their mean
    is not.
    """
    _check(x, weight, targets, bias)
    options = (None, ignore_index, label_smoothing, with_grad)
    logits = x @ weight.T if bias is None else x @ weight.T + bias
    losses, dlogits = cross_entropy.reference(logits, targets, *options)
    if dlogits is None:
        return losses, None, None, None
    dbias, dweight = None if bias is None else dlogits.sum(0), dlogits.T @ x
    return losses, dlogits @ weight, dweight, dbias


def _product(x: Array, weight: Array, bias: Array | None) -> Array:
    """Logits, float32 for 16 bits: the loss of large ones is a small difference."""
    if not is_half(x.dtype):
        return matmul(x, weight, transpose_b=True, bias=bias)
    logits = product_for_more(x, weight, False, True)
    if bias is not None:
        logits += bias.astype(np.float32)
    return logits


def _in_chunks(
    x: Array,
    weight: Array,
    targets: Array,
    bias: Array | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    with_grad: bool = True,
) -> Result:
    """By the kernels of products and of the loss, chunk by chunk."""
    _check(x, weight, targets, bias)
    xp = array_module(x)
    (N, D), V = x.shape, weight.shape[0]
    rows = max(1, CHUNK // max(V, 1))
    if rows < N:  # the rows that a chunk would name are its own
        check_indices(targets, V, ignore_index)
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    losses = xp.empty(N, np.float32)
    dx = xp.empty((N, D), x.dtype) if with_grad else None
    dw = None
    if with_grad:
        dw = xp.empty((V, D), np.float32) if N else xp.zeros((V, D), np.float32)
    db = xp.zeros(V, np.float32) if with_grad and bias is not None else None
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        logits = _product(x[part], weight, bias)
        options = (None, ignore_index, label_smoothing, with_grad)
        losses[part], dlogits = cross_entropy(logits, targets[part], *options)
        if db is not None:
            db += reductions.sum(dlogits, 0)
        if dx is not None:
            # 16-bit products take 16-bit gradients of logits, from float32 logits
            dlogits = dlogits.astype(x.dtype, copy=False)
            matmul(dlogits, weight, out=dx[part])
            add_product(dw, dlogits, x[part], start == 0)
    return losses, dx, dw, db


linear_cross_entropy.cpu(_in_chunks)
linear_cross_entropy.cuda(_in_chunks)


@linear_cross_entropy.sample
def _(draw, shape):
    V = 23
    targets = np.where(draw.mask(shape[0]), draw.integers(V, shape[0]), IGNORE_INDEX)
    return draw.normal(shape), draw.normal(V, shape[1], scale=0.2), targets


@linear_cross_entropy.sample
def smoothed(draw, shape):
    V = 23
    targets = draw.integers(V, shape[0])
    return draw.normal(shape), draw.normal(V, shape[1], scale=0.2), targets, None, -1, 0.1


@linear_cross_entropy.sample
def with_bias(draw, shape):
    x, weight, targets = linear_cross_entropy.samples["_"](draw, shape)
    return x, weight, targets, draw.normal(len(weight))


@linear_cross_entropy.sample
def loss_only(draw, shape):
    x, weight, targets = linear_cross_entropy.samples["_"](draw, shape)
    return x, weight, targets, None, IGNORE_INDEX, 0.0, False
