"""Interrupted anywhere and resumed equals uninterrupted, bit for bit, for every family."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

import framework as fw
from bench.families import FAMILIES
from framework import optimizers
from framework.data import ArrayDataset, DataLoader
from framework.interop import atomic
from framework.trainer import (
    R2,
    Accuracy,
    Callback,
    CheckpointError,
    EarlyStopping,
    Interrupts,
    JSONLLog,
    Loss,
    ModelCheckpoint,
    ModelLoss,
    Recall,
    Stopped,
    TerminateOnNaN,
    Trainer,
    checkpoint,
    run,
)
from framework.trainer.store import Store, checkpoints_in, newest

CLOCKS = ("seconds", "samples_per_second")
EPOCHS = 2

each_family = pytest.mark.parametrize("family", FAMILIES)


class Keep(Callback):
    """The state after each step and each epoch."""

    def __init__(self):
        self.states = []

    def on_step_end(self, trainer):
        self.states.append(checkpoint.to_bytes(trainer.state_dict()))

    def on_epoch_complete(self, trainer):
        self.states.append(checkpoint.to_bytes(trainer.state_dict()))


def make_trainer(family, *callbacks, plateau=False, ema=False, seed=3, **options):
    fw.manual_seed(seed)
    made = FAMILIES[family]
    model = made.model()
    optimizer = made.optimizer(model)
    schedule = optimizers.schedules.cosine(50)
    if plateau:
        schedule = optimizers.ReduceOnPlateau(patience=0, threshold=0.5)
    metrics = [Accuracy(), Recall(3)] if made.classifies else []
    if not isinstance(made.loss, ModelLoss):
        metrics.append(Loss(made.loss, "again"))
    return Trainer(
        model, made.loss, optimizer, schedule, callbacks=callbacks,
        ema=optimizers.EMA(model, 0.9) if ema else None,
        metrics=metrics, **options,
    )  # fmt: skip


def make_loader(family, batch_size=8, workers=0):
    return FAMILIES[family].loader(batch_size, 4, workers)


def timeless(history):
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in history]


def content(trainer):
    """All that a checkpoint holds, but for the clocks."""
    return checkpoint.to_bytes(trainer.state_dict() | {"history": timeless(trainer.history)})


SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate": 3, "clip_norm": 1.0, "ema": True},  # 7 batches: a ragged window
    "plateau": {"plateau": True, "accumulate": 2, "clip_value": 0.01},
    "fp16": {"precision": "fp16-mixed"},
}
FEW = ("plain", "accumulated")  # of the other families


@pytest.mark.parametrize(
    ("family", "settings"), [(f, s) for f in FAMILIES for s in SETTINGS if f == "mlp" or s in FEW]
)
def test_resumed_after_every_step(family, settings, tmp_path):
    def trainer_with(*callbacks, seed=3):
        callbacks = [EarlyStopping("val_loss", patience=9), TerminateOnNaN(), *callbacks]
        return make_trainer(family, *callbacks, seed=seed, **SETTINGS[settings])

    keep = Keep()
    whole = trainer_with(keep)
    whole.fit(make_loader(family), make_loader(family), EPOCHS)
    states = keep.states[:-1]
    assert len(states) >= 2 * EPOCHS + 1
    for number, state in enumerate(states):
        path = tmp_path / f"{number}"
        path.write_bytes(state)
        parts = trainer_with(seed=99)  # other weights, and other numbers behind it
        parts.fit(make_loader(family, workers=number % 3), make_loader(family), EPOCHS, resume=path)
        assert timeless(parts.history) == timeless(whole.history)
        assert content(parts) == content(whole)


def test_a_run_that_a_callback_stops_within_an_epoch(tmp_path):
    """Killed before that epoch's record was there: it is made up for, and no step more is done."""

    class Stop(Callback):
        def on_step_end(self, trainer):
            trainer.should_stop |= trainer.step == 10

    keep = Keep()
    whole = make_trainer("mlp", Stop(), keep)
    whole.fit(make_loader("mlp"), make_loader("mlp"), 3)
    assert (whole.epoch, whole.step, whole.history[-1]["step"]) == (2, 10, 10)
    for state in keep.states[-3:]:
        (tmp_path / "c").write_bytes(state)
        parts = make_trainer("mlp", Stop(), seed=99)
        parts.fit(make_loader("mlp"), make_loader("mlp"), 3, resume=tmp_path / "c")
        assert timeless(parts.history) == timeless(whole.history)
        assert content(parts) == content(whole)


