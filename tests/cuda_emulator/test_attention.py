"""Attention on CUDA beyond the contract: gradients of masks of all shapes."""

import numpy as np
import pytest

from kernels.attention import attention, attention_grad

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
