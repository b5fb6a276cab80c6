"""Philox against its authors' known answers, the layout of the stream, and the statistics of every
draw."""

import itertools
import math

import numpy as np
import pytest

from kernels import random
from kernels.registry import has_numba

F = 0xFFFFFFFF

#: Random123's kat_vectors, philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

needs_numba = pytest.mark.skipif(not has_numba(), reason="numba is not installed")

DRAWS = {
    "uniform": (np.float32, (-1.0, 2.0)),
    "normal": (np.float32, (0.5, 2.0)),
    "bernoulli": (np.float32, (0.3,)),
    "randint": (np.int64, (-5, 1000)),
    "permutation": (np.int64, ()),
}
each_draw = pytest.mark.parametrize("name", DRAWS)


def draw(name, n, seed=1, offset=0, *args):
    kind, defaults = DRAWS[name]
    return getattr(random, name)(np.empty(n, kind), seed, offset, *(args or defaults))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    result = random.philox(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(w[0]) for w in result) == words


@needs_numba
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_compiled_philox_gives_the_known_answers(counter, key, words):
    from kernels.cpu.random import philox

    result = philox(*map(np.uint64, (*counter, *key)))
    assert tuple(int(w) & F for w in result) == words


def test_the_stream_is_the_words_of_the_counters_in_order():
    # bernoulli with p = w / 2^32 is 0 for word w and 1 for anything smaller: reads the words off
    words = KNOWN[0][2]
    u = draw("uniform", 4, 0, 0, 0.0, 1.0)
    np.testing.assert_array_equal(u, np.float32([w >> 8 for w in words]) / 2**24)
    keys = [words[1] << 32 | words[0], words[3] << 32 | words[2]]
    np.testing.assert_array_equal(draw("permutation", 2, 0, 0), np.argsort(keys))
    np.testing.assert_array_equal(
        draw("randint", 2, 0, 0, 0, 1000), [key * 1000 >> 64 for key in keys]
    )
    halves = [h for w in words for h in (w & 0xFFFF, w >> 16)]
    kept = random.dropout(np.ones(8, np.float32), 0.5, 0, 0) != 0
    np.testing.assert_array_equal(kept, [h >= 32768 for h in halves])


@each_draw
@pytest.mark.parametrize("n", [0, 1, 3, 1023, 1024, 5000, 70_001])
def test_every_version_draws_the_same_bits(name, n):
    kind, args = DRAWS[name]
    seed, offset = 2**63 + 11, 2**32 - 7  # the counter's carry into its second word is in it
    tuned = draw(name, n, seed, offset)
    reference = getattr(random, name).reference(np.empty(n, kind), seed, offset, *args)
    np.testing.assert_array_equal(tuned, reference)


@pytest.mark.parametrize("name", [name for name in DRAWS if name != "permutation"])
def test_a_draw_continues_where_its_offset_says(name):
    per_counter = 2 if name == "randint" else 4
    whole, tail = draw(name, 4000, 5, 9), draw(name, 1000, 5, 9 + 3000 // per_counter)
    np.testing.assert_array_equal(whole[3000:], tail)


@each_draw
def test_seed_and_offset_both_count(name):
    a = draw(name, 200, 1, 0)
    assert (a == draw(name, 200, 1, 0)).all()
    assert (a != draw(name, 200, 2, 0)).any()
    assert (a != draw(name, 200, 2**32 + 1, 0)).any()
    assert (a != draw(name, 200, 1, 1)).any()


def test_the_counter_wraps():
    whole = draw("uniform", 16, 3, 2**64 - 2)
    np.testing.assert_array_equal(whole[8:], draw("uniform", 8, 3, 0))


def test_counters_are_enough_for_any_draw():
    assert [random.counters(n) for n in (0, 1, 2, 3, 1000)] == [0, 1, 1, 2, 500]
    a = draw("randint", 100, 1, 0, 0, 2**32)
    b = draw("randint", 100, 1, random.counters(100), 0, 2**32)
    assert not np.intersect1d(a, b).size


def test_draws_fill_what_they_are_given_and_return_it():
    wide = np.full((6, 8), -7.0, np.float32)
    out = wide[:, ::2]
    assert random.uniform(out, 1, 2) is out
    assert (wide[:, 1::2] == -7).all()
    np.testing.assert_array_equal(out.ravel(), random.uniform(np.empty(24, np.float32), 1, 2))


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_dtypes_receive_the_same_draws(kind):
    out = np.empty(1000, kind)
    assert random.normal(out, 1, 2, 0.5, 2.0) is out
    expected = random.normal(np.empty(1000, np.float32), 1, 2, 0.5, 2.0)
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=6e-4, atol=1e-6)


