"""Activation checkpointing: a part's forward pass is run again when its gradient is wanted, so that
nothing it computed on the way has to be kept (Chen et al. 2016, "Training deep nets with sublinear
memory cost").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any

from framework.autograd import graph
from framework.autograd.casting import autocast, state
from framework.autograd.changes import captured
from framework.autograd.graph import Node, is_grad_enabled, set_grad_enabled
from framework.autograd.several import hung_on
from framework.autograd.tensor import Tensor
from framework.backend.live import CaptureError, recording
from framework.backend.random import default_generator
from kernels.arrays import Array


def checkpoint(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """``function(*args, **options)``, a tensor or a tuple of them (and of None); for its
    gradient only what goes in is kept.

    The backward pass runs `function` again, from the same place in the random stream (dropout drops
    the same) and in the same autocast block. It must compute the same both times; what else it does
    it does twice. All that it uses gets its gradient as ever: arguments, also by keyword and in
    tuples, lists and dicts, parameters, and tensors that it finds around it. Without a gradient to
    come, this is a plain call.

    Several results go back in one backward pass: a second one finds the graph used up, unless the
    first had ``retain_graph=True``.

    >>> import framework as fw
    >>> x = fw.tensor([1.0, 2.0], requires_grad=True)
    >>> fw.checkpoint(lambda x: (x * x).exp(), x).sum().backward()
    """
    if not is_grad_enabled():
        return function(*args, **options)
    if recording() is not None:
        raise CaptureError("checkpoint: random numbers of a captured step are not drawn twice")
    place, dtype = default_generator.state(), state.dtype
    results = function(*args, **options)
    tracked = [i for i, y in enumerate(_several(results)) if y is not None and y.requires_grad]
    if not tracked:
        return results
    inputs = list(_tensors((function, args, options)))
    saved = [x.data for x in inputs]  # the arrays, for what looks whether they were changed
    left: list[Array | None] = [None] * (len(tracked) - 1)

    def backward(dy: Array) -> list[None]:
        gradients = [dy, *left]
        left[:] = [None] * len(left)
        since, now = graph.next_number(), default_generator.state()
        default_generator.load_state(place)
        try:
            block = autocast("bfloat16" if dtype is None else dtype, enabled=dtype is not None)
            with set_grad_enabled(True), block:
                again = _several(function(*args, **options))
        finally:
            default_generator.load_state(now)
        roots = [(again[i], d) for i, d in zip(tracked, gradients, strict=True) if d is not None]
        graph.backward_since(since, [(y, d) for y, d in roots if y.requires_grad])
        return [None] * len(saved)  # they have their gradients

    edges = [x.node or (x if x.requires_grad else None) for x in inputs]
    # the results' own nodes go, and what they saved
    mine: list[Any] = list(_several(results))
    arrays = [mine[i].data for i in tracked]
    first = Tensor(arrays[0], True, Node(edges, backward))
    rest = hung_on(first, arrays[1:], left, backward.__qualname__)
    for i, y in zip(tracked, [first, *rest], strict=True):
        mine[i] = y
    return tuple(mine) if isinstance(results, tuple) else first


def _several(results: Any) -> Sequence[Any]:
    """What a function returned, as a sequence; TypeError where it is not of tensors."""
    found = results if isinstance(results, tuple) else (results,)
    for y in found:
        if not (isinstance(y, Tensor) or (y is None and isinstance(results, tuple))):
            within = " within a tuple" if isinstance(results, tuple) else ""
            raise TypeError(
                f"checkpoint: the function returned a {type(y).__name__}{within}, expected a "
                "Tensor or one tuple of them, none nested"
            )
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists, dicts, and in what a function has around it, each once."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        elif isinstance(value, FunctionType):
            waiting += captured(value)
