"""`cupy.ndarray` for the emulator: NumPy does the work, CuPy's rules decide what is allowed.

Like CuPy's it is no numpy.ndarray, does not mix with one, does not turn into one but by `get`, and
gives arrays of no dimensions where NumPy gives scalars. Only what the kernels use is here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.cuda_emulator import streams
from tests.cuda_emulator.memory import Memory, allocate, memory_of


class ndarray:  # noqa: N801 - CuPy's name
    """A view of emulated device memory, `host` in NumPy's terms."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        #: As CuPy's: the array that a view is of, None for one of its own.
        self.base: ndarray | None = None
        memory = memory_of(host)
        if memory is not None:
            self.base = None if memory.owner is None else memory.owner()
            if self.base is None:
                memory.owner = weakref.ref(self)

    # what it is -----------------------------------------------------------------------------------

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    strides = property(lambda self: self.host.strides)
    T = property(lambda self: ndarray(self.host.T))
    device = SimpleNamespace(id=0)

    @property
    def flags(self) -> Any:
        c, f = self.host.flags.c_contiguous, self.host.flags.f_contiguous
        return SimpleNamespace(c_contiguous=c, f_contiguous=f)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.host.ctypes.data if self.size else 0)

    def __repr__(self) -> str:
        return f"emulated {self.host!r}"

    # to the host: each of these waits for the device, on a real one -------------------------------

    def get(self, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        if not blocking:
            return self._get_later(out)
        streams.waits("get()")
        memory = memory_of(self.host)
        if memory is not None and not memory.is_kept():
            raise RuntimeError(f"an array of {self.nbytes} bytes outlived its memory pool")
        return self.host.copy(order="K")

    def _get_later(self, out: np.ndarray | None) -> np.ndarray:
        """Into page-locked memory, behind the work of the stream, for which the host waits itself.
        It is the host's memory: a graph's copy would have to be one of ours.
        """
        if out is None or out.shape != self.shape or out.dtype != self.dtype:
            raise TypeError(f"an array of {self.dtype}{self.shape} cannot be copied into {out!r}")
        if streams.is_capturing():
            raise RuntimeError("a copy to the host is not captured here")
        out[...] = self.host
        return out

    def item(self) -> Any:
        streams.waits("item()")
        return self.host.item()

    def tolist(self) -> Any:
        streams.waits("tolist()")
        return self.host.tolist()

    def __bool__(self) -> bool:
        streams.waits("bool()")
        return bool(self.host)

    def __int__(self) -> int:
        streams.waits("int()")
        return int(self.host)

    def __float__(self) -> float:
        streams.waits("float()")
        return float(self.host)

    def set(self, host: np.ndarray, stream: Any = None) -> None:
        """From the host: a NumPy array of the same shape and dtype."""
        if not isinstance(host, np.ndarray) or host.dtype != self.dtype or host.shape != self.shape:
            raise TypeError(f"{type(host).__name__} cannot be set to an array of {self.dtype}")
        streams.waits("set()")
        self.host[...] = host

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    # elements -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        index = _index(key)
        if any(isinstance(k, np.ndarray) and k.dtype == bool for k in index):
            streams.waits("indexing with a mask")  # to know the size of the result
        return call(lambda host, _: host[index], self, key)  # with arrays it is a copy

    def __setitem__(self, key: Any, value: Any) -> None:
        index, value = _index(key), unwrap(value)

        def assign() -> None:
            with np.errstate(all="ignore"):
                self.host[index] = value

        assign()
        streams.did(assign, *memories(self.host, index, value))

    # NumPy's functions and operators come here ----------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"numpy.{ufunc.__name__}.{method} of a CuPy array")
        return call(ufunc, *inputs, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return call(function, *args, **kwargs)


def _index(key: Any) -> Any:
    """With an ellipsis at the end, so that one element is a view too."""
    key = unwrap(key) if isinstance(key, tuple) else (unwrap(key),)
    return key if any(k is Ellipsis for k in key) else (*key, Ellipsis)


def wrap(value: Any) -> Any:
    """NumPy's arrays and scalars as the emulator's; what is not in device memory goes there."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(wrap, value))
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        return value
    return ndarray(value if memory_of(value) or not value.size else to_device(value))


def to_device(host: np.ndarray, order: str = "K") -> np.ndarray:
    """A copy of `host` in device memory, its axes in the same order in memory if order is "K"."""
    if order == "C" or host.flags.c_contiguous:
        axes = list(range(host.ndim))
    else:
        axes = sorted(range(host.ndim), key=lambda axis: -abs(host.strides[axis]))
    view = allocate(tuple(host.shape[axis] for axis in axes), host.dtype)
    view = view.transpose(sorted(range(host.ndim), key=axes.__getitem__))
    view[...] = host
    return view


def unwrap(value: Any) -> Any:
    """The emulator's arrays as NumPy's; TypeError for NumPy's own, which CuPy does not take."""
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrap, value))
    return value


