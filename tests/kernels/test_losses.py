"""Losses: values by hand, the definitions in plain loops, central differences, targets that are
wrong.
"""

import math

import numpy as np
import pytest

from kernels import losses as L

INF, NAN = np.inf, np.nan
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def plain_cross_entropy(logits, targets, weight=None, ignore_index=-100, smoothing=0.0):
    """PyTorch's definition, element by element, with Python floats."""
    N, C = logits.shape
    w = [1.0] * C if weight is None else [float(v) for v in weight]
    losses = []
    for r in range(N):
        row = [float(v) for v in logits[r]]
        total = math.log(math.fsum(math.exp(v - max(row)) for v in row)) + max(row)
        log_p = [v - total for v in row]
        if targets.ndim == 2:
            q = [float(t) * (1 - smoothing) + smoothing / C for t in targets[r]]
            losses.append(-sum(q[c] * log_p[c] * w[c] for c in range(C)))
        elif targets[r] == ignore_index:
            losses.append(0.0)
        else:
            hit = -w[targets[r]] * log_p[targets[r]]
            smooth = -sum(w[c] * log_p[c] for c in range(C))
            losses.append((1 - smoothing) * hit + smoothing / C * smooth)
    return np.array(losses)


def cases():
    draw = np.random.default_rng(0)
    for N, C in ((1, 1), (4, 10), (9, 65), (70, 1000)):
        logits = draw.normal(size=(N, C)) * 3
        weight = draw.uniform(0.1, 2, C)
        targets = draw.integers(0, C, N)
        some = np.where(draw.random(N) < 0.3, -7, targets)
        p = draw.random((N, C))
        p /= p.sum(1, keepdims=True)
        yield logits, targets, None, -100, 0.0
        yield logits, some, weight, -7, 0.0
        yield logits, targets.astype(np.int32), None, -100, 0.1
        yield logits, some, weight, -7, 0.3
        yield logits, p, None, -100, 0.0
        yield logits, p, weight, -100, 0.2


@each_dtype
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case[0].shape}")
def test_cross_entropy_is_the_definition(dtype, case):
    logits, targets, weight, ignore, smoothing = case
    wanted = plain_cross_entropy(logits, targets, weight, ignore, smoothing)
    cast = [
        a.astype(dtype) if a is not None and a.dtype.kind == "f" else a
        for a in (logits, targets, weight)
    ]
    losses, dlogits = L.cross_entropy(*cast, ignore, smoothing)
    assert losses.dtype == dlogits.dtype == dtype
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(losses, wanted, rtol=tolerance, atol=tolerance)
    alone, nothing = L.cross_entropy(*cast, ignore, smoothing, with_grad=False)
    assert nothing is None
    np.testing.assert_allclose(alone, losses, rtol=1e-6, atol=1e-6)
    if targets.ndim == 1:
        assert (losses[targets == ignore] == 0).all()
        assert (dlogits[targets == ignore] == 0).all()


@pytest.mark.parametrize("case", [c for c in cases() if c[0].shape == (4, 10)], ids=lambda _: "")
def test_cross_entropy_gradient_is_the_slope(case):
    logits, targets, weight, ignore, smoothing = case
    dlogits = L.cross_entropy(logits, targets, weight, ignore, smoothing)[1]
    slope = np.empty_like(logits)
    for c in range(logits.shape[1]):
        step = np.zeros_like(logits)
        step[:, c] = 1e-6
        up = L.cross_entropy(logits + step, targets, weight, ignore, smoothing, False)[0]
        down = L.cross_entropy(logits - step, targets, weight, ignore, smoothing, False)[0]
        slope[:, c] = (up - down) / 2e-6
    np.testing.assert_allclose(dlogits, slope, rtol=1e-6, atol=1e-8)
    dy = np.linspace(-1, 2, 4)
    np.testing.assert_array_equal(L.cross_entropy_grad(dy, dlogits), dlogits * dy[:, None])


