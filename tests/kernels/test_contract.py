"""What every kernel in the registry promises, held against its reference in float64.

For each sample of each kernel: any dtype, layout and size, NaN and infinities; float32 in is
float32 out; inputs are left alone; the same input gives the same bits, on one thread or many.
What is compared and how closely: contract.py and tolerances.py.
"""

import inspect

import numpy as np
import pytest

from kernels.registry import all_kernels, has_numba, reference_kernels
from tests.kernels.contract import (
    CASES,
    DTYPES,
    ELEMENTWISE,
    GRADIENT_NAMES,
    GRADIENTS,
    LAYOUTS,
    NAMES,
    SHAPES,
    arguments,
    bits,
    check,
    is_float,
    laid_out,
    run,
    slope,
)

each_case = pytest.mark.parametrize(("kernel", "sample"), CASES, ids=NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", all_kernels().values(), ids=lambda k: k.name)
def test_has_a_sample_and_a_docstring(kernel):
    assert kernel.samples
    assert kernel.__doc__


@each_dtype
@each_case
def test_equals_its_reference_in_float64(kernel, sample, dtype):
    if dtype != "float32" and not any(map(is_float, arguments(kernel, sample, (3, 5), "float32"))):
        pytest.skip("takes no floating arrays: tested once, as float32")
    for shape in SHAPES:
        args = arguments(kernel, sample, shape, dtype)
        for layout in LAYOUTS:
            what = f"{dtype}, {shape}, {layout}"
            given = laid_out(kernel, args, layout)
            got = run(kernel, given)
            check(kernel, args, got, what)
            names = inspect.signature(kernel.reference).parameters
            for name, before, after in zip(names, args, given, strict=False):
                if isinstance(before, np.ndarray) and name not in kernel.inplace:
                    assert bits([before]) == bits([after]), f"{what}: {name} was modified"
            again = run(kernel, laid_out(kernel, args, layout))
            assert bits(got) == bits(again), f"{what}: other bits the second time"


@each_dtype
@each_case
def test_nan_and_infinities_come_out_as_in_the_reference(kernel, sample, dtype):
    args = arguments(kernel, sample, (7, 129), dtype)
    for i, a in enumerate(args):
        if not is_float(a) or a.size == 0:
            continue
        for value in (np.nan, np.inf, -np.inf):
            planted = [b.copy(order="K") if isinstance(b, np.ndarray) else b for b in args]
            planted[i].flat[a.size // 2] = value
            got = run(kernel, laid_out(kernel, planted, "as drawn"))
            check(kernel, planted, got, f"{dtype}, {value} in argument {i}")


@each_case
def test_the_reference_keeps_float32(kernel, sample):
    args = arguments(kernel, sample, (7, 129), "float32")
    with reference_kernels():
        got = run(kernel, laid_out(kernel, args, "as drawn"))
    check(kernel, args, got, "float32, reference")


@pytest.mark.skipif(
    not has_numba(), reason="numba is not installed: every kernel runs its reference"
)
@each_case
def test_any_number_of_threads_gives_the_same_bits(kernel, sample):
    from kernels.cpu.engine import set_threads, threads

    cores = threads()
    if cores == 1:
        pytest.skip("one core")
    if kernel.family in ("matmul", "linear", "recurrent", "lstm", "gru"):
        pytest.skip("OpenBLAS rounds by the size of a block, and blocks are cut by threads")
    args = arguments(kernel, sample, SHAPES[-1], "float32")
    many = run(kernel, laid_out(kernel, args, "as drawn"))
    set_threads(1)
    try:
        one = run(kernel, laid_out(kernel, args, "as drawn"))
    finally:
        set_threads(cores)
    assert bits(many) == bits(one)


# --- elementwise kernels --------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ELEMENTWISE, ids=lambda k: k.name)
def test_zero_dimensions_stay_an_array(kernel):
    for dtype in DTYPES.values():
        y = kernel(*(np.asarray(0.5, dtype) for _ in kernel.arrays))
        assert isinstance(y, np.ndarray)
        assert y.shape == ()
        assert y.dtype == dtype


@pytest.mark.parametrize("kernel", ELEMENTWISE, ids=lambda k: k.name)
def test_the_whole_range_of_float32(kernel):
    # Powers of two from the smallest normal number to the largest, both signs; subnormals may be
    # flushed.
    powers = np.float32(2.0) ** np.arange(-126, 128, dtype=np.float32)
    x = np.concatenate([-powers[::-1], [0], powers]).astype(np.float32)
    args = [np.ones_like(x)] * (len(kernel.arrays) - 1) + [x]
    check(kernel, args, run(kernel, args), "powers of two")


@pytest.mark.parametrize(
    ("gradient", "kernel", "sample"),
    GRADIENTS,
    ids=GRADIENT_NAMES,
)
def test_gradient_is_the_slope(gradient, kernel, sample):
    x, dy, rest, expected = slope(kernel, sample, "float64")
    np.testing.assert_allclose(gradient(dy, x, *rest), expected, rtol=1e-6, atol=1e-8)
