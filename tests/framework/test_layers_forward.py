"""Layers against NumPy in float64, their gradients, and what their constructors refuse."""

import math

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L

on_each_device = pytest.mark.usefixtures("device")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6))


def run(layer, *inputs):
    """In float64, so that comparisons are tight, on the device of the test."""
    return host(here(layer)(*map(moved, inputs)))


def here(layer):
    """A layer in float64 on the device of the test."""
    return layer.to(device=fw.default_device(), dtype="float64")


def moved(x):
    """A tensor on the device of the test."""
    return fw.tensor(x, device=fw.default_device())


def host(t):
    """The values as NumPy's."""
    return t.detach().numpy()


def fill(t, values):
    """Set the values of a parameter."""
    t.data[...] = moved(np.array(values, t.dtype)).data


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


@on_each_device
def test_linear():
    layer = L.Linear(6, 3)
    y = run(layer, X)
    close(y, X @ host(layer.weight).T + host(layer.bias))
    stack = RNG.standard_normal((2, 5, 6))
    close(run(layer, stack), stack @ host(layer.weight).T + host(layer.bias))
    plain = L.Linear(6, 3, bias=False)
    close(run(plain, X), X @ host(plain.weight).T)
    assert list(plain.state_dict()) == ["weight"]
    assert plain.bias is None


@on_each_device
def test_bilinear():
    layer = L.Bilinear(6, 2, 3)
    z = RNG.standard_normal((4, 2))
    y = run(layer, X, z)
    w = host(layer.weight)
    expected = [[x @ w[k] @ v for k in range(3)] for x, v in zip(X, z, strict=True)]
    close(y, np.array(expected) + host(layer.bias))


def test_identity_and_flatten():
    x = fw.tensor(X)
    assert L.Identity(3, anything=True)(x) is x
    cube = RNG.standard_normal((2, 3, 4))
    assert L.Flatten()(fw.tensor(cube)).shape == (2, 12)
    assert L.Flatten(0, 1)(fw.tensor(cube)).shape == (6, 4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal_distribution(x):
    return np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x, axis):
    e = np.exp(x)
    return e / e.sum(axis=axis, keepdims=True)


A, B = X[:, :3], X[:, 3:]

ACTIVATIONS = [
    (L.Sigmoid(), sigmoid(X)),
    (L.Tanh(), np.tanh(X)),
    (L.ReLU(), np.maximum(X, 0)),
    (L.ReLU6(), np.clip(X, 0, 6)),
    (L.LeakyReLU(0.2), np.where(X > 0, X, 0.2 * X)),
    (L.PReLU(6, init=0.5), np.where(X > 0, X, 0.5 * X)),
    (L.ELU(2.0), np.where(X > 0, X, 2 * np.expm1(X))),
    (
        L.SELU(),
        1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * np.expm1(X)),
    ),
    (L.CELU(2.0), np.maximum(X, 0) + np.minimum(2 * np.expm1(X / 2), 0)),
    (L.GELU(), X * normal_distribution(X)),
    (L.GELU("tanh"), tanh_gelu(X)),
    (L.SiLU(), X * sigmoid(X)),
    (L.Mish(), X * np.tanh(np.log1p(np.exp(X)))),
    (L.Softplus(beta=2.0, threshold=1.5), np.where(2 * X > 1.5, X, np.log1p(np.exp(2 * X)) / 2)),
    (L.Softsign(), X / (1 + np.abs(X))),
    (L.Hardsigmoid(), np.clip(X + 3, 0, 6) / 6),
    (L.Hardswish(), X * np.clip(X + 3, 0, 6) / 6),
    (L.Hardtanh(-0.5, 0.7), np.clip(X, -0.5, 0.7)),
    (L.LogSigmoid(), np.log(sigmoid(X))),
    (L.GLU(1), A * sigmoid(B)),
    (L.SwiGLU(), A * sigmoid(A) * B),
    (L.Softmax(0), softmax(X, 0)),
    (L.LogSoftmax(dim=1), np.log(softmax(X, 1))),
]


