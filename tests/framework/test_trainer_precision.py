"""Trainer(precision=...): it learns as in float32, skips cleanly, resumes exactly, puts settings
back.
"""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers
from framework.autograd import casting
from framework.data import ArrayDataset, DataLoader, load
from framework.functional import cross_entropy, mse_loss
from framework.optimizers import EMA, LossScaler
from framework.trainer import (
    Accuracy,
    Callback,
    CheckpointError,
    NonFiniteError,
    TerminateOnNaN,
    Trainer,
    checkpoint,
)
from framework.trainer.precision import PRECISIONS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
HALVES = {"bf16-mixed": np.dtype(ml_dtypes.bfloat16), "fp16-mixed": np.dtype(np.float16)}
each_half = pytest.mark.parametrize("precision", HALVES)


def make_model():
    fw.manual_seed(0)
    return layers.Sequential(
        layers.Linear(5, 8), layers.BatchNorm1d(8), layers.ReLU(), layers.Dropout(0.2),
        layers.Linear(8, 2),
    )  # fmt: skip


def make_loader(shuffle=True):
    return DataLoader(ArrayDataset(X, Y), 8, shuffle=shuffle, seed=1, device="cpu")


def make_trainer(precision, model=None, **options):
    model = make_model() if model is None else model
    optimizer = options.pop("optimizer", None) or optimizers.AdamW(model.parameters(), lr=0.05)
    return Trainer(model, cross_entropy, optimizer, precision=precision, **options)


def everything(trainer):
    """What a skipped step must not change."""
    state = trainer.state_dict()
    optimizer = state["optimizer"]
    arrays = {**state["model"], **optimizer["arrays"]}
    if state["ema"] is not None:
        arrays |= {f"ema {name}": x for name, x in state["ema"]["average"].items()}
    bits = {name: np.asarray(getattr(x, "data", x)).tobytes() for name, x in arrays.items()}
    return bits, optimizer["steps"], optimizer["groups"], state["step"], state["ema"]["updates"]


# It learns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_reads_digits_as_well_as_float32(accumulate):
    digits = load("digits", seed=0)
    scores = {}
    for precision in PRECISIONS:
        fw.manual_seed(0)
        net = layers.Sequential(
            layers.Flatten(), layers.Linear(64, 64), layers.LayerNorm(64), layers.GELU(),
            layers.Linear(64, 10),
        )  # fmt: skip
        optimizer = optimizers.AdamW(net.parameters(), lr=5e-3)
        trainer = Trainer(
            net, cross_entropy, optimizer, metrics=[Accuracy()], precision=precision,
            accumulate=accumulate, clip_norm=1.0, callbacks=[TerminateOnNaN()],
        )  # fmt: skip
        size = 48 // accumulate
        loader = DataLoader(digits.train, size, shuffle=True, seed=0, device="cpu")
        trainer.fit(loader, epochs=6)
        scores[precision] = trainer.evaluate(DataLoader(digits.test, 256, device="cpu"))
        assert all(p.dtype == p.grad.dtype == np.float32 for p in net.parameters())
        assert trainer.optimizer.flat_gradients()[0].dtype == np.float32
    assert scores["float32"]["accuracy"] > 0.95
    assert scores["tf32"] == scores["float32"]  # on the CPU
    for precision in HALVES:
        assert scores[precision] != scores["float32"]
        assert abs(scores[precision]["accuracy"] - scores["float32"]["accuracy"]) < 0.012
        assert abs(scores[precision]["loss"] - scores["float32"]["loss"]) < 0.02


