"""Differentiable reductions: sum, mean, var, std, max, min, norm, cumsum; and argmax, argmin, all,
any.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from framework.autograd.casting import state, widened
from framework.autograd.graph import as_array, in_dtype, record
from kernels import reductions
from kernels.arrays import Array, array_module, is_floating

if TYPE_CHECKING:
    from framework.autograd.tensor import Tensor

Axis = int | tuple[int, ...] | list[int] | None
Axes = int | tuple[int, ...] | None  # after `_checked`


_F = TypeVar("_F", bound=Callable[..., Any])


def _torch_words(method: _F) -> _F:
    """Accept PyTorch's ``dim=`` and ``keepdim=`` for ``axis=`` and ``keepdims=``."""

    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        if options:
            for word, ours in (("dim", "axis"), ("keepdim", "keepdims")):
                if word in options:
                    options[ours] = options.pop(word)
        return method(*args, **options)

    return cast("_F", call)


class Reductions:
    """The reducing methods of a Tensor. `axis` None means over everything.

    PyTorch's words ``dim`` and ``keepdim`` are understood too.
    """

    __slots__ = ()

    @_torch_words
    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Sum."""
        x = _wide(self)
        shape = x.shape
        at = _checked("sum", shape, axis)
        out = reductions.sum(x.data, at, keepdims)
        return record(out, [x], lambda dy: [_spread(dy, shape, at, keepdims)])

    @_torch_words
    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Mean; of nothing it is NaN."""
        x = _wide(self)
        shape = x.shape
        at = _checked("mean", shape, axis)
        out = reductions.mean(_floats(x), at, keepdims)
        share, dtype = 1 / max(1, count(shape, at)), out.dtype
        return record(
            out, [x], lambda dy: [_spread(in_dtype(dy * share, dtype), shape, at, keepdims)]
        )

    @_torch_words
    def var(self, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Tensor:
        """Variance over n - `correction` (1: unbiased, 0: of the population)."""
        x = _wide(self)
        a = _floats(x)
        at = _checked("var", x.shape, axis)
        out = reductions.var(a, at, correction, keepdims)
        return record(out, [x], lambda dy: [reductions.var_grad(dy, a, at, correction, keepdims)])

    @_torch_words
    def std(self, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Tensor:
        """Standard deviation; the gradient where it is 0 is 0."""
        x = _wide(self)
        a = _floats(x)
        axis = _checked("std", x.shape, axis)
        xp = array_module(a)
        with np.errstate(all="ignore"):
            y = as_array(xp.sqrt(reductions.var(a, axis, correction, keepdims)))

        def backward(dy: Array) -> list[Array]:
            with np.errstate(all="ignore"):
                dvar = in_dtype(as_array(xp.where(y == 0, 0, dy / (2 * y))), y.dtype)
            return [reductions.var_grad(dvar, a, axis, correction, keepdims)]

        return record(y, [x], backward)

    @_torch_words
    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Largest; equal ones share the gradient. (`argmax` tells where.)"""
        return _extreme("max", self, axis, keepdims)

    @_torch_words
    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Smallest; equal ones share the gradient. (`argmin` tells where.)"""
        return _extreme("min", self, axis, keepdims)

    @_torch_words
    def norm(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Euclidean norm; the gradient at the origin is 0."""
        x = _wide(self)
        a = _floats(x)
        at = _checked("norm", x.shape, axis)
        y = reductions.norm(a, at, keepdims)
        return record(y, [x], lambda dy: [reductions.norm_grad(dy, a, y, at, keepdims)])

    @_torch_words
    def cumsum(self, axis: int) -> Tensor:
        """Running sum along `axis`."""
        x = _wide(self)
        at = _checked("cumsum", x.shape, axis)
        return record(
            reductions.cumsum(x.data, at), [x], lambda dy: [reductions.cumsum_grad(dy, at)]
        )

    @_torch_words
    def argmax(self, axis: int | None = None) -> Tensor:
        """Position of the (first) largest, int64."""
        return _position("argmax", self, axis)

    @_torch_words
    def argmin(self, axis: int | None = None) -> Tensor:
        """Position of the (first) smallest, int64."""
        return _position("argmin", self, axis)

    @_torch_words
    def all(self, axis: Axis = None) -> Tensor:
        """Are all true?"""
        return _truth("all", self, axis)

    @_torch_words
    def any(self, axis: Axis = None) -> Tensor:
        """Is any true?"""
        return _truth("any", self, axis)


def _tensor(x: Any) -> Tensor:
    return cast("Tensor", x)


def _wide(x: Any) -> Tensor:
    """What adds up has float32 results under autocast."""
    return _tensor(x) if state.dtype is None else widened(_tensor(x))


def _checked(name: str, shape: tuple[int, ...], axis: Axis) -> Axes:
    """`axis` as Python ints, if there are such axes; a list is as good as a tuple."""
    if axis is None:
        return None
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    try:
        axes = tuple(map(operator.index, given))
    except TypeError:
        raise TypeError(f"{name}: axis={axis!r}, expected an integer or several") from None
    for a in axes:
        if not -len(shape) <= a < len(shape):
            raise ValueError(f"{name}: axis {a} does not exist in shape {shape}")
    return axes if isinstance(axis, (tuple, list)) else axes[0]


def _floats(x: Tensor) -> Array:
    """x's array; integers as float32, for a result that is not an integer."""
    return x.data if is_floating(x.dtype) else x.data.astype("float32")


def count(shape: tuple[int, ...], axis: Axes) -> int:
    """How many elements each result of a reduction is made of."""
    if axis is None:
        return math.prod(shape)
    return math.prod(shape[a] for a in ((axis,) if isinstance(axis, int) else axis))


def _spread(dy: Array, shape: tuple[int, ...], axis: Axes, keepdims: bool) -> Array:
    """Hand the gradient of a sum to everything that was summed (a broadcast view)."""
    xp = array_module(dy)
    if axis is not None and not keepdims:
        axes = (axis,) if isinstance(axis, int) else axis
        dy = xp.expand_dims(dy, tuple(a % len(shape) for a in axes))
    return xp.broadcast_to(dy, shape)


def _extreme(name: str, x: Any, axis: Axis, keepdims: bool) -> Tensor:
    a = x.data
    at = _checked(name, x.shape, axis)
    if count(x.shape, at) == 0:
        raise ValueError(f"{name} of nothing: shape {x.shape}, axis {axis}")
    y = getattr(reductions, name)(a, at, keepdims)
    return record(y, [x], lambda dy: [reductions.max_grad(dy, a, y, at, keepdims)])


def _truth(name: str, x: Any, axis: Axis) -> Tensor:
    out = getattr(x.data, name)(axis=_checked(name, x.shape, axis))
    return record(as_array(out), [], lambda dy: [])


def _position(name: str, x: Any, axis: int | None) -> Tensor:
    at = _checked(name, x.shape, axis)
    if count(x.shape, at) == 0:
        raise ValueError(f"{name} of nothing: shape {x.shape}, axis {axis}")
    return record(getattr(reductions, name)(x.data, at), [], lambda dy: [])
