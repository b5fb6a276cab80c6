"""Autocast: within a block, matrix products run in 16 bits, and what needs float32 gets it.

    with fw.autocast("bfloat16"):
        loss = cross_entropy(net(x), y)
    loss.backward()

Each function decides for itself, as in PyTorch, with one line at its start:

- products (linear, feed_forward, bilinear, matmul, prelu) take `lowered` inputs and give 16 bits;
- what adds up or spreads far (losses, softmax, layer norm, sum, mean, exp, log, powers, ...) takes
  `widened` inputs and gives float32;
- everything else takes what comes. Where the two meet, float32 wins.

A model whose parameters are cast would be the other way. There the user's parameters, their
``state_dict`` and their gradients change dtype, and each norm and loss is an exception.

Parameters stay float32. Their 16-bit copies are made at first use and kept until the outermost
block ends: one cast for all the parameters that an optimizer holds in a flat buffer. What changes
parameters inside a block (an optimizer's step, ``load_state_dict``, ``w -= ...``) makes the copies
anew; an assignment into ``w.data`` goes unnoticed until the block ends. A captured step makes
copies of its own, at every replay.

float64 is left alone. Outside of a block all this costs one look at `state.dtype`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from framework.autograd.graph import in_dtype, record
from framework.backend.live import capture_by_mode, forget_around_captures
from kernels.arrays import Array, address, is_array, is_floating, is_half

if TYPE_CHECKING:
    from framework.autograd.tensor import Tensor

    _T = TypeVar("_T", Tensor, Tensor | None)

HALVES = ("bfloat16", "float16")


class _State(threading.local):
    #: What products are computed in; None: as their operands come.
    dtype: np.dtype[Any] | None = None

    def __init__(self) -> None:
        #: (array's id, dtype) -> the array, which keeps the id its own, and its 16-bit copy
        self.copies: dict[tuple[int, Any], tuple[Array, Array]] = {}
        #: What `dtype` was before each of the blocks around
        self.previous: list[np.dtype[Any] | None] = []


#: Of this thread: one that evaluates in float32 does not stop another that trains.
state = _State()


class autocast(ContextDecorator):
    """``with autocast("bfloat16"):`` or ``@autocast("float16")``: products in 16 bits, in this
    thread.

    Wrap the forward pass and the loss; `backward` needs no block. float16 wants a
    `framework.optimizers.LossScaler` too. ``enabled=False`` turns it off for a part, and around
    several blocks keeps the 16-bit copies of the weights from one to the next.

    >>> import framework as fw
    >>> w = fw.tensor([[1.0, 2.0]], requires_grad=True)
    >>> with fw.autocast("bfloat16"):
    ...     y = w @ fw.tensor([[3.0], [4.0]])
    >>> y.dtype.name, w.dtype.name
    ('bfloat16', 'float32')
    """

    def __init__(self, dtype: Any = "bfloat16", enabled: bool = True) -> None:
        self.dtype, self.enabled = _half(dtype), enabled

    def __enter__(self) -> None:
        state.previous.append(state.dtype)
        state.dtype = self.dtype if self.enabled else None

    def __exit__(self, *error: object) -> None:
        state.dtype = state.previous.pop()
        if not state.previous:
            state.copies.clear()

    def _recreate_cm(self) -> autocast:
        return autocast(self.dtype, self.enabled)  # a decorated function may run in several threads


def _half(dtype: Any) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    try:
        found: np.dtype[Any] | None = np.dtype(dtype)
    except TypeError:
        found = None
    if dtype is None or found is None or not is_half(found):
        raise ValueError(f"autocast to {dtype!r}: expected one of {', '.join(HALVES)}")
    return found


def forget_copies() -> None:
    """Parameters have changed: 16-bit copies of them are of no use any more."""
    state.copies.clear()


forget_around_captures(forget_copies)
capture_by_mode(lambda: state.dtype)


def product_dtype(*tensors: Tensor | None) -> np.dtype[Any] | None:
    """What a product of `tensors` is computed in; None: as they come, outside of a block and where
    one of them is float64.
    """
    dtype = state.dtype
    if dtype is None or any(x is not None and x.dtype == np.float64 for x in tensors):
        return None
    return dtype


def compute_copy(x: Tensor, dtype: np.dtype[Any]) -> Array:
    """The array of `x` in `dtype`; of a leaf that wants a gradient, a copy that is kept."""
    a = x.data
    if a.dtype == dtype:
        return a
    if x.node is not None or not x.requires_grad or not state.previous:
        return in_dtype(a, dtype)
    kept = state.copies.get((id(a), dtype))
    if kept is None:
        kept = state.copies[id(a), dtype] = a, _part_of_a_copy(x, dtype)
    return kept[1]


def _part_of_a_copy(x: Tensor, dtype: np.dtype[Any]) -> Array:
    """x's part of a copy of the flat buffer that an optimizer has put it in, if it has."""
    a = x.data
    base = a.base if x.slot is not None and a.flags.c_contiguous else None
    if base is None or not is_array(base) or base.ndim != 1 or base.dtype != a.dtype:
        return in_dtype(a, dtype)
    kept = state.copies.get((id(base), dtype))
    if kept is None:
        kept = state.copies[id(base), dtype] = base, in_dtype(base, dtype)
    start = (address(a) - address(base)) // a.itemsize
    return kept[1][start : start + a.size].reshape(a.shape)


def lowered_arrays(values: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
    """The operands of a product, `arrays` made of `values` (tensors, arrays, numbers), in the
    block's 16 bits; as they are outside of a block, and where one of them is float64.
    """
    dtype = state.dtype
    if dtype is None or any(getattr(a, "dtype", None) == np.float64 for a in arrays):
        return arrays
    lower: list[Any] = []
    for value, a in zip(values, arrays, strict=True):
        if not is_array(a) or not is_floating(a.dtype):
            lower.append(a)
        elif getattr(value, "data", None) is a:
            lower.append(compute_copy(value, dtype))
        else:
            lower.append(in_dtype(a, dtype))
    return lower


def lowered(*tensors: Any) -> Any:
    """`tensors` in the block's 16 bits, differentiably (None and integers stay); as they are
    outside of a block, and where one of them is float64.

    Gradients come back in the dtypes that the tensors have.
    """
    dtype = product_dtype(*tensors)
    return tensors if dtype is None else [_lowered(x, dtype) for x in tensors]


def _lowered(x: Tensor | None, dtype: np.dtype[Any]) -> Tensor | None:
    if x is None or x.dtype == dtype or not is_floating(x.dtype):
        return x
    before = x.dtype
    return record(compute_copy(x, dtype), [x], lambda dy: [dy.astype(before)])


def widened(x: _T) -> _T:
    """`x` in float32 if it has 16 bits, differentiably."""
    return x.to("float32") if x is not None and is_half(x.dtype) else x
