"""Attention on CUDA beyond the contract: gradients of masks of all shapes, and through a stand-in
of cuDNN.
"""

import numpy as np
import pytest

from kernels.attention import attention, attention_grad
from kernels.cuda import attention_wide, cudnn, cudnn_attention
from tests.cuda_emulator import matrix
from tests.kernels import contract
from tests.kernels.contract import DTYPES
from tests.kernels.tolerances import assert_close

RNG = np.random.default_rng(2)
T, S = 70, 130  # two tiles of queries, three of keys


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


MASKS = {
    "heads": (2, T, S),
    "keys": (2, 1, 1, S),
    "all": (2, 2, T, S),
    "sequences": (2, 1, T, S),
    "queries": (2, T, 1),
    "number": (1,),
}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_the_gradient_of_a_mask_is_summed_over_what_was_broadcast(cupy, shape):
    q, k, v, mask = drawn(2, 2, T, 8), drawn(2, 1, S, 8), drawn(2, 1, S, 12), drawn(*shape)
    options = {"causal": True, "start": S - T, "lengths": np.array([S, 65]), "p": 0.2, "seed": 3}
    with np.errstate(all="ignore"):
        out, lse = attention.reference(q, k, v, mask, **options)
    dy, exact = drawn(*out.shape), np.empty(shape)
    wide = [x.astype(np.float64) for x in (dy, q, k, v, out, lse, mask)]
    with np.errstate(all="ignore"):
        attention_grad.reference(*wide, **options, dmask=exact)
    given = [cupy.asarray(x) for x in (dy, q, k, v, out, lse, mask)]
    options["lengths"] = cupy.asarray(options["lengths"])
    dmask = cupy.empty(shape, np.float32)
    got = attention_grad(*given, **options, dmask=dmask)
    assert got[3] is dmask
    np.testing.assert_allclose(dmask.get(), exact, rtol=2e-5, atol=2e-5)


# --- heads of more than 128 columns ---------------------------------------------------------------

WIDE = {
    "plain": {},
    "causal": {"causal": True, "start": 6, "slopes": drawn(4)},
    "dropout": {"p": 0.3, "seed": 5, "offset": 7, "lengths": np.array([16, 11])},
    "window": {"window": 5, "mask": RNG.random((10, 16)) < 0.8},
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("options", WIDE.values(), ids=WIDE)
def test_wide_heads_are_the_reference_in_blocks(cupy, monkeypatch, options, dtype):
    monkeypatch.setattr(attention_wide, "SCORES", 16 * 3)  # three queries at a time
    compare(*through(cupy, operands(2, options, dtype, 136, 24), options), "wide")


@pytest.mark.parametrize("shape", [(4, 10, 16), (2, 1, 1, 16), (10, 16), (2, 1, 10, 1)])
def test_wide_heads_have_gradients_of_masks(cupy, monkeypatch, shape):
    monkeypatch.setattr(attention_wide, "SCORES", 16 * 3)
    dout, q, k, v = operands(2, {}, "float32", 16, 136)
    mask, exact = drawn(*shape), np.empty(shape)
    out, lse = attention.reference(q, k, v, mask, causal=True)
    given = dout, q, k, v, out, lse, mask
    attention_grad.reference(*(x.astype(np.float64) for x in given), causal=True, dmask=exact)
    dmask = cupy.empty(shape, np.float32)
    attention_grad(*map(cupy.asarray, given), causal=True, dmask=dmask)
    np.testing.assert_allclose(dmask.get(), exact, rtol=2e-5, atol=2e-5)


# --- cuDNN ----------------------------------------------------------------------------------------

#: Options, and whether they go through cuDNN.
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "at_end": {"causal": True, "start": 6},
    "window": {"causal": True, "window": 4},
    "window_at_end": {"window": 5, "start": 6},
    "both_sides": {"window": 4},
    "lengths": {"lengths": np.array([11, 0])},
    "all": {"causal": True, "window": 3, "lengths": np.array([2, 16]), "scale": 0.3},
    "rows": {"mask": drawn(10, 16)},
    "heads": {"mask": drawn(4, 10, 16), "causal": True},
    "boolean": {"mask": RNG.random((2, 1, 10, 16)) < 0.1, "lengths": np.array([16, 9])},
    "keys": {"mask": np.array([[[[True] * 9 + [False] * 7]], [[[False] * 16]]])},
    "key_numbers": {"mask": drawn(4, 1, 16)},
    "odd": {"mask": RNG.random((10, 13)) < 0.2, "causal": True},
}
REFUSED = {
    "slopes": {"slopes": drawn(4)},
    "dropout": {"p": 0.2, "seed": 3},
    "between": {"causal": True, "start": 3},
    "masked_window": {"mask": drawn(10, 16), "window": 3},
    "late_lengths": {"causal": True, "start": 6, "lengths": np.array([16, 9])},
}


def operands(groups, options, dtype, D=8, E=16):
    """dout, q, k, v of 10 queries; 13 keys of a mask with so many, else 16."""
    mask = options.get("mask")
    S = 16 if mask is None else mask.shape[-1]
    shapes = (2, 4, 10, E), (2, 4, 10, D), (2, groups, S, D), (2, groups, S, E)
    return [drawn(*shape).astype(DTYPES[dtype]) for shape in shapes]


