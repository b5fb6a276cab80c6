"""What is measured: a case is a kernel, a way to make its arguments, and a size.

The arguments of most cases are the kernel's own samples (kernels/registry.py) at the sizes of its
family (sizes.py), so that a new kernel is measured without a line here; makers.py has what two-axis
samples cannot give.

A case is the same everywhere: for the command, for the tests, on every device and every side.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import pkgutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

import kernels
from bench import sizes as sizes_of
from bench.makers import MAKERS
from bench.sizes import Device, Shape
from kernels.arrays import is_array, is_floating, to_numpy
from kernels.registry import Draw, Kernel, all_kernels

#: Kernels measured with other samples than their plain one.
SAMPLES = {
    "sum": ("_", "rows", "columns"),
    "max": ("_", "columns"),
    "cross_entropy": ("_", "loss_only"),
    "softmax": ("_", "masked", "first_axis"),
}

#: What --dtype chooses from, and the largest error, relative to the largest element of the result
#: or 1, that is still timed. bfloat16 has 8 bits: rounding alone is 2^-9 of an element.
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-3}
TOLERANCE = TOLERANCES["float32"]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

#: Parameters that stay float32 when the others have 16 bits: statistics, as forward kernels return
#: them.
_STATISTICS = ("mean", "var", "rstd", "lse")

#: Families of matrix products.
PRODUCTS = ("matmul", "linear")

_SEED = 20


class UnknownCase(ValueError):
    """A name or size that fits no case."""


@dataclass(frozen=True)
class Case:
    """A kernel, one of its samples or MAKERS, the size given to it, and the type of its arrays."""

    kernel: str
    variant: str
    shape: Shape
    dtype: str = "float32"

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.label}[{size_text(self.shape)}]{dtype}"

    @property
    def label(self) -> str:
        """The kernel's name, with the variant if that is not the plain sample."""
        plain = self.variant in ("_", "_sample")
        return self.kernel if plain else f"{self.kernel}-{self.variant}"


def size_text(shape: Shape) -> str:
    """(768, 128) as 768x128."""
    return "x".join(map(str, shape))


def parse_size(text: str) -> Shape:
    """768x128 as (768, 128)."""
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UnknownCase(f"--sizes {text}: expected positive numbers like 768x128 or 32x64x32x32")
    return shape


# The list -----------------------------------------------------------------------------------------


@cache
def load() -> dict[str, Kernel]:
    """Every kernel there is, by name: imports all families."""
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"kernels.{module.name}")
    return all_kernels()


def find(
    names: Sequence[str] = (),
    sizes: Sequence[Shape] = (),
    quick: bool = False,
    device: Device = "cpu",
    dtype: str = "float32",
) -> list[Case]:
    """The cases of the kernels in `names` (all, if empty), at `sizes` where given.

    A name is a kernel, a kernel and variant (batch_norm-nchw), or a family (softmax, losses).
    `sizes` of two axes go to the samples; cases that need another number of axes keep theirs out.
    Raises UnknownCase with the nearest names, or with the sizes that a kernel takes.
    """
    known = load()

    def cases_at(sizes: Sequence[Shape]) -> list[Case]:
        return [c for k in known.values() for c in _cases(k, sizes, quick, device, dtype)]

    cases = cases_at(sizes)
    everything = cases_at(()) if sizes else cases
    families = {k.name: k.family for k in known.values()}
    chosen: dict[Case, None] = {}
    for name in names:

        def fits(case: Case, name: str = name) -> bool:
            return name in (case.kernel, case.label, families[case.kernel])

        if not any(map(fits, everything)):
            raise UnknownCase(_unknown(name, everything, families))
        found = list(filter(fits, cases))
        if not found:
            takes = sorted({size_text(c.shape) for c in everything if fits(c)})
            raise UnknownCase(
                f"no case of {name} takes --sizes {' '.join(map(size_text, sizes))}: "
                f"its sizes look like {', '.join(takes)}"
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen) if names else cases


def _cases(
    kernel: Kernel, sizes: Sequence[Shape], quick: bool, device: Device, dtype: str
) -> list[Case]:
    def case(variant: str, shape: Shape) -> Case:
        if not sizes and kernel.family not in PRODUCTS:  # products are bound by arithmetic
            shape = sizes_of.as_large(shape, DTYPES[dtype].itemsize)
        return Case(kernel.name, variant, shape, dtype)

    made = [
        case(variant, shape)
        for (name, variant), (_, own) in MAKERS.items()
        if name == kernel.name
        for shape in (own[device][:1] if quick else own[device])
    ]
    default = sizes_of.by_family(device, kernel.name, kernel.family)
    sampled = [
        case(sample, shape)
        for sample in _samples(kernel)
        for shape in (sizes_of.QUICK[device] if quick else default)
    ]
    # A family's plain sample is of no further use where images or products of real sizes are there.
    cases = made or sampled
    if not sizes:
        return cases
    by_axes = {(c.variant, len(c.shape)): None for c in made + sampled}
    return [case(variant, s) for variant, axes in by_axes for s in sizes if len(s) == axes]


def _samples(kernel: Kernel) -> tuple[str, ...]:
    if not kernel.samples:
        return ()
    plain = next((s for s in ("_", "_sample") if s in kernel.samples), next(iter(kernel.samples)))
    return tuple(s for s in SAMPLES.get(kernel.name, ()) if s in kernel.samples) or (plain,)


