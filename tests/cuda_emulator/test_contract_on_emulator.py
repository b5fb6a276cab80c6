"""What every CUDA kernel promises, run on the emulator: the contract of tests/kernels, without a
GPU.
"""

import numpy as np
import pytest

from tests.cuda_emulator import matrix
from tests.kernels import contract

each_case = pytest.mark.parametrize(("kernel", "sample"), matrix.CASES, ids=matrix.NAMES)
each_dtype = pytest.mark.parametrize("dtype", matrix.DTYPES)


@pytest.fixture(autouse=True)
def _on_the_emulator(cupy):
    pass


def _once(kernel, sample, dtype):
    if dtype != "float32" and matrix.takes_no_floats(kernel, sample):
        pytest.skip("takes no floating arrays: tested once, as float32")


@each_dtype
@each_case
def test_equals_its_reference_in_float64(kernel, sample, dtype):
    _once(kernel, sample, dtype)
    for shape in (*matrix.SMALL, *matrix.large(kernel, sample)):
        matrix.check(kernel, sample, dtype, shape)
    # (9, 136): whole packs in every row, so that alignment alone decides
    for shape in ((3, 5), (9, 136)):
        matrix.check(kernel, sample, dtype, shape, "unaligned")
    for layout in ("strided", "turned"):
        matrix.check(kernel, sample, dtype, (7, 37), layout)


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
            spreads = kernel.name in matrix.SPREADS
            what = f"{dtype}, {value} in argument {i}"
            contract.check(kernel, planted, got, what, spreads)