@each_family
def test_a_list_of_batches_goes_on_where_it_was(family, tmp_path):
    batches = list(make_loader(family))
    keep = Keep()
    whole = make_trainer(family, keep)
    whole.fit(batches, epochs=EPOCHS)
    (tmp_path / "c").write_bytes(keep.states[3])
    parts = make_trainer(family, seed=99)
    parts.fit(iter_again(batches), epochs=EPOCHS, resume=tmp_path / "c")
    assert content(parts) == content(whole)


def iter_again(batches):
    class Iterable:
        def __iter__(self):
            return iter(batches)

    return Iterable()


@pytest.mark.parametrize("metric", [R2(), Loss(fw.functional.mse_loss, "mine")])
def test_every_metric_goes_on_from_a_state(metric):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 2, 9, 4)).astype(np.float32)
    metric.reset()
    metric.update(*first)
    state = checkpoint.from_bytes(checkpoint.to_bytes({"m": metric.state_dict()}), "m")["m"]
    metric.update(*second)
    whole = metric.compute()
    metric.reset()
    metric.load_state_dict(state)
    metric.update(*second)
    assert metric.compute() == whole


# Saves ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """A process that ends here."""


@pytest.mark.parametrize("operation", ["fsync", "replace", "unlink"])
def test_killed_at_every_part_of_every_save(operation, tmp_path, monkeypatch):
    """fsync, rename and removal of the n-th file, for every n: what is there is enough."""

    def fit(folder, **options):
        callbacks = [ModelCheckpoint(folder, every_steps=3), JSONLLog(folder / "metrics.jsonl")]
        trainer = make_trainer("mlp", *callbacks, seed=5)
        if checkpoints_in(folder):
            options["resume"] = folder
        trainer.fit(make_loader("mlp"), epochs=EPOCHS, **options)
        return content(trainer), records(folder)

    whole = fit(tmp_path / "whole")
    module, real = os, getattr(os, operation)
    folder, kills = tmp_path / "parts", 0
    for lives in range(60):
        left = [1 + lives % 7]

        def count(*args, left=left, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*args, **options)

        monkeypatch.setattr(module, operation, count)
        try:
            parts = fit(folder)
            break
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(module, operation, real)
    assert kills >= 1
    assert parts == whole
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def records(folder):
    return timeless(run.read_history(folder / "metrics.jsonl"))


def saved(folder, **options):
    """A trainer that has saved three states of a run, of which two are kept."""
    trainer = make_trainer("mlp", ModelCheckpoint(folder, **options))
    trainer.fit(make_loader("mlp"), epochs=3)
    return trainer


def test_the_last_few_are_kept_and_in_the_manifest(tmp_path):
    saved(tmp_path, keep=2)
    numbers = [int(path.stem.partition("-")[2]) for path in checkpoints_in(tmp_path)]
    assert numbers == [3, 2]
    assert newest(tmp_path)[1]["epoch"] == 3
    make_trainer("mlp").fit(make_loader("mlp"), epochs=4, resume=tmp_path)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    if how == "cut":
        del data[-10:]
    if how == "empty":
        data.clear()
    path.write_bytes(data)
    if how == "gone":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "gone"])