@pytest.mark.parametrize(("layer", "expected"), ACTIVATIONS, ids=lambda v: type(v).__name__)
@on_each_device
def test_activations(layer, expected):
    close(run(layer, X), expected)
    assert type(layer).__name__ in repr(layer)


def test_activation_arguments_are_shown():
    assert repr(L.Softplus(2.0)) == "Softplus(beta=2.0, threshold=20.0)"
    assert repr(L.GELU("tanh")) == "GELU(approximate='tanh')"
    assert repr(L.Softmax(1)) == "Softmax(dim=1)"


# Normalisation ----------------------------------------------------------------------------------


def standardised(x, axis, eps=1e-5):
    return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(x.var(axis=axis, keepdims=True) + eps)


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5)])
@on_each_device
def test_batch_norm_trains_and_evaluates(shape):
    layer = here(L.BatchNorm1d(3, momentum=0.3))
    fill(layer.weight, [1, 2, 3])
    fill(layer.bias, [0, 1, -1])
    channel = (1, 3) + (1,) * (len(shape) - 2)
    axes = (0, 2) if len(shape) == 3 else (0,)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = RNG.standard_normal(shape) * 3 + 1
        y = host(layer(moved(x)))
        w, b = (host(p).reshape(channel) for p in (layer.weight, layer.bias))
        close(y, standardised(x, axes) * w + b)
        mean = 0.7 * mean + 0.3 * x.mean(axis=axes)
        var = 0.7 * var + 0.3 * x.var(axis=axes, ddof=1)
    close(host(layer.running_mean), mean)
    close(host(layer.running_var), var)
    assert int(layer.num_batches_tracked) == 3
    layer.eval()
    y = host(layer(moved(x)))
    close(y, (x - mean.reshape(channel)) / np.sqrt(var.reshape(channel) + 1e-5) * w + b)
    assert int(layer.num_batches_tracked) == 3


@on_each_device
def test_batch_norm_with_a_cumulative_average():
    layer = here(L.BatchNorm1d(6, momentum=None, affine=False))
    batches = [RNG.standard_normal((5, 6)) for _ in range(4)]
    for x in batches:
        layer(moved(x))
    close(host(layer.running_mean), np.mean([x.mean(axis=0) for x in batches], axis=0))
    # the initial 1 is forgotten too: the first average has weight 1
    close(host(layer.running_var), np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0))
    assert list(layer.parameters()) == []


@on_each_device
def test_batch_norm_without_running_statistics():
    layer = here(L.BatchNorm1d(6, track_running_stats=False)).eval()
    close(host(layer(moved(X))), standardised(X, 0))
    assert list(layer.state_dict()) == ["weight", "bias"]


@on_each_device
def test_batch_norm_refuses():
    layer = L.BatchNorm1d(6)
    with pytest.raises(ValueError, match=r"one value per channel in training .*\(1, 6\)"):
        layer(fw.ones(1, 6))
    assert int(layer.num_batches_tracked) == 0
    assert (host(layer.running_var) == 1).all()
    layer.eval()(fw.ones(1, 6))
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(N, 6\)"):
        layer(fw.ones(2, 5))
    with pytest.raises(ValueError, match=r"shape \(2, 6, 1, 1\)"):
        layer(fw.ones(2, 6, 1, 1))


@on_each_device
def test_layer_norm():
    x = RNG.standard_normal((2, 3, 4))
    layer = L.LayerNorm((3, 4))
    assert list(layer.state_dict()) == ["weight", "bias"]
    fill(layer.weight, 2)
    fill(layer.bias, 1)
    close(run(layer, x), standardised(x, (1, 2)) * 2 + 1)
    close(run(L.LayerNorm(4, eps=0.1), x), standardised(x, 2, 0.1))
    assert list(L.LayerNorm(4, bias=False).state_dict()) == ["weight"]
    assert list(L.LayerNorm(4, elementwise_affine=False).state_dict()) == []


