"""Products through cuBLASLt, by an interpreter of its calls on the host (host_cublas.py): sizes,
layouts, epilogues, types, plans, workspaces, and what happens where something is missing.
"""

import itertools
import logging
import threading
import zlib

import ml_dtypes
import numpy as np
import pytest

from kernels import precision
from kernels.cuda import cublaslt as lt, plans
from kernels.linear import linear_gelu, linear_gelu_grad, linear_weight_grad
from kernels.matmul import matmul
from kernels.registry import Draw, all_kernels

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [(0, 5), (1, 1), (3, 5), (7, 129), (33, 64), (65, 600)]
KERNELS = [k for k in all_kernels().values() if k.family in ("matmul", "linear")]
CASES = [(k, sample) for k in KERNELS for sample in k.samples]
LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "slice of wider rows": lambda x: np.concatenate([x, x + 9], -1)[..., : x.shape[-1]],
    "every second element": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, :],
    "last matrix first": lambda x: x[(slice(None, None, -1),) * (x.ndim - 2)],
}


@pytest.fixture
def host(host_cublas):
    return host_cublas[0]


@pytest.fixture
def library(host_cublas):
    return host_cublas[1]


@pytest.fixture
def cupy(host_cublas):
    return host_cublas[2]


def normal(*shape, dtype="float32"):
    seed = zlib.crc32(repr(shape).encode())
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def on_device(host, *arrays):
    """As arrays of the fake CuPy; strided ones keep their base's memory."""
    return [host.ndarray(a) if a.base is not None else host.device_array(a) for a in arrays]


def values(results):
    results = results if isinstance(results, tuple) else (results,)
    return [r.get() for r in results]


def check(close, kernel, host, args, *more):
    """`kernel` on device arrays against its reference in float64, and the dtype."""
    given = [host.device_array(a) if isinstance(a, np.ndarray) else a for a in args]
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]
    with np.errstate(all="ignore"):
        got, expected = kernel(*given), kernel.reference(*wide)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for y, r in zip(values(got), expected, strict=True):
        assert y.dtype == args[0].dtype
        close(y, r, what=f"{kernel.name}, {more}")


# Values -------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("unsupported", [False, True], ids=["fused", "in steps"])
@pytest.mark.parametrize(("kernel", "sample"), CASES, ids=lambda k: getattr(k, "name", k))
def test_equals_its_reference_in_float64(kernel, sample, unsupported, dtype, host, library, close):
    if unsupported:
        library.unsupported = set(lt.EPILOGUE_NAMES) - {lt.EPILOGUE_DEFAULT}
    for shape in SHAPES:
        args = kernel.samples[sample](Draw(3), shape)
        args = [a.astype(DTYPES[dtype]) if isinstance(a, np.ndarray) else a for a in args]
        check(close, kernel, host, args, dtype, shape)
    assert library.calls["product"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (1, 30, 4), (30, 4, 1), (9, 1, 6)], ids=str)
def test_every_transpose_layout_and_batch(size, lead, layout, host, library, close):
    m, k, n = size
    for ta, tb, biased in itertools.product((False, True), repeat=3):
        a = LAYOUTS[layout](normal(*lead, *((k, m) if ta else (m, k))))
        b = LAYOUTS[layout](normal(*lead, *((n, k) if tb else (k, n))))
        bias = normal(n) if biased else None
        given = on_device(host, a, b)
        y = matmul(*given, ta, tb, None if bias is None else host.device_array(bias))
        exact = matmul.reference(a.astype(float), b.astype(float), ta, tb)
        close(y.get(), exact + (0 if bias is None else bias.astype(float)))
    assert library.calls["product"] == 8


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_what_lies_well_is_multiplied_where_it_lies(ta, tb, host, library):
    a, b = normal(4, 6), normal(6, 5)
    a, b = (np.asfortranarray(x) if t else x for x, t in ((a, ta), (b, tb)))
    wide = np.zeros((6, 40), np.float32)
    wide[:, 8:13] = b
    for right in (b, wide[:, 8:13]):
        left, given = on_device(host, a, right)
        matmul(left, given)
        assert library.products[-1][2][:2] == (given.data.ptr, left.data.ptr)
    ld = library.products[-1][1][0]["args"][3]
    assert ld == 40


