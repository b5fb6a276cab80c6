"""What a kernel is: one reference, tuned versions, and the one place that chooses between them.

    @kernel
    def softplus(x):                      # the reference: array maths, the definition of truth
        xp = array_module(x)
        return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))

    @softplus.cpu
    def _(x): ...                         # float32 NumPy arrays
    @softplus.cuda
    def _(x): ...                         # float32, float16 and bfloat16 CuPy arrays
    @softplus.sample
    def _(draw, shape):                   # arguments for tests, gradient checks and benchmarks
        return (draw.normal(shape),)

A call looks at its first argument (always an array), its device and dtype, and runs the tuned
version made for them. A 16-bit argument without one is computed in float32 and rounded once at the
end. Everything else runs the reference. Tests and benchmarks iterate `all_kernels()`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, overload

import numpy as np

from kernels.arrays import Array, is_cuda, is_floating, is_half

DeviceName = Literal["cpu", "cuda"]
Function = Callable[..., Any]
_F = TypeVar("_F", bound=Function)

_registry: dict[str, Kernel] = {}

#: "tuned" runs the best version there is; "reference" the array maths, everywhere.
_mode = os.environ.get("FRAMEWORK_KERNELS", "tuned")
if _mode not in ("tuned", "reference"):
    raise ValueError(f"FRAMEWORK_KERNELS={_mode!r}: expected 'tuned' or 'reference'")


@cache
def has_numba() -> bool:
    """Is the engine of the CPU versions installed? Without it the references run."""
    return find_spec("numba") is not None


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Within this block every kernel runs its reference: to check a result, to find a suspect."""
    global _mode
    previous, _mode = _mode, "reference"
    try:
        yield
    finally:
        _mode = previous


class Kernel:
    """A named operation on arrays. Call it like a function; see the module's text."""

    def __init__(
        self,
        reference: Function,
        statistics: tuple[int, ...] = (),
        inplace: tuple[str, ...] = (),
    ) -> None:
        if reference.__name__ in _registry:
            raise ValueError(f"there are two kernels named {reference.__name__!r}")
        self.name = reference.__name__
        self.family = reference.__module__.rpartition(".")[2]
        self.reference = reference
        #: Which results stay float32 when 16-bit arguments are computed in float32 (means,
        #: variances).
        self.statistics = statistics
        #: The parameters whose arrays the kernel overwrites (one of them is what it returns).
        self.inplace = inplace
        self._parameters = tuple(inspect.signature(reference).parameters)
        self.samples: dict[str, Function] = {}
        self._versions: dict[tuple[DeviceName, np.dtype[Any]], Function] = {}
        self.__name__ = self.name
        self.__doc__ = reference.__doc__
        self.__wrapped__ = reference
        _registry[self.name] = self

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"

    def __call__(self, x: Array, /, *args: Any, **options: Any) -> Any:
        """Run the version made for the device and dtype of `x`."""
        if isinstance(x, np.ndarray):
            device: DeviceName = "cpu"
        elif is_cuda(x):
            device = "cuda"
        else:
            raise TypeError(
                f"{self.name}: the first argument is a {type(x).__name__}, not an array"
            )
        # as `version`, whose call alone takes 0.1 us
        if _mode != "reference" and (device == "cuda" or has_numba()):
            version = self._versions.get((device, x.dtype))
            if version is not None:
                return version(x, *args, **options)
        if is_half(x.dtype):
            with np.errstate(all="ignore"):  # beyond float16's range is inf: no reason to warn
                return self._in_float32(x, *args, **options)
        # The reference states the formula; that an exp overflows to inf on the way is part of it.
        with np.errstate(all="ignore"):
            return _as_arrays(self.reference(x, *args, **options))

    def version(self, device: DeviceName, dtype: Any = "float32") -> Function | None:
        """The tuned version for `device` and `dtype`, None where the reference runs."""
        if _mode == "reference" or (device == "cpu" and not has_numba()):
            return None
        if not isinstance(dtype, np.dtype):
            dtype = np.dtype(dtype)
        return self._versions.get((device, dtype))

    @overload
    def cpu(self, function: _F) -> _F: ...
    @overload
    def cpu(self, *, dtypes: tuple[str, ...]) -> Callable[[_F], _F]: ...
    def cpu(self, function: Any = None, *, dtypes: tuple[str, ...] = ("float32",)) -> Any:
        """Attach the CPU version (numba), by default for float32."""
        return self._attach("cpu", function, dtypes)

    @overload
    def cuda(self, function: _F) -> _F: ...
    @overload
    def cuda(self, *, dtypes: tuple[str, ...]) -> Callable[[_F], _F]: ...
    def cuda(
        self, function: Any = None, *, dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    ) -> Any:
        """Attach the CUDA version, by default for float32 and both 16-bit types."""
        return self._attach("cuda", function, dtypes)

    def sample(self, function: _F) -> _F:
        """Attach ``function(draw, shape) -> args``: arguments for tests and benchmarks.

        `shape` is (rows, columns); floating arrays are drawn as float64 and cast by the caller.
        Several samples may be attached; the function's name tells them apart ("_" is the plain
        one).
        """
        self.samples[function.__name__] = function
        return function

    def _attach(self, device: DeviceName, function: Any, dtypes: tuple[str, ...]) -> Any:
        if function is None:
            return lambda f: self._attach(device, f, dtypes)
        for name in dtypes:
            self._versions[device, _dtype(name)] = function
        return function

    def _in_float32(self, x: Array, /, *args: Any, **options: Any) -> Any:
        """Widen 16-bit arrays, compute, round the results once."""
        if self.inplace:
            return self._inplace_in_float32(x, *args, **options)
        narrow = x.dtype
        results = self(
            _widened(x), *map(_widened, args), **{k: _widened(v) for k, v in options.items()}
        )
        if not isinstance(results, tuple):
            return results if 0 in self.statistics else _narrowed(results, narrow)
        return tuple(
            r if i in self.statistics else _narrowed(r, narrow) for i, r in enumerate(results)
        )

    def _inplace_in_float32(self, /, *args: Any, **options: Any) -> Any:
        """As `_in_float32`, with the results written back into the 16-bit arrays given."""
        given = dict(zip(self._parameters, args, strict=False)) | options
        wide = {name: _widened(value) for name, value in given.items()}
        first, *others = self._parameters
        result = self(wide[first], **{name: wide[name] for name in others if name in wide})
        for name in self.inplace:
            if wide.get(name) is not given.get(name):
                given[name][...] = wide[name].astype(given[name].dtype)

        def narrow(r: Any) -> Any:
            """The array given, for one that was written back; else `r` in 16 bits."""
            for name in self.inplace:
                if name in given and r is wide[name]:
                    return given[name]
            return _narrowed(r, args[0].dtype)

        if not isinstance(result, tuple):
            return narrow(result)
        return tuple(r if i in self.statistics else narrow(r) for i, r in enumerate(result))


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def _as_arrays(results: Any) -> Any:
    """NumPy's arithmetic turns 0-dimensional arrays into scalars; a kernel returns arrays."""
    if isinstance(results, tuple):
        return tuple(map(_as_arrays, results))
    return np.asarray(results) if isinstance(results, np.generic) else results