@on_each_device
def test_rms_norm():
    x = RNG.standard_normal((2, 3, 4))
    layer = L.RMSNorm(4, eps=0.1)
    fill(layer.weight, [1, 2, 3, 4])
    close(run(layer, x), x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.1) * [1, 2, 3, 4])
    # eps None: the dtype's own epsilon
    tiny = np.full((1, 4), 1e-8)
    close(run(L.RMSNorm(4), tiny), tiny / np.sqrt(1e-16 + np.finfo("float64").eps))


@on_each_device
def test_group_norm():
    x = RNG.standard_normal((2, 4, 5))
    layer = L.GroupNorm(2, 4)
    fill(layer.weight, [1, 2, 3, 4])
    expected = standardised(x.reshape(2, 2, 10), 2).reshape(2, 4, 5)
    close(run(layer, x), expected * host(layer.weight)[:, None])
    with pytest.raises(ValueError, match=r"shape \(2, 6\), expected \(N, 4, ...\)"):
        layer(fw.ones(2, 6, dtype="float64"))


@pytest.mark.parametrize(
    ("kind", "shape", "letters"),
    [(L.InstanceNorm1d, (2, 3, 5), "L"), (L.InstanceNorm2d, (2, 3, 4, 5), "H, W")],
)
@on_each_device
def test_instance_norm(kind, shape, letters):
    x = RNG.standard_normal(shape) * 3 + 1
    axes = tuple(range(2, len(shape)))
    layer = kind(3, 0.1)
    assert list(layer.state_dict()) == []
    close(run(layer, x), standardised(x, axes, 0.1))
    close(run(layer.eval(), x), standardised(x, axes, 0.1))
    layer = kind(3, affine=True)
    fill(layer.weight, [1, 2, 3])
    fill(layer.bias, [4, 5, 6])
    weight, bias = (host(p).reshape(3, *(1 for _ in axes)) for p in (layer.weight, layer.bias))
    close(run(layer, x), standardised(x, axes) * weight + bias)
    assert repr(layer) == f"{kind.__name__}(3, eps=1e-05, affine=True)"
    for wrong in (x[0], x[:, :2]):
        message = rf"{kind.__name__}: input has shape .*, expected \(N, 3, {letters}\)"
        with pytest.raises(ValueError, match=message):
            layer(fw.tensor(wrong))


# Dropout and embedding --------------------------------------------------------------------------


@on_each_device
def test_dropout():
    layer = L.Dropout(0.25)
    x = fw.ones(200, 200)
    y = host(layer(x))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert (host(layer(x)) != y).any()
    assert layer.eval()(x) is x


@on_each_device
def test_embedding():
    layer = L.Embedding(5, 3, padding_idx=0)
    ids = np.array([[1, 4], [0, 1]])
    y = layer(moved(ids))
    np.testing.assert_array_equal(host(y), host(layer.weight)[ids])
    y.sum().backward()
    np.testing.assert_array_equal(host(layer.weight.grad)[:, 0], [0, 2, 0, 0, 1])


# Gradients through the parameters ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: L.Linear(3, 2), [(4, 3)]),
        (lambda: L.Bilinear(3, 2, 2), [(4, 3), (4, 2)]),
        (lambda: L.PReLU(3), [(4, 3)]),
        (lambda: L.BatchNorm1d(3), [(4, 3)]),
        (lambda: L.LayerNorm(3), [(4, 3)]),
        (lambda: L.RMSNorm(3), [(4, 3)]),
        (lambda: L.GroupNorm(1, 3), [(4, 3)]),
        (lambda: L.InstanceNorm1d(3, affine=True), [(2, 3, 4)]),
        (lambda: L.InstanceNorm2d(2), [(2, 2, 2, 3)]),
        (lambda: L.SwiGLU(), [(4, 6)]),
    ],
    ids=lambda v: "" if isinstance(v, list) else None,
)
@on_each_device
def test_gradients(make, shapes):
    layer = here(make())
    inputs = [moved(RNG.standard_normal(s)).requires_grad_() for s in shapes]
    everything = [*inputs, *layer.parameters()]
    assert fw.gradcheck(lambda *_: layer(*inputs), everything, rtol=1e-4, atol=1e-6)


