"""The tape: what a differentiable function records, and the walk back along it.

    def softplus(x):
        a = x.data
        return record(kernels.softplus(a), [x], lambda dy: [kernels.softplus_grad(dy, a)])

`record` wraps the output array in a Tensor and, where an input wants a gradient, keeps the closure
in a `Node`. The closure holds arrays, never the output Tensor: that would be a reference cycle,
which keeps GPU memory until the garbage collector runs. `backward` visits the nodes newest first,
hands each its gradient, and lets go of what it saved.
"""

from __future__ import annotations

import heapq
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from framework.autograd import changes
from framework.backend.live import CaptureError, Recording, capture_by_mode, recording
from framework.backend.out_of_memory import OutOfMemoryError
from kernels.arrays import Array, array_module

if TYPE_CHECKING:
    from framework.autograd.tensor import Tensor

#: Gradients of the inputs, in their order; None where none is wanted.
Gradients = Sequence["Array | Partial | None"]
Backward = Callable[[Array], Gradients]

_sequence = changes.clock
_tensor: type[Tensor]


class _Mode(threading.local):
    enabled = True
    #: Nodes that wait for their turn in the backward pass that is under way, the newest first.
    pending: list[Node] | None = None


_mode = _Mode()


class Partial(NamedTuple):
    """A gradient that is zero outside ``[index]``: added in place, never spelled out as a full
    array.
    """

    shape: tuple[int, ...]
    index: Any
    dy: Array


class Node:
    """One recorded operation. `edges` point to the nodes (or leaf tensors) of its inputs."""

    __slots__ = (
        "__weakref__",
        "backward",
        "edges",
        "grad",
        "hooks",
        "owned",
        "retained",
        "sequence",
    )

    def __init__(self, edges: list[Node | Tensor | None], backward: Backward) -> None:
        self.sequence = next(_sequence)
        self.edges = edges
        self.backward: Backward | None = backward
        self.grad: Array | None = None
        self.owned = False
        self.hooks: dict[int, Callable[[Tensor], Any]] | None = None
        self.retained: weakref.ref[Tensor] | None = None

    def __lt__(self, other: Node) -> bool:
        return self.sequence > other.sequence

    @property
    def name(self) -> str:
        """The function that recorded it."""
        return self.backward.__qualname__.partition(".<locals>")[0] if self.backward else "freed"


def record(data: Array, inputs: Sequence[Tensor], backward: Backward) -> Tensor:
    """The Tensor of `data`; if grad mode is on and an input wants a gradient, `backward` is kept
    for it.

    ``backward(dy)`` returns one gradient per input, in the input's shape and dtype.
    """
    if _mode.enabled:
        for x in inputs:
            if x.requires_grad:
                return _tensor(data, True, Node([_edge(x) for x in inputs], backward))
    return _tensor(data)


def _edge(x: Tensor) -> Node | Tensor | None:
    return x.node or (x if x.requires_grad else None)


def register_tensor(tensor: type[Tensor]) -> type[Tensor]:
    """tensor.py names its class here, so that this file need not import it back."""
    global _tensor
    _tensor = tensor
    return tensor


# Grad mode ----------------------------------------------------------------------------------------


def is_grad_enabled() -> bool:
    """Are operations recorded, in this thread?"""
    return _mode.enabled


capture_by_mode(is_grad_enabled)


class set_grad_enabled:
    """Record operations or not: from the call on, or until the end of its ``with`` block.

    The mode belongs to the thread: one that evaluates does not stop another that trains.
    """

    def __init__(self, enabled: bool) -> None:
        self._previous = _mode.enabled
        _mode.enabled = bool(enabled)

    def __enter__(self) -> None:
        """The mode is set already."""

    def __exit__(self, *error: object) -> None:
        _mode.enabled = self._previous


class no_grad(ContextDecorator):
    """``with no_grad():`` or ``@no_grad()``: operations inside are not recorded, in this thread."""

    def __init__(self) -> None:
        self._previous: list[bool] = []

    def __enter__(self) -> None:
        self._previous.append(_mode.enabled)
        _mode.enabled = False

    def __exit__(self, *error: object) -> None:
        _mode.enabled = self._previous.pop()

    def _recreate_cm(self) -> no_grad:
        return no_grad()  # a decorated function may run in several threads at once


# Backward -----------------------------------------------------------------------------------------


def backward(root: Tensor, dy: Array, retain_graph: bool = False) -> None:
    """Add d root / d leaf, weighted by `dy`, to ``.grad`` of every leaf that `root` depends on.

    Iterative: the depth of the graph is bounded by memory alone. Each node is visited once, after
    all nodes that used its result (they are newer), so that its gradient is complete.
    """
    start = _edge(root)
    if start is None:
        raise RuntimeError(
            "backward() on a tensor that depends on no parameter: nothing it was computed from has "
            "requires_grad=True, or it was computed under no_grad()"
        )
    captured = recording()
    if captured is not None:
        _note_leaves(start, captured)
    pending: list[Node] = []
    outer, _mode.pending = _mode.pending, pending
    try:
        _deliver(start, dy, pending)
        _walk(pending, -1, retain_graph)
    finally:
        _mode.pending = outer
        for node in pending:  # only after an error: leave nothing half-summed behind
            node.grad, node.owned = None, False