def through(cupy, arrays, options):
    """Results of both kernels, and their references in float64 of the same 16-bit inputs."""
    options = {
        k: v.astype(arrays[0].dtype) if contract.is_float(v) else v for k, v in options.items()
    }
    given = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    dout, *qkv = (matrix.dense(x) for x in arrays)
    out, lse = attention(*qkv, **given)
    wide = [x.astype(np.float64) for x in arrays]
    options = {k: v.astype(np.float64) if contract.is_float(v) else v for k, v in options.items()}
    with np.errstate(all="ignore"):
        expected = attention.reference(*wide[1:], **options)
        # of the rounded result, as the gradient has it
        results = out.get().astype(np.float64), lse.get().astype(np.float64)
        expected += attention_grad.reference(*wide, *results, **options)
    got = out, lse, *attention_grad(dout, *qkv, out, lse, **given)
    return got, expected


def compare(got, expected, what):
    for i, (x, y) in enumerate(zip(got, expected, strict=True)):
        assert_close(x.get(), y, wider=2.0, what=f"{what}, result {i}")


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cudnn_computes_the_same(library, cupy, options, dtype, groups):
    arrays = operands(groups, options, dtype)
    for _ in range(2):
        compare(*through(cupy, arrays, options), "cuDNN")
    assert library.executed == 4
    assert len(library.built) == 2, "a graph is built once"


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_cudnn_does_not_do_our_own_kernel_does(library, cupy, options):
    compare(*through(cupy, operands(2, options, "float16"), options), "our own")
    assert library.executed == 0


@pytest.mark.parametrize(
    ("dtype", "D", "E"), [("float32", 8, 8), ("float16", 12, 8), ("float16", 8, 12)]
)
def test_other_heads_are_for_our_own_kernel(library, cupy, dtype, D, E):
    compare(*through(cupy, operands(2, {}, dtype, D, E), {}), "our own")
    assert library.executed == 0


def test_a_mask_of_many_keys_is_not_spelled_out(library, cupy, monkeypatch):
    options = {"mask": drawn(2, 1, 1, 16)}
    monkeypatch.setattr(cudnn_attention, "SPREAD", 2 * 10 * 16 * 2)
    compare(*through(cupy, operands(2, options, "float16"), options), "small")
    assert library.executed == 2
    monkeypatch.setattr(cudnn_attention, "SPREAD", 2 * 10 * 16 * 2 - 1)
    compare(*through(cupy, operands(2, options, "float16"), options), "large")
    assert library.executed == 2


def test_a_single_query_is_for_our_own_kernel(library, cupy):
    arrays = operands(2, {}, "float16")
    arrays[:2] = [x[:, :, :1] for x in arrays[:2]]
    compare(*through(cupy, arrays, {}), "one query")
    assert library.executed == 0


def test_cudnn_can_be_left_out_to_compare(library, cupy):
    with cudnn.without_cudnn():
        compare(*through(cupy, operands(2, {}, "float16"), {}), "left out")
    assert library.executed == 0


def test_without_an_engine_our_own_kernel_runs(library, cupy):
    library.unsupported = True
    compare(*through(cupy, operands(2, {}, "float16"), {}), "no engine")
    assert library.executed == 0


def test_a_gradient_that_would_keep_all_scores_is_for_our_own_kernel(library, cupy):
    library.workspace = cudnn_attention.WORKSPACE + 1
    compare(*through(cupy, operands(2, {}, "float16"), {}), "memory")
    assert library.executed == 1, "the forward pass alone"


def test_cudnn_reads_and_writes_packed_projections_where_they_lie(library, cupy):
    packed = cupy.asarray(drawn(2, 10, 3, 4, 8).astype(np.float16))
    q, k, v = (packed[:, :, i].swapaxes(1, 2) for i in range(3))
    out, lse = attention(q, k, v, causal=True)
    dpacked = cupy.zeros(packed.shape, np.float16)
    places = [dpacked[:, :, i].swapaxes(1, 2) for i in range(3)]
    names = dict(zip(("dq", "dk", "dv"), places, strict=True))
    got = attention_grad(out, q, k, v, out, lse, causal=True, **names)
    assert all(x is y for x, y in zip(got, places, strict=True))
    assert library.executed == 2
    forward, backward = library.built
    assert forward.tensors[0].stride == [10 * 3 * 32, 8, 3 * 32, 1]
    dense = [cupy.asarray(x.get()) for x in (q, k, v)]
    for place, x in zip(places, attention_grad(out, *dense, out, lse, causal=True), strict=True):
        np.testing.assert_array_equal(place.get(), x.get())


def test_the_gradient_of_a_mask_is_never_cudnns(library, cupy):
    q, k, v, mask = (
        cupy.asarray(drawn(*s).astype(np.float16)) for s in [(2, 2, 8, 8)] * 3 + [(8, 8)]
    )
    out, lse = attention(q, k, v, mask)
    dmask = cupy.empty(mask.shape, np.float16)
    attention_grad(out, q, k, v, out, lse, mask, dmask=dmask)
    assert library.executed == 1
