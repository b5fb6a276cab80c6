"""What is trained: settings, common weights, and the two models of each task."""

import numpy as np
import pytest

from bench import machine, training
from bench.training_tasks import TASKS, BadSetting

MLP = TASKS["mlp"]


def test_settings_are_read_as_the_fields_they_change():
    task = MLP.with_settings({"widths": "64-32-10", "lr": "0.01", "seed": "0"})
    assert (task.widths, task.lr, task.seed) == ((64, 32, 10), 0.01, 0)
    assert task.title == "MLP 64-32-10"
    assert MLP.widths == (784, 512, 256, 10)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bacth", "64", r"--set bacth=64: no such setting; did you mean batch\?"),
        ("hidden", "64", r"no such setting; there are batch, lr, batches, seed, widths"),
        ("batch", "many", r"--set batch=many: expected a value like 128"),
        ("batch", "0", r"--set batch=0: expected a value like 128"),
        ("widths", "784-x", r"--set widths=784-x: expected a value like 784-512-256-10"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(name, value, message):
    with pytest.raises(BadSetting, match=message):
        MLP.with_settings({name: value})


def test_weights_depend_on_seed_and_name_alone():
    first, again = MLP.weight("a.weight", (64, 32)), MLP.weight("a.weight", (64, 32))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert first.std() == pytest.approx((2 / 32) ** 0.5, rel=0.1)
    assert not np.array_equal(first, MLP.weight("b.weight", (64, 32)))
    assert MLP.weight("norm.weight", (3,)).tolist() == [1, 1, 1]
    assert MLP.weight("norm.bias", (3,)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", TASKS)
def test_both_models_have_the_same_parameters(name):
    pytest.importorskip("torch")
    task = TASKS[name]
    ours, theirs = (
        {n: tuple(p.shape) for n, p in model.named_parameters()}
        for model in (task.our_model(), task.torch_model())
    )
    assert ours == theirs


@pytest.mark.parametrize("name", TASKS)
def test_data_fills_whole_batches_and_is_the_same_at_every_call(name):
    task = TASKS[name].with_settings({"batch": "2", "batches": "2"})
    (x, y), again = task.data(), task.data()
    assert len(x) == len(y) == 4
    np.testing.assert_array_equal(x, again[0])
    np.testing.assert_array_equal(y, again[1])
    assert task.images == (x.ndim == 4)


class Side:
    """A worker with a model of its own."""

    shapes = {"ours": {"w": (2, 3), "b": (2,)}, "torch": {"w": (3, 2), "b": (2,)}}

    def __init__(self, name, *_, **__):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, request, *_):
        return {"parameters": self.shapes[self.name]} if request == "prepare" else [1.0]


def test_two_networks_are_no_comparison():
    message = r"ours and torch have other parameters: w \(2, 3\) and \(3, 2\)"
    with pytest.raises(training.ParametersDiffer, match=message):
        training.run("mlp", MLP, ["torch"], 0.1, 3, start=Side)


def test_a_compiler_is_looked_for(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not machine.has_compiler()