def _widened(x: Any) -> Any:
    return x.astype(np.float32) if hasattr(x, "dtype") and is_half(x.dtype) else x


def _narrowed(x: Any, dtype: np.dtype[Any]) -> Any:
    return x.astype(dtype) if hasattr(x, "dtype") and is_floating(x.dtype) else x


@overload
def kernel(reference: Function) -> Kernel: ...
@overload
def kernel(
    *, statistics: tuple[int, ...] = (), inplace: tuple[str, ...] = ()
) -> Callable[[Function], Kernel]: ...
def kernel(
    reference: Function | None = None,
    *,
    statistics: tuple[int, ...] = (),
    inplace: tuple[str, ...] = (),
) -> Any:
    """Make a kernel of its reference.

    `statistics`: results that stay float32 for 16-bit input. `inplace`: parameters whose arrays are
    overwritten.
    """
    if reference is None:
        return lambda function: Kernel(function, statistics, inplace)
    return Kernel(reference)


def all_kernels() -> dict[str, Kernel]:
    """Every registered kernel by name (``import kernels`` registers all families)."""
    return dict(sorted(_registry.items()))


class Draw:
    """Random arguments for samples: float64 and integers, reproducible by `seed`."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def normal(self, *shape: Any, scale: float = 1.0) -> np.ndarray:
        """Standard normal times `scale`, float64."""
        return self.generator.standard_normal(_flat(shape)) * scale

    def uniform(self, *shape: Any, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Uniform on [low, high), float64."""
        return self.generator.uniform(low, high, _flat(shape))

    def integers(self, high: int, *shape: Any) -> np.ndarray:
        """Uniform integers 0 <= k < high, int64."""
        return self.generator.integers(0, max(high, 1), _flat(shape))

    def mask(self, *shape: Any, keep: float = 0.7) -> np.ndarray:
        """Booleans, True with probability `keep`."""
        return self.generator.random(_flat(shape)) < keep


def _flat(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
