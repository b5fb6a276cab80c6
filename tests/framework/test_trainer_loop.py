"""The loop: it learns, accumulates exactly, evaluates without traces, refuses bad input."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers
from framework.data import ArrayDataset, DataLoader
from framework.functional import cross_entropy, mse_loss
from framework.trainer import Accuracy, Callback, TopK, Trainer

on_each_device = pytest.mark.usefixtures("device")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)


def make_model(seed=0, norm=True):
    fw.manual_seed(seed)
    middle = [layers.BatchNorm1d(8)] if norm else []
    return layers.Sequential(
        layers.Linear(5, 8), *middle, layers.ReLU(), layers.Dropout(0.1), layers.Linear(8, 2)
    )


def make_loader(batch_size=16, shuffle=True):
    return loader(ArrayDataset(X, Y), batch_size, shuffle=shuffle, seed=1)


def loader(dataset, batch_size, **options):
    """Batches on the device of the test."""
    return DataLoader(dataset, batch_size, device=fw.default_device(), **options)


def moved(array):
    """A tensor on the device of the test."""
    return fw.tensor(array, device=fw.default_device())


def host(t):
    """The values as NumPy's."""
    return t.detach().numpy()


def make_trainer(model=None, lr=0.05, **options):
    model = make_model() if model is None else model
    return Trainer(model, cross_entropy, optimizers.AdamW(model.parameters(), lr=lr), **options)


def weights(model):
    return {name: host(x).tobytes() for name, x in model.state_dict().items()}


@on_each_device
def test_it_learns_and_the_history_says_so():
    trainer = make_trainer(metrics=[Accuracy()])
    history = trainer.fit(make_loader(), validation=make_loader(shuffle=False), epochs=8)
    assert [record["epoch"] for record in history] == list(range(1, 9))
    assert history[-1]["step"] == 8 * 5
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["val_accuracy"] > 0.9
    assert history[-1]["samples_per_second"] > 0
    assert history is trainer.history


@on_each_device
def test_the_loss_is_the_mean_over_samples():
    model = make_model(norm=False).eval()
    trainer = make_trainer(model)
    expected = cross_entropy(model(moved(X)), moved(Y)).item()
    assert trainer.evaluate(make_loader(16))["loss"] == pytest.approx(expected, rel=1e-6)


@on_each_device
def test_a_mapping_names_its_validations():
    loaders = {"test": make_loader(), "other": make_loader()}
    record = make_trainer().fit(make_loader(), loaders)[0]
    assert {"test_loss", "other_loss"} <= set(record)


def small_gradients(accumulate, batch_size):
    """The gradients of the first epoch's steps with plain SGD and no dropout."""
    fw.manual_seed(0)
    model = layers.Sequential(layers.Linear(5, 8), layers.Tanh(), layers.Linear(8, 2)).to("float64")
    seen = []

    class Look(Callback):
        def on_gradients(self, trainer):
            seen.append(np.concatenate([host(p.grad).ravel() for p in model.parameters()]))

    data = loader(ArrayDataset(X.astype(np.float64), Y), batch_size)
    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, cross_entropy, optimizer, accumulate=accumulate, callbacks=[Look()])
    history = trainer.fit(data, epochs=2)
    return seen, history


@on_each_device
def test_accumulation_equals_the_big_batch_with_a_ragged_window():
    # 70 samples: windows of 3 x 8 = 24, 24, then 8 + 8 + 6 = 22
    many, history = small_gradients(3, 8)
    one, expected = small_gradients(1, 24)
    assert len(many) == len(one) == 6
    for a, b in zip(many, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in expected], rel=1e-12)


@on_each_device
def test_the_schedule_multiplies_the_learning_rate():
    seen = []

    class Look(Callback):
        def on_step_end(self, trainer):
            seen.append(trainer.optimizer.lr)

    make_trainer(lr=0.5, schedule=lambda step: 1 / (step + 1), callbacks=[Look()]).fit(
        make_loader()
    )
    assert seen == pytest.approx([0.5, 0.25, 0.5 / 3, 0.125, 0.1])


