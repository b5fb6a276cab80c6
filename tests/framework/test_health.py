"""What goes wrong numerically is named: NaN with its layer and kernel, gradients, dead units."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers
from framework.autograd import tensor
from framework.data import ArrayDataset, DataLoader, StreamSampler, Windows
from framework.functional import cross_entropy, mse_loss
from framework.layers.carry import carries
from framework.trainer import Accuracy, Callback, Health, NonFiniteError, TerminateOnNaN, Trainer
from framework.trainer.language import token_loss
from models import build

# NumPy's own arithmetic tells of it too
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def loader(x=X):
    return DataLoader(ArrayDataset(x, Y), 8, device="cpu")


class Layer(layers.Module):
    """What a function does to the output of a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = layers.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.linear(x))


def fit(model, loss=cross_entropy, callbacks=(), x=X, epochs=1, lr=0.1, **options):
    optimizer = optimizers.SGD(model.parameters(), lr=lr)
    trainer = Trainer(model, loss, optimizer, callbacks=callbacks, **options)
    trainer.fit(loader(x), epochs=epochs)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_step_is_in_no_sum(accumulate):
    x, kept = X.copy(), []
    x[40] = np.nan  # in the sixth batch

    class Keep(Callback):
        def on_step_start(self, trainer):
            kept.append(trainer.state_dict()["gathered"])

    model = layers.Linear(4, 2)
    trainer = Trainer(
        model, cross_entropy, optimizers.SGD(model.parameters(), lr=0.1), metrics=[Accuracy()],
        callbacks=[Keep(), TerminateOnNaN()], accumulate=accumulate,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        trainer.fit(loader(x))
    after = trainer.state_dict()["gathered"]
    assert after["samples"] == {1: 40, 2: 32}[accumulate]
    assert {**after, "seconds": 0} == {**kept[-1], "seconds": 0}


def test_layer_and_kernel_of_a_nan_in_the_forward_pass():
    model = layers.Sequential(layers.Linear(4, 4), Layer(lambda x: x), layers.Linear(4, 2))
    model[1].linear.weight.data[...] = 3e38
    with pytest.raises(
        NonFiniteError,
        match=r"layer with such an output is 1\.linear \(Linear.*, made by the kernel \w+",
    ):
        fit(model, callbacks=[TerminateOnNaN()])
    model = layers.Sequential(layers.Linear(4, 4), Layer(lambda x: x / (x - x)))
    with pytest.raises(NonFiniteError, match=r"such an output is 1 \(Layer\)\. The weights"):
        fit(model, callbacks=[TerminateOnNaN()])  # array maths, no kernel


def test_the_kernel_of_a_nan_in_the_loss():
    def loss(output, target):
        return mse_loss(output * np.float32(1e30), output.detach())

    with pytest.raises(
        NonFiniteError, match="the loss is inf; every layer's output is finite.*kernel mse"
    ):
        fit(layers.Linear(4, 2), loss, [TerminateOnNaN()])


def test_the_operation_of_a_nan_in_the_backward_pass():
    model = layers.Sequential(Layer(lambda x: (x - x).sqrt() + x), layers.Linear(4, 2))
    with pytest.raises(
        NonFiniteError,
        match=r"the gradient of 0\.linear\.weight is not finite; every layer's output is finite, "
        r"so the loss function or a gradient made it: the first one in the backward pass of "
        r"sqrt of 0 \(Layer",
    ):
        fit(model, callbacks=[TerminateOnNaN()])


def test_the_step_is_run_again_with_the_same_dropout():
    """The NaN comes with some masks only."""
    fw.manual_seed(1)

    def spoil(x):
        dropped = (x.data[:, 0] == 0).all()
        return x / (x - x) if dropped else x

    class Spoil(layers.Module):
        def forward(self, x):
            return spoil(x)

    model = layers.Sequential(layers.Linear(4, 4), layers.Dropout(0.7), Spoil())
    with pytest.raises(NonFiniteError, match="first layer with such an output is 2"):
        trainer = Trainer(
            model, cross_entropy, optimizers.SGD(model.parameters(), lr=0.0),
            callbacks=[TerminateOnNaN()],
        )  # fmt: skip
        batches = DataLoader(ArrayDataset(X, Y), 2, device="cpu")
        trainer.fit(batches, epochs=20)


def test_a_batch_that_is_left_out_leaves_no_state_behind():
    class Spoil(Callback):
        """The third window meets an embedding of NaN."""

        def on_step_start(self, trainer):
            weight = dict(trainer.model.named_parameters())["embedding.weight"].data
            if trainer.step + trainer.skipped == 2:
                self.kept = weight.copy()
                weight[...] = np.nan
            elif trainer.skipped:
                weight[...] = self.kept
                self.on_step_start = lambda trainer: None

    ids = RNG.integers(0, 5, 400)
    sampler = StreamSampler(len(ids), 10, 4)
    model = build("charlstm", vocabulary=5, hidden=8)
    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    callbacks = [Spoil(), TerminateOnNaN(skip=True)]
    trainer = Trainer(model, token_loss, optimizer, callbacks=callbacks)
    windows = Windows(ids, 10, sampler.length)
    trainer.fit(DataLoader(windows, 4, sampler=sampler, device="cpu"))
    assert (trainer.step, trainer.skipped) == (8, 1)
    assert all(np.isfinite(a).all() for carry in carries(model) for a in carry.kept())


def test_bad_batches_are_left_out_and_counted(caplog):
    x = X.copy()
    x[20, 1] = np.nan  # of the third batch
    x[45, 2] = np.inf  # of the sixth

    def model():
        fw.manual_seed(0)
        return layers.Sequential(layers.Linear(4, 6), layers.BatchNorm1d(6), layers.Linear(6, 2))

    mine = model()
    trainer = fit(mine, callbacks=[TerminateOnNaN(skip=True)], x=x, metrics=[Accuracy()])
    assert (trainer.step, trainer.skipped) == (6, 2)
    assert trainer.metrics[0].state_dict()["mean"]["weight"] == 48
    assert trainer.history[0]["skipped"] == 2
    assert caplog.text.count("the batch itself has values that are not finite") == 1
    other = model()
    good = [b for i, b in enumerate(loader()) if i not in (2, 5)]
    reference = Trainer(other, cross_entropy, optimizers.SGD(other.parameters(), lr=0.1))
    reference.fit(good)
    assert trainer.history[0]["loss"] == reference.history[0]["loss"]
    pairs = zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(a.data.tobytes() == b.data.tobytes() for a, b in pairs)
    with pytest.raises(ValueError, match="all 8 batches of the epoch were left out"):
        fit(model(), callbacks=[TerminateOnNaN(skip=True)], x=np.full_like(X, np.nan))


def test_exploding_gradients():
    class Enlarge(Callback):
        def on_epoch_start(self, trainer):
            if trainer.epoch == 1:
                trainer.model.weight.data[...] *= 1e4

    health = Health(every=1)
    fit(layers.Linear(4, 1), lambda o, t: mse_loss(o[:, 0], t.to("float32")), [Enlarge(), health],
        epochs=2, lr=1e-6)  # fmt: skip
    assert [r for r in health.reports if "the gradients explode: their norm is" in r]


def test_vanishing_gradients():
    model = layers.Sequential(layers.Linear(4, 6), Layer4(), layers.Linear(6, 2))
    health = Health(every=1)
    fit(model, callbacks=[health])
    assert any("the gradient of 0.weight vanishes: it is" in r for r in health.reports)
    assert len([r for r in health.reports if "0.weight vanishes" in r]) == 1


class Layer4(layers.Module):
    def forward(self, x):
        return x * np.float32(1e-9) + 1


@pytest.mark.parametrize(
    ("activation", "shift", "dead"),
    [(layers.ReLU, -1e3, True), (layers.Tanh, 1e3, True), (layers.Sigmoid, -1e3, True),
     (layers.ReLU, 0, False), (layers.Tanh, 0, False), (layers.GELU, 0, False)],
)  # fmt: skip
def test_dead_units(activation, shift, dead):
    fw.manual_seed(0)
    model = layers.Sequential(layers.Linear(4, 8), activation(), layers.Linear(8, 2))
    model[0].bias.data[:3] = shift
    health = Health(every=1)
    fit(model, callbacks=[health], lr=0.0)
    found = [r for r in health.reports if "3 of 8 units of 1 are dead" in r]
    assert len(found) == dead
    assert model.training
    assert not any(m.has_hooks for m in model.modules())


def test_a_healthy_run_has_nothing_to_report_and_is_the_same_run():
    def run(*callbacks):
        fw.manual_seed(0)
        model = layers.Sequential(
            layers.Linear(4, 16), layers.BatchNorm1d(16), layers.ReLU(), layers.Dropout(0.2),
            layers.Linear(16, 2),
        )  # fmt: skip
        return fit(model, callbacks=callbacks, epochs=4)

    health = Health(every=1)
    a, b = run(), run(health, TerminateOnNaN())
    assert health.reports == []
    assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history]
    with pytest.raises(ValueError, match="every is 0"):
        Health(every=0)
    with pytest.raises(ValueError, match="every is 2, expected 1 with skip"):
        TerminateOnNaN(every=2, skip=True)


def test_a_mixed_precision_suspect():
    fw.manual_seed(0)
    model = layers.Sequential(layers.Linear(4, 4), Layer(lambda x: x * 1e38 * 1e38))
    trainer = Trainer(
        model, cross_entropy, optimizers.SGD(model.parameters(), lr=0.1),
        callbacks=[TerminateOnNaN()], precision="bf16-mixed",
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"such an output is 1 "):
        trainer.fit([(tensor(X), tensor(Y))])
