"""The arguments that a kernel's own samples cannot give: images, matrices of three sizes, tables,
flat buffers of whole models.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.sizes import ATTENTION, FLAT, IMAGES, LOOKUPS, PRODUCTS, VOCABULARIES, Sizes
from kernels.attention import attention
from kernels.registry import Draw

Maker = Callable[..., tuple[Any, ...]]

#: (kernel, variant) -> the function, and its sizes.
MAKERS: dict[tuple[str, str], tuple[Maker, Sizes]] = {}


def maker(kernel: str, *variants: str, sizes: Sizes) -> Callable[[Maker], Maker]:
    """Register ``function(draw, *shape[, variant=]) -> arguments`` for variants of a kernel."""

    def register(function: Maker) -> Maker:
        takes_variant = "variant" in inspect.signature(function).parameters
        for variant in variants:

            def make(draw: Draw, *shape: int, variant: str = variant) -> tuple[Any, ...]:
                return function(draw, *shape, **({"variant": variant} if takes_variant else {}))

            MAKERS[kernel, variant] = make, sizes
        return function

    return register


_LAYOUTS = ("nchw", "channels_last")


def _image(draw: Draw, N: int, C: int, H: int, W: int, layout: str) -> np.ndarray:
    """(N, C, H, W), in memory as `layout` says."""
    if layout == "nchw":
        return draw.normal(N, C, H, W)
    return draw.normal(N, H, W, C).transpose(0, 3, 1, 2)


@maker("batch_norm", *_LAYOUTS, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    return _image(draw, N, C, H, W, variant) + 1.0, draw.normal(C), draw.normal(C), 1e-5


@maker("batch_norm_grad", *_LAYOUTS, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    x = _image(draw, N, C, H, W, variant)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    return _image(draw, N, C, H, W, variant), x, draw.normal(C), mean, var, 1e-5


@maker("batch_norm_inference", *_LAYOUTS, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    mean, var = draw.normal(C), draw.uniform(C, low=0.5, high=2.0)
    return _image(draw, N, C, H, W, variant), draw.normal(C), draw.normal(C), mean, var


@maker("group_norm", "nchw", sizes=IMAGES)
def _(draw, N, C, H, W):
    return draw.normal(N, C, H, W), _groups(C), draw.normal(C), draw.normal(C)


@maker("group_norm_grad", "nchw", sizes=IMAGES)
def _(draw, N, C, H, W):
    x, G = draw.normal(N, C, H, W), _groups(C)
    grouped = x.reshape(N, G, -1)
    rstd = 1 / np.sqrt(grouped.var(2) + 1e-5)
    return draw.normal(N, C, H, W), x, G, draw.normal(C), grouped.mean(2), rstd


def _groups(C: int) -> int:
    """8 groups, or as many as go into C."""
    return math.gcd(C, 8)


@maker("matmul", "nn", sizes=PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, k), draw.normal(k, n)


@maker("matmul", "nt_bias", sizes=PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, k), draw.normal(n, k), False, True, draw.normal(n)


@maker("matmul", "tn", sizes=PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(k, m), draw.normal(k, n), True


@maker("linear_weight_grad", "mkn", sizes=PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, n), draw.normal(m, k)


@maker("linear_gelu", "mkn", sizes=PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, k), draw.normal(n, k, scale=k**-0.5), draw.normal(n)


@maker("linear_gelu_grad", "mkn", sizes=PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, k), draw.normal(k, n, scale=k**-0.5), draw.normal(m, n)


@maker("embedding", "lookup", sizes=LOOKUPS)
def _(draw, tokens, vocabulary, features):
    return draw.normal(vocabulary, features), draw.integers(vocabulary, tokens)


@maker("embedding_grad", "lookup", sizes=LOOKUPS)
def _(draw, tokens, vocabulary, features):
    return draw.normal(tokens, features), draw.integers(vocabulary, tokens), vocabulary


def _heads(draw: Draw, *shape: int) -> np.ndarray:
    """(B, H, T, D) that lie as (B, T, H, D)."""
    B, H, T, D = shape
    return draw.normal(B, T, H, D).swapaxes(1, 2)


@maker("attention", "causal", sizes=ATTENTION)
def _(draw, *shape):
    return *(_heads(draw, *shape) for _ in range(3)), None, None, None, True


@maker("attention_grad", "causal", sizes=ATTENTION)
def _(draw, *shape):
    dout, q, k, v = (_heads(draw, *shape) for _ in range(4))
    out, lse = attention(*(x.astype(np.float32) for x in (q, k, v)), causal=True)
    return dout, q, k, v, out, lse, None, None, None, True


@maker("linear_cross_entropy", "tokens", sizes=VOCABULARIES)
def _(draw, tokens, features, vocabulary):
    weight = draw.normal(vocabulary, features, scale=features**-0.5)
    return draw.normal(tokens, features), weight, draw.integers(vocabulary, tokens)


_ADAM = ("adamw", "adamw_foreach", "adam", "adam_foreach")
_SGD = ("nesterov", "nesterov_foreach", "plain")


@maker("adam_step", *_ADAM, sizes=FLAT)
def _(draw, n, tensors, variant):
    decay, decoupled = (0.01, True) if variant.startswith("adamw") else (0.0, False)
    p, g, m, v = draw.normal(n), draw.normal(n), np.zeros(n), np.zeros(n)
    return p, g, m, v, 1e-3, 0.9, 0.999, 1e-8, decay, 1, decoupled


@maker("sgd_step", *_SGD, sizes=FLAT)
def _(draw, n, tensors, variant):
    p, g = draw.normal(n), draw.normal(n)
    if variant == "plain":
        return p, g, None, 1e-3
    return p, g, np.zeros(n), 1e-3, 0.9, 0.0, 0.0, True


@maker("rmsprop_step", "plain", sizes=FLAT)
def _(draw, n, tensors):
    return draw.normal(n), draw.normal(n), np.zeros(n), None, None, 1e-3


@maker("adagrad_step", "plain", sizes=FLAT)
def _(draw, n, tensors):
    return draw.normal(n), draw.normal(n), np.zeros(n), 1e-3
