"""Layers, losses, optimizers, schedules against PyTorch, where it is installed (extra "bench")."""

import numpy as np
import pytest

import framework as fw
from framework import layers as L, optimizers as O
from framework.optimizers import schedules

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')

RNG = np.random.default_rng(3)
NN = torch.nn


def named(value):
    """Names stand in the test's id, arguments do not."""
    return value if isinstance(value, str) else ""


def both(ours, theirs, *inputs, rtol=1e-9):
    """Give ours the weights of theirs; outputs and gradients of both, in float64."""
    ours.to("float64")
    theirs.double()
    ours.load_state_dict(theirs.state_dict())
    xs = [fw.tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
    ts = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
    y, z = ours(*xs), theirs(*ts)
    dy = RNG.standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    pairs = [(y.data, z.detach())]
    pairs += [(a.grad.data, b.grad) for a, b in zip(xs, ts, strict=True) if a.requires_grad]
    weights = dict(theirs.named_parameters())
    pairs += [(p.grad.data, weights[name].grad) for name, p in ours.named_parameters()]
    pairs += [(b.data, dict(theirs.named_buffers())[n]) for n, b in ours.named_buffers()]
    for a, b in pairs:
        np.testing.assert_allclose(a, np.asarray(b), rtol=rtol, atol=1e-10)


X2, X3 = RNG.standard_normal((5, 6)), RNG.standard_normal((4, 6, 8))

LAYERS = [
    ("Linear", (6, 3), X2),
    ("Linear", (8, 3, False), X3),
    ("BatchNorm1d", (6,), X2),
    ("BatchNorm1d", (6, 1e-3, None), X3),
    ("BatchNorm1d", (6, 1e-3, 0.3, False, False), X3),
    ("LayerNorm", (8,), X3),
    ("LayerNorm", ((6, 8), 1e-3), X3),
    ("LayerNorm", (8, 1e-3, True, False), X3),
    ("RMSNorm", (8,), X3),
    ("RMSNorm", ((6, 8), 0.1), X3),
    ("GroupNorm", (3, 6), X3),
    ("InstanceNorm1d", (6, 0.1), X3),
    ("InstanceNorm2d", (6,), X3.reshape(4, 6, 2, 4)),
    ("Flatten", (), X3),
    ("Identity", (), X3),
    ("Sigmoid", (), X3),
    ("Tanh", (), X3),
    ("ReLU", (), X3),
    ("ReLU6", (), X3 * 5),
    ("LeakyReLU", (0.2,), X3),
    ("PReLU", (6,), X3),
    ("ELU", (1.5,), X3),
    ("SELU", (), X3),
    ("CELU", (1.5,), X3),
    ("GELU", (), X3),
    ("GELU", ("tanh",), X3),
    ("SiLU", (), X3),
    ("Mish", (), X3),
    ("Softplus", (2.0, 3.0), X3),
    ("Softsign", (), X3),
    ("Hardsigmoid", (), X3 * 4),
    ("Hardswish", (), X3 * 4),
    ("Hardtanh", (-0.5, 0.8), X3),
    ("LogSigmoid", (), X3),
    ("GLU", (1,), X3),
    ("Softmax", (1,), X3),
    ("LogSoftmax", (1,), X3),
    ("Embedding", (7, 3, 2), RNG.integers(0, 7, (4, 5))),
]


X4 = RNG.standard_normal((2, 4, 7, 6))
X5 = RNG.standard_normal((2, 2, 4, 5, 3))

CONVOLUTIONS = [
    ("Conv1d", (6, 4, 3), {"padding": 1, "stride": 2}, X3),
    ("Conv1d", (6, 4, 4), {"padding": "same", "groups": 2, "bias": False}, X3),
    ("Conv2d", (4, 6, 3), {"padding": 1}, X4),
    ("Conv2d", (4, 6, 1), {"stride": 2}, X4),
    ("Conv2d", (4, 8, 3), {"padding": 1, "groups": 4}, X4),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)}, X4),
    ("Conv2d", (4, 6, (4, 3)), {"padding": "same", "padding_mode": "reflect"}, X4),
    ("Conv2d", (4, 6, 3), {"padding": 2, "padding_mode": "replicate"}, X4),
    ("Conv2d", (4, 6, 3), {"padding": (2, 3), "padding_mode": "circular"}, X4),
    ("Conv2d", (4, 6, 3), {"padding": "valid"}, X4[0]),
    ("Conv3d", (2, 3, (2, 3, 2)), {"padding": 1, "stride": (1, 2, 1)}, X5),
    ("ConvTranspose1d", (6, 4, 3), {"stride": 3, "output_padding": 1}, X3),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}, X4),
    ("ConvTranspose2d", (4, 6, (3, 2)), {"groups": 2, "dilation": (1, 2), "padding": 1}, X4[0]),
    ("ConvTranspose3d", (2, 3, 2), {"stride": 2, "bias": False}, X5),
]