@each_dtype
def test_cross_entropy_by_hand(dtype):
    logits = np.log(np.array([[1, 2, 5], [1, 1, 2]], dtype))
    losses, dlogits = L.cross_entropy(logits, np.array([1, 2]))
    np.testing.assert_allclose(losses, np.log([4, 2]), rtol=1e-6)
    np.testing.assert_allclose(dlogits, [[0.125, -0.75, 0.625], [0.25, 0.25, -0.5]], rtol=1e-5)


@each_dtype
def test_a_large_common_offset_does_not_drown_the_logarithm(dtype):
    logits, t = np.full((3, 8), 30000, dtype), np.array([0, 3, 7])
    wanted = np.full(3, np.log(8))
    np.testing.assert_allclose(L.cross_entropy(logits, t)[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(L.cross_entropy(logits, t, None, -100, 0.3)[0], wanted, rtol=1e-6)
    p = np.full((3, 8), 0.125, dtype)
    np.testing.assert_allclose(L.cross_entropy(logits, p)[0], wanted, rtol=1e-6)


@each_dtype
def test_cross_entropy_with_infinities(dtype):
    logits = np.array(
        [[-INF, 0, 0], [-INF, 0, 0], [INF, 0, 0], [-INF] * 3, [NAN, 0, 0], [NAN, 0, 0]], dtype
    )
    losses, dlogits = L.cross_entropy(logits, np.array([1, 0, 1, 0, 1, -100]))
    np.testing.assert_allclose(losses, [np.log(2), INF, NAN, NAN, NAN, 0], rtol=1e-6)
    np.testing.assert_allclose(dlogits[0], [0, -0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(dlogits[1], [-1, 0.5, 0.5], atol=1e-6)
    assert np.isnan(dlogits[2:5]).all()
    assert (dlogits[5] == 0).all()
    # probability 0 of an impossible class costs nothing
    p = np.array([[0, 0.5, 0.5]], dtype)
    np.testing.assert_allclose(L.cross_entropy(logits[:1], p)[0], [np.log(2)], rtol=1e-6)


@each_dtype
def test_targets_out_of_range(dtype):
    x = np.zeros((5, 10), dtype)
    for f in (L.cross_entropy, L.nll):
        with pytest.raises(IndexError, match=r"target 12 at row 3 is outside \[0, 10\)"):
            f(x, np.array([0, 9, -100, 12, 1]))
        with pytest.raises(IndexError, match=r"target -1 at row 0 is outside \[0, 10\)"):
            f(x, np.array([-1, 9, -100, 12, 1]))
        f(x, np.array([12, 0, 0, 0, 0]), ignore_index=12)
    with pytest.raises(IndexError, match="target 10 at row 1"):
        L.nll_grad(np.zeros(2, dtype), np.array([0, 10]), 10)


@each_dtype
def test_shapes_that_do_not_fit(dtype):
    x = np.zeros((5, 10), dtype)
    t = np.zeros(5, int)
    with pytest.raises(ValueError, match=r"logits has shape \(10,\)"):
        L.cross_entropy(x[0], t)
    with pytest.raises(ValueError, match=r"targets has shape \(4,\)"):
        L.cross_entropy(x, t[:4])
    with pytest.raises(ValueError, match=r"targets has shape \(5, 3\)"):
        L.cross_entropy(x, np.zeros((5, 3), dtype))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\): expected \(10,\)"):
        L.cross_entropy(x, t, np.ones(3, dtype))
    with pytest.raises(TypeError, match="targets is bool"):
        L.cross_entropy(x, t > 0)
    with pytest.raises(TypeError, match="targets is float"):
        L.nll(x, np.zeros(5, dtype))


def test_half_precision_has_float32_losses():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(6, 33)).astype(np.float16)
    losses, dlogits = L.cross_entropy(x, draw.integers(0, 33, 6))
    assert losses.dtype == np.float32
    assert dlogits.dtype == np.float16
    dx = L.cross_entropy_grad(np.full(6, 0.25, np.float32), dlogits)
    assert dx.dtype == np.float16
    np.testing.assert_array_equal(dx, dlogits * np.float16(0.25))


@each_dtype
def test_no_rows(dtype):
    losses, dlogits = L.cross_entropy(np.empty((0, 7), dtype), np.empty(0, int))
    assert losses.shape == (0,)
    assert dlogits.shape == (0, 7)
    assert L.nll(np.empty((0, 7), dtype), np.empty(0, int)).shape == (0,)
    assert L.nll_grad(np.empty(0, dtype), np.empty(0, int), 7).shape == (0, 7)


@each_dtype
def test_nll(dtype):
    log_p = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]], dtype))
    targets, weight = np.array([1, -100, 2]), np.array([1, 2, 3], dtype)
    np.testing.assert_allclose(L.nll(log_p, targets), [np.log(4), 0, -np.log(0.6)], rtol=1e-6)
    np.testing.assert_allclose(
        L.nll(log_p, targets, weight), [2 * np.log(4), 0, -3 * np.log(0.6)], rtol=1e-6
    )
    dx = L.nll_grad(np.array([1, 10, 100], dtype), targets, 3, weight)
    np.testing.assert_array_equal(dx, [[0, -2, 0], [0, 0, 0], [0, 0, -300]])
    assert dx.dtype == dtype


