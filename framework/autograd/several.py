"""Operations with several results, such as a layer's outputs and its last state.

A node of the tape has one result. So the first result is the operation's, and each of the others a
node of its own that hangs on it: on the way back it leaves its gradient for the operation, which is
older and therefore comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from framework.autograd.graph import Gradients, Partial, record
from framework.autograd.tensor import Tensor
from kernels.arrays import Array, array_module


def record_several(
    results: Sequence[Array], inputs: Sequence[Tensor], backward: Callable[..., Gradients]
) -> tuple[Tensor, ...]:
    """The Tensors of `results`; ``backward(*gradients)`` gets one for each of them.

    The first gradient is always an array; another is None where nothing came back from its result.
    """
    left: list[Array | None] = [None] * (len(results) - 1)

    def all_at_once(dy: Array) -> Gradients:
        gradients = list(left)
        left[:] = [None] * len(left)
        return backward(dy, *gradients)

    all_at_once.__qualname__ = backward.__qualname__  # what an error calls the node
    first = record(results[0], inputs, all_at_once)
    if not first.requires_grad:
        return first, *map(Tensor, results[1:])
    return first, *hung_on(first, results[1:], left, backward.__qualname__)


def hung_on(
    first: Tensor, results: Sequence[Array], left: list[Array | None], name: str
) -> list[Tensor]:
    """The Tensors of further results of the operation that made `first`. Each leaves its gradient
    at its place in `left`, where the operation finds it; `name` is what an error calls it.
    """
    shape = first.shape

    def leaves(i: int) -> Callable[[Array], Gradients]:
        def leave(d: Array) -> Gradients:
            left[i] = d
            nothing = array_module(d).empty((0, *shape[1:]), d.dtype)
            return [Partial(shape, slice(0, 0), nothing)]

        leave.__qualname__ = name
        return leave

    return [record(a, [first], leaves(i)) for i, a in enumerate(results)]
