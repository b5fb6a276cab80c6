"""F: every differentiable function against central differences, known values, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

import framework as fw
import framework.functional as F

BCE = F.binary_cross_entropy_with_logits
rng = np.random.default_rng(1)
on_each_device = pytest.mark.usefixtures("device")


def here(constant: fw.Tensor) -> fw.Tensor:
    """On the device of the test."""
    return constant.to(fw.default_device())


def param(*shape: int, scale: float = 1.0) -> fw.Tensor:
    return fw.tensor(rng.standard_normal(shape) * scale, requires_grad=True)


def values(*shape: int) -> fw.Tensor:
    return fw.tensor(rng.standard_normal(shape))


ACTIVATIONS = [
    F.sigmoid,
    F.tanh,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.selu,
    F.celu,
    F.gelu,
    F.silu,
    F.mish,
    F.softplus,
    F.softsign,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.logsigmoid,
    F.glu,
    F.swiglu,
]
MASK = fw.tensor(np.array([[True, True, False, True], [False] * 4, [True] * 4]))
CLASSES = fw.tensor([1, 3, -100, 0, 3])
WEIGHT = fw.tensor([0.5, 2.0, 1.0, 0.1], dtype="float64")
PROBABILITIES = fw.tensor(rng.dirichlet(np.ones(4), 5))
SIGNS = fw.tensor(np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]))
UNIT = fw.tensor(rng.uniform(0.05, 0.95, (3, 4)))
INDICES = fw.tensor([[1, 0, 4], [4, 4, 2]])

CASES = {
    **{f.__name__: (f, param(3, 8, scale=2.0)) for f in ACTIVATIONS},
    "gelu tanh": (lambda x: F.gelu(x, "tanh"), param(3, 4)),
    "leaky_relu slope": (lambda x: F.leaky_relu(x, 0.3), param(3, 4)),
    "softplus beta": (lambda x: F.softplus(x, 2.0, 3.0), param(3, 4)),
    "hardtanh limits": (lambda x: F.hardtanh(x, -0.5, 0.7), param(3, 4)),
    "glu axis": (lambda x: F.glu(x, 0), param(4, 3)),
    "prelu": (F.prelu, param(3, 4), param(4)),
    "prelu shared": (F.prelu, param(3, 4, 2), param(1)),
    "softmax": (F.softmax, param(3, 4)),
    "softmax mask of a row": (lambda x: F.softmax(x, -1, here(MASK)[0]), param(3, 4)),
    "logsumexp mask of a column": (
        lambda x: F.logsumexp(x, 0, mask=here(MASK)[:, :1]),
        param(3, 4),
    ),
    "softmax axis 0": (lambda x: F.softmax(x, 0), param(3, 4)),
    "softmax masked": (lambda x: F.softmax(x, -1, here(MASK)), param(3, 4)),
    "log_softmax": (F.log_softmax, param(3, 4)),
    "log_softmax middle": (lambda x: F.log_softmax(x, 1), param(2, 3, 4)),
    "logsumexp": (F.logsumexp, param(3, 4)),
    "logsumexp keepdim": (lambda x: F.logsumexp(x, 0, True), param(3, 4)),
    "linear": (F.linear, param(3, 4), param(5, 4), param(5)),
    "linear no bias, 3 axes": (F.linear, param(2, 3, 4), param(5, 4)),
    "linear vector": (F.linear, param(4), param(5, 4), param(5)),
    "feed_forward": (F.feed_forward, param(3, 4), param(6, 4), param(6), param(2, 6), param(2)),
    "feed_forward, 3 axes": (
        F.feed_forward,
        param(2, 3, 4),
        param(6, 4),
        param(6),
        param(4, 6),
        param(4),
    ),
    "feed_forward vector": (
        F.feed_forward,
        param(4),
        param(5, 4),
        param(5),
        param(1, 5),
        param(1),
    ),
    "bilinear": (F.bilinear, param(3, 4), param(3, 2), param(5, 4, 2), param(5)),
    "embedding": (lambda w: F.embedding(here(INDICES), w), param(5, 3)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, 4, w, b), param(3, 4), param(4), param(4)),
    "layer_norm plain": (lambda x: F.layer_norm(x, (3, 4)), param(2, 3, 4)),
    "layer_norm no bias": (
        lambda x, w: F.layer_norm(x, (3, 4), w),
        param(2, 3, 4),
        param(3, 4),
    ),
    "rms_norm": (lambda x, w: F.rms_norm(x, 4, w), param(3, 4), param(4)),
    "rms_norm plain": (lambda x: F.rms_norm(x, 4), param(3, 4)),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        param(6, 3),
        param(3),
        param(3),
    ),
    "batch_norm images": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        param(3, 2, 2, 3),
        param(2),
        param(2),
    ),
    "batch_norm relu residual": (
        lambda x, r, w, b: F.batch_norm(
            x, None, None, w, b, training=True, activation="relu", residual=r
        ),
        param(3, 2, 2, 3),
        param(3, 2, 2, 3),
        param(2),
        param(2),
    ),
    "batch_norm relu": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, activation="relu"),
        param(6, 3),
        param(3),
        param(3),
    ),
    "batch_norm residual": (
        lambda x, r: F.batch_norm(x, None, None, training=True, residual=r),
        param(6, 3),
        param(6, 3),
    ),
    "batch_norm running relu residual": (
        lambda x, r, w: F.batch_norm(
            x, fw.tensor([0.1, -1.0]), fw.tensor([2.0, 0.5]), w, activation="relu", residual=r
        ),
        param(3, 2),
        param(3, 2),
        param(2),
    ),
    "batch_norm running": (
        lambda x, w, b: F.batch_norm(x, fw.tensor([0.1, -1.0]), fw.tensor([2.0, 0.5]), w, b),
        param(3, 2),
        param(2),
        param(2),
    ),
    "group_norm": (
        lambda x, w, b: F.group_norm(x, 2, w, b),
        param(2, 4, 3),
        param(4),
        param(4),
    ),
    "instance_norm": (F.instance_norm, param(2, 3, 5)),
    "dropout": (lambda x: F.dropout(x, 0.4, generator=fw.Generator(5)), param(4, 9)),
    "mse_loss": (lambda x: F.mse_loss(x, here(UNIT)), param(3, 4)),
    "mse_loss sum": (lambda x: F.mse_loss(x, here(UNIT), "sum"), param(3, 4)),
    "l1_loss": (lambda x: F.l1_loss(x, here(UNIT)), param(3, 4)),
    "huber_loss": (lambda x: F.huber_loss(x, here(UNIT), delta=0.7), param(3, 4)),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x, here(UNIT), "none", beta=0.5), param(3, 4)),
    "bce": (lambda x: F.binary_cross_entropy_with_logits(x, here(UNIT)), param(3, 4)),
    "bce weighted": (
        lambda x: F.binary_cross_entropy_with_logits(
            x, here(UNIT), here(UNIT).to(x.dtype), "sum", 3.0
        ),
        param(3, 4),
    ),
    "kl_div": (lambda x: F.kl_div(x, here(UNIT), "batchmean"), param(3, 4)),
    "kl_div log": (lambda x: F.kl_div(x, here(UNIT).log(), "sum", True), param(3, 4)),
    "hinge_loss": (lambda x: F.hinge_loss(x, here(SIGNS)), param(3, 2)),
    "cross_entropy": (lambda x: F.cross_entropy(x, here(CLASSES)), param(5, 4)),
    "cross_entropy all options": (
        lambda x: F.cross_entropy(x, here(CLASSES), here(WEIGHT), label_smoothing=0.2),
        param(5, 4),
    ),
    "cross_entropy sum": (
        lambda x: F.cross_entropy(x, here(CLASSES), reduction="sum"),
        param(5, 4),
    ),
    "cross_entropy none": (
        lambda x: F.cross_entropy(x, here(CLASSES), here(WEIGHT), reduction="none"),
        param(5, 4),
    ),
    "cross_entropy probabilities": (
        lambda x: F.cross_entropy(x, here(PROBABILITIES), here(WEIGHT), label_smoothing=0.1),
        param(5, 4),
    ),
    "cross_entropy positions": (
        lambda x: F.cross_entropy(x, fw.tensor([[0, 1, 2], [2, 2, 1]]), reduction="none"),
        param(2, 3, 3),
    ),
    "nll_loss": (lambda x: F.nll_loss(x, here(CLASSES), here(WEIGHT)), param(5, 4)),
    "nll_loss positions": (
        lambda x: F.nll_loss(x, fw.tensor([[0, 1], [2, 2]]), reduction="none"),
        param(2, 3, 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
@on_each_device
def test_gradient_is_the_central_difference(name):
    function, *inputs = CASES[name]
    assert fw.gradcheck(function, list(map(here, inputs)))


@pytest.mark.parametrize("name", CASES)
@on_each_device
def test_float32_agrees_with_float64_and_stays_float32(name):
    function, *inputs = CASES[name]
    narrow = [here(x.detach()).to("float32").requires_grad_() for x in inputs]
    wide = [here(x.detach()).clone().requires_grad_() for x in inputs]
    y, expected = function(*narrow), function(*wide)
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=2e-4, atol=2e-5)
    y.sum().backward()
    expected.sum().backward()
    for a, b in zip(narrow, wide, strict=True):
        assert a.grad.dtype == np.float32
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-3, atol=5e-5)


@on_each_device
def test_known_values():
    x = fw.tensor([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(F.sigmoid(x).numpy(), 1 / (1 + np.exp(-x.numpy())), rtol=1e-6)
    np.testing.assert_array_equal(F.relu(x).numpy(), [0, 0, 2])
    assert F.gelu(fw.tensor([1.0])).item() == pytest.approx(0.8413447, rel=1e-6)
    logits = fw.tensor([[0.0, 0.0, 0.0]])
    assert F.cross_entropy(logits, fw.tensor([1])).item() == pytest.approx(math.log(3))
    assert F.cross_entropy(logits[0], fw.tensor(1)).item() == pytest.approx(math.log(3))
    assert F.mse_loss(x, x + 2).item() == 4
    np.testing.assert_array_equal(F.one_hot(fw.tensor([2, 0]), 3).numpy(), [[0, 0, 1], [1, 0, 0]])


@on_each_device
def test_cross_entropy_mean_is_over_the_weights_of_what_counts():
    x, t = here(values(4, 3)), fw.tensor([0, 2, -100, 1])
    w = fw.tensor([1.0, 2.0, 4.0], dtype="float64")
    each = F.cross_entropy(x, t, w, reduction="none").numpy()
    assert each[2] == 0
    assert F.cross_entropy(x, t, w).item() == pytest.approx(each.sum() / (1 + 4 + 2))


@on_each_device
def test_all_targets_ignored_is_nan_as_the_mean_of_nothing():
    loss = F.cross_entropy(fw.ones(2, 3), fw.tensor([-100, -100]))
    assert math.isnan(loss.item())


@on_each_device
def test_batch_norm_moves_the_running_statistics():
    x = here(fw.tensor(rng.standard_normal((8, 2)).astype(np.float32) * 3 + 1))
    mean, var = fw.zeros(2), fw.ones(2)
    F.batch_norm(x, mean, var, training=True, momentum=0.5)
    np.testing.assert_allclose(mean.numpy(), x.numpy().mean(0) / 2, rtol=1e-5)
    np.testing.assert_allclose(var.numpy(), 0.5 + x.numpy().var(0, ddof=1) / 2, rtol=1e-5)
    before = mean.numpy().copy()
    F.batch_norm(x, mean, var, training=False)
    np.testing.assert_array_equal(mean.numpy(), before)


@on_each_device
def test_dropout_keeps_the_mean_and_does_nothing_in_evaluation():
    x = fw.ones(100_000)
    fw.manual_seed(0)
    y = F.dropout(x, 0.25).numpy()
    assert abs((y == 0).mean() - 0.25) < 0.01 and abs(y.mean() - 1) < 0.01
    assert F.dropout(x, 0.25, training=False) is x and F.dropout(x, 0.0) is x
    assert not F.dropout(x, 1.0).numpy().any()


@on_each_device
def test_dropout_backward_replays_the_mask():
    x = fw.ones(5000, requires_grad=True)
    y = F.dropout(x, 0.5)
    y.sum().backward()
    np.testing.assert_array_equal(y.detach().numpy(), x.grad.numpy())


@on_each_device
def test_the_padding_row_of_an_embedding_gets_no_gradient():
    w = here(param(5, 3).detach()).requires_grad_()
    F.embedding(here(INDICES), w, -1).sum().backward()
    np.testing.assert_array_equal(w.grad.numpy()[:, 0], [1, 1, 1, 0, 0])


@on_each_device
def test_frozen_weights_cost_and_get_nothing():
    x, w = values(3, 4), fw.tensor(rng.standard_normal((2, 4)))
    b = fw.tensor(np.zeros(2), requires_grad=True)
    F.linear(x, w, b).sum().backward()
    assert w.grad is None and b.grad is not None


@on_each_device
def test_feed_forward_is_linear_gelu_linear():
    x, w1, b1, w2, b2 = tensors = [param(*s) for s in ((5, 4), (6, 4), (6,), (3, 6), (3,))]
    F.feed_forward(*tensors).sum().backward()
    got = [t.grad.numpy().copy() for t in tensors]
    for t in tensors:
        t.grad = None
    y = F.linear(F.gelu(F.linear(x, w1, b1), "tanh"), w2, b2)
    np.testing.assert_allclose(F.feed_forward(*tensors).tolist(), y.tolist(), rtol=1e-12)
    y.sum().backward()
    for gradient, t in zip(got, tensors, strict=True):
        np.testing.assert_allclose(gradient, t.grad.numpy(), rtol=1e-12, atol=1e-14)


@on_each_device
def test_feed_forward_of_one_weight_twice_adds_its_gradients():
    w, b1, b2, x = param(4, 4), param(4), param(4), values(3, 4)
    assert fw.gradcheck(lambda w, b1, b2: F.feed_forward(x, w, b1, w, b2), [w, b1, b2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: F.feed_forward(*(fw.ones(*s) for s in ((2, 3), (5, 3), (5,), (3, 4), (3,)))),
            ValueError,
            r"feed_forward: x \(2, 3\), weight1 \(5, 3\).* weight2 \(3, 4\).*\(out, hidden\)",
        ),
        (
            lambda: F.feed_forward(fw.ones(2, 2), fw.ones(2, 2), fw.ones(2), None, fw.ones(2)),
            TypeError,
            "feed_forward: weight2 must be a Tensor",
        ),
        (
            lambda: F.feed_forward(
                fw.ones(2, 2), *(fw.tensor(np.ones(s)) for s in ((2, 2), 2, (2, 2), 2))
            ),
            TypeError,
            "feed_forward: x is float32, the rest float64",
        ),
        (
            lambda: F.relu(fw.tensor([1])),
            TypeError,
            "relu: expected floating-point values, got int64",
        ),
        (lambda: F.relu(np.ones(2)), TypeError, "relu: expected a Tensor, got a ndarray"),
        (lambda: F.gelu(fw.ones(1), "fast"), ValueError, "approximate='fast'"),
        (lambda: F.glu(fw.ones(2, 3)), ValueError, r"cannot halve shape \(2, 3\) along dim -1"),
        (lambda: F.celu(fw.ones(2), 0), ValueError, "alpha=0"),
        (lambda: F.softplus(fw.ones(2), 0), ValueError, "beta=0"),
        (lambda: F.hardtanh(fw.ones(2), 1, 0), ValueError, "min_value=1 is not below max_value=0"),
        (lambda: F.softmax(fw.ones(2), 3), ValueError, r"dim 3 does not exist in shape \(2,\)"),
        (lambda: F.softmax(fw.ones(2), 0, fw.ones(2)), ValueError, "mask is float32"),
        (
            lambda: F.linear(fw.ones(2, 3), fw.ones(5, 4)),
            ValueError,
            r"has 3 features \(shape \(2, 3\)\), the weight expects 4",
        ),
        (
            lambda: F.linear(fw.ones(2, 3), fw.tensor(np.ones((5, 3)))),
            TypeError,
            "input is float32, weight float64",
        ),
        (
            lambda: F.bilinear(fw.ones(2, 3), fw.ones(2, 3), fw.ones(1, 2, 3)),
            ValueError,
            "do not fit",
        ),
        (
            lambda: F.linear(fw.ones(2, 3), np.ones((5, 3))),
            TypeError,
            "linear: weight.*ndarray",
        ),
        (
            lambda: F.linear(fw.ones(2, 3), fw.ones(5, 3), fw.ones(4)),
            ValueError,
            r"bias has shape \(4,\)",
        ),
        (lambda: F.dropout(fw.ones(2), 1.5), ValueError, "p=1.5, expected a probability"),
        (lambda: F.embedding(fw.ones(2), fw.ones(3, 2)), TypeError, "indices are float32"),
        (lambda: F.embedding(fw.tensor([5]), fw.ones(3, 2)), IndexError, "5"),
        (lambda: F.embedding(fw.tensor([-1]), fw.ones(3, 2)), IndexError, "-1"),
        (lambda: F.embedding(fw.tensor([1]), fw.ones(3)), ValueError, r"weight has shape \(3,\)"),
        (lambda: F.embedding(fw.tensor([1]), fw.ones(3, 2), 7), ValueError, "padding_idx=7"),
        (lambda: F.one_hot(fw.tensor([3]), 3), IndexError, "from 3 to 3, expected 0 to 2"),
        (
            lambda: F.layer_norm(fw.ones(2, 3), 4),
            ValueError,
            r"normalized_shape \(4,\) is not the end",
        ),
        (
            lambda: F.layer_norm(fw.ones(2, 3), 3, fw.ones(2)),
            ValueError,
            r"weight has shape \(2,\)",
        ),
        (
            lambda: F.batch_norm(fw.ones(1, 3), None, None, training=True),
            ValueError,
            "one value per channel",
        ),
        (lambda: F.batch_norm(fw.ones(3), None, None), ValueError, r"expected \(N, C\)"),
        (lambda: F.group_norm(fw.ones(2, 5), 2), ValueError, "2 groups do not divide"),
        (lambda: F.instance_norm(fw.ones(2, 5)), ValueError, "with positions"),
        (lambda: F.mse_loss(fw.ones(2, 1), fw.ones(2)), ValueError, "they must be equal"),
        (lambda: F.mse_loss(fw.ones(0), fw.ones(0)), ValueError, "empty batch"),
        (
            lambda: F.mse_loss(fw.ones(1), fw.ones(1), "avg"),
            ValueError,
            "reduction='avg', expected one",
        ),
        (
            lambda: F.mse_loss(fw.ones(1), fw.ones(1, requires_grad=True)),
            ValueError,
            "target.detach",
        ),
        (lambda: F.huber_loss(fw.ones(1), fw.ones(1), delta=0), ValueError, "delta=0"),
        (lambda: F.smooth_l1_loss(fw.ones(1), fw.ones(1), beta=-1), ValueError, "beta=-1"),
        (lambda: F.kl_div(fw.ones(0, 2), fw.ones(0, 2), "batchmean"), ValueError, "empty batch"),
        (lambda: F.cross_entropy(fw.ones(2, 3), fw.tensor([0, 3])), IndexError, "3"),
        (
            lambda: F.cross_entropy(fw.ones(2, 3), fw.tensor([0])),
            ValueError,
            r"need \(2,\); got \(1,\)",
        ),
        (lambda: F.cross_entropy(fw.ones(0, 3), fw.tensor([], dtype="int64")), ValueError, "empty"),
        (
            lambda: F.cross_entropy(fw.ones(1, 3), fw.tensor([0]), fw.ones(2)),
            ValueError,
            r"weight has shape \(2,\), expected \(3,\)",
        ),
        (
            lambda: F.cross_entropy(fw.ones(1, 3), fw.tensor([0]), label_smoothing=2),
            ValueError,
            "label_smoothing=2",
        ),
        (lambda: F.nll_loss(fw.ones(2, 3), fw.ones(2, 3)), TypeError, "expected class indices"),
        (
            lambda: F.nll_loss(fw.ones(0, 3), fw.tensor([], dtype="int64")),
            ValueError,
            "^nll_loss: an empty batch",
        ),
        (
            lambda: F.nll_loss(fw.ones(1, 3), fw.tensor([0]), fw.ones(2)),
            ValueError,
            r"^nll_loss: weight has shape \(2,\), expected \(3,\)",
        ),
        (
            lambda: F.cross_entropy(fw.ones(2, 0), fw.tensor([0, 0])),
            ValueError,
            r"input has shape \(2, 0\), which has no classes",
        ),
        (
            lambda: F.cross_entropy(fw.ones(3), fw.tensor([0, 1, 2])),
            ValueError,
            r"the target is a class index \(\) or probabilities \(3,\); got int64 \(3,\)",
        ),
        (
            lambda: F.cross_entropy(fw.ones(2, 3), fw.ones(2, 3, requires_grad=True)),
            ValueError,
            "cross_entropy: the target requires a gradient; pass target.detach",
        ),
        (lambda: BCE(fw.ones(0, 3), fw.ones(0, 3)), ValueError, "logits: empty batch"),
        (
            lambda: BCE(fw.ones(1), fw.ones(1), reduction="avg"),
            ValueError,
            "^binary_cross_entropy_with_logits: reduction='avg'",
        ),
        (
            lambda: BCE(fw.ones(2), fw.tensor([0.5, 1.5])),
            ValueError,
            "targets from 0.5 to 1.5, expected 0 to 1",
        ),
        (lambda: BCE(fw.ones(1), fw.tensor([math.nan])), ValueError, "targets from nan to nan"),
        (
            lambda: BCE(fw.ones(3), fw.ones(3), fw.ones(2, 1)),
            ValueError,
            r"weight has shape \(2, 1\), which does not broadcast to the input's \(3,\)",
        ),
        (
            lambda: F.hinge_loss(fw.ones(2), fw.tensor([1.0, 0.0])),
            ValueError,
            "hinge_loss: a target is 0.0, expected -1 or 1",
        ),
        (lambda: F.hardtanh(fw.ones(2), math.nan, 1), ValueError, "min_value=nan is not below"),
        (lambda: F.one_hot(fw.tensor([0]), 0), ValueError, "num_classes=0, expected at least 1"),
        (lambda: F.layer_norm(fw.ones(2, 3), 3, eps=-1), ValueError, "^layer_norm: eps=-1"),
        (lambda: F.rms_norm(fw.ones(2, 3), 3, eps=-1), ValueError, "^rms_norm: eps=-1"),
        (lambda: F.group_norm(fw.ones(2, 4), 2, eps=math.nan), ValueError, "^group_norm: eps=nan"),
        (lambda: F.instance_norm(fw.ones(2, 4, 3), eps=-1), ValueError, "^instance_norm: eps=-1"),
        (lambda: F.batch_norm(fw.ones(2, 4), None, None, eps=-1), ValueError, "^batch_norm: eps"),
        (
            lambda: F.softmax(fw.ones(2, 3), -1, fw.tensor(np.ones((2, 2, 3), bool))),
            ValueError,
            r"mask is bool\(2, 2, 3\), expected bool\(2, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


ARRAY = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda x: F.prelu(x, ARRAY), "prelu: weight"),
        (lambda x: F.softmax(x, mask=ARRAY > 0), "softmax: mask"),
        (lambda x: F.log_softmax(x, mask=ARRAY > 0), "log_softmax: mask"),
        (lambda x: F.logsumexp(x, mask=ARRAY > 0), "logsumexp: mask"),
        (lambda x: F.embedding(np.array([1]), x), "embedding: indices"),
        (lambda x: F.embedding(fw.tensor([1]), ARRAY), "embedding: weight"),
        (lambda x: F.one_hot(np.array([1]), 3), "one_hot: indices"),
        (lambda x: F.layer_norm(x, 3, ARRAY), "layer_norm: weight"),
        (lambda x: F.rms_norm(x, 3, ARRAY), "rms_norm: weight"),
        (lambda x: F.group_norm(x, 1, None, ARRAY), "group_norm: bias"),
        (lambda x: F.batch_norm(x, ARRAY, None), "batch_norm: running_mean"),
        (lambda x: F.batch_norm(x, fw.zeros(3), ARRAY), "batch_norm: running_var"),
        (lambda x: F.mse_loss(x, ARRAY), "mse_loss: target"),
        (lambda x: F.l1_loss(x, ARRAY), "l1_loss: target"),
        (lambda x: F.huber_loss(x, ARRAY), "huber_loss: target"),
        (lambda x: F.smooth_l1_loss(x, ARRAY), "smooth_l1_loss: target"),
        (lambda x: F.kl_div(x, ARRAY), "kl_div: target"),
        (lambda x: F.hinge_loss(x, ARRAY), "hinge_loss: target"),
        (lambda x: BCE(x, ARRAY), "binary_cross_entropy_with_logits: target"),
        (lambda x: BCE(x, x, ARRAY), "binary_cross_entropy_with_logits: weight"),
        (lambda x: F.cross_entropy(x, ARRAY), "cross_entropy: target"),
        (lambda x: F.cross_entropy(x, fw.tensor([0, 0]), ARRAY), "cross_entropy: weight"),
        (lambda x: F.nll_loss(x, ARRAY), "nll_loss: target"),
        (lambda x: F.nll_loss(x, fw.tensor([0, 0]), ARRAY), "nll_loss: weight"),
    ],
)
def test_an_array_in_the_place_of_a_tensor_is_named(call, start):
    with pytest.raises(TypeError, match=f"^{start} must be a Tensor, got a ndarray; make one"):
        call(fw.ones(2, 3))


def test_lists_are_no_tensors_either():
    with pytest.raises(TypeError, match="cross_entropy: target must be a Tensor, got a list"):
        F.cross_entropy(fw.ones(1, 3), [1])


@pytest.mark.parametrize("wrong", [fw.ones(3), fw.ones(1), fw.ones(2, dtype="int64")])
def test_batch_norm_moves_nothing_when_a_statistic_is_wrong(wrong):
    mean = fw.zeros(2)
    with pytest.raises((ValueError, TypeError), match="batch_norm: running_var"):
        F.batch_norm(fw.tensor([[1.0, 2.0], [3.0, 4.0]]), mean, wrong, training=True)
    assert mean.tolist() == [0, 0]


@on_each_device
def test_one_sample_has_a_loss_without_axes():
    x = fw.tensor([0.0, 0.0, 0.0])
    for loss in (F.cross_entropy, F.nll_loss):
        assert loss(x, fw.tensor(1), reduction="none").shape == ()
    assert F.cross_entropy(x, fw.tensor([0.0, 1.0, 0.0]), reduction="none").shape == ()


@on_each_device
@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_labels_in_the_place_of_logits(loss):
    logits, labels = fw.tensor(np.zeros((4, 3), np.float32)), fw.tensor([0, 1, 2, 0])
    with pytest.raises(TypeError, match=r"input is int64 \(4,\) and target float32 .*swapped"):
        loss(labels, logits)
    with pytest.raises(TypeError, match="expected floating-point values, got int64"):
        loss(labels, labels)  # nothing is swapped there


def test_cross_entropy_without_tape_computes_no_gradient(monkeypatch):
    from framework.functional import losses

    wanted = []
    kernel = losses.kernels.cross_entropy

    def spy(*args):
        wanted.append(args[-1])
        return kernel(*args)

    monkeypatch.setattr(losses.kernels, "cross_entropy", spy)
    x, t = fw.ones(2, 3, requires_grad=True), fw.tensor([0, 1])
    with fw.no_grad():
        quiet = F.cross_entropy(x, t)
    taped = F.cross_entropy(x, t)
    assert wanted == [False, True] and quiet.item() == taped.item()


def test_f_exports_every_public_activation():
    from framework.functional import activations

    defined = [
        n
        for n, f in vars(activations).items()
        if getattr(f, "__module__", "") == activations.__name__
    ]
    public = sorted(n for n in defined if not n.startswith("_"))
    assert sorted(activations.__all__) == public
    assert all(getattr(F, n) is getattr(activations, n) for n in public)


@on_each_device
def test_class_weights_and_probabilities_that_cannot_be():
    x, labels = values(2, 3), fw.tensor([0, 1])
    learnt = here(fw.ones(3, requires_grad=True))
    for loss in (F.cross_entropy, F.nll_loss):
        with pytest.raises(ValueError, match=r"weight requires a gradient; pass weight.detach\(\)"):
            loss(here(x), here(labels), learnt)
        with pytest.raises(ValueError, match="a weight is -1, expected at least 0"):
            loss(x.cpu(), labels.cpu(), fw.tensor([1.0, -1.0, 1.0], device="cpu"))
    with pytest.raises(ValueError, match="a target probability is -0.5, expected at least 0"):
        F.cross_entropy(x.cpu(), fw.tensor([[1.5, -0.5, 0.0]] * 2, device="cpu"))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda x: F.cross_entropy(x, x, label_smoothing="a"),
            "cross_entropy: label_smoothing='a'",
        ),
        (lambda x: F.leaky_relu(x, "a"), "leaky_relu: negative_slope='a'"),
        (lambda x: F.elu(x, "a"), "elu: alpha='a'"),
        (lambda x: F.celu(x, None), "celu: alpha=None"),
        (lambda x: F.softplus(x, "a"), "softplus: beta='a'"),
        (lambda x: F.softplus(x, 1.0, "a"), "softplus: threshold='a'"),
        (lambda x: F.hardtanh(x, "a"), "hardtanh: min_value='a'"),
        (lambda x: F.huber_loss(x, x, delta="a"), "huber_loss: delta='a'"),
        (lambda x: F.smooth_l1_loss(x, x, beta="a"), "smooth_l1_loss: beta='a'"),
        (lambda x: F.hinge_loss(x, x, margin="a"), "hinge_loss: margin='a'"),
        (lambda x: BCE(x, x, pos_weight="a"), "pos_weight='a'"),
        (lambda x: F.dropout(x, "a"), "dropout: p='a'"),
    ],
)
def test_options_that_are_no_numbers_are_named(call, named):
    with pytest.raises(TypeError, match=named):
        call(fw.ones(2, 3))
