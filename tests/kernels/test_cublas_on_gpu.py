"""Products through the real cuBLASLt, on a GPU: what the interpreter of test_cublas.py cannot know
is which algorithms there are, how they round, and whether they can be captured.
"""

import ml_dtypes
import numpy as np
import pytest

from kernels import precision
from kernels.arrays import to_numpy
from kernels.linear import linear_gelu, linear_gelu_grad, linear_weight_grad
from kernels.matmul import matmul
from kernels.registry import Draw, all_kernels

pytestmark = pytest.mark.cuda

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
KERNELS = [k for k in all_kernels().values() if k.family in ("matmul", "linear")]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _the_library_is_there():
    import cupy

    from kernels.cuda import cublas

    assert cupy.cuda.is_available()
    assert cublas.usable()


def samples(kernel, shape, dtype):
    """Arguments of every sample, on the device and in float64 on the host."""
    import cupy

    for sample in kernel.samples.values():
        args = sample(Draw(3), shape)
        args = [a.astype(DTYPES[dtype]) if isinstance(a, np.ndarray) else a for a in args]
        on_gpu = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        yield on_gpu, [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]


def arrays(results):
    return [to_numpy(r) for r in (results if isinstance(results, tuple) else (results,))]


@each_dtype
@each_kernel
def test_equals_its_reference_in_float64_and_gives_the_same_bits(kernel, dtype, close):
    for shape in [(1, 1), (3, 5), (7, 129), (64, 64), (65, 600), (512, 768)]:
        for given, wide in samples(kernel, shape, dtype):
            got, again = arrays(kernel(*given)), arrays(kernel(*given))
            for y, z, r in zip(got, again, arrays(kernel.reference(*wide)), strict=True):
                # sums over k in another order, and the library's own tanh
                close(y, r, wider=4, what=f"{kernel.name}, {dtype}, {shape}")
                assert y.tobytes() == z.tobytes()


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_address_and_strides(dtype, offset, close):
    import cupy

    wide = np.random.default_rng(0).standard_normal((40, 200)).astype(DTYPES[dtype])
    on_gpu = cupy.asarray(wide)
    a, b = (x[:, offset : offset + 64] for x in (wide, wide[::-1]))
    given = on_gpu[:, offset : offset + 64], on_gpu[::-1][:, offset : offset + 64]
    exact = a.astype(float) @ b.astype(float).T
    close(to_numpy(matmul(*given, False, True)), exact)


def test_tf32_only_when_asked_for():
    import cupy

    x = cupy.asarray(np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32))
    exact = to_numpy(x).astype(float) @ to_numpy(x).astype(float)
    assert np.abs(to_numpy(matmul(x, x)) - exact).max() < 1e-3
    try:
        precision.set_float32_matmul_precision("high")
        assert 1e-3 < np.abs(to_numpy(matmul(x, x)) - exact).max() < 1
    finally:
        precision.set_float32_matmul_precision("highest")


@each_dtype
@each_kernel
def test_is_captured_into_a_graph(kernel, dtype):
    import cupy

    given, _ = next(samples(kernel, (64, 64), dtype))
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        expected = arrays(kernel(*given))
        kernel(*given)
        stream.synchronize()
        stream.begin_capture()
        results = kernel(*given)
        graph = stream.end_capture()
        for r in results if isinstance(results, tuple) else (results,):
            r.fill(0)
        graph.launch(stream)
        stream.synchronize()
        got = arrays(results)
    for y, r in zip(got, expected, strict=True):
        assert y.tobytes() == r.tobytes()


def test_which_products_are_fused_in_16_bits():
    """What the installed library offers: the epilogues that F.feed_forward counts on."""
    import cupy

    from kernels.cuda import cublas, plans

    x = cupy.asarray(np.ones((128, 256), np.float16))
    w, b = cupy.asarray(np.ones((256, 256), np.float16)), cupy.asarray(np.ones(256, np.float16))
    linear_weight_grad(x, x)
    _, pre = linear_gelu(x, w, b)
    linear_gelu_grad(x, w, pre)
    wanted = {cublas.GELU_AUX_BIAS, cublas.DGELU_BGRAD, cublas.SUM_A}
    fused = {
        problem.epilogue for problem, plan in plans._plans.items() if not isinstance(plan, str)
    }
    assert wanted <= fused