def test_reduce_on_plateau_is_told_the_validation_loss():
    schedule = optimizers.ReduceOnPlateau(patience=0, factor=0.5, threshold=1e9)
    trainer = make_trainer(lr=0.1, schedule=schedule)
    trainer.fit(make_loader(), make_loader(), epochs=3)
    assert schedule.multiplier == 0.25  # the first epoch is an improvement, two are not
    assert trainer.optimizer.lr == pytest.approx(0.05)  # as of the last step


@on_each_device
def test_clipping_limits_what_the_step_sees():
    norms, largest = [], []

    class Look(Callback):
        def on_gradients(self, trainer):
            grads = [host(p.grad) for p in trainer.model.parameters()]
            norms.append(np.sqrt(sum((g**2).sum() for g in grads)))
            largest.append(max(abs(g).max() for g in grads))

    make_trainer(clip_norm=1e-2, callbacks=[Look()]).fit(make_loader())
    make_trainer(clip_value=1e-3, callbacks=[Look()]).fit(make_loader())
    assert max(norms[:5]) <= 1.001e-2
    assert max(largest[5:]) <= 1.001e-3


@on_each_device
def test_evaluate_and_predict_leave_no_trace():
    model = make_model()
    model.train()
    model[1].eval()  # a frozen batch norm stays frozen
    trainer = make_trainer(model, metrics=[Accuracy()])
    before, counter = weights(model), fw.Generator.state(_generator())
    trainer.evaluate(make_loader())
    trainer.predict(X)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    assert weights(model) == before
    assert _generator().state() == counter
    assert fw.is_grad_enabled()


def _generator():
    from framework.backend.random import default_generator

    return default_generator


def test_mode_is_restored_after_an_error():
    model = make_model()
    with pytest.raises(ValueError, match=r"."):
        make_trainer(model).predict(np.zeros((3, 4), np.float32))
    assert model.training
    assert fw.is_grad_enabled()


@on_each_device
def test_evaluation_inside_an_epoch_does_not_disturb_its_metrics():
    class Evaluate(Callback):
        def on_step_end(self, trainer):
            trainer.evaluate(make_loader())

    plain = make_trainer(metrics=[Accuracy()]).fit(make_loader())
    disturbed = make_trainer(metrics=[Accuracy()], callbacks=[Evaluate()]).fit(make_loader())
    assert plain[0]["accuracy"] == disturbed[0]["accuracy"]
    assert plain[0]["loss"] == disturbed[0]["loss"]


@on_each_device
def test_predict_of_arrays_tensors_and_loaders_agree():
    trainer = make_trainer()
    whole = host(trainer.predict(X))
    assert whole.shape == (70, 2)
    for other in (
        trainer.predict(moved(X), batch_size=70),
        trainer.predict(make_loader(shuffle=False)),
        trainer.predict(loader(ArrayDataset(X), 13)),
    ):
        np.testing.assert_allclose(host(other), whole, rtol=1e-5, atol=1e-6)
        assert not other.requires_grad


@on_each_device
def test_ema_is_what_evaluation_sees():
    model = make_model()
    ema = optimizers.EMA(model, decay=1.0)  # never moves
    trainer = make_trainer(model, ema=ema)
    start = host(trainer.predict(X)).copy()
    trainer.fit(make_loader(), epochs=2)
    np.testing.assert_array_equal(host(trainer.predict(X)), start)
    assert ema.updates == 10
    model.eval()
    with fw.no_grad():
        assert not np.allclose(host(model(moved(X))), start)


def test_the_averaged_weights_are_saved_within_swap(tmp_path):
    model = make_model()
    ema = optimizers.EMA(model, decay=0.9)
    trainer = make_trainer(model, ema=ema)
    trainer.fit(make_loader(), epochs=2)
    fw.save(model.state_dict(), tmp_path / "own")
    with ema.swap():
        fw.save(model.state_dict(), tmp_path / "averaged")
    plain = make_trainer(make_model())
    losses = {}
    for name in ("own", "averaged"):
        plain.model.load_state_dict(fw.load(tmp_path / name))
        losses[name] = plain.evaluate(make_loader(shuffle=False))["loss"]
    assert trainer.evaluate(make_loader(shuffle=False))["loss"] == losses["averaged"]
    assert losses["own"] != losses["averaged"]


