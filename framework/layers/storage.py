"""Arrays of parameters and buffers: new ones, ones of other libraries, and moving them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from framework.autograd import Parameter, Tensor, tensor
from framework.autograd.creation import zeros
from framework.backend.device import Device, to_device
from kernels.arrays import Array, is_array, is_floating


def new_parameter(shape: tuple[int, ...], device: Any = None, dtype: Any = None) -> Parameter:
    """A parameter of zeros, on the default device and in float32 unless told otherwise."""
    return Parameter(new_buffer(shape, device, dtype))


def new_buffer(shape: tuple[int, ...], device: Any = None, dtype: Any = None) -> Tensor:
    """A tensor of zeros, on the default device and in float32 unless told otherwise."""
    left = _left.get()
    if left is not None:
        if math.prod(shape) > left:
            raise ValueError(f"a weight of shape {shape} is more than the file of weights holds")
        _left.set(left - math.prod(shape))
    return zeros(shape, dtype="float32" if dtype is None else dtype, device=device)


#: Elements that parameters and buffers may still have; None: any number.
_left: ContextVar[int | None] = ContextVar("elements left", default=None)


@contextmanager
def at_most(elements: int) -> Iterator[None]:
    """Within the block new parameters and buffers have at most so many elements in all; ValueError
    before one takes memory that is beyond. For a model whose sizes come out of a file, which may
    say anything: the file of its weights says how large it can be.
    """
    before = _left.set(elements)
    try:
        yield
    finally:
        _left.reset(before)


def as_array(name: str, value: Any) -> Array:
    """The array of `value`, entry `name` of a state: a tensor's, an array, or through DLPack."""
    if isinstance(value, Tensor):
        return value.data
    if is_array(value):
        return value
    if hasattr(value, "__dlpack__"):
        return tensor(value).data
    raise TypeError(f"state[{name!r}] is a {type(value).__name__}, expected a tensor or an array")


def moved(array: Array, device: Device | None, dtype: Any) -> Array:
    """`array` on `device`, floating ones in `dtype`; the same object where nothing changes."""
    if dtype is not None and is_floating(array.dtype) and array.dtype != dtype:
        array = array.astype(dtype)
    return array if device is None else to_device(array, device)


def forget_grad(parameter: Tensor, set_to_none: bool = True) -> None:
    """Set the gradient to None, or its elements to 0.

    A gradient in an optimizer's buffer that somebody else still holds gets memory of its own first:
    the next backward pass overwrites the buffer.
    """
    if parameter.grad is None:
        return
    if not set_to_none:
        parameter.grad.data.fill(0)
        return
    held = _references(parameter) > _UNSHARED
    if held and parameter.slot is not None and parameter.grad.data is parameter.slot:
        parameter.grad.data = parameter.slot.copy()
    parameter.grad = None


def _references(parameter: Any) -> int:
    return sys.getrefcount(parameter.grad)


#: References to a gradient that nobody else holds, as `_references` counts them.
_UNSHARED = _references(SimpleNamespace(grad=object()))
