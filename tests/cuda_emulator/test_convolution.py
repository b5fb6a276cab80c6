"""Convolutions on CUDA beyond the contract: in several pieces, and through a stand-in of cuDNN."""

import logging

import numpy as np
import pytest

from kernels import convolution as family
from kernels.cuda import convolution as products
from kernels.precision import set_float32_matmul_precision
from tests.cuda_emulator import matrix
from tests.kernels import contract

CASES = [(k, s) for k, s in contract.CASES if k.family == "convolution"]
each_case = pytest.mark.parametrize(
    ("kernel", "sample"), CASES, ids=lambda v: getattr(v, "name", v)
)
SHAPE = (5, 24)


def check(kernel, args, what):
    y = kernel(*(matrix.dense(a) if contract.is_float(a) else a for a in args))
    contract.check(kernel, args, [y.get()], what)


@each_case
def test_pieces_add_up(kernel, sample, cupy, monkeypatch):
    args = contract.arguments(kernel, sample, SHAPE, "float32")
    monkeypatch.setattr(products, "UNFOLDED", 4096)
    check(kernel, args, "in pieces")


@each_case
@pytest.mark.parametrize("dtype", matrix.DTYPES)
def test_cudnn_computes_the_same(kernel, sample, dtype, library):
    args = contract.arguments(kernel, sample, SHAPE, dtype)
    for _ in range(2):
        check(kernel, args, f"{sample}, cuDNN")
    assert library.executed == 2
    assert len(library.built) == 1, "a graph is built once"


def test_no_images_are_no_work_for_cudnn(library):
    for kernel in {k for k, _ in CASES}:
        args = contract.arguments(kernel, "_", (0, 24), "float32")
        check(kernel, args, "no images")
    assert not library.built


def test_without_an_engine_our_own_kernels_run(library, caplog):
    library.unsupported = True
    args = contract.arguments(family.convolution, "grouped", SHAPE, "float32")
    with caplog.at_level(logging.INFO, "framework"):
        check(family.convolution, args, "no engine")
    assert library.executed == 0
    assert "cuDNN has no engine for Problem(operation='convolution'" in caplog.text


def test_a_library_that_does_not_start_is_said_once(library, caplog):
    def create_handle():
        raise RuntimeError("Unable to find symbol cudnnCreate")

    library.create_handle = create_handle
    args = contract.arguments(family.convolution, "_", SHAPE, "float32")
    with caplog.at_level(logging.WARNING, "framework"):
        for _ in range(2):
            check(family.convolution, args, "no cuDNN")
    (record,) = caplog.records
    assert "do not go through cuDNN: Unable to find symbol cudnnCreate" in record.getMessage()


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_engines_that_round_float32_or_change_their_order_are_left_out(library, precision):
    args = contract.arguments(family.convolution, "_", SHAPE, "float32")
    set_float32_matmul_precision(precision)
    try:
        check(family.convolution, args, precision)
    finally:
        set_float32_matmul_precision("highest")
    (graph,) = library.built
    expected = {"NONDETERMINISTIC"} | ({"TENSOR_CORE"} if precision == "highest" else set())
    assert set(graph.left_out) == expected


@pytest.mark.parametrize("through", ["cuDNN", "products"])
def test_sums_of_16_bit_products_stay_float32(through, request, cupy):
    if through == "cuDNN":
        request.getfixturevalue("library")
    rng = np.random.default_rng(0)
    dy = rng.normal(size=(2, 8, 9, 9)).astype(np.float16)
    x = rng.normal(size=(2, 4, 9, 9)).astype(np.float16)
    out = cupy.empty((8, 4, 3, 3), np.float32)
    got = family.convolution_weight_grad(cupy.asarray(dy), cupy.asarray(x), (3, 3), 1, 1, out=out)
    assert got is out
    exact = family.convolution_weight_grad.reference(
        dy.astype(np.float64), x.astype(np.float64), (3, 3), 1, 1
    )
    np.testing.assert_allclose(got.get(), exact, rtol=1e-5, atol=1e-4)  # of sums up to 30
