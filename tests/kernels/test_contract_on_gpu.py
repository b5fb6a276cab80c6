"""What every kernel promises, on a real GPU: the contract of the emulator's tests, with CuPy, and
what only a GPU can show, large arrays and references on CuPy. Products: test_cublas_on_gpu.py.
"""

import numpy as np
import pytest

from tests.cuda_emulator import matrix
from tests.kernels import contract

pytestmark = pytest.mark.cuda

#: Products round in the library's own order; they have a file and tolerances of their own.
CASES = [(k, sample) for k, sample in contract.CASES if k.family not in ("matmul", "linear")]
NAMES = [k.name if sample == "_" else f"{k.name}-{sample}" for k, sample in CASES]

#: 2M elements: many blocks, rows that are no multiple of a pack, more blocks than a card holds.
LARGE = (513, 4099)

each_case = pytest.mark.parametrize(("kernel", "sample"), CASES, ids=NAMES)
each_dtype = pytest.mark.parametrize("dtype", [*matrix.DTYPES, "float64"])
each_gradient = pytest.mark.parametrize(
    ("gradient", "kernel", "sample"), contract.GRADIENTS, ids=contract.GRADIENT_NAMES
)


@pytest.fixture(autouse=True)
def _cupy():
    """matrix.py takes the module that is imported."""
    import cupy

    assert cupy.cuda.is_available()


def _once(kernel, sample, dtype):
    if dtype != "float32" and matrix.takes_no_floats(kernel, sample):
        pytest.skip("takes no floating arrays: tested once, as float32")


@each_dtype
@each_case
def test_equals_its_reference_in_float64(kernel, sample, dtype):
    _once(kernel, sample, dtype)
    for shape in (*matrix.SMALL, *matrix.large(kernel, sample)):
        matrix.check(kernel, sample, dtype, shape)
    for shape in ((3, 5), (9, 136)):
        matrix.check(kernel, sample, dtype, shape, "unaligned")
    for layout in ("strided", "turned"):
        matrix.check(kernel, sample, dtype, (7, 37), layout)


@each_case
def test_large_arrays(kernel, sample):
    shape = LARGE if "images" not in sample and sample != "instance" else (65, 1025)
    matrix.check(kernel, sample, "float32", shape)


@each_dtype
@each_case
def test_nan_and_infinities_come_out_as_in_the_reference(kernel, sample, dtype):
    args = contract.arguments(kernel, sample, (7, 37), dtype)
    for i, a in enumerate(args):
        if not contract.is_float(a) or a.size == 0:
            continue
        for value in (np.nan, np.inf, -np.inf):
            planted = [b.copy(order="K") if isinstance(b, np.ndarray) else b for b in args]
            planted[i].flat[a.size // 2] = value
            got = matrix.results(kernel, matrix.on_device(kernel, planted, "dense"))
            what = f"{dtype}, {value} in argument {i}"
            contract.check(kernel, planted, got, what, kernel.name in matrix.SPREADS)


@each_gradient
def test_gradient_is_the_slope(gradient, kernel, sample, close):
    for dtype in ("float32", "float64"):
        x, dy, rest, expected = contract.slope(kernel, sample, dtype)
        (got,) = matrix.results(gradient, matrix.on_device(gradient, [dy, x, *rest], "dense"))
        assert got.dtype == x.dtype
        if dtype == "float64":  # as good as the difference itself
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
        else:
            close(got, expected, wider=2, what=f"{gradient.name}, float32")


DRAWS = [(k, sample) for k, sample in CASES if k.family == "random"]


@pytest.mark.parametrize(("kernel", "sample"), DRAWS, ids=[f"{k.name}-{s}" for k, s in DRAWS])
def test_draws_are_the_same_bits_as_on_the_host(kernel, sample):
    args = contract.arguments(kernel, sample, (33, 65), "float32")
    # the reference: its bits are the CPU version's, and it need not be compiled here
    on_host = contract.run(kernel, contract.laid_out(kernel, args, "as drawn"), kernel.reference)
    on_gpu = matrix.results(kernel, matrix.on_device(kernel, args, "dense"))
    assert len(on_gpu) == len(on_host)
    for a, b in zip(on_gpu, on_host, strict=True):
        assert a.dtype == b.dtype
        if kernel.name == "normal":  # through each side's own logarithm and cosine
            np.testing.assert_allclose(a, b, rtol=3e-5, atol=1e-5)
        else:
            assert a.tobytes() == b.tobytes()