def _unknown(name: str, cases: Sequence[Case], families: dict[str, str]) -> str:
    names = sorted({c.kernel for c in cases} | {c.label for c in cases} | set(families.values()))
    near = difflib.get_close_matches(name, names, 5, 0.5) or [n for n in names if name in n][:5]
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names)}"
    return f"unknown kernel {name!r}: {hint}"


# Arguments, truth, bytes --------------------------------------------------------------------------


def arguments(case: Case) -> list[Any]:
    """Fresh NumPy arguments of the case's dtype, the same on every side and in every process."""
    kernel = load()[case.kernel]
    pairs = named(kernel, _drawn(case.kernel, case.variant, case.shape))
    return [
        cast(a, np.dtype(np.float32) if name in _STATISTICS else DTYPES[case.dtype])
        for name, a in pairs
    ]


def _drawn(kernel: str, variant: str, shape: Shape) -> tuple[Any, ...]:
    draw = Draw(zlib.crc32(kernel.encode()) + _SEED)
    made = MAKERS.get((kernel, variant))
    if made is not None:
        return made[0](draw, *shape)
    return tuple(load()[kernel].samples[variant](draw, shape))


def cast(a: Any, dtype: Any) -> Any:
    """A copy of floating arrays as `dtype`; other arrays and numbers as they are."""
    is_float = is_array(a) and is_floating(a.dtype)
    return a.astype(dtype) if is_float else a


def results(kernel: Kernel, args: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
    """What `function` returns, and after it what it overwrites, on copies of `args`."""
    copies = [_copy(a) if is_array(a) else a for a in args]
    with np.errstate(all="ignore"):
        returned = function(*copies)
    returned = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    overwritten = [a for name, a in named(kernel, copies) if name in kernel.inplace]
    return returned + [a for a in overwritten if not any(a is r for r in returned)]


def _copy(a: Any) -> Any:
    """With the strides kept, which CuPy's ``copy(order="K")`` does as well as NumPy's."""
    return a.copy(order="K")


def named(kernel: Kernel, args: Sequence[Any]) -> list[tuple[str, Any]]:
    """(parameter, argument) pairs; arguments after the last array may be left out."""
    return list(zip(inspect.signature(kernel.reference).parameters, args, strict=False))


def truth(case: Case, args: Sequence[Any] | None = None) -> list[Any]:
    """The results of the reference in float64, for the arguments of the case, as NumPy arrays.

    With `args`, which are those arguments on another device, it is computed there.
    """
    kernel = load()[case.kernel]
    wide = [cast(a, np.float64) for a in (arguments(case) if args is None else args)]
    return to_host(results(kernel, wide, kernel.reference))


def to_host(arrays: Sequence[Any]) -> list[Any]:
    """Arrays as NumPy's; the rest as it is."""
    return [to_numpy(a) if is_array(a) else a for a in arrays]


def error(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest |got - expected| over the largest |expected| or 1, of all pairs but None.

    Infinite if a shape, an integer, or a NaN or infinity differs. Results are compared flat, for
    peers shape their statistics differently.
    """
    worst = 0.0
    for y, r in zip(got, expected, strict=False):
        if y is None or r is None:
            continue
        y, r = np.asarray(y).reshape(-1), np.asarray(r).reshape(-1)
        if y.shape != r.shape:
            return math.inf
        if r.dtype.kind in "iub":
            worst = max(worst, 0.0 if np.array_equal(y, r) else math.inf)
            continue
        finite = np.isfinite(r)
        if not finite.all():
            # in the width of the result: a number may be too large for it
            narrow = r[~finite].astype(y.dtype).astype(np.float64)
            if not np.array_equal(y[~finite].astype(np.float64), narrow, equal_nan=True):
                return math.inf
            y, r = y[finite], r[finite]
        if r.size:
            difference = np.abs(y.astype(r.dtype) - r).max()
            worst = max(worst, float(difference / max(1.0, np.abs(r).max())))
            if math.isnan(worst) or math.isnan(difference):
                return math.inf
    return worst


def bytes_moved(kernel: Kernel, args: Sequence[Any], got: Sequence[Any]) -> int:
    """The least traffic: every array argument read once, every result written once.

    An ``out`` is only written; other overwritten arguments are read and written.
    """
    read = sum(a.nbytes for name, a in named(kernel, args) if _nbytes(a) and name != "out")
    return read + sum(map(_nbytes, got))


def _nbytes(a: Any) -> int:
    return a.nbytes if is_array(a) or isinstance(a, np.generic) else 0


#: Products of causal attention's cases.
CAUSAL = {"attention-causal": 2, "attention_grad-causal": 5}


def flops(case: Case) -> int | None:
    """Multiplications and additions of a matrix product of m x k x n, or of causal attention:
    two products over half of T x T, the gradient five (Dao et al. 2022); None for what is none.
    """
    if case.label in CAUSAL:
        B, H, T, D = case.shape
        return CAUSAL[case.label] * B * H * T * T * D
    products = load()[case.kernel].family in PRODUCTS and len(case.shape) == 3
    return 2 * math.prod(case.shape) if products else None