@pytest.mark.parametrize("manifest", ["there", "gone", "damaged"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, how, manifest):
    saved(tmp_path)
    damage(checkpoints_in(tmp_path)[0], how)
    if manifest == "gone":
        (tmp_path / "manifest.json").unlink()
    if manifest == "damaged":
        (tmp_path / "manifest.json").write_text('{"format": 1, "checkpoints": {"a": [')
    trainer = make_trainer("mlp")
    found = checkpoint.resume(tmp_path, trainer)
    assert found.name == "checkpoint-000002.safetensors"
    assert trainer.epoch == 2
    if (how, manifest) != ("gone", "gone") and (how, manifest) != ("gone", "damaged"):
        assert "checkpoint-000003.safetensors" in caplog.text
    if manifest == "damaged":
        assert "manifest.json is damaged" in caplog.text
    # and the run that goes on does not count the damaged one among those that it keeps
    trainer = make_trainer("mlp", ModelCheckpoint(tmp_path))
    trainer.fit(make_loader("mlp"), epochs=4, resume=tmp_path)
    assert [newest(tmp_path)[1]["epoch"], len(checkpoints_in(tmp_path))] == [4, 2]


def test_all_checkpoints_damaged(tmp_path):
    saved(tmp_path)
    for path in checkpoints_in(tmp_path):
        damage(path, "flipped")
    trainer = make_trainer("mlp")
    before = content(trainer)
    with pytest.raises(CheckpointError, match=r"000003.*damaged.*000002.*damaged"):
        trainer.fit(make_loader("mlp"), resume=tmp_path)
    assert content(trainer) == before
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        trainer.fit(make_loader("mlp"), resume=tmp_path.parent)
    with pytest.raises(CheckpointError, match="does not exist"):
        trainer.fit(make_loader("mlp"), resume=tmp_path / "none")


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, caplog):
    saved(tmp_path / "run")
    text = (tmp_path / "run" / "manifest.json").read_text()
    for name in ("../run/checkpoint-000003.safetensors", "/etc/passwd", "best.safetensors"):
        changed = text.replace("checkpoint-000003.safetensors", name)
        (tmp_path / "run" / "manifest.json").write_text(changed)
        assert newest(tmp_path / "run")[1]["epoch"] == 3
        assert f"{name!r} is no name of a checkpoint" in caplog.text


def test_another_run_leaves_a_folder_with_checkpoints_alone(tmp_path):
    first = saved(tmp_path, monitor="loss")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = make_trainer("mlp", ModelCheckpoint(tmp_path, monitor="loss"), seed=8)
    expected = rf"{re.escape(str(tmp_path))} holds checkpoints of another run: .*resume=.*delete it"
    for _ in range(2):  # the first attempt has not made it this run's
        with pytest.raises(atomic.FileError, match=expected):
            other.fit(make_loader("mlp"), epochs=1)
    assert other.step == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # one that trained elsewhere is another run, too
    elsewhere = make_trainer("mlp", seed=8)
    elsewhere.fit(make_loader("mlp"))
    elsewhere.callbacks.append(ModelCheckpoint(tmp_path))
    with pytest.raises(atomic.FileError, match=expected):
        elsewhere.fit(make_loader("mlp"), epochs=2)
    # the same one goes on, with the same callback or a new one, and so does one that resumes
    first.fit(make_loader("mlp"), epochs=4)
    first.callbacks = [ModelCheckpoint(tmp_path, monitor="loss")]
    first.fit(make_loader("mlp"), epochs=5)
    other.fit(make_loader("mlp"), epochs=6, resume=checkpoints_in(tmp_path)[0])
    assert newest(tmp_path)[1]["epoch"] == 6


def test_a_state_that_fits_in_part_changes_nothing(tmp_path):
    made = saved(tmp_path / "run")
    state = made.state_dict()
    for spoil in (
        {"optimizer": {**state["optimizer"], "name": "SGD"}},
        {"generator": {"seed": -1, "counter": 0}},
        {"position": {"batches": -1, "loader": None}},
        {"step": "many"},
        {"history": 3},
    ):
        checkpoint.save(tmp_path / "c", state | spoil)
        trainer = make_trainer("mlp", ModelCheckpoint(tmp_path / "other"), seed=8)
        before = content(trainer)
        with pytest.raises(CheckpointError, match="does not fit this run"):
            trainer.fit(make_loader("mlp"), resume=tmp_path / "c")
        assert content(trainer) == before