# Bad arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.Linear(0, 2), "Linear: in_features=0, expected an integer of at least 1"),
        (lambda: L.Linear(2, 2.5), "Linear: out_features=2.5"),
        (lambda: L.Linear(True, 2), "Linear: in_features=True"),
        (lambda: L.Bilinear(2, -1, 2), "Bilinear: in2_features=-1"),
        (lambda: L.PReLU(0), "PReLU: num_parameters=0"),
        (lambda: L.CELU(0), "CELU: alpha=0"),
        (lambda: L.Softplus(0), "Softplus: beta=0"),
        (lambda: L.GELU("fast"), "GELU: approximate='fast', expected one of none, tanh"),
        (lambda: L.Hardtanh(1, 1), "Hardtanh: min_val=1 is not below max_val=1"),
        (lambda: L.BatchNorm1d(3, eps=-1), "BatchNorm1d: eps=-1, expected a number at least 0"),
        (lambda: L.BatchNorm1d(3, momentum=2), "BatchNorm1d: momentum=2, .* from 0 to 1"),
        (lambda: L.LayerNorm(()), r"LayerNorm: normalized_shape=\(\)"),
        (lambda: L.LayerNorm((3, 0)), "LayerNorm: normalized_shape=0"),
        (lambda: L.RMSNorm(4, eps="x"), "RMSNorm: eps='x'"),
        (lambda: L.GroupNorm(3, 4), "num_channels=4 is not a multiple of num_groups=3"),
        (lambda: L.InstanceNorm1d(0), "InstanceNorm1d: num_features=0"),
        (lambda: L.InstanceNorm2d(3, eps=-1), "InstanceNorm2d: eps=-1"),
        (lambda: L.Dropout(1.5), "Dropout: p=1.5, expected a number from 0 to 1"),
        (lambda: L.Dropout(float("nan")), "Dropout: p=nan"),
        (lambda: L.Embedding(0, 3), "Embedding: num_embeddings=0"),
        (lambda: L.Embedding(4, 3, padding_idx=4), "padding_idx=4, expected -4 to 3"),
        (lambda: L.CrossEntropyLoss(reduction="avg"), "CrossEntropyLoss: reduction='avg'"),
        (lambda: L.CrossEntropyLoss(label_smoothing=2), "label_smoothing=2"),
        (lambda: L.HuberLoss(delta=0), "HuberLoss: delta=0"),
        (lambda: L.SmoothL1Loss(beta=-1), "SmoothL1Loss: beta=-1"),
        (lambda: L.BCEWithLogitsLoss(pos_weight=-1), "pos_weight=-1"),
        (lambda: L.MSELoss("batchmean"), "MSELoss: reduction='batchmean'"),
    ],
)
def test_bad_arguments_show_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_softmax_needs_an_axis_number():
    with pytest.raises(TypeError, match="Softmax: dim='last'"):
        L.Softmax("last")


# Losses -----------------------------------------------------------------------------------------

T = RNG.standard_normal((4, 6))
CLASSES = np.array([1, 0, 5, 3])
LOGP = np.log(softmax(X, 1))
W = RNG.uniform(0.5, 2, 6)
P = softmax(T, 1)
SIGNS = np.sign(T)
D = np.abs(X - T)


def bce(pos_weight):
    t = (T > 0) * 1.0
    return -(pos_weight * t * np.log(sigmoid(X)) + (1 - t) * np.log(sigmoid(-X)))


