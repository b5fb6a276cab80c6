"""What every kernel in the registry promises, held against its reference in float64.

For each sample of each kernel: any dtype, layout and size, NaN and infinities; float32 in is
float32 out; inputs are left alone; the same input gives the same bits, on one thread or many.
Tolerances are in conftest.py.
"""

import importlib
import inspect
import pkgutil
import zlib

import ml_dtypes
import numpy as np
import pytest

import kernels
from kernels.elementwise import Elementwise
from kernels.registry import Draw, all_kernels, has_numba, reference_kernels

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
WIDER: dict[str, tuple[float, str]] = {}

#: Kernels whose NaN and infinities reach more elements than the reference's: name -> reason.
SPREADS: dict[str, str] = {}

CASES = [(k, sample) for k in all_kernels().values() for sample in k.samples]
NAMES = [k.name if sample == "_" else f"{k.name}-{sample}" for k, sample in CASES]
each_case = pytest.mark.parametrize(("kernel", "sample"), CASES, ids=NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


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


def check(kernel, args, got, close, what) -> None:
    """Values and dtypes of `got` against the reference."""
    truth = expected(kernel, args)
    assert len(got) == len(truth)
    for i, (y, r) in enumerate(zip(got, truth, strict=True)):
        where = f"{kernel.name}, result {i}, {what}"
        close(
            y,
            r,
            wider=WIDER.get(kernel.name, (1.0,))[0],
            spreads=kernel.name in SPREADS,
            what=where,
        )
        floats = [a.dtype for a in args if is_float(a)]
        if is_float(y) and floats:
            statistic = i in kernel.statistics and floats[0].itemsize == 2
            assert y.dtype == (np.float32 if statistic else floats[0]), f"{where}: {y.dtype}"
        else:
            assert np.asarray(y).dtype == np.asarray(r).dtype, f"{where}: {np.asarray(y).dtype}"


def bits(arrays) -> list[bytes]:
    return [np.asarray(a).tobytes() for a in arrays]


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", all_kernels().values(), ids=lambda k: k.name)
def test_has_a_sample_and_a_docstring(kernel):
    assert kernel.samples
    assert kernel.__doc__


@each_dtype
@each_case
def test_equals_its_reference_in_float64(kernel, sample, dtype, close):
    if dtype != "float32" and not any(map(is_float, arguments(kernel, sample, (3, 5), "float32"))):
        pytest.skip("takes no floating arrays: tested once, as float32")
    for shape in SHAPES:
        args = arguments(kernel, sample, shape, dtype)
        for layout in LAYOUTS:
            what = f"{dtype}, {shape}, {layout}"
            given = laid_out(kernel, args, layout)
            got = run(kernel, given)
            check(kernel, args, got, close, what)
            names = inspect.signature(kernel.reference).parameters
            for name, before, after in zip(names, args, given, strict=False):
                if isinstance(before, np.ndarray) and name not in kernel.inplace:
                    assert bits([before]) == bits([after]), f"{what}: {name} was modified"
            again = run(kernel, laid_out(kernel, args, layout))
            assert bits(got) == bits(again), f"{what}: other bits the second time"


@each_dtype
@each_case
def test_nan_and_infinities_come_out_as_in_the_reference(kernel, sample, dtype, close):
    args = arguments(kernel, sample, (7, 129), dtype)
    for i, a in enumerate(args):
        if not is_float(a) or a.size == 0:
            continue
        for value in (np.nan, np.inf, -np.inf):
            planted = [b.copy(order="K") if isinstance(b, np.ndarray) else b for b in args]
            planted[i].flat[a.size // 2] = value
            got = run(kernel, laid_out(kernel, planted, "as drawn"))
            check(kernel, planted, got, close, f"{dtype}, {value} in argument {i}")


@each_case
def test_the_reference_keeps_float32(kernel, sample, close):
    args = arguments(kernel, sample, (7, 129), "float32")
    with reference_kernels():
        got = run(kernel, laid_out(kernel, args, "as drawn"))
    check(kernel, args, got, close, "float32, reference")


@pytest.mark.skipif(
    not has_numba(), reason="numba is not installed: every kernel runs its reference"
)
@each_case
def test_any_number_of_threads_gives_the_same_bits(kernel, sample):
    import numba

    if numba.get_num_threads() == 1:
        pytest.skip("one core")
    if kernel.family in ("matmul", "linear"):
        pytest.skip("OpenBLAS rounds by the size of a block, and blocks are cut by threads")
    args = arguments(kernel, sample, SHAPES[-1], "float32")
    many = run(kernel, laid_out(kernel, args, "as drawn"))
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = run(kernel, laid_out(kernel, args, "as drawn"))
    finally:
        numba.set_num_threads(threads)
    assert bits(many) == bits(one)


# --- elementwise kernels --------------------------------------------------------------------------

ELEMENTWISE = [k for k in all_kernels().values() if isinstance(k, Elementwise)]


@pytest.mark.parametrize("kernel", ELEMENTWISE, ids=lambda k: k.name)
def test_zero_dimensions_stay_an_array(kernel):
    for dtype in DTYPES.values():
        y = kernel(*(np.asarray(0.5, dtype) for _ in kernel.arrays))
        assert isinstance(y, np.ndarray)
        assert y.shape == ()
        assert y.dtype == dtype


@pytest.mark.parametrize("kernel", ELEMENTWISE, ids=lambda k: k.name)
def test_the_whole_range_of_float32(kernel, close):
    # Powers of two from the smallest normal number to the largest, both signs; subnormals may be
    # flushed.
    powers = np.float32(2.0) ** np.arange(-126, 128, dtype=np.float32)
    x = np.concatenate([-powers[::-1], [0], powers]).astype(np.float32)
    args = [np.ones_like(x)] * (len(kernel.arrays) - 1) + [x]
    check(kernel, args, run(kernel, args), close, "powers of two")


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


@pytest.mark.parametrize(
    ("gradient", "kernel", "sample"),
    GRADIENTS,
    ids=[f"{g.name}-{sample}" for g, _, sample in GRADIENTS],
)
def test_gradient_is_the_slope(gradient, kernel, sample):
    x, *rest = arguments(kernel, sample, (7, 129), "float64")
    step = 1e-6
    slope = (kernel(x + step, *rest) - kernel(x - step, *rest)) / (2 * step)
    dy = np.linspace(0.5, 1.5, x.size).reshape(x.shape)
    np.testing.assert_allclose(gradient(dy, x, *rest), dy * slope, rtol=1e-6, atol=1e-8)