def next_number() -> int:
    """A number between those of the nodes there are and those to come."""
    return next(_sequence)


def backward_since(number: int, roots: Iterable[tuple[Tensor, Array]]) -> None:
    """Within a node's backward: go back through what has been recorded since `number`, from `roots`
    with their gradients.

    Older nodes that this reaches get their gradients too, and wait for their turn in the pass that
    is under way: it visits the newest first, so they have not had it.
    """
    pending = _mode.pending
    assert pending is not None
    for root, dy in roots:
        start = _edge(root)
        assert start is not None
        _deliver(start, dy, pending)
    _walk(pending, number, False)


def _walk(pending: list[Node], number: int, retain_graph: bool) -> None:
    """Visit what waits and is newer than `number`, the newest first."""
    try:
        while pending and pending[0].sequence > number:
            node = heapq.heappop(pending)
            _visit(node, pending, retain_graph)
    except OutOfMemoryError:
        raise  # of a walk within this one
    except MemoryError as error:
        raise _explained(error, node) from error


def _note_leaves(start: Node | Tensor, captured: Recording) -> None:
    """Tell which leaves the backward pass of a captured step reaches: a replay runs no Python, and
    leaves them the gradients that this pass does.
    """
    seen: set[int] = set()
    waiting: list[Node | Tensor | None] = [start]
    while waiting:
        edge = waiting.pop()
        if edge is None or id(edge) in seen:
            continue
        seen.add(id(edge))
        if isinstance(edge, Node):
            waiting += edge.edges
        else:
            captured.note_leaf(edge)


def _visit(node: Node, pending: list[Node], retain_graph: bool) -> None:
    dy, node.grad, node.owned = node.grad, None, False
    assert dy is not None
    if node.hooks:
        dy = apply_hooks(node.hooks, dy)
    if node.retained is not None and (tensor := node.retained()) is not None:
        tensor.accumulate_grad(dy)
    function = node.backward
    if function is None:
        raise RuntimeError(
            "backward() through a graph a second time: what it saved was freed after the first; "
            "pass retain_graph=True to the first backward()"
        )
    if node.sequence < changes.latest:
        _check_unchanged(node, function)
    gradients = function(dy)
    edges = node.edges
    if not retain_graph:
        node.backward, node.edges = None, []
    for edge, gradient in zip(edges, gradients, strict=True):
        if edge is not None and gradient is not None:
            _deliver(edge, gradient, pending)


def _check_unchanged(node: Node, function: Backward) -> None:
    """RuntimeError if what `node` saved was changed in place since: its gradient would be wrong."""
    found = changes.changed_since(node.sequence, function)
    if found is None:
        return
    saved, by = found
    leaves = [
        i
        for i, edge in enumerate(node.edges)
        if edge is not None and not isinstance(edge, Node) and changes.same_memory(edge.data, saved)
    ]
    which = f", its input {leaves[0]}," if leaves else ""
    raise RuntimeError(
        f"backward() of {node.name} needs an array of shape {saved.shape} ({saved.dtype.name})"
        f"{which} as it was in the forward pass, but it was changed in place since then, by {by}: "
        "call backward() before the change, compute from a copy (x.clone()), or write x = x + y "
        "instead of x += y"
    )


def _explained(error: MemoryError, node: Node) -> OutOfMemoryError:
    """Which operation's gradient ran out of memory, and the leaves nearest to it: a layer's
    parameters, whose names whoever has the model can add.
    """
    explained = OutOfMemoryError.of(error)
    if node.backward is None:
        explained.where = "the sum of gradients"
        return explained
    explained.where = f"the gradient of {node.name}"
    level, seen = [node], {node}
    while level and not explained.leaves:
        edges = [edge for n in level for edge in n.edges]
        explained.leaves = [e for e in edges if e is not None and not isinstance(e, Node)]
        explained.relation = "of" if len(seen) == 1 else "after"
        level = list({e for e in edges if isinstance(e, Node)} - seen)
        seen.update(level)
    return explained


def _deliver(edge: Node | Tensor, gradient: Array | Partial, pending: list[Node]) -> None:
    """Add `gradient` to a leaf's ``.grad``, or to a node, which then waits for its turn."""
    if not isinstance(edge, Node):
        if isinstance(gradient, Partial):
            gradient = _spelled_out(gradient)
        edge.accumulate_grad(apply_hooks(edge.hooks, gradient) if edge.hooks else gradient)
        return
    if edge.grad is None:
        heapq.heappush(pending, edge)
        edge.owned = isinstance(gradient, Partial)
        edge.grad = _spelled_out(gradient) if isinstance(gradient, Partial) else gradient
        return
    if edge.grad.dtype.itemsize == 2:  # of a scaled loss float16 gradients may overflow, silently
        with np.errstate(all="ignore"):
            _add_to(edge, gradient)
    else:
        _add_to(edge, gradient)