def test_bernoulli_fills_booleans():
    out = random.bernoulli(np.empty(1000, bool), 1, 2, 0.3)
    np.testing.assert_array_equal(out, random.bernoulli(np.empty(1000, np.float32), 1, 2, 0.3))


# --- statistics: fixed seeds, so these either always pass or never --------------------------------

N = 200_000


def kolmogorov_smirnov(x, cdf) -> float:
    """sqrt(n) times the largest distance from the distribution; 1.63 is the 1 % level."""
    x = np.sort(x.astype(np.float64))
    f, i = cdf(x), np.arange(x.size)
    return math.sqrt(x.size) * max((f - i / x.size).max(), ((i + 1) / x.size - f).max())


def chi_square(counts, expected) -> float:
    """In standard deviations of the chi-square distribution from its mean."""
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def normal_cdf(x):
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_uniform_is_uniform(seed):
    u = draw("uniform", N, seed, 0, 0.0, 1.0)
    assert kolmogorov_smirnov(u, lambda x: x) < 1.63
    pairs = np.histogram2d(u[::2], u[1::2], bins=16, range=[[0, 1], [0, 1]])[0].ravel()
    assert abs(chi_square(pairs, N / 2 / 256)) < 3.5


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_normal_is_normal(seed):
    z = draw("normal", N, seed, 0, 0.0, 1.0)
    assert kolmogorov_smirnov(z[:50_000], normal_cdf) < 1.63
    assert abs(z.mean(dtype=np.float64)) < 3.5 / math.sqrt(N)
    assert abs((z**2).mean(dtype=np.float64) - 1) < 3.5 * math.sqrt(2 / N)
    assert abs((z**4).mean(dtype=np.float64) - 3) < 3.5 * math.sqrt(96 / N)
    # the two halves of a Box-Muller pair are independent
    assert abs((z[::2] * z[1::2]).mean(dtype=np.float64)) < 3.5 / math.sqrt(N / 2)
    assert abs((z[::2] ** 2 * z[1::2] ** 2).mean(dtype=np.float64) - 1) < 3.5 * math.sqrt(16 / N)


def test_normal_is_the_box_muller_transform_of_its_words():
    words = random._words(np, 20_000, 3, 0).astype(np.float64)
    u, t = (words[0::2] + 0.5) / 2**32, words[1::2]
    # the angle is a quarter turn before its word's: the quadrants are centred on the axes
    angle = 2 * math.pi * (t - 2**29) / 2**32
    radius = np.sqrt(-2 * np.log(u))
    expected = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).ravel()
    # near u = 1, float32 knows u only to 2^-24
    np.testing.assert_allclose(draw("normal", 20_000, 3, 0, 0.0, 1.0), expected, atol=3e-5)


def test_bernoulli_and_dropout_keep_their_probability():
    for p, seed in itertools.product((0.1, 0.5, 0.9), (0, 1)):
        spread = 3.5 * math.sqrt(p * (1 - p) / N)
        assert abs(draw("bernoulli", N, seed, 0, p).mean(dtype=np.float64) - p) < spread
        dropped = random.dropout(np.ones(N, np.float32), p, seed, 0) == 0
        assert abs(dropped.mean() - p) < spread + 2**-16


def test_bernoulli_is_certain_at_the_ends():
    assert not draw("bernoulli", N, 1, 0, 0.0).any()
    assert draw("bernoulli", N, 1, 0, 1.0).all()