# kernel, options, x, target, value, derivative
ELEMENTWISE = [
    ("mse", (), 3, 1, 4, 4),
    ("l1", (), 3, 1, 2, 1),
    ("l1", (), 1, 3, 2, -1),
    ("l1", (), 1, 1, 0, 0),
    ("huber", (), 1.5, 1, 0.125, 0.5),
    ("huber", (), 4, 1, 2.5, 1),
    ("huber", (2.0,), -4, 1, 8, -2),
    ("smooth_l1", (), 1.5, 1, 0.125, 0.5),
    ("smooth_l1", (0.5,), 4, 1, 2.75, 1),
    ("smooth_l1", (2.0,), 2, 1, 0.25, 0.5),
    ("smooth_l1", (0.0,), 4, 1, 3, 1),
    ("smooth_l1", (0.0,), 1, 1, 0, 0),
    ("binary_cross_entropy_with_logits", (), 0, 1, math.log(2), -0.5),
    ("binary_cross_entropy_with_logits", (), math.log(3), 0, math.log(4), 0.75),
    ("binary_cross_entropy_with_logits", (3.0,), math.log(3), 1, 3 * math.log(4 / 3), -0.75),
    ("binary_cross_entropy_with_logits", (), 1000, 0, 1000, 1),
    ("binary_cross_entropy_with_logits", (), -1000, 1, 1000, -1),
    (
        "binary_cross_entropy_with_logits",
        (),
        -20,
        0,
        math.log1p(math.exp(-20)),
        1 / (1 + math.exp(20)),
    ),
    ("kl_div", (), math.log(0.25), 0.5, 0.5 * math.log(2), -0.5),
    ("kl_div", (), -INF, 0, 0, 0),
    ("kl_div_log_target", (), math.log(0.25), math.log(0.5), 0.5 * math.log(2), -0.5),
    ("kl_div_log_target", (), -INF, -INF, 0, 0),
    ("hinge", (), 0.25, 1, 0.75, -1),
    ("hinge", (), 0.25, -1, 1.25, 1),
    ("hinge", (), 2, 1, 0, 0),
    ("hinge", (3.0,), 2, 1, 1, -1),
]


@each_dtype
@pytest.mark.parametrize(("name", "options", "x", "target", "value", "derivative"), ELEMENTWISE)
def test_elementwise_by_hand(dtype, name, options, x, target, value, derivative):
    x, target, dy = (np.full((3, 7), v, dtype) for v in (x, target, 2))
    y = getattr(L, name)(x, target, *options)
    dx = getattr(L, f"{name}_grad")(dy, x, target, *options)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_allclose(y, np.full((3, 7), value), rtol=2e-6)
    np.testing.assert_allclose(dx, np.full((3, 7), 2 * derivative), rtol=2e-6)
