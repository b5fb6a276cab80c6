"""The module `cupy` for the emulator: what kernels/ uses of it, and as strict.

    with installed(): ...          # sys.modules["cupy"] is the emulator's

A function that is not listed here is an AttributeError: add it after a look into CuPy's manual.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from kernels.cuda import compiler, launch
from tests.cuda_emulator import launching
from tests.cuda_emulator.arrays import call, ndarray, to_device, unwrap, wrap
from tests.cuda_emulator.memory import allocate

FUNCTIONS = (
    *("abs", "absolute", "argmax", "argmin", "argsort", "broadcast_to", "concatenate"),
    *("copysign", "count_nonzero", "exp", "expand_dims", "expm1", "flip", "full_like"),
    *("isfinite", "isnan", "log", "log1p", "maximum", "minimum", "moveaxis", "ones_like"),
    "reshape",
    *("rint", "sign", "split", "sqrt", "square", "stack", "tanh", "where", "zeros_like"),
)
VALUES = (
    *("bool_", "float16", "float32", "float64", "int32", "int64", "uint16", "uint32", "uint64"),
    *("inf", "nan", "newaxis", "pi"),
)

#: Bytes of a second-level cache that there is none of.
L2_CACHE = 1 << 16

#: Few, so that the loops of grid-stride kernels are taken more than once.
MULTIPROCESSORS = 1


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    if order not in ("C", "F"):
        raise TypeError(f"order not understood. order={order}")
    sizes = _shape(shape)
    return ndarray(allocate(sizes, dtype) if order == "C" else allocate(sizes[::-1], dtype).T)


def empty_like(a: ndarray, dtype: Any = None) -> ndarray:
    return wrap(to_device(np.empty_like(unwrap(a), dtype)))


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    a = empty(shape, np.asarray(value).dtype if dtype is None else dtype)
    a.fill(value)  # type: ignore[attr-defined]
    return a


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 1, dtype)


def arange(*args: Any, dtype: Any = None) -> ndarray:
    return wrap(np.arange(*args, dtype=dtype))


def asarray(a: Any, dtype: Any = None) -> ndarray:
    """From anything: the one way from the host to the device."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)  # type: ignore
    return ndarray(to_device(np.asarray(a, dtype)))


def array(a: Any, dtype: Any = None) -> ndarray:
    host = a.host if isinstance(a, ndarray) else np.asarray(a)
    return ndarray(to_device(host.astype(dtype or host.dtype, copy=False)))


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (got {type(a).__name__})")
    return call(np.ascontiguousarray, a, dtype)


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(map(int, shape)) if isinstance(shape, Sequence) else (int(shape),)


def matmul(a: ndarray, b: ndarray) -> ndarray:
    """As cuBLAS does it for CuPy: 16-bit matrices are multiplied in float32 and rounded once; more
    than two axes of bfloat16 are refused.
    """
    x, y = unwrap(a), unwrap(b)
    if x.dtype.itemsize > 2:
        return call(np.matmul, a, b)
    if x.dtype.kind == "V" and x.ndim > 2:
        raise TypeError(f"matmul of {x.dtype} with {x.ndim} axes")
    with np.errstate(all="ignore"):
        return wrap(np.matmul(x.astype(np.float32), y.astype(np.float32)).astype(x.dtype))


class _AddUfunc:
    """`cupy.add`, whose `at` adds to the same element as often as it is named."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return call(np.add, *args, **options)

    def at(self, a: ndarray, indices: Any, b: Any) -> None:
        np.add.at(a.host, unwrap(indices), unwrap(b))


class RawModule:
    """CUDA source to kernels; the arguments that kernels/cuda/compiler.py gives."""

    def __init__(
        self, code: str, *, options: Sequence[str] = (), name_expressions: Sequence[str] = ()
    ) -> None:
        if name_expressions and not any(o.startswith(("-std=", "--std=")) for o in options):
            raise ValueError("name_expressions need -std=c++11 or later among the options")
        self._code, self._expressions = code, tuple(name_expressions)

    def get_function(self, name: str) -> launching.Function:
        if name not in self._expressions:
            raise launching.LaunchError(f"{name} is none of the name_expressions")
        return launching.Function(self._code, name)


class Event:
    """A moment of the stream, which here is the host's."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds."""
    return (end.time - start.time) * 1e3


def module() -> ModuleType:
    """A fresh module."""
    cupy = ModuleType("cupy")
    made = (empty, empty_like, full, zeros, ones, arange, asarray, array, ascontiguousarray, matmul)
    for function in made:
        setattr(cupy, function.__name__, function)
    for name in FUNCTIONS:
        setattr(cupy, name, _function(name))
    for name in VALUES:
        setattr(cupy, name, getattr(np, name))
    cupy.add, cupy.ndarray, cupy.RawModule = _AddUfunc(), ndarray, RawModule  # type: ignore
    attributes = {"MultiProcessorCount": MULTIPROCESSORS, "L2CacheSize": L2_CACHE}
    device = SimpleNamespace(id=0, attributes=attributes, synchronize=lambda: None)
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=lambda _=0: device,
        Event=Event,
        get_elapsed_time=get_elapsed_time,
        is_available=lambda: True,
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None, used_bytes=lambda: 0)
    cupy.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]
    return cupy


def _function(name: str) -> Any:
    return lambda *args, **options: call(getattr(np, name), *args, **options)


@contextmanager
def installed() -> Iterator[ModuleType]:
    """`cupy` is the emulator's within this block; compiled kernels are forgotten before and after.

    The framework is told nothing: it looks for devices by itself, and this is for kernels/ alone.
    """
    real = sys.modules.get("cupy")
    _forget()
    sys.modules["cupy"] = cupy = module()
    try:
        yield cupy
    finally:
        if real is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = real
        _forget()


def _forget() -> None:
    compiler.function.cache_clear()
    compiler.compiled.cache_clear()
    launch.multiprocessors.cache_clear()
    launch._elementwise_kernels.clear()
