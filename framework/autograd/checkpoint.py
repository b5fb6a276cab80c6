"""Activation checkpointing: a part's forward pass is run again when its gradient is wanted, so that
nothing it computed on the way has to be kept (Chen et al. 2016, "Training deep nets with sublinear
memory cost").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework.autograd import graph
from framework.autograd.casting import autocast, state
from framework.autograd.graph import Node, is_grad_enabled, no_grad, set_grad_enabled
from framework.autograd.tensor import Tensor
from framework.backend.live import CaptureError, recording
from framework.backend.random import default_generator
from kernels.arrays import Array, is_floating


def checkpoint(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """``function(*args, **options)``, a tensor, of which only the arguments are kept for the
    gradient.

    The backward pass runs `function` again, from the same place in the random stream (dropout drops
    the same) and in the same autocast block. It must compute the same both times; what else it does
    it does twice. Parameters that it uses get their gradients as ever. Without a gradient to come,
    this is a plain call.

    >>> import framework as fw
    >>> x = fw.tensor([1.0, 2.0], requires_grad=True)
    >>> fw.checkpoint(lambda x: (x * x).exp(), x).sum().backward()
    """
    if not is_grad_enabled():
        return function(*args, **options)
    if recording() is not None:
        raise CaptureError("checkpoint: random numbers of a captured step are not drawn twice")
    place, dtype = default_generator.state(), state.dtype
    with no_grad():
        y = function(*args, **options)
    if not isinstance(y, Tensor):
        raise TypeError(
            f"checkpoint: the function returned a {type(y).__name__}, expected a Tensor"
        )
    if not is_floating(y.dtype):
        return y
    inputs = [x for x in args if isinstance(x, Tensor)]
    wanted = [x.requires_grad for x in inputs]
    others = [None if isinstance(x, Tensor) else x for x in args]
    is_input = [isinstance(x, Tensor) for x in args]
    saved = [x.data for x in inputs]  # the arrays, for what looks whether they were changed

    def backward(dy: Array) -> list[Array | None]:
        leaves = [Tensor(a, requires_grad=want) for a, want in zip(saved, wanted, strict=True)]
        fresh = iter(leaves)
        again = [next(fresh) if t else x for t, x in zip(is_input, others, strict=True)]
        now = default_generator.state()
        default_generator.load_state(place)
        try:
            block = autocast("bfloat16" if dtype is None else dtype, enabled=dtype is not None)
            with set_grad_enabled(True), block:
                y = function(*again, **options)
        finally:
            default_generator.load_state(now)
        if y.requires_grad:
            graph.backward(y, dy)
        return [None if x.grad is None else x.grad.data for x in leaves]

    edges = [x.node or (x if x.requires_grad else None) for x in inputs]
    return Tensor(y.data, True, Node(edges, backward))