def test_a_broadcast_batch_axis_is_read_again(host, library, close):
    a, b = normal(6, 10, 9), np.broadcast_to(normal(9, 8), (6, 9, 8))
    y = matmul(host.device_array(a), host.ndarray(b))
    close(y.get(), a.astype(float) @ b.astype(float))
    _, (of_a, of_b, of_y), (at_a, _, _) = library.products[-1]
    assert at_a == b.ctypes.data
    strides = [of[lt.LAYOUT_STRIDED_BATCH_OFFSET] for of in (of_a, of_b, of_y)]
    assert strides == [0, 90, 80]


def test_attention_heads_are_copied_only_where_axes_do_not_join(host, library, close):
    q = normal(1, 64, 8, 32).transpose(0, 2, 1, 3)  # (1, H, T, D) in the memory of (1, T, H, D)
    close(matmul(*on_device(host, q, q), False, True).get(), matmul(q, q, transpose_b=True))
    assert library.products[-1][2][0] == q.ctypes.data
    q = normal(4, 64, 8, 32).transpose(0, 2, 1, 3)
    close(matmul(*on_device(host, q, q), False, True).get(), matmul(q, q, transpose_b=True))
    assert library.products[-1][2][0] != q.ctypes.data


@pytest.mark.parametrize("biased", [False, True])
def test_out_is_filled_and_returned_whatever_was_in_it(biased, host, library):
    a, b, bias = on_device(host, normal(6, 4), normal(4, 5), normal(5))
    bias = bias if biased else None
    expected = matmul(a, b, bias=bias).get()
    for out in (
        np.full((6, 5), np.nan, np.float32),
        np.full((5, 6), np.nan, np.float32).T,
        np.full((6, 12), np.nan, np.float32)[:, :5],
        np.full((6, 10), np.nan, np.float32)[:, ::2],
    ):
        given = host.ndarray(out)
        assert matmul(a, b, bias=bias, out=given) is given
        np.testing.assert_array_equal(out, expected)


