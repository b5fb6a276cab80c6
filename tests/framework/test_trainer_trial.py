"""Learning-rate finder and fast_dev_run: what they find, and that nothing of them stays."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import framework as fw
from bench.families import FAMILIES
from framework import Tensor, functional as F, layers, optimizers
from framework.data import ArrayDataset, DataLoader
from framework.trainer import (
    Accuracy,
    Callback,
    EarlyStopping,
    JSONLLog,
    LRCurve,
    ModelCheckpoint,
    Trainer,
    checkpoint,
    find_lr,
)

each_family = pytest.mark.parametrize("family", FAMILIES)


def make_trainer(family="mlp", callbacks=(), lr=0.01, **options):
    fw.manual_seed(1)
    made = FAMILIES[family]
    model = made.model()
    return Trainer(
        model, made.loss, optimizers.AdamW(model.parameters(), lr=lr), metrics=[Accuracy()]
        if made.classifies else [], callbacks=callbacks, **options,
    )  # fmt: skip


def make_loader(family="mlp"):
    return FAMILIES[family].loader(seed=4)


def content(trainer):
    clocks = ("seconds", "samples_per_second")
    history = [{k: v for k, v in r.items() if k not in clocks} for r in trainer.history]
    return checkpoint.to_bytes(trainer.state_dict() | {"history": history})


@each_family
def test_a_trial_changes_nothing_of_the_run(family):
    def run(with_trials):
        trainer = make_trainer(family, [EarlyStopping("loss", patience=9)], accumulate=2)
        trainer.ema = optimizers.EMA(trainer.model, 0.9)
        train, test = make_loader(family), make_loader(family)
        trainer.fit(train, test, 1)
        if with_trials:
            trainer.model.eval()
            find_lr(trainer, train, steps=20)
            assert not trainer.model.training
            record = trainer.fit(train, test, fast_dev_run=2)
            assert record[0]["epoch"] == 2
            assert record[0]["step"] == trainer.step + 1
        trainer.fit(train, test, 3)
        return content(trainer)

    assert run(True) == run(False)


def test_a_fast_dev_run_of_a_run_that_was_interrupted(tmp_path):
    """With the weights of its checkpoint, which is what the trainer then has."""
    states = []

    class Keep(Callback):
        def on_step_end(self, trainer):
            states.append(checkpoint.to_bytes(trainer.state_dict()))

    whole = make_trainer(callbacks=[Keep()])
    whole.fit(make_loader(), epochs=2)
    (tmp_path / "c").write_bytes(states[9])
    trainer = make_trainer(lr=0.5)
    record = trainer.fit(make_loader(), make_loader(), fast_dev_run=True, resume=tmp_path / "c")[0]
    assert (record["step"], record["epoch"], trainer.step) == (11, 2, 10)
    assert abs(record["loss"] - whole.history[-1]["loss"]) < 0.5
    trainer.fit(make_loader(), epochs=2)
    assert content(trainer) == content(whole)


def make_small(batch_size=None):
    """A model with batch norm, dropout, carried averages, and a schedule; its loaders shuffle."""
    fw.manual_seed(2)
    model = layers.Sequential(
        layers.Linear(4, 8), layers.BatchNorm1d(8), layers.Dropout(0.3), layers.Linear(8, 3)
    )
    trainer = Trainer(
        model, F.cross_entropy, optimizers.AdamW(model.parameters(), lr=0.01),
        optimizers.ReduceOnPlateau(patience=0), [Accuracy()], [EarlyStopping("loss", patience=9)],
        accumulate=2, ema=optimizers.EMA(model, 0.9), batch_size=batch_size,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = ArrayDataset(rng.standard_normal((44, 4)).astype(np.float32), np.arange(44) % 3)
    return trainer, *(DataLoader(data, 8, shuffle=True, seed=seed) for seed in (3, 4))


@pytest.mark.parametrize("epochs_before", [0, 1])
@pytest.mark.parametrize("batch_size", [None, 11, "auto"])
def test_nothing_of_a_fast_dev_run_stays(epochs_before, batch_size):
    """Also where it is the first thing that the trainer does, and where it fails."""

    def run(with_dry_run):
        trainer, train, test = make_small(batch_size)
        if epochs_before:
            trainer.fit(train, test, epochs_before)
        before = content(trainer), train.upcoming(), test.upcoming(), trainer.batch_size
        if with_dry_run:
            (record,) = trainer.fit(train, test, 5, fast_dev_run=3)
            assert record["step"] == trainer.step + {None: 2, 11: 2, "auto": 1}[batch_size]
            trainer.callbacks.append(Fail())
            with pytest.raises(ZeroDivisionError):
                trainer.fit(train, test, 5, fast_dev_run=True)
            del trainer.callbacks[-1]
            after = content(trainer), train.upcoming(), test.upcoming(), trainer.batch_size
            assert after == before
        order = [list(map(float, y.numpy())) for _, y in test]
        trainer.fit(train, test, epochs_before + 2)
        return order, content(trainer), train.state_dict(), test.state_dict()

    class Fail(Callback):
        def on_epoch_end(self, trainer):
            raise ZeroDivisionError

    assert run(True) == run(False)


def test_a_loader_of_ones_own_goes_on_where_it_was_after_a_fast_dev_run():
    class Own:
        """Rounds of two batches, the numbers of which go on."""

        number = 0

        def __iter__(self):
            for _ in range(2):
                self.number += 1
                yield Tensor(np.full((4, 4), self.number, np.float32)), Tensor(np.arange(4) % 3)

        def state_dict(self):
            return {"number": self.number}

        def load_state_dict(self, state):
            self.number = state["number"]

    trainer, *_ = make_small()
    loader, watched = Own(), Own()
    loader.number = 7
    trainer.fit(loader, watched, fast_dev_run=True)
    assert (loader.number, watched.number) == (7, 0)


def test_the_finder_suggests_a_rate_that_learns(tmp_path):
    trainer, loader = make_trainer(), make_loader()
    curve = find_lr(trainer, loader, 1e-6, 10.0, 120)
    assert 1e-4 < curve.suggestion < 1
    assert len(curve.lrs) == len(curve.losses) == len(curve.smoothed) <= 120
    assert curve.lrs[0] == pytest.approx(1e-6)
    slow, found = (make_trainer(lr=lr) for lr in (1e-6, curve.suggestion))
    for each in (slow, found):
        each.fit(make_loader(), epochs=3)
    assert found.history[-1]["loss"] < 0.8 * slow.history[-1]["loss"]
    if importlib.util.find_spec("matplotlib") is not None:
        find_lr(trainer, loader, steps=30, plot=tmp_path / "lr.png")
        assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_the_finder_stops_where_the_loss_diverges():
    trainer = make_trainer()
    trainer.optimizer = optimizers.SGD(trainer.model.parameters(), lr=0.1)
    curve = find_lr(trainer, make_loader(), 1e-3, 1e8, 60)
    assert len(curve.lrs) < 60
    assert np.isfinite(curve.smoothed).all()


def test_what_the_finder_refuses(monkeypatch):
    trainer = make_trainer()
    for options, message in (
        ({"start": 0}, "expected 0 < start < end"),
        ({"start": 2.0}, "expected 0 < start < end"),
        ({"steps": 2}, "steps is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            find_lr(trainer, make_loader(), **options)
    with pytest.raises(ValueError, match="no batches"):
        find_lr(trainer, [])
    with pytest.raises(ValueError, match="falls nowhere"):
        _ = LRCurve([1e-3, 1e-2, 1e-1], [1, 2, 3], [1, 2, 3]).suggestion
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        LRCurve([1e-3, 1e-2, 1e-1], [3, 2, 1], [3, 2, 1]).plot("x.png")


def test_a_fast_dev_run_writes_nothing_and_finds_what_does_not_fit(tmp_path):
    seen = []

    class Look(Callback):
        def on_epoch_end(self, trainer):
            seen.append(trainer.history[-1])

    callbacks = [ModelCheckpoint(tmp_path / "c"), JSONLLog(tmp_path / "m.jsonl"), Look()]
    trainer = make_trainer(callbacks=callbacks)
    trainer.fit(make_loader(), {"test": make_loader()}, fast_dev_run=True)
    assert not list(tmp_path.iterdir())
    assert len(seen) == 1
    assert {"accuracy", "test_loss"} <= set(seen[0])
    assert (trainer.step, trainer.epoch, trainer.history) == (0, 0, [])
    assert trainer.callbacks == callbacks

    class Monitor(EarlyStopping):
        pass

    trainer.callbacks.append(Monitor("val_los"))
    before = content(trainer)
    with pytest.raises(ValueError, match="monitors 'val_los'"):
        trainer.fit(make_loader(), fast_dev_run=True)
    assert content(trainer) == before