@on_each_device
def test_several_inputs():
    class Sum(layers.Module):
        def __init__(self):
            super().__init__()
            self.linear = layers.Linear(5, 2)

        def forward(self, a, b):
            return self.linear(a + b)

    model = Sum()
    batches = loader(ArrayDataset(X, X, Y), 35)
    trainer = Trainer(model, cross_entropy, optimizers.SGD(model.parameters(), lr=0.1))
    assert trainer.fit(batches, epochs=2)[1]["loss"] < trainer.history[0]["loss"]
    assert trainer.predict(batches).shape == (70, 2)


def test_memory_of_a_step_does_not_grow():
    import gc
    import tracemalloc

    trainer = make_trainer(metrics=[Accuracy()])
    trainer.fit(make_loader(), epochs=3)
    gc.disable()
    tracemalloc.start()
    try:
        trainer.fit(make_loader(), epochs=5)
        first = tracemalloc.get_traced_memory()[0]
        trainer.fit(make_loader(), epochs=60)
        assert tracemalloc.get_traced_memory()[0] - first < 200_000
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate is 0"),
        ({"accumulate": 1.5}, "accumulate is 1.5"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"clip_value": -1.0}, "clip_value is -1.0"),
        ({"metrics": [TopK(1), TopK(1)]}, "names differ"),
        ({"device": "cdua"}, "cdua"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


@on_each_device
def test_predict_takes_arrays_and_lists_of_any_numbers():
    trainer = make_trainer()
    whole = host(trainer.predict(X))
    for data in (X.astype(np.float64), X.tolist(), list(X), tuple(map(tuple, X.tolist()))):
        np.testing.assert_array_equal(host(trainer.predict(data)), whole)
    integers = np.arange(15).reshape(3, 5)
    expected = host(trainer.predict(integers.astype(np.float32)))
    for data in (integers, integers.astype(np.uint8), integers.tolist()):
        np.testing.assert_array_equal(host(trainer.predict(data)), expected)


@on_each_device
def test_predict_leaves_the_indices_of_an_embedding():
    model = layers.Sequential(layers.Embedding(6, 4), layers.Linear(4, 2))
    trainer = make_trainer(model)
    found = trainer.predict([[0, 1, 5], [2, 2, 3]])
    assert found.shape == (2, 3, 2)
    np.testing.assert_array_equal(
        host(trainer.predict(np.array([[0, 1, 5], [2, 2, 3]], np.uint8))), host(found)
    )


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([["a", "b"]], TypeError, "predict: data has dtype <U1, expected numbers"),
        ([[1.0, 2.0], [3.0]], ValueError, "predict: data is no array of numbers"),
        (np.array(1.0), ValueError, r"predict: data has shape \(\)"),
        (3, TypeError, "predict: data is a int, expected an array, a nested list"),
    ],
)
def test_what_cannot_be_predicted(data, error, message):
    with pytest.raises(error, match=message):
        make_trainer().predict(data)


def test_bad_calls():
    trainer = make_trainer()
    for epochs in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="expected an integer of at least 1"):
            trainer.fit(make_loader(), epochs=epochs)
    with pytest.raises(ValueError, match="training loader has no batches"):
        trainer.fit([])
    with pytest.raises(ValueError, match="loader to evaluate has no batches"):
        trainer.evaluate([])
    with pytest.raises(ValueError, match="nothing to predict"):
        trainer.predict(X[:0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        trainer.predict(X, batch_size=0)
    trainer.fit(make_loader(), epochs=2)
    with pytest.raises(ValueError, match="epochs is 1, expected an integer of at least 2"):
        trainer.fit(make_loader(), epochs=1)
    with pytest.raises(ValueError, match="no parameters"):
        Trainer(layers.ReLU(), mse_loss, trainer.optimizer)
