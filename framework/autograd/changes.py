"""Which memory was changed in place, and when: a gradient is never computed from values that are
not those of the forward pass.

Nodes and changes are numbered by one clock. Recording a node costs nothing more for this, and
visiting one is a comparison: only where something changed since the node was recorded, the arrays
that its closure holds are looked at. A change is known by its addresses, so views count, and an
array that is saved keeps its memory, so that the addresses mean the same until then.

Noted are in-place operators of tensors, the steps of optimizers and `load_state_dict`. Writing to
``x.data`` or to ``x.numpy()`` is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from types import FunctionType
from typing import Any

from kernels.arrays import Array, address, is_array

#: Numbers of nodes and changes, ascending.
clock = count()

#: Number of the latest change.
latest = -1

#: So many stretches of memory are remembered; the oldest are forgotten first.
REMEMBERED = 4096

#: First address and the one behind the last -> number of the latest change, and what made it.
_changes: dict[tuple[int, int], tuple[int, str]] = {}


def note(changed: Array, by: str) -> None:
    """The elements of `changed` have been changed in place, by what `by` names."""
    global latest
    stretch = _stretch(changed)
    _changes.pop(stretch, None)  # to the end
    latest = next(clock)
    _changes[stretch] = latest, by
    if len(_changes) > REMEMBERED:
        _changes.pop(next(iter(_changes)), None)


def changed_since(number: int, function: Callable[..., Any]) -> tuple[Array, str] | None:
    """An array that `function` holds and that was changed after `number`, and by what."""
    recent = [(*stretch, n, by) for stretch, (n, by) in list(_changes.items()) if n > number]
    for a in _held(function):
        first, end = _stretch(a)
        for low, high, _, by in recent:
            if first < high and low < end:
                return a, by
    return None


def same_memory(a: Array, b: Array) -> bool:
    """Do the two start and end at the same place?"""
    return type(a) is type(b) and _stretch(a) == _stretch(b)


def _stretch(a: Array) -> tuple[int, int]:
    """The addresses between which a's elements are."""
    low = address(a)
    if a.size == 0:
        return low, low
    high = low + a.itemsize
    for n, stride in zip(a.shape, a.strides, strict=True):
        if stride > 0:
            high += (n - 1) * stride
        else:
            low += (n - 1) * stride
    return low, high


def _held(function: Callable[..., Any]) -> Iterator[Array]:
    """The arrays in a closure, also those of functions, lists and tuples in it."""
    waiting: list[Any] = [function]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if is_array(value):
            yield value
        elif isinstance(value, (FunctionType, list, tuple, partial)) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, (list, tuple)):
                waiting += value
            elif isinstance(value, partial):
                waiting += [value.func, *value.args, *value.keywords.values()]
            else:
                waiting += captured(value)


def captured(function: FunctionType) -> Iterator[Any]:
    """What a function has around it: its defaults, and the variables of its closure."""
    yield from function.__defaults__ or ()
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # a name that was never given a value
            continue
        yield value