@pytest.mark.parametrize(
    ("loss", "x", "target", "each"),
    [
        (L.CrossEntropyLoss, X, CLASSES, -LOGP[range(4), CLASSES]),
        (L.NLLLoss, LOGP, CLASSES, -LOGP[range(4), CLASSES]),
        (L.MSELoss, X, T, D**2),
        (L.L1Loss, X, T, D),
        (L.HuberLoss, X, T, np.where(D <= 1, D**2 / 2, D - 0.5)),
        (L.SmoothL1Loss, X, T, np.where(D < 1, D**2 / 2, D - 0.5)),
        (L.BCEWithLogitsLoss, X, (T > 0) * 1.0, bce(1)),
        (L.KLDivLoss, LOGP, P, P * (np.log(P) - LOGP)),
        (L.HingeLoss, X, SIGNS, np.maximum(0, 1 - SIGNS * X)),
    ],
)
@on_each_device
def test_losses_and_their_reductions(loss, x, target, each):
    close(run(loss(reduction="none"), x, target), each)
    close(run(loss(reduction="sum"), x, target), each.sum())
    close(run(loss(), x, target), each.mean())


@on_each_device
def test_loss_options():
    weighted = -W[CLASSES] * LOGP[range(4), CLASSES]
    weight = moved(W)
    close(run(L.CrossEntropyLoss(weight), X, CLASSES), weighted.sum() / W[CLASSES].sum())
    close(run(L.NLLLoss(weight, reduction="sum"), LOGP, CLASSES), weighted.sum())
    ignored = np.array([1, 0, 2, 2])
    kept = -LOGP[[0, 1], [1, 0]].mean()
    close(run(L.CrossEntropyLoss(ignore_index=2), X, ignored), kept)
    close(run(L.NLLLoss(ignore_index=2), LOGP, ignored), kept)
    smooth = 0.9 * -LOGP[range(4), CLASSES] + 0.1 * -LOGP.mean(axis=1)
    close(run(L.CrossEntropyLoss(label_smoothing=0.1), X, CLASSES), smooth.mean())
    close(run(L.HuberLoss(delta=0.5), X, T), np.where(D <= 0.5, D**2 / 2, 0.5 * D - 0.125).mean())
    close(run(L.SmoothL1Loss(beta=0.5), X, T), np.where(D < 0.5, D**2, D - 0.25).mean())
    close(run(L.BCEWithLogitsLoss(pos_weight=3.0), X, (T > 0) * 1.0), bce(3).mean())
    close(run(L.BCEWithLogitsLoss(weight), X, (T > 0) * 1.0), (W * bce(1)).mean())
    divergence = (P * (np.log(P) - LOGP)).sum() / 4
    close(run(L.KLDivLoss("batchmean"), LOGP, P), divergence)
    close(run(L.KLDivLoss("batchmean", log_target=True), LOGP, np.log(P)), divergence)
    close(run(L.HingeLoss(margin=2.0), X, SIGNS), np.maximum(0, 2 - SIGNS * X).mean())


def test_loss_weights_move_with_the_loss_and_are_shown():
    loss = L.CrossEntropyLoss(fw.ones(3), label_smoothing=0.1)
    assert list(loss.state_dict()) == ["weight"]
    assert loss.to("float64").weight.dtype == np.float64
    text = "CrossEntropyLoss(reduction='mean', ignore_index=-100, label_smoothing=0.1)"
    assert repr(loss) == text


def test_a_loss_module_equals_the_function():
    x, t = fw.tensor(X), fw.tensor(CLASSES)
    np.testing.assert_array_equal(L.CrossEntropyLoss()(x, t).data, F.cross_entropy(x, t).data)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_does_what_follows_it(training):
    x, shortcut = (fw.tensor(RNG.normal(size=(4, 3, 5, 5)).astype(np.float32)) for _ in "ab")
    plain, fused = L.BatchNorm2d(3).train(training), L.BatchNorm2d(3).train(training)
    want = F.relu(plain(x) + shortcut)
    got = fused(x, "relu", shortcut)
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-5, atol=1e-6)
    for name, buffer in plain.named_buffers():
        np.testing.assert_allclose(dict(fused.named_buffers())[name].numpy(), buffer.numpy())
