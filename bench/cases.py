"""What is measured: a case is a kernel, a way to make its arguments, and a size.

The arguments of most cases are the kernel's own samples (kernels/registry.py) at the sizes of its
family, so that a new kernel is measured without a line here. MAKERS has the arguments that the
two-axis samples cannot give: images, matrices of three sizes, flat buffers of whole models.

A case is the same everywhere: for the command, for the tests, and on every side.
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

import numpy as np

import kernels
from kernels.registry import Draw, Kernel, all_kernels

Shape = tuple[int, ...]
Maker = Callable[..., tuple[Any, ...]]

#: Sizes (rows, columns) by family; the sizes of cpu-kernels' table are among them: rows of a small
#: transformer (768 x 65, 768 x 128), and 4M elements, which no cache of a core holds.
SIZES: dict[str, list[Shape]] = {
    "softmax": [(768, 65), (4096, 1024)],
    "losses": [(768, 65), (4096, 1024)],
    "normalization": [(768, 128), (4096, 1024)],
    "channel_norm": [(4096, 1024)],
    "permutation": [(1024, 1024)],
}
DEFAULT_SIZES: list[Shape] = [(4096, 1024)]

#: With --quick: 256k elements, 1 MB an array.
QUICK_SIZES: list[Shape] = [(1024, 256)]

#: Kernels measured with other samples than their plain one.
SAMPLES = {
    "sum": ("_", "rows", "columns"),
    "max": ("_", "columns"),
    "cross_entropy": ("_", "loss_only"),
    "softmax": ("_", "masked", "first_axis"),
}

#: The largest error, relative to the largest element of the result or 1, that is still timed.
TOLERANCE = 1e-5

_SEED = 20


class UnknownCase(ValueError):
    """A name or size that fits no case."""


@dataclass(frozen=True)
class Case:
    """A kernel, one of its samples or MAKERS, and the size given to it."""

    kernel: str
    variant: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.label}[{size_text(self.shape)}]"

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


# Arguments that samples cannot give ---------------------------------------------------------------

_makers: dict[tuple[str, str], tuple[Maker, list[Shape]]] = {}


def maker(kernel: str, *variants: str, sizes: list[Shape]) -> Callable[[Maker], Maker]:
    """Register ``function(draw, *shape[, variant=]) -> arguments`` for variants of a kernel."""

    def register(function: Maker) -> Maker:
        takes_variant = "variant" in inspect.signature(function).parameters
        for variant in variants:

            def make(draw: Draw, *shape: int, variant: str = variant) -> tuple[Any, ...]:
                return function(draw, *shape, **({"variant": variant} if takes_variant else {}))

            _makers[kernel, variant] = make, sizes
        return function

    return register


_IMAGES = [(32, 64, 32, 32)]
_LAYOUTS = ("nchw", "channels_last")


def _image(draw: Draw, N: int, C: int, H: int, W: int, layout: str) -> np.ndarray:
    """(N, C, H, W), in memory as `layout` says."""
    if layout == "nchw":
        return draw.normal(N, C, H, W)
    return draw.normal(N, H, W, C).transpose(0, 3, 1, 2)


@maker("batch_norm", *_LAYOUTS, sizes=_IMAGES)
def _(draw, N, C, H, W, variant):
    return _image(draw, N, C, H, W, variant) + 1.0, draw.normal(C), draw.normal(C), 1e-5


@maker("batch_norm_grad", *_LAYOUTS, sizes=_IMAGES)
def _(draw, N, C, H, W, variant):
    x = _image(draw, N, C, H, W, variant)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    return _image(draw, N, C, H, W, variant), x, draw.normal(C), mean, var, 1e-5


@maker("batch_norm_inference", *_LAYOUTS, sizes=_IMAGES)
def _(draw, N, C, H, W, variant):
    mean, var = draw.normal(C), draw.uniform(C, low=0.5, high=2.0)
    return _image(draw, N, C, H, W, variant), draw.normal(C), draw.normal(C), mean, var


@maker("group_norm", "nchw", sizes=_IMAGES)
def _(draw, N, C, H, W):
    return draw.normal(N, C, H, W), _groups(C), draw.normal(C), draw.normal(C)


@maker("group_norm_grad", "nchw", sizes=_IMAGES)
def _(draw, N, C, H, W):
    x, G = draw.normal(N, C, H, W), _groups(C)
    grouped = x.reshape(N, G, -1)
    rstd = 1 / np.sqrt(grouped.var(2) + 1e-5)
    return draw.normal(N, C, H, W), x, G, draw.normal(C), grouped.mean(2), rstd


def _groups(C: int) -> int:
    """8 groups, or as many as go into C."""
    return math.gcd(C, 8)


#: m x k x n: the layers of the 784-512-256-10 network at batch 128, and squares.
_PRODUCTS = [(128, 784, 512), (128, 512, 256), (512, 512, 512), (1024, 1024, 1024)]


@maker("matmul", "nn", sizes=_PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, k), draw.normal(k, n)


@maker("matmul", "nt_bias", sizes=_PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(m, k), draw.normal(n, k), False, True, draw.normal(n)


@maker("matmul", "tn", sizes=_PRODUCTS)
def _(draw, m, k, n):
    return draw.normal(k, m), draw.normal(k, n), True


#: tokens x vocabulary x features
_LOOKUPS = [(768, 65, 128), (8192, 16384, 256)]


@maker("embedding", "lookup", sizes=_LOOKUPS)
def _(draw, tokens, vocabulary, features):
    return draw.normal(vocabulary, features), draw.integers(vocabulary, tokens)


@maker("embedding_grad", "lookup", sizes=_LOOKUPS)
def _(draw, tokens, vocabulary, features):
    return draw.normal(tokens, features), draw.integers(vocabulary, tokens), vocabulary


#: parameters x tensors that the peer has them in: a small network, and 10M at once
_FLAT = [(800_000, 40), (10_000_000, 1)]

_ADAM = ("adamw", "adamw_foreach", "adam", "adam_foreach")
_SGD = ("nesterov", "nesterov_foreach", "plain")


@maker("adam_step", *_ADAM, sizes=_FLAT)
def _(draw, n, tensors, variant):
    decay, decoupled = (0.01, True) if variant.startswith("adamw") else (0.0, False)
    p, g, m, v = draw.normal(n), draw.normal(n), np.zeros(n), np.zeros(n)
    return p, g, m, v, 1e-3, 0.9, 0.999, 1e-8, decay, 1, decoupled


@maker("sgd_step", *_SGD, sizes=_FLAT)
def _(draw, n, tensors, variant):
    p, g = draw.normal(n), draw.normal(n)
    if variant == "plain":
        return p, g, None, 1e-3
    return p, g, np.zeros(n), 1e-3, 0.9, 0.0, 0.0, True


@maker("rmsprop_step", "plain", sizes=_FLAT)
def _(draw, n, tensors):
    return draw.normal(n), draw.normal(n), np.zeros(n), None, None, 1e-3


@maker("adagrad_step", "plain", sizes=_FLAT)
def _(draw, n, tensors):
    return draw.normal(n), draw.normal(n), np.zeros(n), 1e-3


# The list -----------------------------------------------------------------------------------------


@cache
def load() -> dict[str, Kernel]:
    """Every kernel there is, by name: imports all families."""
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"kernels.{module.name}")
    return all_kernels()


def find(names: Sequence[str] = (), sizes: Sequence[Shape] = (), quick: bool = False) -> list[Case]:
    """The cases of the kernels in `names` (all, if empty), at `sizes` where given.

    A name is a kernel, a kernel and variant (batch_norm-nchw), or a family (softmax, losses).
    `sizes` of two axes go to the samples; cases that need another number of axes keep theirs out.
    Raises UnknownCase with the nearest names, or with the sizes that a kernel takes.
    """
    known = load()
    cases = [c for k in known.values() for c in _cases(k, sizes, quick)]
    everything = cases if not sizes else [c for k in known.values() for c in _cases(k, (), quick)]
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


def _cases(kernel: Kernel, sizes: Sequence[Shape], quick: bool) -> list[Case]:
    made = [
        Case(kernel.name, variant, shape)
        for (name, variant), (_, own) in _makers.items()
        if name == kernel.name
        for shape in (own[:1] if quick else own)
    ]
    default = SIZES.get(kernel.name, SIZES.get(kernel.family, DEFAULT_SIZES))
    sampled = [
        Case(kernel.name, sample, shape)
        for sample in _samples(kernel)
        for shape in (QUICK_SIZES if quick else default)
    ]
    # A family's plain sample is of no further use where images or products of real sizes are there.
    cases = made or sampled
    if not sizes:
        return cases
    by_axes = {(c.variant, len(c.shape)): None for c in made + sampled}
    return [
        Case(kernel.name, variant, shape)
        for variant, axes in by_axes
        for shape in sizes
        if len(shape) == axes
    ]


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


def arguments(case: Case, dtype: Any = np.float32) -> list[Any]:
    """Fresh arguments, the same on every side and in every process; floating arrays as `dtype`."""
    draw = Draw(zlib.crc32(case.kernel.encode()) + _SEED)
    made = _makers.get((case.kernel, case.variant))
    if made is not None:
        args = made[0](draw, *case.shape)
    else:
        args = load()[case.kernel].samples[case.variant](draw, case.shape)
    return [_cast(a, dtype) for a in args]


def _cast(a: Any, dtype: Any) -> Any:
    is_float = isinstance(a, np.ndarray) and a.dtype.kind == "f"
    return a.astype(dtype) if is_float else a


def results(kernel: Kernel, args: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
    """What `function` returns, and after it what it overwrites, on copies of `args`."""
    copies = [a.copy(order="K") if isinstance(a, np.ndarray) else a for a in args]
    with np.errstate(all="ignore"):
        returned = function(*copies)
    returned = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    overwritten = [a for name, a in named(kernel, copies) if name in kernel.inplace]
    return returned + [a for a in overwritten if not any(a is r for r in returned)]


def named(kernel: Kernel, args: Sequence[Any]) -> list[tuple[str, Any]]:
    """(parameter, argument) pairs; arguments after the last array may be left out."""
    return list(zip(inspect.signature(kernel.reference).parameters, args, strict=False))


def truth(case: Case) -> list[Any]:
    """The results of the reference in float64, for the float32 arguments of the case."""
    kernel = load()[case.kernel]
    wide = [_cast(a, np.float64) for a in arguments(case)]
    return results(kernel, wide, kernel.reference)


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
            if not np.array_equal(y[~finite], r[~finite].astype(y.dtype), equal_nan=True):
                return math.inf
            y, r = y[finite], r[finite]
        if r.size:
            difference = np.abs(y - r).max()
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
    return a.nbytes if isinstance(a, (np.ndarray, np.generic)) else 0
