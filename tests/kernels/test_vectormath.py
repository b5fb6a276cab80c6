"""kernels/cpu/vectormath.py against float64 over the whole range of float32, and at its edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numba.core.errors import TypingError

from kernels.cpu import vectormath
from kernels.cpu.engine import jit

erf = np.vectorize(math.erf, otypes=[np.float64])

#: name: (reference in float64, ulp allowed)
UNARY: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "exp": (np.exp, 1.5),
    "exp2": (np.exp2, 1.5),
    "expm1": (np.expm1, 2.5),
    "log": (np.log, 1.5),
    "log2": (np.log2, 2.5),
    "log1p": (np.log1p, 2.5),
    "sigmoid": (lambda x: np.exp(-np.logaddexp(0, -x)), 3),
    "softplus": (lambda x: np.logaddexp(0, x), 2.5),
    "tanh": (np.tanh, 3),
    "erf": (erf, 6.5),
    "sin": (np.sin, 2),
    "cos": (np.cos, 2),
    "sqrt": (np.sqrt, 0.5),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5),
    "absolute": (np.abs, 0),
    "floor": (np.floor, 0),
    "sign": (np.sign, 0),
}
BINARY = {"maximum": np.maximum, "minimum": np.minimum}
EDGES = np.float32(
    [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        -0.5,
        2,
        -2,
        1e-45,
        -1e-45,
        2**-126,
        -(2**-126),
        3e-39,
        np.inf,
        -np.inf,
        np.nan,
    ]
    + [
        3.4028235e38,
        -3.4028235e38,
        88.72283,
        88.72284,
        -87.33655,
        -103.97208,
        -103.9721,
        127.99999,
        -149,
        -150,
    ]
    + [
        -0.99999994,
        -1.0000001,
        2**24,
        2**30,
        9.01,
        9.02,
        9.03,
        3.92,
        3.95,
        3.96,
        100,
        -100,
        math.pi,
        1e10,
        1e20,
    ]
)


@cache
def loop(name: str) -> Callable[[np.ndarray, np.ndarray], None]:
    f = getattr(vectormath, name)

    @jit(cache=False)
    def run(x, out):
        for i in range(x.shape[0]):
            out[i] = f(x[i])

    return run


def apply(name: str, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    loop(name)(x, out)
    return out


def grid() -> np.ndarray:
    """One bit pattern in 10007 of all float32, NaN and subnormals too, and dense parts."""
    everywhere = np.arange(0, 2**32, 10_007, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = [
        np.linspace(-110, 110, 200_001),
        np.linspace(-2, 2, 100_001),
        np.linspace(0.6, 1.6, 100_001),
        np.arange(0x40400000, 0x40800000, 41, dtype=np.int32).view(np.float32),  # 3 to 4
    ]
    return np.concatenate([everywhere, *(part.astype(np.float32) for part in dense), EDGES])


def in_float64(name: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return UNARY[name][0](x.astype(np.float64))


def rounded(y: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return y.astype(np.float32)


@pytest.mark.parametrize("name", UNARY)
def test_error_stays_within_its_bound_of_float64(name):
    x = grid()
    expected, got = in_float64(name, x), apply(name, x)
    finite = np.isfinite(rounded(expected))
    assert np.isfinite(got[finite]).all()
    exponent = np.frexp(rounded(expected)[finite])[1]
    unit = np.ldexp(1.0, np.maximum(exponent, -125) - 24)
    ulp = np.abs(got[finite] - expected[finite]) / unit
    worst = ulp.argmax()
    # 1e-6: the rounding of the float64 reference itself
    assert ulp[worst] <= UNARY[name][1] + 1e-6, (
        f"{name}({x[finite][worst]!r}): {ulp[worst]:.2f} ulp"
    )


@pytest.mark.parametrize("name", UNARY)
def test_infinities_and_nan_are_those_of_numpy(name):
    x = grid()
    expected, got = rounded(in_float64(name, x)), apply(name, x)
    special = ~np.isfinite(expected)
    assert special.any()
    np.testing.assert_array_equal(got[special], expected[special])
    assert np.isnan(apply(name, np.full(37, np.nan, np.float32))).all()


@pytest.mark.parametrize("name", ["expm1", "log1p", "tanh", "erf", "sin", "sqrt", "floor"])
def test_zeros_keep_their_sign(name):
    got = apply(name, np.float32([0.0, -0.0] * 20))
    assert (got == 0).all()
    assert np.signbit(got).tolist() == [False, True] * 20


@pytest.mark.parametrize("name", ["expm1", "log1p", "tanh", "sin", "sigmoid"])
def test_tiny_arguments_give_the_first_term_of_the_series(name):
    x = np.float32([1e-45, -1e-45, 1e-40, 1e-30, -1e-20, 1e-8])
    np.testing.assert_array_equal(apply(name, x), np.float32(0.5) if name == "sigmoid" else x)


@pytest.mark.parametrize("name", ["exp", "sigmoid"])
def test_subnormal_results_are_within_one_unit(name):
    x = np.linspace(-103.9, -87.4, 5001).astype(np.float32)
    assert np.abs(apply(name, x) - in_float64(name, x)).max() <= 2.0**-149


@pytest.mark.parametrize(
    "name", ["exp", "exp2", "expm1", "log", "log2", "log1p", "sigmoid", "tanh", "erf", "softplus"]
)
def test_a_loop_is_vectorised(name):
    """Packed instructions in the machine code, and no call of a library."""
    run = loop(name)
    apply(name, np.ones(64, np.float32))
    (code,) = run.inspect_llvm().values()
    assert any(f"<{lanes} x float>" in code for lanes in (4, 8, 16))
    (assembly,) = run.inspect_asm().values()
    assert not any(
        f"{symbol}f" in assembly for symbol in ("exp", "log", "tanh", "erf", "log1p", "expm1")
    )


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid"])
def test_bounded_functions_stay_in_their_bounds(name):
    got = apply(name, np.linspace(0, 20, 200_001).astype(np.float32))
    assert got.max() == 1
    assert (got >= 0).all()


@pytest.mark.parametrize("name", BINARY)
def test_binary_functions_are_those_of_numpy(name):
    f = getattr(vectormath, name)

    @jit(cache=False)
    def run(a, b, out):
        for i in range(a.shape[0]):
            out[i] = f(a[i], b[i])

    a, b = (part.ravel() for part in np.meshgrid(EDGES, EDGES))
    out = np.empty_like(a)
    run(a, b, out)
    np.testing.assert_array_equal(out, BINARY[name](a, b))


def test_copysign_is_that_of_numpy():
    f = vectormath.copysign

    @jit(cache=False)
    def run(a, b, out):
        for i in range(a.shape[0]):
            out[i] = f(a[i], b[i])

    a, b = (part.ravel() for part in np.meshgrid(EDGES, EDGES))
    out = np.empty_like(a)
    run(a, b, out)
    np.testing.assert_array_equal(out.view(np.int32), np.copysign(a, b).view(np.int32))


@pytest.mark.parametrize("name", ["maximum", "fast_max"])
def test_row_maxima(name):
    f = getattr(vectormath, name)

    @jit(cache=False)
    def run(x):
        m = np.float32(-np.inf)
        for i in range(x.shape[0]):
            m = f(m, x[i])
        return m

    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 64, 1000, 4099):
        x = rng.standard_normal(n).astype(np.float32)
        assert run(x) == x.max(initial=-np.inf)
    if name == "maximum":
        for place in (0, 17, 500, 1002):
            x = rng.standard_normal(1003).astype(np.float32)
            x[place] = np.nan
            assert np.isnan(run(x))


def test_bits_go_back_and_forth():
    @jit(cache=False)
    def run(x, bits, back):
        for i in range(x.shape[0]):
            bits[i] = vectormath.to_bits(x[i])
            back[i] = vectormath.from_bits(bits[i])

    bits, back = np.empty(EDGES.size, np.int32), np.empty_like(EDGES)
    run(EDGES, bits, back)
    np.testing.assert_array_equal(bits, EDGES.view(np.int32))
    np.testing.assert_array_equal(back.view(np.int32), EDGES.view(np.int32))


@pytest.mark.parametrize("name", ["sqrt", "absolute", "exp", "tanh"])
def test_float64_is_refused(name):
    f = getattr(vectormath, name)

    @jit(cache=False)
    def run(x):
        return f(x)

    with pytest.raises(TypingError, match="takes float32|float64"):
        run(1.0)
