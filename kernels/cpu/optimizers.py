"""Loops of kernels/optimizers.py over flat float32 buffers: each buffer is read and written once,
bound by memory.

The arithmetic an element needs is hidden behind the loads; switches that are constant over the loop
cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu import engine

_ZERO = np.float32(0)


def loop(*cut: str) -> Any:
    """`engine.loop` without fast-math: a vector's lanes and the tail round alike, so cuts do not
    show.

    (Nor may p - lr c p become p (1 - lr c), which is inf instead of NaN.) The loads hide what it
    costs.
    """
    return engine.loop(*cut, fastmath=False)


@loop("p", "g")
def sgd(p, g, scale, coupled, shrink, lr):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if coupled != _ZERO:
            d += coupled * p[i]
        p[i] = p[i] * shrink - lr * d


@loop("p", "g", "buf")
def sgd_momentum(p, g, buf, scale, coupled, shrink, lr, momentum, keep, take, nesterov):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if coupled != _ZERO:
            d += coupled * p[i]
        b = take * d
        if keep != _ZERO:
            b += keep * buf[i]
        buf[i] = b
        p[i] = p[i] * shrink - lr * (d + momentum * b if nesterov else b)


@loop("p", "g", "m", "v")
def adam(p, g, m, v, scale, coupled, shrink, step_size, correction, take1, keep2, take2, eps):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if coupled != _ZERO:
            d += coupled * p[i]
        mean = m[i] + take1 * (d - m[i])
        square = keep2 * v[i] + take2 * (d * d)
        m[i] = mean
        v[i] = square
        p[i] = p[i] * shrink - step_size * (mean / (np.sqrt(square) * correction + eps))


@loop("p", "g", "m", "v", "vmax")
def amsgrad(
    p, g, m, v, vmax, scale, coupled, shrink, step_size, correction, take1, keep2, take2, eps
):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if coupled != _ZERO:
            d += coupled * p[i]
        mean = m[i] + take1 * (d - m[i])
        square = keep2 * v[i] + take2 * (d * d)
        m[i] = mean
        v[i] = square
        # NaN wins, as in np.maximum
        largest = vmax[i] if vmax[i] >= square or vmax[i] != vmax[i] else square
        vmax[i] = largest
        p[i] = p[i] * shrink - step_size * (mean / (np.sqrt(largest) * correction + eps))


@loop("p", "g", "v")
def rmsprop(p, g, v, scale, lr, keep, take, eps, weight_decay):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if weight_decay != _ZERO:
            d += weight_decay * p[i]
        square = keep * v[i] + take * (d * d)
        v[i] = square
        p[i] -= lr * (d / (np.sqrt(square) + eps))


@loop("p", "g", "v", "buf", "mean_g")
def rmsprop_general(
    p, g, v, buf, mean_g, scale, lr, keep, take, eps, weight_decay, momentum, use_buf, centered
):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if weight_decay != _ZERO:
            d += weight_decay * p[i]
        square = keep * v[i] + take * (d * d)
        v[i] = square
        if centered:
            mean = mean_g[i] + take * (d - mean_g[i])
            mean_g[i] = mean
            square -= mean * mean
            square = _ZERO if square < _ZERO else square
        d = d / (np.sqrt(square) + eps)
        if use_buf:
            d += momentum * buf[i]
            buf[i] = d
        p[i] -= lr * d


@loop("p", "g", "v")
def adagrad(p, g, v, scale, rate, eps, weight_decay):
    for i in range(p.shape[0]):
        d = g[i] * scale
        if weight_decay != _ZERO:
            d += weight_decay * p[i]
        square = v[i] + d * d
        v[i] = square
        p[i] -= rate * (d / (np.sqrt(square) + eps))


@loop("x")
def scale(x, factor):
    for i in range(x.shape[0]):
        x[i] *= factor


@loop("a", "b")
def lerp(a, b, weight):
    for i in range(a.shape[0]):
        a[i] += weight * (b[i] - a[i])