def memories(*values: Any) -> list[Memory]:
    """The allocations that NumPy's arrays among `values` look into."""
    found: list[Memory] = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += memories(*value)
        elif isinstance(value, np.ndarray) and (memory := memory_of(value)) is not None:
            found.append(memory)
    return found


def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """NumPy's `function` on the emulator's arrays."""
    out = options.get("out")
    bare, named = unwrap(args), {k: unwrap(v) for k, v in options.items()}

    def compute() -> Any:
        with np.errstate(all="ignore"):
            return function(*bare, **named)

    result = compute()
    made = None if out is not None else wrap(result)
    if streams.is_capturing():
        _keep(function, compute, result, made, *bare, *named.values())
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return made


def _keep(function: Any, compute: Callable[[], Any], result: Any, made: Any, *given: Any) -> None:
    """Tell the capture how to do it again: into the memory that the result has now. A view is no
    operation.
    """
    several = isinstance(made, (tuple, list))
    results, arrays = (result, made) if several else ([result], [made])
    # NumPy's views, as the arrays may die before the graph is launched
    new = {
        i: array.host
        for i, (r, array) in enumerate(zip(results, arrays, strict=True))
        if isinstance(array, ndarray) and not memories(r)
    }
    if not new and made is not None:
        return

    def again() -> None:
        computed = compute()
        for i, target in new.items():
            target[...] = computed[i] if several else computed

    bound = getattr(function, "__self__", None)
    streams.did(again, *memories(bound, *given, list(new.values())))


# Methods ------------------------------------------------------------------------------------------

METHODS = (
    *("all", "any", "argmax", "argmin", "argsort", "astype", "copy", "cumsum", "fill", "max"),
    *("mean", "min", "ravel", "reshape", "squeeze", "sum", "swapaxes", "transpose", "view"),
)
OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"),
    *("lshift", "rshift"),
)
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert")


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        if {"initial", "where"} & options.keys():
            raise TypeError(f"{name}() got an unexpected keyword argument: CuPy has none such")
        if name == "argsort":
            streams.waits("argsort()")  # inside of Thrust: on a GPU the process would end
            options = {"kind": "stable"} | options  # CuPy's sort is
        if name == "transpose" and len(args) == 1:
            args = (tuple(map(int, args[0])),)  # any sequence
        return call(getattr(self.host, name), *args, **options)

    method.__name__ = name
    return method


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: ndarray, *other: Any) -> Any:
        return call(getattr(self.host, f"__{name}__"), *other)

    return operator


def _inplace(name: str) -> Callable[..., Any]:
    def operator(self: ndarray, other: Any) -> ndarray:
        mine, bare = self.host, unwrap(other)

        def compute() -> None:
            with np.errstate(all="ignore"):
                getattr(mine, f"__i{name}__")(bare)

        compute()
        streams.did(compute, *memories(mine, bare))
        return self

    return operator


for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(_name))
    setattr(ndarray, f"__r{_name}__", _operator(f"r{_name}"))
    setattr(ndarray, f"__i{_name}__", _inplace(_name))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", _operator(_name))

ndarray.__hash__ = None  # type: ignore[assignment]
ndarray.__module__ = "cupy"
