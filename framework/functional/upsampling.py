"""Images of other sizes: interpolate, pixel_shuffle, pixel_unshuffle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from framework.autograd import Tensor, record
from framework.functional.check import floating
from framework.functional.pooling import sizes_of
from kernels import upsampling as kernels
from kernels.arrays import Array

#: mode -> axes after the channels (None: one to three)
MODES = {"nearest": None, "linear": 1, "bilinear": 2, "trilinear": 3}


def interpolate(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool = False,
) -> Tensor:
    """x (N, C, *) at another size: `size`, or `scale_factor` times its own, rounded down.

    `mode` is nearest, linear (N, C, L), bilinear (N, C, H, W) or trilinear (N, C, D, H, W). With
    `align_corners` the centres of the outermost pixels stay where they are, otherwise the borders
    do. Distances are 1 / scale_factor where that is given, unless `recompute_scale_factor`.

    >>> import framework as fw
    >>> interpolate(fw.tensor([[[1.0, 3.0]]]), scale_factor=2, mode="linear").tolist()
    [[[1.0, 1.5, 2.5, 3.0]]]
    """
    floating("interpolate", x)
    if mode not in MODES:
        raise ValueError(f"interpolate: mode={mode!r}, expected one of {', '.join(MODES)}")
    dims = MODES[mode] or x.ndim - 2
    if x.ndim != dims + 2 or not 1 <= dims <= 3:
        axes = {1: "L", 2: "H, W", 3: "D, H, W"}.get(MODES[mode] or 0, "*")
        raise ValueError(
            f"interpolate: input has shape {x.shape}, expected (N, C, {axes}) for mode={mode!r}"
        )
    linear = mode != "nearest"
    if align_corners is not None and not linear:
        raise ValueError("interpolate: align_corners is for the linear modes, not for 'nearest'")
    outputs, scales = _outputs(x.shape[2:], size, scale_factor)
    if recompute_scale_factor:
        scales = (None,) * dims
    sampling = kernels.sampling(x.shape[2:], outputs, scales, linear, bool(align_corners))
    forward = kernels.upsample_linear if linear else kernels.upsample_nearest
    gradient = kernels.upsample_linear_grad if linear else kernels.upsample_nearest_grad
    return record(forward(x.data, sampling), [x], lambda dy: [gradient(dy, sampling)])


def _outputs(
    sizes: tuple[int, ...], size: Any, scale_factor: Any
) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
    """The size asked for, and the scales that distances are taken from."""
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"interpolate: size={size}, scale_factor={scale_factor}: expected one of the two"
        )
    if 0 in sizes:
        raise ValueError(f"interpolate: the input has no pixels along its axes {sizes}")
    if size is not None:
        return sizes_of("interpolate", "size", size, len(sizes)), (None,) * len(sizes)
    many = isinstance(scale_factor, Sequence)
    scales = tuple(float(s) for s in (scale_factor if many else [scale_factor] * len(sizes)))
    if len(scales) != len(sizes) or not all(0 < s < math.inf for s in scales):
        raise ValueError(
            f"interpolate: scale_factor={scale_factor}, expected a positive number"
            + (f" or {len(sizes)} of them" if len(sizes) > 1 else "")
        )
    outputs = tuple(math.floor(n * s) for n, s in zip(sizes, scales, strict=True))
    if 0 in outputs:
        raise ValueError(
            f"interpolate: scale_factor={scale_factor} of {sizes} is a size of {outputs}"
        )
    return outputs, scales


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """(N, C r^2, H, W) -> (N, C, H r, W r): each pixel's channels become r x r pixels (Shi et al.
    2016).
    """
    r = _factor("pixel_shuffle", "upscale_factor", x, upscale_factor)
    *lead, channels, H, W = x.shape
    if channels % (r * r):
        raise ValueError(
            f"pixel_shuffle: {channels} channels (axis -3 of {x.shape}) are no multiple of "
            f"upscale_factor squared, {r * r}"
        )
    C = channels // (r * r)
    return record(_shuffled(x.data, r, C), [x], lambda dy: [_unshuffled(dy, r)])


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """(N, C, H r, W r) -> (N, C r^2, H, W): undoes `pixel_shuffle`."""
    r = _factor("pixel_unshuffle", "downscale_factor", x, downscale_factor)
    C, H, W = x.shape[-3:]
    if H % r or W % r:
        raise ValueError(
            f"pixel_unshuffle: {H} x {W} pixels (of {x.shape}) are no multiples of "
            f"downscale_factor={r}"
        )
    return record(_unshuffled(x.data, r), [x], lambda dy: [_shuffled(dy, r, C)])


def _factor(name: str, argument: str, x: Tensor, value: Any) -> int:
    if floating(name, x).ndim < 3:
        raise ValueError(f"{name}: input has shape {x.shape}, expected (N, C, H, W) or (C, H, W)")
    return sizes_of(name, argument, value, 1)[0]


def _shuffled(a: Array, r: int, C: int) -> Array:
    *lead, _, H, W = a.shape
    n = len(lead)
    a = a.reshape(*lead, C, r, r, H, W)
    a = a.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)  # (..., C, H, r, W, r)
    return a.reshape(*lead, C, H * r, W * r)


def _unshuffled(a: Array, r: int) -> Array:
    *lead, C, H, W = a.shape
    n = len(lead)
    a = a.reshape(*lead, C, H // r, r, W // r, r)
    a = a.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)  # (..., C, r, r, H, W)
    return a.reshape(*lead, C * r * r, H // r, W // r)
