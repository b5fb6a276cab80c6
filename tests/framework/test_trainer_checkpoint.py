"""Checkpoints: exact round trips, exact resume, damage that shows, writes that are whole or not at
all.
"""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers
from framework.data import ArrayDataset, DataLoader
from framework.functional import cross_entropy
from framework.interop import safetensors
from framework.trainer import (
    Accuracy,
    Callback,
    CheckpointError,
    EarlyStopping,
    ModelCheckpoint,
    Trainer,
    checkpoint,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def test_any_state_comes_back(tmp_path):
    state = {
        "arrays": [np.arange(3), {"w": np.float32([[1, np.nan]]), "zero": np.zeros(())}],
        "numbers": {"pi": math.pi, "tiny": 5e-324, "inf": -math.inf, "n": 2**70, "yes": True},
        "nothing": None,
        "text": 'Ω "quoted" \n',
        "numbered": {0: "a", 1: "b"},
        "dollar": {"$array": "not one"},
        "numpy": np.float64(0.1),
    }
    checkpoint.save(tmp_path / "c", state)
    back = checkpoint.load(tmp_path / "c")
    assert back["numbers"] == state["numbers"]
    assert back["numbered"] == {0: "a", 1: "b"}
    assert back["dollar"] == {"$array": "not one"}
    assert back["text"] == state["text"]
    assert back["numpy"] == 0.1
    assert back["arrays"][0].tolist() == [0, 1, 2]
    assert back["arrays"][1]["w"].tobytes() == state["arrays"][1]["w"].tobytes()
    assert back["arrays"][1]["zero"].shape == ()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2, 3}]}, "/a/1 is a set"),
        ({"a": {1.5: 0}}, "key 1.5"),
        ({"f": print}, "/f is a builtin"),
    ],
)
def test_what_a_checkpoint_cannot_hold(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path / "c", state)
    assert not (tmp_path / "c").exists()