def test_the_weights_gradient_goes_where_it_is_told(host, library):
    dy, x = on_device(host, normal(6, 4), normal(6, 5))
    for out in (np.empty((4, 5), np.float32), np.empty((5, 4), np.float32).T):
        given = host.ndarray(out)
        dw, db = linear_weight_grad(dy, x, given)
        assert dw is given
        np.testing.assert_allclose(out, dy.get().T @ x.get(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(db.get(), dy.get().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["device", "host", "device, in steps"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_multiply_into_float32_without_rounding(dtype, where, host, library):
    if "steps" in where:
        library.unsupported = {lt.EPILOGUE_BIAS, lt.EPILOGUE_BGRADB}
    place = host.device_array if "device" in where else np.asarray
    dy, x, bias = normal(6, 4, dtype=dtype), normal(6, 5, dtype=dtype), normal(5, dtype=dtype)
    expected = dy.astype(np.float64).T @ x.astype(np.float64)
    out = np.full((4, 5), np.nan, np.float32)
    given = host.ndarray(out) if "device" in where else out
    dw, db = linear_weight_grad(place(dy), place(x), given)
    assert dw is given
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    db = np.asarray(db.get() if "device" in where else db, np.float64)
    np.testing.assert_allclose(db, dy.astype(np.float64).sum(0), rtol=1e-2, atol=1e-2)
    assert matmul(place(dy), place(x), True, False, place(bias), given) is given
    np.testing.assert_allclose(out, expected + bias.astype(np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_odd_addresses_are_told_to_the_library(dtype, host, library, close):
    a, b, bias = normal(8, 8, dtype=dtype), normal(8, 8, dtype=dtype), normal(8, dtype=dtype)
    exact = a.astype(float) @ b.astype(float) + bias.astype(float)
    for offsets, aligned in (((0, 0, 0), (256, 256)), ((1, 4, 2), (2, 8))):
        given = [
            host.device_array(x, offset) for x, offset in zip((a, b, bias), offsets, strict=True)
        ]
        close(matmul(*given[:2], bias=given[2]).get(), exact)
        assert tuple(library.products[-1][0]["aligned"][1::-1]) == aligned
    assert len(plans._plans) == 2


# What the library is told -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "epilogue"),
    [
        (lambda x, w, b: matmul(x, w, False, True), lt.EPILOGUE_DEFAULT),
        (lambda x, w, b: matmul(x, w, False, True, b), lt.EPILOGUE_BIAS),
        (linear_gelu, lt.EPILOGUE_GELU_AUX_BIAS),
        (lambda x, w, b: linear_gelu_grad(x, w.T, matmul(x, w.T)), lt.EPILOGUE_DGELU_BGRAD),
        (lambda x, w, b: linear_weight_grad(x, x), lt.EPILOGUE_BGRADB),
    ],
)
def test_one_product_does_it_all(call, epilogue, host, library):
    x, w, b = on_device(host, normal(16, 8), normal(8, 8), normal(8))
    call(x, w, b)
    assert library.products[-1][0][lt.DESC_EPILOGUE] == epilogue


def test_precision_of_float32(host, library, close):
    a, b = normal(8, 8), normal(8, 8)
    given = on_device(host, a, b)
    exact = a.astype(float) @ b.astype(float)
    try:
        close(matmul(*given).get(), exact)
        precision.set_float32_matmul_precision("high")
        error = np.abs(matmul(*given).get() - exact).max()
        assert 1e-5 < error < 1e-2
        halves = on_device(host, a.astype(np.float16), b.astype(np.float16))
        matmul(*halves)
        assert library.products[-1][0]["args"] == (lt.COMPUTE_32F, lt.CUDA_R_32F)
    finally:
        precision.set_float32_matmul_precision("highest")
    close(matmul(*given).get(), exact)
    assert [p[0]["args"][0] for p in library.products] == [68, 77, 68, 68]


def test_precisions_have_pytorchs_names():
    assert precision.get_float32_matmul_precision() == "highest"
    with pytest.raises(ValueError, match="precision 'low': expected one of 'highest', 'high'"):
        precision.set_float32_matmul_precision("low")


def test_the_smallest_counterexample_to_eight(host, library, close):
    """The library wants leading dimensions of pre divisible by 8; others are done in steps."""
    for features in (7, 8):
        x, w, b = normal(5, 3), normal(features, 3), normal(features)
        check(close, linear_gelu, host, (x, w, b))
        last = library.products[-1][0][lt.DESC_EPILOGUE]
        assert last == (lt.EPILOGUE_GELU_AUX_BIAS if features == 8 else lt.EPILOGUE_DEFAULT)


# Plans, workspaces, capture -----------------------------------------------------------------------


def calls_of_everything(host):
    x, w, b = on_device(host, normal(16, 8), normal(8, 8), normal(8))
    stack = host.device_array(normal(3, 8, 8))

    def everything():
        matmul(x, w, False, True, b)
        matmul(stack, stack)
        _, pre = linear_gelu(x, w, b)
        linear_gelu_grad(x, w, pre)
        return linear_weight_grad(x, x)

    return everything


def test_a_second_call_asks_nothing_and_allocates_nothing(host, library, cupy):
    library.workspace_size = 4096
    everything = calls_of_everything(host)
    everything()
    assert cupy.allocated == [32 << 20]
    before = dict(library.calls)
    library.capturing = True  # asking now would be an error
    everything()
    new = {name: n - before.get(name, 0) for name, n in library.calls.items()}
    # the addresses of this call's vectors and nothing else
    assert {name for name, n in new.items() if n} <= {"product", "cublasLtMatmulDescSetAttribute"}
    assert new["product"] == 5
    assert cupy.allocated == [32 << 20]


def test_every_stream_has_a_workspace(host, library, cupy):
    library.workspace_size = 4096
    a = host.device_array(normal(8, 8))
    for cupy.stream in (7, 8, 7):
        matmul(a, a)
    assert len(library.workspaces) == 2
    assert len({workspace for workspace, _ in library.workspaces}) == 2
    cupy.stream = 2  # one name for every thread's own
    for thread in [threading.Thread(target=matmul, args=(a, a)) for _ in range(2)]:
        thread.start()
        matmul(a, a)
        thread.join()
    assert len(cupy.allocated) >= 4


def test_choosing_during_a_capture_says_what_to_do(host, library):
    a = host.device_array(normal(8, 8))
    library.capturing = True
    with pytest.raises(lt.CublasError, match=r"status 14 .*\(8, 8\) times.*Run the step once bef"):
        matmul(a, a)
    library.capturing = False
    matmul(a, a)  # the failure was not kept


def test_plans_are_few_and_their_descriptors_freed(host, library, monkeypatch):
    monkeypatch.setattr(plans, "_MOST_PLANS", 3)
    for n in range(1, 9):
        matmul(*on_device(host, normal(2, n), normal(n, 2)))
    assert len(plans._plans) == 3
    assert len(library.objects) == 3 * 4  # description and three layouts; no preference


def test_threads_share_plans(host, library, close):
    x = normal(64, 8)
    expected = x.astype(float).sum(0)
    sums = []

    def work():
        given = host.device_array(x)
        for _ in range(50):
            sums.append(linear_weight_grad(given, given)[1].get())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 200
    for y in sums:
        close(y, expected)


# Where something is missing -----------------------------------------------------------------------


def test_without_the_library_cupy_multiplies(host, library, monkeypatch, caplog, close):
    monkeypatch.setattr(lt, "_found", lambda: "no cuBLASLt library: pip install it")
    caplog.set_level(logging.WARNING, "framework")
    for kernel, sample in CASES:
        for dtype in DTYPES:
            args = kernel.samples[sample](Draw(3), (3, 5))
            args = [a.astype(DTYPES[dtype]) if isinstance(a, np.ndarray) else a for a in args]
            if dtype == "bfloat16" and kernel.family == "matmul" and args[0].ndim == 2:
                continue  # CuPy's own product, which NumPy does not stand in for
            given = [host.device_array(a) if isinstance(a, np.ndarray) else a for a in args]
            wide = [a.astype(float) if isinstance(a, np.ndarray) else a for a in args]
            expected = kernel.reference(*wide)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for y, r in zip(values(kernel(*given)), expected, strict=True):
                # 16-bit products are rounded before the bias is added
                close(y, r, wider=4 if y.itemsize > 2 else 100)
    assert not library.calls
    (message,) = {record.getMessage() for record in caplog.records}
    assert "go through CuPy and cannot be captured: no cuBLASLt library" in message
    assert len(caplog.records) == 1


def test_a_library_that_does_not_start_is_reported_once(host, library, caplog, close):
    library.broken = True
    a = host.device_array(normal(4, 4))
    for _ in range(2):
        close(matmul(a, a).get(), a.get().astype(float) @ a.get().astype(float))
    (record,) = caplog.records
    assert "CUBLAS_STATUS_NOT_INITIALIZED from cublasLtCreate on device 0" in record.getMessage()


@pytest.mark.parametrize("refusal", [lt.STATUS_NOT_SUPPORTED, lt.STATUS_INVALID_VALUE])
def test_a_product_without_an_algorithm_is_described(refusal, host, library):
    library.unsupported, library.refusal = {lt.EPILOGUE_DEFAULT}, refusal
    a, b = on_device(host, normal(3, 8, 4, dtype="float16"), normal(3, 4, 6, dtype="float16"))
    for _ in range(2):
        with pytest.raises(lt.CublasError, match=rf"status {refusal}.*3 x \(8, 4\) times \(4, 6\)"):
            matmul(a, b)
    assert library.calls["heuristic"] == 1


def test_an_epilogue_is_asked_for_once(host, library):
    library.unsupported = {lt.EPILOGUE_BGRADB}
    dy = host.device_array(normal(8, 8))
    for _ in range(3):
        linear_weight_grad(dy, dy)
    assert library.calls["heuristic"] == 2  # with the sum and without


def test_a_failed_product_is_named(host, library, monkeypatch):
    a = host.device_array(normal(4, 4))
    monkeypatch.setattr(library, "cublasLtMatmul", lambda *_: 13, raising=False)
    with pytest.raises(
        lt.CublasError, match=r"CUBLAS_STATUS_EXECUTION_FAILED from the product \(4, 4\) times"
    ):
        matmul(a, a)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: linear_weight_grad(x, x[:3]), "the inner sizes 8 and 3 differ"),
        (lambda x: linear_weight_grad(x[None], x[None]), "linear_weight_grad: expected matrices"),
        (lambda x: linear_gelu(x, x[:, :3], x[0]), "the inner sizes 8 and 3 differ"),
        (lambda x: linear_gelu(x, x, x[0, :3]), r"bias is float32\(3,\), expected float32\(8,\)"),
        (lambda x: linear_gelu_grad(x, x, x[:3]), r"pre is float32\(3, 8\), expected.*\(8, 8\)"),
    ],
)
def test_what_does_not_fit_is_shown(call, message, host, library):
    for x in (normal(8, 8), host.device_array(normal(8, 8))):
        with pytest.raises(ValueError, match=message):
            call(x)
    assert not library.products