def test_other_data_and_other_settings_are_noticed(tmp_path, caplog):
    saved(tmp_path)
    data = FAMILIES["mlp"].data()
    arrays = [array.copy() for array in data.arrays]
    arrays[0][-1] += 1
    trainer = make_trainer("mlp")
    other = DataLoader(ArrayDataset(*arrays), 8, shuffle=True, seed=4, device="cpu")
    with pytest.raises(ValueError, match="of other data"):
        trainer.fit(other, epochs=4, resume=tmp_path)
    with pytest.raises(ValueError, match="batch_size 8, this loader 9"):
        trainer.fit(make_loader("mlp", 9), epochs=4, resume=tmp_path)
    state = newest(tmp_path)[1]
    state["versions"]["numpy"] = "1.0"
    trainer.load_state_dict(state)
    assert "numpy 1.0 (now" in caplog.text
    keys = ("model", "model_config", "dataset", "seed")
    trainer.config = dict(zip(keys, ("mlp", {"hidden": (8,)}, "digits", 0), strict=True))
    state["config"] = trainer.config | {"seed": 1}
    with pytest.raises(ValueError, match="the saved run has seed 1, this one 0"):
        trainer.load_state_dict(state)


# One run in a folder, and being asked to end ------------------------------------------------------


def test_a_folder_has_one_run_at_a_time(tmp_path):
    class Second(Callback):
        def on_step_end(self, trainer):
            other = make_trainer("mlp", ModelCheckpoint(tmp_path))
            message = rf"in use by another run \(process {os.getpid()}, this process\)"
            with pytest.raises(atomic.FileError, match=message):
                other.fit(make_loader("mlp"))

    make_trainer("mlp", ModelCheckpoint(tmp_path), Second()).fit(make_loader("mlp"))
    (tmp_path / ".lock").write_text("1\n")  # of a process that was killed: nobody holds it
    make_trainer("mlp", ModelCheckpoint(tmp_path)).fit(
        make_loader("mlp"), epochs=2, resume=tmp_path
    )
    assert not (tmp_path / ".lock").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_steps_with_all_saved(tmp_path, number):
    class Ask(Callback):
        def on_gradients(self, trainer):
            if trainer.step == 4:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    whole = make_trainer("mlp")
    whole.fit(make_loader("mlp"), epochs=EPOCHS)
    trainer = make_trainer("mlp", Ask(), ModelCheckpoint(tmp_path, every_seconds=1e6), Interrupts())
    with pytest.raises(Stopped) as caught:
        trainer.fit(make_loader("mlp"), epochs=EPOCHS)
    go_on = f"go on with fit(..., resume={str(tmp_path)!r})"
    assert str(caught.value) == f"stopped after step 5, saved in {tmp_path}; {go_on}"
    assert signal.getsignal(number) == before
    assert trainer.step == 5
    parts = make_trainer("mlp", ModelCheckpoint(tmp_path), seed=9)
    parts.fit(make_loader("mlp"), epochs=EPOCHS, resume=tmp_path)
    mine, theirs = parts.model.state_dict(), whole.model.state_dict()
    assert all(mine[n].data.tobytes() == theirs[n].data.tobytes() for n in mine)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_closed_terminal_sends_its_signal_twice(tmp_path):
    class Close(Callback):
        def on_gradients(self, trainer):
            if trainer.step == 4:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGHUP)

    before = signal.getsignal(signal.SIGHUP)
    trainer = make_trainer("mlp", Close(), ModelCheckpoint(tmp_path), Interrupts())
    with pytest.raises(Stopped):
        trainer.fit(make_loader("mlp"))
    assert signal.getsignal(signal.SIGHUP) == before
    assert newest(tmp_path)[1]["step"] == 5


def test_a_run_that_is_stopped_says_that_nothing_was_saved(tmp_path, monkeypatch):
    class Ask(Callback):
        def on_step_end(self, trainer):
            interrupts.asked = True

    def refuse(self, data, **about):
        raise atomic.FileError("no room")

    monkeypatch.setattr(Store, "save", refuse)
    for kept in ([], [ModelCheckpoint(tmp_path)]):
        interrupts = Interrupts()
        trainer = make_trainer("mlp", Ask(), *kept, interrupts)
        with pytest.raises(Stopped, match=r"^stopped after step 1, not saved by a ModelCheckpoint"):
            trainer.fit(make_loader("mlp"))


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_second_signal_ends_it_at_once():
    class Ask(Callback):
        def on_gradients(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer("mlp", Ask(), Interrupts())
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(make_loader("mlp"))
    assert caught.type is KeyboardInterrupt
    assert trainer.step == 0


def test_a_store_removes_what_is_its_own_only(tmp_path):
    saved(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    Store(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
