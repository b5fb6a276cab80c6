"""The module `cupy` for the emulator: what kernels/ uses of it, and as strict.

    with installed(): ...          # sys.modules["cupy"] is the emulator's

A function that is not listed here is an AttributeError: add it after a look into CuPy's manual.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from kernels.cuda import compiler, launch
from tests.cuda_emulator import launching, streams
from tests.cuda_emulator.arrays import call, ndarray, to_device, unwrap
from tests.cuda_emulator.memory import OutOfMemoryError, allocate

FUNCTIONS = (
    *("abs", "absolute", "argmax", "argmin", "argsort", "bincount", "broadcast_to", "clip"),
    *("concatenate", "copysign", "cumsum", "exp", "expand_dims", "expm1", "flatnonzero", "flip"),
    *("full_like", "isfinite", "isnan", "log", "log1p", "maximum", "minimum"),
    *(
        "moveaxis",
        "ones_like",
        "power",
        "reshape",
        "rint",
        "sign",
        "split",
        "sqrt",
        "square",
        "stack",
    ),
    *("stack", "take_along_axis", "tanh", "where", "zeros_like"),
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
    return ndarray(to_device(np.empty_like(unwrap(a), dtype)))


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    a = empty(shape, np.asarray(value).dtype if dtype is None else dtype)
    a.fill(value)  # type: ignore[attr-defined]
    return a


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 1, dtype)


def arange(*args: Any, dtype: Any = None) -> ndarray:
    return call(np.arange, *args, dtype=dtype)


def asarray(a: Any, dtype: Any = None) -> ndarray:
    """From anything: the one way from the host to the device."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)  # type: ignore
    streams.waits("asarray() of the host's memory")
    return ndarray(to_device(np.asarray(a, dtype)))


def array(a: Any, dtype: Any = None) -> ndarray:
    if isinstance(a, ndarray):
        return a.astype(dtype or a.dtype)  # type: ignore[attr-defined]
    return asarray(a, dtype)


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (got {type(a).__name__})")
    return call(np.ascontiguousarray, a, dtype)


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(map(int, shape)) if isinstance(shape, Sequence) else (int(shape),)


def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    """An array where NumPy gives a number."""
    return call(lambda x: np.asarray(np.count_nonzero(x, axis)), a)


def matmul(a: ndarray, b: ndarray) -> ndarray:
    """As cuBLAS does it for CuPy: 16-bit matrices are multiplied in float32 and rounded once; more
    than two axes of bfloat16 are refused.
    """

    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if x.dtype.itemsize > 2:
            return np.matmul(x, y)
        if x.dtype.kind == "V" and x.ndim > 2:
            raise TypeError(f"matmul of {x.dtype} with {x.ndim} axes")
        return np.matmul(x.astype(np.float32), y.astype(np.float32)).astype(x.dtype)

    return call(product, a, b)


class _AddUfunc:
    """`cupy.add`, whose `at` adds to the same element as often as it is named."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return call(np.add, *args, **options)

    def at(self, a: ndarray, indices: Any, b: Any) -> None:
        call(np.add.at, a, indices, b)


class Device:
    """`cupy.cuda.Device`, of which there is one."""

    attributes = MappingProxyType(
        {
            "MultiProcessorCount": MULTIPROCESSORS,
            "L2CacheSize": L2_CACHE,
            "MaxSharedMemoryPerBlockOptin": launching.SHARED_LIMIT_RAISED,
        }
    )

    def __init__(self, device: int = 0) -> None:
        if device != 0:
            raise streams.CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = device

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def synchronize(self) -> None:
        streams.waits("synchronize()")


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


def get_elapsed_time(start: streams.Event, end: streams.Event) -> float:
    """Milliseconds."""
    return (end.time - start.time) * 1e3


def module() -> ModuleType:
    """A fresh module."""
    cupy = ModuleType("cupy")
    made = (empty, empty_like, full, zeros, ones, arange, asarray, array, ascontiguousarray)
    for function in (*made, count_nonzero, matmul):
        setattr(cupy, function.__name__, function)
    for name in FUNCTIONS:
        setattr(cupy, name, _function(name))
    for name in VALUES:
        setattr(cupy, name, getattr(np, name))
    cupy.add, cupy.ndarray, cupy.RawModule = _AddUfunc(), ndarray, RawModule  # type: ignore
    cupy.RawKernel = launching.Function  # type: ignore[attr-defined]
    cupy.get_default_memory_pool = lambda: streams.default_pool  # type: ignore[attr-defined]
    cupy.__spec__ = ModuleSpec("cupy", None)
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        Event=streams.Event,
        Memory=streams.Plain,
        MemoryPool=streams.MemoryPool,
        Stream=streams.Stream,
        get_current_stream=streams.current,
        get_elapsed_time=get_elapsed_time,
        is_available=lambda: True,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            CUDARuntimeError=streams.CUDARuntimeError,
            getDevice=lambda: 0,
            getDeviceCount=lambda: 1,
            memGetInfo=lambda: (1 << 30, 2 << 30),
            runtimeGetVersion=lambda: 13000,
        ),
        using_allocator=streams.using_allocator,
    )
    return cupy


def _function(name: str) -> Any:
    def function(*args: Any, **options: Any) -> Any:
        if name in ("bincount", "flatnonzero"):
            streams.waits(f"{name}()")  # to know the size of the result
        if name == "argsort":
            streams.waits("argsort()")  # inside of Thrust: on a GPU the process would end
        if name in ("concatenate", "stack") and len(args[0]) > 8:
            streams.waits(f"{name}() of more than 8 arrays")  # CuPy copies their addresses
        return call(getattr(np, name), *args, **options)

    return function


@contextmanager
def installed() -> Iterator[ModuleType]:
    """`cupy` is the emulator's within this block; compiled kernels are forgotten before and after.

    The framework is told nothing: it looks for devices by itself, and this is for kernels/ alone.
    """
    real = {name: sys.modules.pop(name) for name in ("cupy", "cupyx") if name in sys.modules}
    _forget()
    sys.modules["cupy"] = cupy = module()
    sys.modules["cupyx"] = cupyx = ModuleType("cupyx")
    cupyx.empty_pinned = np.empty  # type: ignore[attr-defined]
    try:
        yield cupy
    finally:
        del sys.modules["cupy"], sys.modules["cupyx"]
        sys.modules.update(real)
        _forget()


def _forget() -> None:
    compiler.function.cache_clear()
    compiler.compiled.cache_clear()
    launch.multiprocessors.cache_clear()
    launch._elementwise_kernels.clear()
