"""A wrong argument of a Trainer is named together with its value, before anything has moved."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from framework import layers, optimizers, trainer as package
from framework.data import ArrayDataset, DataLoader
from framework.functional import cross_entropy
from framework.optimizers import EMA
from framework.trainer import (
    Accuracy,
    EarlyStopping,
    ModelCheckpoint,
    Progress,
    Trainer,
    find_batch_size,
    find_lr,
)

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def make_trainer(**options):
    model = layers.Linear(5, 2)
    arguments = {
        "model": model,
        "loss": cross_entropy,
        "optimizer": optimizers.AdamW(model.parameters()),
    }
    return Trainer(**{**arguments, **options})


WRONG = [
    ("ema", 0.99, "ema is 0.99, expected an EMA or None"),
    ("ema", EMA, "ema is the class EMA, expected an EMA or None"),
    ("metrics", ["accuracy"], "metrics[0] is 'accuracy', expected a Metric, such as Accuracy()"),
    ("metrics", [Accuracy], "metrics[0] is the class Accuracy, expected a Metric"),
    ("metrics", Accuracy(), "metrics is an Accuracy, expected a list of Metric objects"),
    ("metrics", "accuracy", "metrics is 'accuracy', expected a list"),
    ("callbacks", [Progress], "callbacks[0] is the class Progress, expected a Callback"),
    ("callbacks", Progress(), "callbacks is a Progress, expected a list of Callback objects"),
    ("schedule", "cosine", "schedule is 'cosine', expected a function schedule(step)"),
    ("schedule", 0.1, "schedule is 0.1, expected a function schedule(step)"),
    ("clip_norm", "1", "clip_norm is '1', expected a positive number or None"),
    ("clip_value", [1.0], "clip_value is a list, expected a positive number or None"),
    ("clip_value", True, "clip_value is True, expected a positive number or None"),
    ("optimizer", "adam", "optimizer is 'adam', expected an Optimizer"),
    ("optimizer", optimizers.Adam, "the class Adam, expected an Optimizer: call it, Adam(...)"),
    ("loss", "cross_entropy", "loss is 'cross_entropy', expected a function loss(output, target)"),
    ("loss", layers.CrossEntropyLoss, "loss is the class CrossEntropyLoss, expected a function"),
    ("model", layers.Linear, "model is the class Linear, expected a Module"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_argument_is_named_with_its_value(name, value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make_trainer(**{name: value})


def test_loss_and_optimizer_in_each_others_place():
    model = layers.Linear(5, 2)
    with pytest.raises(TypeError, match=r"loss is an AdamW, .*seem swapped"):
        Trainer(model, optimizers.AdamW(model.parameters()), cross_entropy)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_of_gradients_is_positive(limit):
    with pytest.raises(ValueError, match="clip_value is .*, expected a positive number"):
        make_trainer(clip_value=limit)


def test_numpys_numbers_are_numbers():
    assert make_trainer(clip_norm=np.float32(1), clip_value=np.int64(2)).clip_norm == 1


NO_LOADERS = [
    (ArrayDataset(X, Y), r"an ArrayDataset, .*: DataLoader\(data, batch_size=64\)"),
    (X, r"an array of shape \(8, 5\), .*: DataLoader\(ArrayDataset\(x, y\), batch_size=64\)"),
    ((X, Y), "arrays in a tuple, expected a DataLoader or batches"),
    (X.tolist(), "numbers in a list, expected a DataLoader or batches"),
    (3, "3, expected a DataLoader or batches"),
    ({"train": [(X, Y)]}, "a dict, expected a DataLoader or batches"),
]


@pytest.mark.parametrize(("data", "message"), NO_LOADERS)
def test_data_without_batches_is_no_loader(data, message):
    trainer, good = make_trainer(), DataLoader(ArrayDataset(X, Y), 4)
    before = trainer.model.weight.detach().numpy().copy()
    with pytest.raises(TypeError, match="train_loader is " + message):
        trainer.fit(data, Y)
    with pytest.raises(TypeError, match=r"validation\['test'\] is " + message):
        trainer.fit(good, {"test": data})
    for use in (trainer.evaluate, partial(find_lr, trainer), partial(find_batch_size, trainer)):
        with pytest.raises(TypeError, match="^loader is " + message):
            use(data)
    np.testing.assert_array_equal(trainer.model.weight.detach().numpy(), before)


def test_an_array_as_validation():
    with pytest.raises(TypeError, match=r"validation is arrays in a list"):
        make_trainer().fit(DataLoader(ArrayDataset(X, Y), 4), [X, Y])


def test_an_optimizer_of_a_model():
    net = layers.Linear(5, 2)
    with pytest.raises(TypeError, match=r"\(Linear\), expected parameters: net.parameters\(\)"):
        optimizers.AdamW(net)
    with pytest.raises(TypeError, match=r"expected tensors or groups: net.parameters\(\)"):
        optimizers.AdamW(net.parameters)


def test_a_monitor_is_a_name(tmp_path):
    with pytest.raises(TypeError, match="monitor is 5, expected a score's name"):
        EarlyStopping(5)
    with pytest.raises(TypeError, match="monitor is 5"):
        ModelCheckpoint(tmp_path, monitor=5)


def test_an_optimizer_or_average_of_another_model_is_refused():
    other = layers.Linear(5, 2)
    with pytest.raises(ValueError, match=r"optimizer \(SGD\) has another .*\(Linear\)"):
        make_trainer(optimizer=optimizers.SGD(other.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"ema \(EMA\) has another model's parameters"):
        make_trainer(ema=EMA(other))


def test_parameters_that_the_optimizer_has_not_are_frozen():
    model = layers.Sequential(layers.Linear(5, 4), layers.Linear(4, 2))
    before = [p.detach().numpy().copy() for p in model.parameters()]
    head = optimizers.SGD(model[1].parameters(), lr=0.1)
    make_trainer(model=model, optimizer=head).fit(DataLoader(ArrayDataset(X, Y), 4))
    after = [p.detach().numpy() for p in model.parameters()]
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, False]


def test_the_package_names_everything_once():
    assert len(set(package.__all__)) == len(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