def _add_to(edge: Node, gradient: Array | Partial) -> None:
    """Add a further gradient to a node's."""
    assert edge.grad is not None
    if not edge.owned:  # the first arrival may be shared with another node: leave it as it is
        edge.owned = True
        if not isinstance(gradient, Partial):
            edge.grad = as_array(edge.grad + gradient)
            return
        edge.grad = edge.grad.copy()
    if isinstance(gradient, Partial):
        add_at(edge.grad, gradient)
    else:
        edge.grad += gradient


def _spelled_out(gradient: Partial) -> Array:
    full = array_module(gradient.dy).zeros(gradient.shape, gradient.dy.dtype)
    add_at(full, gradient)
    return full


def add_at(full: Array, gradient: Partial) -> None:
    """full[index] += dy; indices that name an element twice add twice, in a fixed order."""
    index = gradient.index if isinstance(gradient.index, tuple) else (gradient.index,)
    if all(isinstance(i, (int, slice, type(None), type(...), np.integer)) for i in index):
        full[gradient.index] += gradient.dy
        return
    # Repeated indices must add up, and float atomics would add in a different order every run: sort
    # the flat positions (a stable sort) and sum each run.
    xp = array_module(full)
    if xp is not np and recording() is not None:  # sorting waits for the device
        raise CaptureError("the gradient of indexing with arrays is not captured")
    positions = xp.arange(full.size).reshape(full.shape)[gradient.index].reshape(-1)
    if positions.size == 0:
        return
    order = xp.argsort(positions, kind="stable")
    positions, dy = positions[order], gradient.dy.reshape(-1)[order]
    flat = full.reshape(-1)  # a copy, where `full` lies in memory in another order
    new_run = positions[1:] != positions[:-1]
    if bool(new_run.all()):
        flat[positions] += dy
    elif xp is np:
        np.add.at(flat, positions, dy)
    else:
        starts = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), new_run]))
        flat[positions[starts]] += _run_sums(dy, starts).astype(full.dtype)
    if not full.flags.c_contiguous:
        full[...] = flat.reshape(full.shape)


def _run_sums(values: Array, starts: Array) -> Array:
    """Sums, in float64, of the runs of `values` (n,) that begin at `starts` (ascending, from 0).

    Element by element within a run: differences of a running sum over everything would carry an
    infinity, or the rounding of a large number, into all runs after it. Each pass doubles how many
    elements up to its own an element holds the sum of, so there are log2(longest run) of them, in
    an order that depends on the lengths alone.
    """
    xp, n = array_module(values), values.size
    lengths = xp.concatenate([starts[1:], xp.asarray([n])]) - starts
    begins = xp.zeros(n, "int64")
    begins[starts[1:]] = lengths[:-1]
    begins = xp.cumsum(begins)  # where each element's run begins
    at = xp.arange(n)
    sums, reach, longest = values.astype("float64"), 1, int(lengths.max())
    while reach < longest:
        inside = at[reach:] - reach >= begins[reach:]
        sums[reach:] = sums[reach:] + xp.where(inside, sums[:-reach], 0)
        reach *= 2
    return sums[starts + lengths - 1]


def apply_hooks(hooks: dict[int, Callable[[Tensor], Any]], dy: Array) -> Array:
    """Run gradient hooks in their order; one that returns a tensor replaces the gradient.

    Hooks get a copy: `dy` may be shared with other tensors, and people change gradients in place.
    """
    for hook in list(hooks.values()):
        given = _tensor(dy.copy())
        result = hook(given)
        if result is None:
            result = given
        elif not isinstance(result, _tensor):
            raise TypeError(f"gradient hook returned a {type(result).__name__}, expected a Tensor")
        if result.shape != dy.shape or result.dtype != dy.dtype:
            raise ValueError(
                f"gradient hook returned shape {result.shape} of {result.dtype.name} "
                f"for shape {dy.shape} of {dy.dtype.name}"
            )
        dy = result.data
    return dy


def as_array(x: Any) -> Array:
    """NumPy reductions and 0-d arithmetic return scalars; a Tensor holds arrays only."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def in_dtype(a: Array, dtype: np.dtype[Any]) -> Array:
    """`a` in `dtype`; what is beyond float16 becomes infinite, silently."""
    if a.dtype == dtype:
        return a
    with np.errstate(all="ignore"):
        return a.astype(dtype)


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum `dy` over the axes along which `shape` was broadcast."""
    if dy.shape == shape:
        return dy
    lead = dy.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + i for i, n in enumerate(shape) if n == 1 and dy.shape[lead + i] != 1
    )
    return as_array(dy.sum(axis=axes, keepdims=True)).reshape(shape)
