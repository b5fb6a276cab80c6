"""New tensors: constants, ranges and random draws, on a device.

Random draws take their numbers from a `Generator` (the default one: `framework.manual_seed`), so
the same seed gives the same tensor on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.autograd.tensor import Tensor, as_dtype
from framework.backend.device import Device, choose_device, default_device
from framework.backend.random import Generator, default_generator
from kernels import random as kernels
from kernels.arrays import Array, is_floating


def _device(device: str | Device | None) -> Device:
    return default_device() if device is None else choose_device(device)


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """(2, 3) and ((2, 3),) are the same."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if any(not isinstance(n, (int, np.integer)) or n < 0 for n in sizes):
        raise ValueError(f"shape {sizes}: expected integers of at least 0")
    return tuple(map(int, sizes))


def _wrap(array: Array, requires_grad: bool) -> Tensor:
    out = Tensor(array)
    return out.requires_grad_() if requires_grad else out


def full(
    shape: tuple[int, ...],
    value: float,
    dtype: Any = "float32",
    device: str | Device | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`value` everywhere."""
    home = _device(device)
    with home.context(), np.errstate(all="ignore"):  # beyond float16's range is inf, silently
        return _wrap(home.module.full(_shape((shape,)), value, as_dtype(dtype)), requires_grad)


def zeros(
    *shape: Any,
    dtype: Any = "float32",
    device: str | Device | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """0 everywhere."""
    return full(_shape(shape), 0, dtype, device, requires_grad)


def ones(
    *shape: Any,
    dtype: Any = "float32",
    device: str | Device | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """1 everywhere."""
    return full(_shape(shape), 1, dtype, device, requires_grad)


def full_like(
    x: Tensor,
    value: float,
    dtype: Any = None,
    device: str | Device | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`value` everywhere, in the shape of `x`; its dtype and device where none are named."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}, expected a tensor")
    where = x.device if device is None else device
    return full(x.shape, value, x.dtype if dtype is None else dtype, where, requires_grad)


def zeros_like(
    x: Tensor,
    dtype: Any = None,
    device: str | Device | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """0 everywhere, as `full_like`."""
    return full_like(x, 0, dtype, device, requires_grad)


def ones_like(
    x: Tensor,
    dtype: Any = None,
    device: str | Device | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """1 everywhere, as `full_like`."""
    return full_like(x, 1, dtype, device, requires_grad)


def empty(*shape: Any, dtype: Any = "float32", device: str | Device | None = None) -> Tensor:
    """Uninitialised memory: write before you read."""
    home = _device(device)
    with home.context():
        return Tensor(home.module.empty(_shape(shape), as_dtype(dtype)))


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """start, start + step, ... below stop; ``arange(n)`` counts from 0. int64, floats: float32."""
    first, last = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ValueError("arange: step=0, expected any other number")
    if dtype is None:
        whole = all(isinstance(v, int) for v in (first, last, step))
        dtype = "int64" if whole else "float32"
    home = _device(device)
    with home.context(), np.errstate(all="ignore"):
        return Tensor(home.module.arange(first, last, step, dtype=as_dtype(dtype)))


def linspace(
    start: float,
    stop: float,
    steps: int,
    dtype: Any = "float32",
    device: str | Device | None = None,
) -> Tensor:
    """`steps` evenly spaced values from start to stop, both included."""
    home = _device(device)
    with home.context(), np.errstate(all="ignore"):
        return Tensor(home.module.linspace(start, stop, steps, dtype=as_dtype(dtype)))


def _drawn(
    kernel: Any,
    shape: tuple[int, ...],
    dtype: Any,
    device: str | Device | None,
    generator: Generator | None,
    *options: Any,
) -> Array:
    """An array on `device`, filled by a random kernel of kernels/random.py."""
    home = _device(device)
    with home.context():
        out = home.module.empty(shape, as_dtype(dtype))
        seed, offset = (generator or default_generator).advance(kernels.counters(out.size))
        kernel(out, seed, offset, *options)
    return out


def rand(
    *shape: Any,
    dtype: Any = "float32",
    device: str | Device | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform on [0, 1)."""
    dtype = _floating("rand", dtype)
    array = _drawn(kernels.uniform, _shape(shape), dtype, device, generator)
    return _wrap(array, requires_grad)


def randn(
    *shape: Any,
    dtype: Any = "float32",
    device: str | Device | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Standard normal."""
    dtype = _floating("randn", dtype)
    return _wrap(_drawn(kernels.normal, _shape(shape), dtype, device, generator), requires_grad)


def _floating(name: str, dtype: Any) -> Any:
    if not is_floating(as_dtype(dtype)):
        raise TypeError(f"{name}: dtype={dtype!r}, expected a floating-point type")
    return dtype


def randint(
    low: int,
    high: int,
    shape: tuple[int, ...],
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform integers low <= k < high, int64."""
    if low >= high:
        raise ValueError(f"randint: low={low} is not below high={high}")
    return Tensor(_drawn(kernels.randint, _shape((shape,)), "int64", device, generator, low, high))


def randperm(
    n: int, device: str | Device | None = None, generator: Generator | None = None
) -> Tensor:
    """0 ... n-1 in random order, int64."""
    return Tensor(_drawn(kernels.permutation, _shape((n,)), "int64", device, generator))


def bernoulli(
    p: float,
    shape: tuple[int, ...],
    dtype: Any = "float32",
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """1 with probability `p`, else 0."""
    if not 0 <= p <= 1:
        raise ValueError(f"bernoulli: p={p}, expected a probability from 0 to 1")
    return Tensor(_drawn(kernels.bernoulli, _shape((shape,)), dtype, device, generator, p))
