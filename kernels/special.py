"""The error function, which NumPy lacks, and the logistic function without overflow."""

# ruff: noqa: F821  (the functions in a formula are text: see kernels/elementwise.py)

from __future__ import annotations

import math
from functools import cache

import numpy as np

from kernels.arrays import Array, array_module
from kernels.elementwise import elementwise

# erf is expanded around the nearest multiple of 1/8 below 6, where it is 1 in float64. Up to there
# |h| <= 1/16, and the first term left out is below 2e-19.
_STEP = 0.125
_POINTS = 49
_TERMS = 13


@cache
def _taylor() -> np.ndarray:
    """Taylor coefficients of erf at every grid point, (terms, points).

    The derivative g(h) = 2/sqrt(pi) e^-(x+h)^2 has g' = -2 (x + h) g, hence (n + 1) g[n+1] = -2 (x
    g[n] + g[n-1]).
    """
    x = np.arange(_POINTS) * _STEP
    g = [np.zeros_like(x), 2 / math.sqrt(math.pi) * np.exp(-x * x)]
    for n in range(_TERMS - 2):
        g.append(-2 * (x * g[-1] + g[-2]) / (n + 1))
    values = np.array([math.erf(point) for point in x])
    return np.stack([values, *(c / (n + 1) for n, c in enumerate(g[1:]))])


def sigmoid_array(x: Array) -> Array:
    """1 / (1 + e^-x), through e^-|x|, which cannot overflow."""
    xp = array_module(x)
    e = xp.exp(-xp.absolute(x))
    return xp.where(x < 0, e, 1) / (1 + e)


def sigmoid_slope(x: Array) -> Array:
    """The sigmoid's derivative, e^-|x| / (1 + e^-|x|)^2: s (1 - s) without cancellation."""
    xp = array_module(x)
    e = xp.exp(-xp.absolute(x))
    return e / ((1 + e) * (1 + e))


@elementwise
def erf(x: Array) -> Array:
    """2/sqrt(pi) times the integral of e^-t^2 from 0 to x; within 4e-16 in float64."""
    xp = array_module(x)
    a = xp.absolute(x).astype(np.float64)
    a = xp.where(a < 6, a, 6)  # NaN becomes 6 for now
    k = xp.rint(a / _STEP).astype(np.int64)
    h = a - k * _STEP
    table = xp.asarray(_taylor())
    y = table[-1][k]
    for n in range(_TERMS - 2, -1, -1):
        y = y * h + table[n][k]
    return xp.where(xp.isnan(x), x, xp.copysign(y, x)).astype(x.dtype)


@erf.formula
def _(x):
    return erf(x)


@elementwise
def erf_grad(dy: Array, x: Array) -> Array:
    """dy 2/sqrt(pi) e^-x^2."""
    return dy * (2 / math.sqrt(math.pi) * array_module(x).exp(-x * x))


@erf_grad.formula
def _(dy, x):
    return dy * (1.1283791670955126 * exp(-x * x))
