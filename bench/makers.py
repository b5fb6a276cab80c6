"""The arguments that a kernel's own samples cannot give: images, matrices of three sizes, tables,
flat buffers of whole models.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.sizes import (
    ATTENTION,
    FLAT,
    IMAGES,
    IMAGES_3X3,
    IMAGES_COLOUR,
    IMAGES_GREY,
    IMAGES_LENET2,
    IMAGES_WIDER,
    LOOKUPS,
    PRODUCTS,
    SEQUENCES,
    VOCABULARIES,
    Sizes,
)
from kernels import gru, lstm, recurrent
from kernels.attention import attention
from kernels.pooling import max_pool
from kernels.registry import Draw
from kernels.upsampling import sampling
from kernels.windows import Windows, adaptive, sliding

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


@maker("batch_norm_relu", *_LAYOUTS, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    x, residual = (_image(draw, N, C, H, W, variant) for _ in range(2))
    return x + 1.0, draw.normal(C), draw.normal(C), residual


@maker("batch_norm_relu_grad", *_LAYOUTS, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    x, y = (_image(draw, N, C, H, W, variant) for _ in range(2))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    dy = _image(draw, N, C, H, W, variant)
    return dy, x, np.maximum(y, 0), draw.normal(C), mean, var, 1e-5


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


#: variant -> (output channels, kernel, stride, padding, groups, sizes). Output channels as a share
#: of the input's, or a number where there are few of those.
_CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "3x3": (1.0, 3, 1, 1, False, IMAGES_3X3),
    "3x3_wider": (2.0, 3, 2, 1, False, IMAGES_WIDER),
    "1x1_wider": (2.0, 1, 2, 0, False, IMAGES_WIDER),
    "stem": (64, 3, 1, 1, False, IMAGES_COLOUR),
    "depthwise": (1.0, 3, 1, 1, True, IMAGES),
    "lenet1": (6, 5, 1, 2, False, IMAGES_GREY),
    "lenet2": (16, 5, 1, 0, False, IMAGES_LENET2),
}


def _convolution(draw: Draw, variant: str, N: int, C: int, H: int, W: int) -> tuple[Any, ...]:
    """x, weight, y's shape, (stride, padding, dilation, groups): images lie channels-last."""
    out, k, stride, padding, depthwise, _ = _CONVOLUTIONS[variant]
    channels, groups = (round(out * C) if isinstance(out, float) else out), C if depthwise else 1
    x = _image(draw, N, C, H, W, "channels_last")
    weight = draw.normal(channels, C // groups, k, k, scale=(C // groups * k * k) ** -0.5)
    shape = (N, channels, *((n + 2 * padding - k) // stride + 1 for n in (H, W)))
    return x, weight, shape, (stride, padding, 1, groups)


for _variant, (*_, _sizes) in _CONVOLUTIONS.items():

    @maker("convolution", _variant, sizes=_sizes)
    def _(draw, N, C, H, W, variant):
        x, weight, shape, options = _convolution(draw, variant, N, C, H, W)
        return x, weight, draw.normal(shape[1]), *options

    @maker("convolution_input_grad", _variant, sizes=_sizes)
    def _(draw, N, C, H, W, variant):
        _, weight, shape, options = _convolution(draw, variant, N, C, H, W)
        return _image(draw, *shape, "channels_last"), weight, (H, W), *options

    @maker("convolution_weight_grad", _variant, sizes=_sizes)
    def _(draw, N, C, H, W, variant):
        x, weight, shape, options = _convolution(draw, variant, N, C, H, W)
        return _image(draw, *shape, "channels_last"), x, weight.shape[2:], *options


#: What is pooled: the stem and the blocks of convolutional networks.
_SLIDES = {"2x2": (2, 2, 0), "3x3": (3, 2, 1)}
_POOLED = tuple(f"{slide}-{layout}" for slide in _SLIDES for layout in _LAYOUTS)
_AVERAGED = tuple(f"{slide}-{layout}" for slide in ("2x2", "global") for layout in _LAYOUTS)


def _windows(slide: str, H: int, W: int) -> Windows:
    if slide == "global":
        return adaptive("bench", (H, W), (1, 1))
    pairs = ((n, n) for n in (*_SLIDES[slide], 1))
    return sliding("bench", (H, W), *pairs)


@maker("max_pool", *_POOLED, sizes=IMAGES)
@maker("avg_pool", *_AVERAGED, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    slide, layout = variant.split("-")
    return _image(draw, N, C, H, W, layout), _windows(slide, H, W)


@maker("avg_pool_grad", *_AVERAGED, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    slide, layout = variant.split("-")
    windows = _windows(slide, H, W)
    return _image(draw, N, C, *windows.outputs, layout), windows


@maker("max_pool_grad", *_POOLED, sizes=IMAGES)
def _(draw, N, C, H, W, variant):
    slide, layout = variant.split("-")
    windows = _windows(slide, H, W)
    places = max_pool.reference(_image(draw, N, C, H, W, layout), windows)[1]
    if layout == "channels_last":  # as the forward kernel lays them out
        places = np.moveaxis(np.ascontiguousarray(np.moveaxis(places, 1, -1)), -1, 1)
    else:
        places = np.ascontiguousarray(places)
    return _image(draw, N, C, *windows.outputs, layout), places, windows


def _twice(kernel: str, linear: bool, backward: bool) -> None:
    @maker(kernel, *_LAYOUTS, sizes=IMAGES)
    def _(draw, N, C, H, W, variant):
        made = sampling((H, W), (2 * H, 2 * W), (None, None), linear, False)
        return _image(draw, N, C, *(made.outputs if backward else (H, W)), variant), made


_twice("upsample_nearest", False, False)
_twice("upsample_nearest_grad", False, True)
_twice("upsample_linear", True, False)
_twice("upsample_linear_grad", True, True)


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


def _layer(draw: Draw, T: int, B: int, H: int, gates: int) -> tuple[Any, ...]:
    """x, weights and biases, as large as PyTorch draws them."""
    bound = {"low": -(H**-0.5), "high": H**-0.5}
    weights = (draw.uniform(gates * H, *columns, **bound) for columns in ((H,), (H,), (), ()))
    return draw.normal(T, B, H), *weights


@maker("rnn", "sequence", sizes=SEQUENCES)
def _(draw, T, B, H):
    return _layer(draw, T, B, H, 1)


@maker("rnn_grad", "sequence", sizes=SEQUENCES)
def _(draw, T, B, H):
    layer = _layer(draw, T, B, H, 1)[:3]  # without biases, of which a gradient knows nothing
    y, _ = recurrent.rnn.reference(*layer)
    return draw.normal(T, B, H), None, *layer, None, y


@maker("lstm", "sequence", sizes=SEQUENCES)
def _(draw, T, B, H):
    return _layer(draw, T, B, H, 4)


@maker("lstm_grad", "sequence", sizes=SEQUENCES)
def _(draw, T, B, H):
    layer = _layer(draw, T, B, H, 4)[:3]
    y, _, _, gates, cells = lstm.lstm.reference(*layer)
    return draw.normal(T, B, H), None, None, *layer, None, None, y, gates, cells


@maker("gru", "sequence", sizes=SEQUENCES)
def _(draw, T, B, H):
    return _layer(draw, T, B, H, 3)


@maker("gru_grad", "sequence", sizes=SEQUENCES)
def _(draw, T, B, H):
    layer = _layer(draw, T, B, H, 3)[:3]
    y, _, gates, u = gru.gru.reference(*layer)
    return draw.normal(T, B, H), None, *layer, None, y, gates, u


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