@pytest.mark.parametrize(("name", "args", "options", "x"), CONVOLUTIONS, ids=named)
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own
def test_convolutions(name, args, options, x):
    both(getattr(L, name)(*args, **options), getattr(NN, name)(*args, **options), x)


def test_the_output_size_of_a_transposed_convolution():
    ours, theirs = L.ConvTranspose2d(4, 3, 3, 2), NN.ConvTranspose2d(4, 3, 3, 2)
    x = np.float32(X4)
    y = ours(fw.tensor(x), output_size=(16, 13))
    assert y.shape == tuple(theirs(torch.tensor(x), output_size=(16, 13)).shape)


@pytest.mark.parametrize(("name", "args", "x"), LAYERS, ids=named)
def test_layers(name, args, x):
    if name == "GELU" and args:
        both(L.GELU(*args), NN.GELU(approximate=args[0]), x)
    else:
        # PyTorch's gradient of hardsigmoid has 1/6 in float32 in it, in float64 too
        rtol = 1e-7 if name == "Hardsigmoid" else 1e-9
        both(getattr(L, name)(*args), getattr(NN, name)(*args), x, rtol=rtol)


def test_bilinear():
    both(L.Bilinear(6, 4, 3), NN.Bilinear(6, 4, 3), X2, RNG.standard_normal((5, 4)))


def test_state_dicts_have_the_same_names_and_shapes():
    ours = L.Sequential(L.Linear(4, 3), L.BatchNorm1d(3), L.PReLU(), L.Embedding(3, 2))
    theirs = NN.Sequential(
        NN.Linear(4, 3), NN.BatchNorm1d(3), NN.PReLU(), NN.Embedding(3, 2)
    ).state_dict()
    mine = ours.state_dict()
    assert list(mine) == list(theirs)
    assert [x.shape for x in mine.values()] == [tuple(x.shape) for x in theirs.values()]
    back = {name: torch.from_dlpack(x) for name, x in mine.items()}
    NN.Sequential(
        NN.Linear(4, 3), NN.BatchNorm1d(3), NN.PReLU(), NN.Embedding(3, 2)
    ).load_state_dict(back)


CLASSES = np.array([1, 0, 5, 3, 3])
PROBABILITIES = np.exp(X2) / np.exp(X2).sum(axis=1, keepdims=True)
LOGP, TURNED = np.log(PROBABILITIES), PROBABILITIES[::-1].copy()
OTHER = RNG.standard_normal((5, 6))

LOSSES = [
    ("CrossEntropyLoss", {}, X2, CLASSES),
    ("CrossEntropyLoss", {"label_smoothing": 0.2, "ignore_index": 3}, X2, CLASSES),
    ("CrossEntropyLoss", {"label_smoothing": 0.2, "reduction": "sum"}, X2, PROBABILITIES),
    ("NLLLoss", {}, LOGP, CLASSES),
    ("MSELoss", {}, X2, OTHER),
    ("L1Loss", {"reduction": "sum"}, X2, OTHER),
    ("HuberLoss", {"delta": 0.7}, X2, OTHER),
    ("SmoothL1Loss", {"beta": 0.7}, X2, OTHER),
    ("BCEWithLogitsLoss", {}, X2, PROBABILITIES),
    ("KLDivLoss", {"reduction": "batchmean"}, LOGP, TURNED),
    (
        "KLDivLoss",
        {"log_target": True, "reduction": "sum"},
        LOGP,
        np.log(TURNED),
    ),
]


@pytest.mark.parametrize(("name", "options", "x", "target"), LOSSES, ids=named)
def test_losses(name, options, x, target):
    a, b = fw.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    loss = getattr(L, name)(**options)(a, fw.tensor(target))
    expected = getattr(NN, name)(**options)(b, torch.tensor(target))
    loss.backward()
    expected.backward()
    np.testing.assert_allclose(loss.data, expected.detach(), rtol=1e-10)
    np.testing.assert_allclose(a.grad.data, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_class_weights(name):
    weight = RNG.uniform(0.5, 2, 6)
    ours = getattr(L, name)(fw.tensor(weight))(fw.tensor(LOGP), fw.tensor(CLASSES))
    theirs = getattr(NN, name)(torch.tensor(weight))(torch.tensor(LOGP), torch.tensor(CLASSES))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)


OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.7), "weight_decay": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=named)
def test_training_takes_the_same_course(name, options):
    theirs = NN.Sequential(NN.Linear(6, 8), NN.Tanh(), NN.Linear(8, 3)).double()
    ours = L.Sequential(L.Linear(6, 8), L.Tanh(), L.Linear(8, 3)).to("float64")
    ours.load_state_dict(theirs.state_dict())
    a = getattr(O, name)(ours.parameters(), **options)
    b = getattr(torch.optim, name)(theirs.parameters(), **options)
    for _ in range(20):
        x, t = RNG.standard_normal((9, 6)), RNG.integers(0, 3, 9)
        a.zero_grad()
        b.zero_grad()
        loss = L.CrossEntropyLoss()(ours(fw.tensor(x)), fw.tensor(t))
        expected = NN.CrossEntropyLoss()(theirs(torch.tensor(x)), torch.tensor(t))
        loss.backward()
        expected.backward()
        norm = O.clip_grad_norm_(a, 0.5)
        other = NN.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert float(norm) == pytest.approx(float(other), rel=1e-7)
        a.step()
        b.step()
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(
            ours.state_dict()[name].data, p.detach(), rtol=1e-6, atol=1e-8, err_msg=name
        )


T = torch.optim.lr_scheduler

SCHEDULES = [
    (schedules.step(5, 0.5), lambda o: T.StepLR(o, 5, 0.5)),
    (schedules.multistep([3, 9], 0.5), lambda o: T.MultiStepLR(o, [3, 9], 0.5)),
    (schedules.exponential(0.9), lambda o: T.ExponentialLR(o, 0.9)),
    (schedules.polynomial(12, 2.0), lambda o: T.PolynomialLR(o, 12, 2.0)),
    (schedules.cosine(20, 0.1), lambda o: T.CosineAnnealingLR(o, 20, 0.2)),
    (
        schedules.cosine_restarts(4, 2, 0.1),
        lambda o: T.CosineAnnealingWarmRestarts(o, 4, 2, 0.2),
    ),
    (schedules.linear_warmup(6, start=0.25), lambda o: T.LinearLR(o, 0.25, total_iters=6)),
    (schedules.one_cycle(20), lambda o: T.OneCycleLR(o, 2.0, total_steps=20)),
    (
        schedules.one_cycle(20, 0.4, 10, 100, "linear"),
        lambda o: T.OneCycleLR(
            o, 2.0, total_steps=20, pct_start=0.4, anneal_strategy="linear", div_factor=10,
            final_div_factor=100,
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "make"), SCHEDULES)
def test_schedules(ours, make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = make(optimizer)
    for step in range(20):
        rate = optimizer.param_groups[0]["lr"]
        assert 2.0 * ours(step) == pytest.approx(rate, rel=1e-9, abs=1e-12), step
        optimizer.step()
        if step < 19:
            theirs.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_reduce_on_plateau(mode, threshold_mode):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options = {"factor": 0.5, "patience": 2, "threshold": 0.05, "cooldown": 2}
    theirs = T.ReduceLROnPlateau(optimizer, mode, threshold_mode=threshold_mode, **options)
    ours = O.ReduceOnPlateau(mode, threshold_mode=threshold_mode, **options)
    for metric in RNG.uniform(0.5, 1.5, 60):
        ours.step(metric)
        theirs.step(metric)
        assert ours(0) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", ["tanh", "relu", "selu", "sigmoid", "linear", "leaky_relu"])
def test_gains(name):
    assert L.init.calculate_gain(name) == pytest.approx(NN.init.calculate_gain(name), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "args"), [("Linear", (300, 200)), ("Bilinear", (50, 40, 30)), ("Embedding", (300, 99))]
)
def test_default_initialisation_has_the_same_moments(name, args):
    ours, theirs = getattr(L, name)(*args), getattr(NN, name)(*args)
    for name, p in theirs.state_dict().items():
        x = ours.state_dict()[name].data
        n = x.size
        assert x.std() == pytest.approx(float(p.std()), rel=6 / n**0.5)
        assert abs(x.mean()) < 6 * float(p.std()) / n**0.5
