"""The contract of a kernel as data and functions: samples to arguments, layouts, the comparison
with the float64 reference. The tests of each device ask it of their arrays.
"""

import importlib
import inspect
import pkgutil
import zlib

import ml_dtypes
import numpy as np

import kernels
from kernels.elementwise import Elementwise
from kernels.registry import Draw, all_kernels
from tests.kernels.tolerances import assert_close

for _module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"kernels.{_module.name}")

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}

#: The last is above the size from which loops run on all threads.
SHAPES = [(0, 5), (1, 1), (3, 5), (7, 129), (33, 64), (65, 600)]

#: Kernels with a wider tolerance: name -> (factor, reason).
WIDER: dict[str, tuple[float, str]] = {
    name: (4.0, "3x3 by Winograd's algorithm: its transforms have entries of up to 2.8")
    for name in ("convolution", "convolution_input_grad", "convolution_weight_grad")
}

#: The same for results of 16 bits.
WIDER_IN_16_BITS: dict[str, tuple[float, str]] = {
    "linear_cross_entropy": (200.0, "on CUDA gradients of logits are rounded between two products"),
}

#: Float32 results that are products of what was rounded to 16 bits: as exact as 16 bits are.
OF_ROUNDED: dict[str, tuple[int, ...]] = {"linear_cross_entropy": (2,)}

#: Kernels whose NaN and infinities reach more elements than the reference's: name -> reason.
SPREADS: dict[str, str] = {
    name: "a tile's products take in keys that are not seen, at weight 0"
    for name in ("attention", "attention_grad")
} | {
    name: "a tile is transformed as a whole, and zeros around an image are multiplied as well"
    for name in ("convolution", "convolution_input_grad", "convolution_weight_grad")
}

CASES = [(k, sample) for k in all_kernels().values() for sample in k.samples]
NAMES = [k.name if sample == "_" else f"{k.name}-{sample}" for k, sample in CASES]


# --- arguments ------------------------------------------------------------------------------------


def is_float(a) -> bool:
    return isinstance(a, np.ndarray) and (a.dtype.kind == "f" or a.dtype == ml_dtypes.bfloat16)


def arguments(kernel, sample, shape, dtype) -> list:
    """The sample's arguments, floating arrays cast to `dtype`."""
    args = kernel.samples[sample](Draw(zlib.crc32(kernel.name.encode())), shape)
    with np.errstate(all="ignore"):
        return [a.astype(DTYPES[dtype]) if is_float(a) else a for a in args]


def strided(a):
    """`a` as every second element of a larger array, with NaN between."""
    shape = (*a.shape[:-1], 2 * a.shape[-1])
    wide = np.full(shape, np.nan, a.dtype) if is_float(a) else np.ones(shape, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def turned(a):
    """`a` with its axes in the opposite order in memory; backwards, if it has one axis."""
    return np.asfortranarray(a) if a.ndim > 1 else np.ascontiguousarray(a[::-1])[::-1]


LAYOUTS = {"as drawn": lambda a: a.copy(order="K"), "strided": strided, "turned": turned}


def laid_out(kernel, args, layout) -> list:
    """Fresh copies of `args` in a layout; what a kernel overwrites stays as drawn."""
    names = list(inspect.signature(kernel.reference).parameters)
    return [
        LAYOUTS["as drawn" if name in kernel.inplace or a.ndim == 0 else layout](a)
        if isinstance(a, np.ndarray)
        else a
        for name, a in zip(names, args, strict=False)
    ]


def run(kernel, args, function=None) -> list:
    """The results of a call, and after them what it overwrote."""
    with np.errstate(all="ignore"):
        results = (function or kernel)(*args)
    results = results if isinstance(results, (tuple, list)) else (results,)
    names = list(inspect.signature(kernel.reference).parameters)
    overwritten = [a for name, a in zip(names, args, strict=False) if name in kernel.inplace]
    return [r for r in (*results, *overwritten) if r is not None]


def expected(kernel, args) -> list:
    """The reference in float64."""
    wide = [a.astype(np.float64) if is_float(a) else a for a in args]
    wide = [a.copy() if isinstance(a, np.ndarray) else a for a in wide]
    return run(kernel, wide, kernel.reference)


def check(kernel, args, got, what, spreads=False) -> None:
    """Values and dtypes of `got` against the reference."""
    truth = expected(kernel, args)
    assert len(got) == len(truth)
    # where nothing was infinite, nothing may be: a NaN that memory held would pass otherwise
    planted = not all(np.isfinite(a.astype(np.float64)).all() for a in args if is_float(a))
    spreads = planted and (spreads or kernel.name in SPREADS)
    for i, (y, r) in enumerate(zip(got, truth, strict=True)):
        where = f"{kernel.name}, result {i}, {what}"
        floats = [a.dtype for a in args if is_float(a)]
        rounded = floats and floats[0].itemsize == 2 and i in OF_ROUNDED.get(kernel.name, ())
        shown = y.astype(floats[0]) if rounded else np.asarray(y)
        wider = WIDER_IN_16_BITS if shown.dtype.itemsize == 2 else WIDER
        assert_close(
            shown,
            r,
            wider=wider.get(kernel.name, WIDER.get(kernel.name, (1.0,)))[0],
            spreads=spreads,
            what=where,
        )
        if is_float(y) and floats:
            statistic = i in kernel.statistics and floats[0].itemsize == 2
            assert y.dtype == (np.float32 if statistic else floats[0]), f"{where}: {y.dtype}"
        else:
            assert np.asarray(y).dtype == np.asarray(r).dtype, f"{where}: {np.asarray(y).dtype}"


def bits(arrays) -> list[bytes]:
    return [np.asarray(a).tobytes() for a in arrays]


# --- gradients of elementwise kernels -------------------------------------------------------------

ELEMENTWISE = [k for k in all_kernels().values() if isinstance(k, Elementwise)]


def takes_the_input(gradient, kernel) -> bool:
    """Is it (dy, the arguments of `kernel`)? If not, its family's tests look after it."""
    same = isinstance(gradient, Elementwise) and gradient.scalars == kernel.scalars
    return same and gradient.arrays == ["dy", *kernel.arrays]


GRADIENTS = [
    (all_kernels()[f"{k.name}_grad"], k, sample)
    for k in ELEMENTWISE
    for sample in k.samples
    if f"{k.name}_grad" in all_kernels() and takes_the_input(all_kernels()[f"{k.name}_grad"], k)
]
GRADIENT_NAMES = [f"{g.name}-{sample}" for g, _, sample in GRADIENTS]


def slope(kernel, sample, dtype) -> tuple:
    """x and dy in `dtype`, the other arguments, and dy times the central difference at x of the
    float64 reference.
    """
    x, *rest = arguments(kernel, sample, (7, 129), dtype)
    dy = np.linspace(0.5, 1.5, x.size).reshape(x.shape).astype(x.dtype)
    wide, step = x.astype(np.float64), 1e-6
    others = [a.astype(np.float64) if is_float(a) else a for a in rest]
    above, below = (kernel(wide + s, *others) for s in (step, -step))
    return x, dy, rest, dy.astype(np.float64) * (above - below) / (2 * step)