def test_every_flipped_byte_shows(tmp_path):
    path = tmp_path / "c"
    data = checkpoint.to_bytes({"w": np.arange(6.0), "step": 3})
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x11
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(path)
    safetensors.save({"w": np.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a run"):
        checkpoint.load(path)
    header = {"format": "framework-checkpoint-99", "crc32": 0, "state": {}}
    safetensors.save({"w": np.ones(2)}, path, {"checkpoint": json.dumps(header)})
    with pytest.raises(CheckpointError, match="framework-checkpoint-99"):
        checkpoint.load(path)
    whole = checkpoint.to_bytes({"w": np.ones(20)})
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_a_kill_while_writing_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.save(path, {"step": 1})

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def make_trainer(callbacks=(), plateau=False, **options):
    fw.manual_seed(3)
    model = layers.Sequential(
        layers.Linear(5, 16), layers.BatchNorm1d(16), layers.ReLU(), layers.Dropout(0.3),
        layers.Linear(16, 2),
    )  # fmt: skip
    optimizer = optimizers.AdamW(model.parameters(), lr=0.02)
    cosine = optimizers.schedules.cosine(50)
    schedule = optimizers.ReduceOnPlateau(patience=0, threshold=0.5) if plateau else cosine
    return Trainer(model, cross_entropy, optimizer, schedule, [Accuracy()], [*callbacks], **options)


def loaders():
    train, test = ArrayDataset(X[:40], Y[:40]), ArrayDataset(X[40:], Y[40:])
    return (
        DataLoader(train, 8, shuffle=True, seed=4, workers=2, device="cpu"),
        DataLoader(test, 10, device="cpu"),
    )


class Interrupt(Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch, enabled):
        self.epoch, self.enabled = epoch, enabled

    def on_step_end(self, trainer):
        if self.enabled and trainer.epoch == self.epoch and trainer.step % 5 == 3:
            raise KeyboardInterrupt


def timeless(history):
    clocks = ("seconds", "samples_per_second")
    return [{k: v for k, v in record.items() if k not in clocks} for record in history]


@pytest.mark.parametrize("plateau", [False, True])
@pytest.mark.parametrize("with_ema", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, plateau, with_ema):
    def trainer_with(folder, interrupted):
        callbacks = [
            EarlyStopping("val_loss", patience=9),
            Interrupt(2, interrupted),
            ModelCheckpoint(folder, monitor="val_loss", every_seconds=1000),
        ]
        trainer = make_trainer(callbacks, plateau, clip_norm=1.0, accumulate=2)
        trainer.ema = optimizers.EMA(trainer.model, 0.9) if with_ema else None
        return trainer

    whole = trainer_with(tmp_path / "whole", False)
    whole.fit(*loaders(), epochs=5)

    first = trainer_with(tmp_path / "parts", True)
    with pytest.raises(KeyboardInterrupt):
        first.fit(*loaders(), epochs=5)
    fw.manual_seed(99)  # a new process has other numbers behind it
    second = trainer_with(tmp_path / "parts", False)
    checkpoint.load_trainer(second.callbacks[2].last, second)
    assert second.epoch == 2
    second.fit(*loaders(), epochs=5)

    assert timeless(second.history) == timeless(whole.history)
    mine, theirs = second.model.state_dict(), whole.model.state_dict()
    assert {n: x.data.tobytes() for n, x in mine.items()} == {
        n: x.data.tobytes() for n, x in theirs.items()
    }
    # the optimizer's state too, and all else that is written
    assert checkpoint.to_bytes(_but_clocks(second)) == checkpoint.to_bytes(_but_clocks(whole))


def _but_clocks(trainer):
    return trainer.state_dict() | {"history": timeless(trainer.history)}


def test_a_state_that_does_not_fit(tmp_path):
    path = tmp_path / "c"
    trainer = make_trainer()
    trainer.fit(loaders()[0])
    checkpoint.save_trainer(path, trainer)
    averaging = make_trainer()
    averaging.ema = optimizers.EMA(averaging.model)
    for other in (make_trainer([EarlyStopping()]), make_trainer(plateau=True), averaging):
        with pytest.raises(CheckpointError, match="does not fit this run"):
            checkpoint.load_trainer(path, other)
    state = checkpoint.load(path)
    del state["model"]["0.weight"]
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        checkpoint.load_trainer(path, make_trainer())
    checkpoint.save(path, {"model": {}})
    with pytest.raises(CheckpointError, match="callbacks"):
        checkpoint.load_trainer(path, make_trainer())


class BreakAtTheEnd(Callback):
    """Ctrl-C after the last epoch."""

    def __init__(self, enabled):
        self.enabled = enabled

    def on_fit_end(self, trainer):
        if self.enabled:
            raise KeyboardInterrupt


@pytest.mark.parametrize("patience", [1, 9])
def test_killed_after_the_last_epoch_and_resumed(tmp_path, patience):
    """Whether the epochs or the patience ran out: the same best weights, no epoch more."""

    def trainer_with(folder, interrupted):
        callbacks = [EarlyStopping("loss", patience=patience, min_delta=0.2)]
        return make_trainer([*callbacks, ModelCheckpoint(folder), BreakAtTheEnd(interrupted)])

    whole = trainer_with(tmp_path / "whole", False)
    whole.fit(loaders()[0], epochs=4)
    first = trainer_with(tmp_path / "parts", True)
    with pytest.raises(KeyboardInterrupt):
        first.fit(loaders()[0], epochs=4)
    second = trainer_with(tmp_path / "parts", False)
    checkpoint.resume(tmp_path / "parts", second)
    stopped = len(whole.history) < 4
    assert stopped == (patience == 1)
    assert second.should_stop == stopped
    assert second.fit(loaders()[0], epochs=4) == first.history
    assert whole.callbacks[0].best_epoch < len(whole.history)  # there is something to restore
    mine, theirs = second.model.state_dict(), whole.model.state_dict()
    assert {n: x.data.tobytes() for n, x in mine.items()} == {
        n: x.data.tobytes() for n, x in theirs.items()
    }
    second.fit(loaders()[0], epochs=5)  # asked for anew, it goes on
    assert second.epoch > len(first.history)


def test_the_state_of_a_run_stays_as_it_was_taken():
    model = layers.Linear(5, 2)
    trainer = Trainer(model, cross_entropy, optimizers.SGD(model.parameters(), lr=0.1))
    batches = [(fw.tensor(X, device="cpu"), fw.tensor(Y, device="cpu"))]
    trainer.fit(batches, epochs=1)
    history = trainer.state_dict()["history"]
    trainer.history[0]["later"] = 1.0
    trainer.fit(batches, epochs=2)
    assert [record["epoch"] for record in history] == [1]
    assert "later" not in history[0]
