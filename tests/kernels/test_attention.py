"""Attention on the CPU: several tiles of queries and of keys, layouts, threads, memory."""

import tracemalloc

import numpy as np
import pytest

from kernels.attention import attention, attention_grad, draws
from kernels.registry import has_numba
from tests.kernels.tolerances import assert_close

RNG = np.random.default_rng(1)


def packed(B, T, H, D, dtype=np.float32):
    """Views (B, H, T, D) of one projection (B, T, 3, H, D)."""
    qkv = RNG.standard_normal((B, T, 3, H, D)).astype(dtype)
    return tuple(qkv[:, :, i].swapaxes(1, 2) for i in range(3))


T, S = 150, 290
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "offset": {"causal": True, "start": S - T},
    "window": {"causal": True, "window": 40, "start": S - T},
    "both_sides": {"window": 21, "start": 30},
    "lengths": {"lengths": np.array([130, 0])},
    "alibi": {"slopes": np.float32([0.5, 0.25, 0.125, 0.0625]), "causal": True, "start": S - T},
    "mask": {"mask": RNG.random((2, 4, T, S)) < 0.5},
    "keys": {"mask": RNG.random((2, 1, 1, S)) < 0.2},
    "bias": {"mask": RNG.standard_normal((T, S)).astype(np.float32)},
    "dropout": {"p": 0.2, "seed": 5, "offset": 11, "causal": True, "start": S - T},
    "everything": {
        "mask": RNG.random((1, 4, T, S)) < 0.9,
        "lengths": np.array([270, 290]),
        "slopes": np.float32([0.5, 0.25, 0.125, 0.0625]),
        "causal": True,
        "window": 100,
        "start": S - T,
        "p": 0.1,
    },
}


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_many_tiles_equal_the_reference(options, groups):
    q = RNG.standard_normal((2, 4, T, 32)).astype(np.float32)
    k, v = RNG.standard_normal((2, 2, groups, S, 32)).astype(np.float32)
    dy = RNG.standard_normal(q.shape).astype(np.float32)
    out, lse = attention(q, k, v, **options)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    with np.errstate(all="ignore"):
        expected, shift = attention.reference(*wide, **options)
        gradients = attention_grad.reference(
            dy.astype(np.float64), *wide, expected, shift, **options
        )
    assert_close(out, expected)
    assert_close(lse, shift)
    got = attention_grad(dy, q, k, v, out, lse, **options)
    for gradient, wanted in zip(got, gradients, strict=True):
        assert_close(gradient, wanted)


def test_packed_projections_are_read_as_they_lie(monkeypatch):
    q, k, v = packed(2, 70, 3, 16)
    out, lse = attention(q, k, v, causal=True)
    assert out.swapaxes(1, 2).flags.c_contiguous
    dense = [np.ascontiguousarray(x) for x in (q, k, v)]
    again, _ = attention(*dense, causal=True)
    assert (out == again).all()
    dqkv = np.full((2, 70, 3, 3, 16), np.nan, np.float32)
    places = [dqkv[:, :, i].swapaxes(1, 2) for i in range(3)]
    dy = RNG.standard_normal(out.shape).astype(np.float32)
    names = dict(zip(("dq", "dk", "dv"), places, strict=True))
    got = attention_grad(dy, q, k, v, out, lse, causal=True, **names)
    fresh = attention_grad(dy, *dense, out, lse, causal=True)
    for place, result, other in zip(places, got, fresh, strict=True):
        assert result is place
        assert (place == other).all()


@pytest.mark.skipif(not has_numba(), reason="numba is not installed: the reference runs")
def test_the_number_of_threads_changes_no_bit():
    import numba

    q, k, v = packed(2, 200, 3, 32)
    dy = np.ascontiguousarray(q)

    def run():
        out, lse = attention(q, k, v, causal=True, p=0.1)
        return out, lse, *attention_grad(dy, q, k, v, out, lse, causal=True, p=0.1)

    many, threads = run(), numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = run()
    finally:
        numba.set_num_threads(threads)
    assert all((a == b).all() for a, b in zip(many, one, strict=True))


@pytest.mark.skipif(not has_numba(), reason="numba is not installed: the reference runs")
def test_memory_is_linear_in_the_length():
    q, k, v = packed(1, 4096, 1, 16)
    attention(q[:, :, :64], k, v)
    tracemalloc.start()
    out, lse = attention(q, k, v, causal=True)
    attention_grad(out, q, k, v, out, lse, causal=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * q.nbytes  # the scores alone would be 256


def test_draws_are_whole_lines_of_eight():
    q = np.zeros((2, 3, 5, 4), np.float32)
    assert draws(q, np.zeros((2, 3, 9, 4), np.float32)) == 2 * 3 * 5 * 16 // 2


MASKS = {
    "heads": (4, T, S),
    "keys": (2, 1, 1, S),
    "rows": (T, S),
    "all": (2, 4, T, S),
    "sequences": (2, 1, T, S),
    "queries": (4, T, 1),
    "number": (1, 1, 1),
}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_the_gradient_of_a_mask_is_summed_over_what_was_broadcast(shape):
    q = RNG.standard_normal((2, 4, T, 24)).astype(np.float32)
    k, v = (RNG.standard_normal((2, 2, S, n)).astype(np.float32) for n in (24, 40))
    mask = RNG.standard_normal(shape).astype(np.float32)
    options = {"mask": mask, "causal": True, "start": S - T, "lengths": np.array([290, 170])}
    options |= {"p": 0.2, "seed": 3}
    out, lse = attention(q, k, v, **options)
    dy = RNG.standard_normal(out.shape).astype(np.float32)
    dmask = np.full(shape, np.nan, np.float32)
    got = attention_grad(dy, q, k, v, out, lse, **options, dmask=dmask)
    assert got[3] is dmask
    wide = [x.astype(np.float64) for x in (dy, q, k, v, out, lse)]
    exact = np.empty(shape)
    with np.errstate(all="ignore"):
        attention_grad.reference(*wide, **options, dmask=exact)
    # sums of up to 1200 rows; those over all keys are 0, but for rounding
    np.testing.assert_allclose(dmask, exact, rtol=2e-5, atol=5e-5)
    again = np.empty(shape, np.float32)
    attention_grad(dy, q, k, v, out, lse, **options, dmask=again)
    assert (again == dmask).all()


@pytest.mark.skipif(not has_numba(), reason="numba is not installed: the reference runs")
def test_the_gradient_of_a_mask_takes_no_more_memory_than_the_mask():
    q, k, v = packed(2, 1024, 4, 16)
    mask = np.zeros((1024, 1024), np.float32)
    out, lse = attention(q, k, v, mask)
    dmask = np.empty_like(mask)
    attention_grad(out, q, k, v, out, lse, mask, dmask=dmask)
    tracemalloc.start()
    attention_grad(out, q, k, v, out, lse, mask, dmask=dmask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * mask.nbytes  # all scores would be 8


def test_a_wrong_place_for_the_gradient_of_a_mask_is_named():
    q, k, v = packed(1, 3, 2, 4)
    mask = np.zeros((3, 3), np.float32)
    out, lse = attention(q, k, v, mask)
    with pytest.raises(ValueError, match=r"dmask has shape \(2, 3, 3\), expected the mask's, \(3"):
        attention_grad(out, q, k, v, out, lse, mask, dmask=np.empty((2, 3, 3), np.float32))
    with pytest.raises(ValueError, match="dmask is given with a mask of booleans"):
        attention_grad(out, q, k, v, out, lse, mask == 0, dmask=np.empty((3, 3), np.float32))