class Look(layers.Module):
    """Notes the dtypes that pass."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = layers.Linear(5, 2), []

    def forward(self, x):
        y = self.linear(x)
        self.seen.append(y.dtype)
        return y


@each_half
def test_training_evaluation_and_prediction_share_the_policy(precision):
    model, outputs = Look(), []

    def loss(output, target):
        outputs.append(output.dtype)
        return cross_entropy(output, target)

    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, loss, optimizer, precision=precision)
    trainer.fit(make_loader(), make_loader(), epochs=1)
    assert trainer.predict(X).dtype == np.float32
    assert set(model.seen) == {HALVES[precision]}
    assert set(outputs) == {np.dtype(np.float32)}
    assert model(fw.tensor(X)).dtype == np.float32  # outside of the trainer nothing has changed


def test_the_weights_are_cast_once_a_step(monkeypatch):
    casts = []

    def in_dtype(array, dtype):
        casts.append(array.size)
        return array.astype(dtype)

    monkeypatch.setattr(casting, "in_dtype", in_dtype)
    trainer = make_trainer("bf16-mixed", accumulate=3)
    trainer.fit(make_loader())
    whole = trainer.optimizer._flat[0][0].data.size
    assert casts.count(whole) == trainer.step == 2
    assert all(size in (whole, 8 * 5, 8 * 8) for size in casts)  # the rest: batches, activations


# TF32 ---------------------------------------------------------------------------------------------


class Settings(Callback):
    def __init__(self):
        self.seen = []

    def on_gradients(self, trainer):
        self.seen.append(fw.get_float32_matmul_precision())


def test_tf32_is_on_for_the_steps_only():
    inside, outside = [], Settings()

    def loss(output, target):
        inside.append(fw.get_float32_matmul_precision())
        if len(inside) == 10:
            raise KeyError
        return cross_entropy(output, target)

    model = make_model()
    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, loss, optimizer, precision="tf32", callbacks=[outside])
    with pytest.raises(KeyError):
        trainer.fit(make_loader(), make_loader(), epochs=2)
    assert set(inside) == {"high"}
    assert set(outside.seen) == {"highest"}
    assert fw.get_float32_matmul_precision() == "highest"


# Skipped steps ------------------------------------------------------------------------------------


class Watch(Callback):
    """Compares what there was before each step with what there is after it."""

    def __init__(self):
        self.before, self.skipped, self.heard = None, [], []

    def on_step_start(self, trainer):
        self.before = everything(trainer)
        self.heard.append("start")

    def on_gradients(self, trainer):
        self.heard.append("gradients")

    def on_step_end(self, trainer):
        self.heard.append("end")
        assert everything(trainer) != self.before

    def on_step_skipped(self, trainer):
        self.heard.append("skipped")
        assert everything(trainer) == self.before
        self.skipped.append(trainer.precision.scaler.get_scale())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_leaves_no_trace(accumulate):
    watch, model, rates = Watch(), make_model(), []

    def schedule(step):
        rates.append(step)
        return 1 / (step + 1)

    trainer = make_trainer(
        "fp16-mixed", model, callbacks=[TerminateOnNaN(), watch], ema=EMA(model, warmup=True),
        schedule=schedule, clip_norm=1.0, accumulate=accumulate,
    )  # fmt: skip
    trainer.precision.scaler = LossScaler(init_scale=2.0**22)  # 65504 is about 2^16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = trainer.fit(make_loader(), epochs=4)
    steps = 4 * 6 // accumulate
    assert 2 <= trainer.skipped <= 8
    assert watch.skipped == [2.0 ** (22 - i) for i in range(trainer.skipped)]
    assert trainer.step + trainer.skipped == steps
    heard = " ".join(watch.heard)
    assert heard.startswith("start skipped start skipped")
    assert heard.count("start skipped") == trainer.skipped
    assert heard.count("start gradients end") == trainer.step
    assert len(watch.heard) == 2 * trainer.skipped + 3 * trainer.step
    assert rates == list(range(trainer.step))  # the schedule waits too
    assert set(trainer.optimizer.state_dict()["steps"]) == {trainer.step}
    assert sum(record["skipped"] for record in history) == trainer.skipped
    assert history[-1]["scale"] == 2.0 ** (22 - trainer.skipped)
    assert history[-1]["step"] == trainer.step
    assert history[-1]["loss"] < history[0]["loss"]


def test_running_statistics_do_not_keep_what_overflowed():
    model = layers.Sequential(layers.Linear(5, 8), layers.BatchNorm1d(8), layers.Linear(8, 2))
    x = X.copy()
    x[:8] = 1e30  # infinite in float16
    data = DataLoader(ArrayDataset(x, Y), 8, device="cpu")
    trainer = make_trainer("fp16-mixed", model, callbacks=[TerminateOnNaN()])
    trainer.fit(data)
    assert (trainer.skipped, trainer.step) == (1, 5)
    assert all(np.isfinite(b.data).all() for b in model.buffers())
    assert model[1].num_batches_tracked.item() == 5


@pytest.mark.parametrize("watched", [True, False])
def test_an_overflow_at_the_smallest_scale_ends_the_run(watched):
    model = layers.Sequential(layers.Linear(5, 8), layers.BatchNorm1d(8), layers.Linear(8, 2))
    trainer = make_trainer("fp16-mixed", model, callbacks=[TerminateOnNaN()] if watched else [])
    trainer.fit(make_loader())
    before = {name: x.data.copy() for name, x in model.state_dict().items()}
    bad = [(fw.tensor(np.full((8, 5), 1e30, "float32")), fw.tensor(Y[:8]))] * 40
    if not watched:
        trainer.fit(bad, epochs=2)
        assert trainer.skipped == 40
        assert trainer.precision.scaler.get_scale() == 2.0**-13
    else:
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit(bad, epochs=2)
        message = str(caught.value)
        assert "step 7, epoch 2: gradients overflow float16 (precision='fp16-mixed')" in message
        assert "scaled by 0.00012207, the smallest scale" in message
        assert "the first layer with such an output is 0 (Linear(" in message
        assert "Take precision='bf16-mixed'" in message
        assert trainer.skipped == 30  # from 2^16 to 2^-13
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.data, before[name])


def test_nan_in_bfloat16_stops_at_once():
    trainer = make_trainer("bf16-mixed", callbacks=[TerminateOnNaN()])
    bad = [(fw.tensor(np.full((8, 5), np.inf, "float32")), fw.tensor(Y[:8]))]
    with pytest.raises(NonFiniteError, match="step 1, epoch 1: the loss is nan"):
        trainer.fit(bad)
    assert trainer.skipped == 0


# Resuming -----------------------------------------------------------------------------------------


class Interrupt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_step_end(self, trainer):
        if trainer.epoch == self.epoch:
            raise KeyboardInterrupt


class Keep(Callback):
    def on_epoch_complete(self, trainer):
        self.state = checkpoint.to_bytes(trainer.state_dict())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_interrupted_and_resumed_is_uninterrupted(precision, tmp_path):
    def run(*callbacks):
        trainer = make_trainer(precision, callbacks=[TerminateOnNaN(), *callbacks], clip_norm=1.0)
        if precision == "fp16-mixed":  # skips at first, and grows into an overflow again and again
            trainer.precision.scaler = LossScaler(init_scale=2.0**19, growth_interval=5)
        return trainer

    whole = run()
    whole.fit(make_loader(), make_loader(False), epochs=5)
    keep = Keep()
    with pytest.raises(KeyboardInterrupt):
        run(keep, Interrupt(2)).fit(make_loader(), make_loader(False), epochs=5)
    (tmp_path / "c").write_bytes(keep.state)
    parts = make_trainer(precision, callbacks=[TerminateOnNaN()], clip_norm=1.0)
    checkpoint.load_trainer(tmp_path / "c", parts)
    if precision == "fp16-mixed":
        assert 0 < parts.skipped < whole.skipped
        assert parts.precision.state_dict()["scaler"]["good_steps"] > 0
    parts.fit(make_loader(), make_loader(False), epochs=5)
    volatile = ("seconds", "samples_per_second")
    for a, b in zip(whole.history, parts.history, strict=True):
        assert {k: v for k, v in a.items() if k not in volatile} == {
            k: v for k, v in b.items() if k not in volatile
        }
    a, b = whole.state_dict(), parts.state_dict()
    for entry in ("precision", "skipped", "step", "generator", "position"):
        assert a[entry] == b[entry]
    for x, y in zip(a["model"].values(), b["model"].values(), strict=True):
        assert x.tobytes() == y.tobytes()
    arrays = (state["optimizer"]["arrays"].values() for state in (a, b))
    assert all(x.data.tobytes() == y.data.tobytes() for x, y in zip(*arrays, strict=True))


def test_resuming_in_another_precision_is_refused(tmp_path):
    trainer = make_trainer("fp16-mixed")
    trainer.fit(make_loader())
    checkpoint.save_trainer(tmp_path / "c", trainer)
    with pytest.raises(CheckpointError, match="has precision float32, the saved one fp16-mixed"):
        checkpoint.load_trainer(tmp_path / "c", make_trainer("float32"))


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bf16", None, 16])
def test_unknown_precisions_are_told_the_known_ones(name):
    with pytest.raises(ValueError, match="expected one of float32, tf32, bf16-mixed, fp16-mixed"):
        make_trainer(name)


@each_half
def test_weights_of_another_dtype_are_named(precision):
    model = make_model()
    model[4].to("float64")
    with pytest.raises(ValueError, match=f"'{precision}' computes .*but 4.weight is float64"):
        make_trainer(precision, model)


def test_float16_needs_an_optimizer_it_can_look_into():
    class Foreign:
        param_groups = ()

    with pytest.raises(TypeError, match="needs an optimizer of framework.optimizers.*a Foreign"):
        make_trainer("fp16-mixed", optimizer=Foreign())


def test_regression_with_large_values_finds_its_scale():
    # a loss whose float16 gradients overflow at first, and at 1 too: the scale falls below it
    fw.manual_seed(0)
    model = layers.Linear(5, 1)
    target = (X @ np.ones((5, 1), np.float32)) * 1e3
    data = DataLoader(ArrayDataset(X, target), 8, device="cpu")

    def loss(output, y):
        return 1e3 * mse_loss(output, y, reduction="sum")

    optimizer = optimizers.SGD(model.parameters(), lr=1e-6)
    trainer = Trainer(
        model, loss, optimizer, precision="fp16-mixed", callbacks=[TerminateOnNaN()]
    )  # fmt: skip
    history = trainer.fit(data, epochs=30)
    assert trainer.skipped > 16
    assert history[-1]["scale"] < 1
    assert history[-1]["loss"] < 1e-2 * history[0]["loss"]


@pytest.mark.parametrize("overflow", [False, True])
def test_fp16_goes_on_after_a_step_that_was_interrupted(overflow):
    class Interrupt(Callback):
        at = 2

        def on_gradients(self, trainer):
            if trainer.step == self.at:
                self.at = -1
                raise KeyboardInterrupt

        def on_step_skipped(self, trainer):
            if self.at >= 0:
                self.at = -1
                raise KeyboardInterrupt

    trainer = make_trainer("fp16-mixed", callbacks=[Interrupt()])
    if overflow:
        trainer.precision.scaler = LossScaler(init_scale=2.0**40)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(make_loader())
    scale = trainer.precision.scaler.get_scale()
    if overflow:
        trainer.precision.scaler.state[0] = 8.0  # the next step is a good one
        scale = 8.0
    step = trainer.step
    trainer.fit(make_loader())
    assert trainer.step == step + 6
    assert trainer.skipped == int(overflow)
    assert trainer.precision.scaler.get_scale() == scale