def test_randint_is_uniform_and_stays_inside():
    k = draw("randint", N, 1, 0, -3, 4)
    assert (k.min(), k.max()) == (-3, 3)
    assert abs(chi_square(np.bincount(k + 3, minlength=7), N / 7)) < 3.5
    big = draw("randint", N, 1, 0, -(2**62), -(2**62) + 2**32)
    assert big.min() >= -(2**62)
    assert big.max() < -(2**62) + 2**32
    assert big.max() - big.min() > 2**32 * 0.999
    assert (draw("randint", 10, 1, 0, 5, 6) == 5).all()


@pytest.mark.parametrize("n", [0, 1, 2, 1000, 50_001])
def test_permutation_holds_every_index_once(n):
    np.testing.assert_array_equal(np.sort(draw("permutation", n, 4, 2)), np.arange(n))


def test_all_orders_are_equally_likely():
    orders = [tuple(draw("permutation", 4, 9, 2 * i)) for i in range(4800)]
    counts = np.array([orders.count(o) for o in itertools.permutations(range(4))])
    assert abs(chi_square(counts, 200)) < 3.5


def test_uniform_never_gives_the_upper_end():
    # low + (high - low) u rounds to high for every u here above 1/2
    low, high = 1.0, float(np.nextafter(np.float32(1), np.float32(2)))
    assert (draw("uniform", 1000, 1, 0, low, high) == np.float32(low)).all()
    assert (draw("uniform", 10, 1, 0, 3.0, 3.0) == 3).all()


# --- dropout --------------------------------------------------------------------------------------


def test_dropout_scales_what_it_keeps_by_the_true_probability():
    x = np.random.default_rng(0).standard_normal((70, 333)).astype(np.float32)
    y = random.dropout(x, 0.3, 5, 1)
    kept = y != 0
    p = round(0.3 * 65536) / 65536
    np.testing.assert_allclose(y[kept], x[kept] / (1 - p), rtol=1e-6)


def test_the_gradient_replays_the_mask():
    ones = np.ones((70, 333), np.float32)
    y, dx = random.dropout(ones, 0.3, 5, 1), random.dropout_grad(ones, 0.3, 5, 1)
    np.testing.assert_array_equal(y, dx)
    np.testing.assert_array_equal(y, random.dropout(ones.T.copy().T, 0.3, 5, 1))  # not by layout


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_dropout_selects_instead_of_multiplying(kind):
    x = np.full(1000, np.inf, kind)
    x[::2] = np.nan
    y = random.dropout(x, 0.5, 1, 0)
    dropped = random.dropout(np.ones(1000, kind), 0.5, 1, 0) == 0
    assert (y[dropped] == 0).all()
    assert not np.isfinite(y[~dropped]).any()
    assert (random.dropout(x, 1.0, 1, 0) == 0).all()
    np.testing.assert_array_equal(random.dropout(x, 0.0, 1, 0), x)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("uniform", (1, 0, 2.0, 1.0), r"\[low, high\) is \[2.0, 1.0\)"),
        ("uniform", (1, 0, 0.0, math.inf), "finite"),
        ("uniform", (1, 0, math.nan, 1.0), "finite"),
        ("uniform", (-1, 0), "seed is -1"),
        ("uniform", (1, 2**64), "offset is 18446744073709551616"),
        ("normal", (1, 0, 0.0, -1.0), "std is -1.0"),
        ("bernoulli", (1, 0, 1.5), "p is 1.5"),
        ("bernoulli", (1, 0, math.nan), "p is nan"),
        ("randint", (1, 0, 3, 3), r"\[low, high\) is \[3, 3\)"),
        ("randint", (1, 0, 0, 2**32 + 1), "expected 1 to"),
    ],
)
def test_bad_arguments_are_named(name, args, message):
    kind = DRAWS[name][0]
    for function in (getattr(random, name), getattr(random, name).reference):
        with pytest.raises(ValueError, match=message):
            function(np.empty(4, kind), *args)


def test_a_permutation_has_one_dimension():
    with pytest.raises(ValueError, match=r"out has shape \(2, 2\)"):
        random.permutation(np.empty((2, 2), np.int64), 1, 0)


def test_dropout_rejects_what_is_no_probability():
    with pytest.raises(ValueError, match=r"p is -0.1"):
        random.dropout(np.ones(3, np.float32), -0.1, 1, 0)
