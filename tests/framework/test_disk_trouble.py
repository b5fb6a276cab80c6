"""Disks that are full, read-only or gone while a run trains: told once, training goes on, the last
good checkpoint stays whole, and what is missing is written as soon as it can be.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal

import pytest
from typer.testing import CliRunner

from framework.cli import app
from framework.interop import atomic
from framework.trainer import Callback, CurvePlot, JSONLLog, ModelCheckpoint, run
from framework.trainer.callbacks import log
from framework.trainer.store import Store, newest
from models import open_run
from tests.framework.test_resume_anywhere import make_loader, make_trainer


class Refuse(Callback):
    """From the third epoch on and up to the fifth no file can be written: `number` comes from where
    one is opened, flushed or renamed.
    """

    def __init__(self, what, number, monkeypatch):
        self.what, self.number, self.monkeypatch = what, number, monkeypatch
        self.newest = []

    def on_epoch_start(self, trainer):
        if trainer.epoch == 2:
            if self.what == "open":
                for module in (atomic, log):
                    self.monkeypatch.setattr(module, "open", self.refuse, raising=False)
            else:
                self.monkeypatch.setattr(os, self.what, self.refuse)
        if trainer.epoch == 4:
            self.monkeypatch.undo()

    def refuse(self, *args, **options):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("what", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(what, number, tmp_path, monkeypatch, caplog):
    class Look(Callback):
        def on_epoch_start(self, trainer):
            if trainer.epoch == 4:
                seen.append(newest(tmp_path)[1]["epoch"])
                seen.append(kept.saved)
                seen.append(list(tmp_path.glob(f".*{atomic.SCRATCH}*")))

    seen = []
    kept = ModelCheckpoint(tmp_path, monitor="loss", every_steps=3)
    lines = JSONLLog(tmp_path / "metrics.jsonl")
    refuse = Refuse(what, number, monkeypatch)
    trainer = make_trainer("mlp", lines, kept, Look(), refuse)
    trainer.fit(make_loader("mlp"), epochs=5)
    assert trainer.epoch == 5
    assert seen == [2, 14, []]
    told = [line for line in caplog.messages if "training goes on" in line]
    assert sum("earlier checkpoints are not touched" in line for line in told) == 1
    assert sum("metrics.jsonl" in line for line in told) == (what == "open")
    assert all(os.strerror(number) in line for line in told)
    # and when the disk takes files again
    assert (newest(tmp_path)[1]["epoch"], kept.saved) == (5, 35)
    history = run.read_history(tmp_path / "metrics.jsonl")
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]


def test_the_last_state_is_written_at_the_end_if_it_could_not_be_before(tmp_path, monkeypatch):
    class Allow(Callback):
        def on_fit_end(self, trainer):
            monkeypatch.undo()

    def refuse(self, data, **about):
        raise atomic.FileError("no room")

    monkeypatch.setattr(Store, "save", refuse)
    kept = ModelCheckpoint(tmp_path)
    make_trainer("mlp", Allow(), kept).fit(make_loader("mlp"), epochs=2)
    assert (newest(tmp_path)[1]["epoch"], kept.saved, kept.pending) == (2, 14, None)


def test_a_run_that_was_stopped_and_could_not_be_saved_says_so(tmp_path, monkeypatch):
    save = Store.save

    def refuse(self, data, **about):
        if about["step"] > 30:
            raise atomic.FileError("no room")
        return save(self, data, **about)

    def ask(self, trainer):
        if trainer.epoch == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Store, "save", refuse)
    monkeypatch.setattr(CurvePlot, "on_epoch_complete", ask)
    arguments = ["train", "--epochs", "5", "--quiet", "--device", "cpu", "--checkpoint-every", "20"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 130
    where = tmp_path / "run" / "checkpoints"
    assert (f"stopped after step 69, not saved; an earlier state is in {where}\n") in result.stderr
    assert newest(where)[1]["step"] == 23

    def remove(self, trainer):
        shutil.rmtree(tmp_path / "gone")
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CurvePlot, "on_epoch_complete", remove)
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "gone")])
    assert result.exit_code == 130
    assert f"stopped; {tmp_path / 'gone'} has gone, and what was saved in it\n" in result.stderr
    assert "--resume" not in result.stderr


def test_a_run_whose_folder_vanishes_is_there_in_the_end(tmp_path, monkeypatch):
    def remove(self, trainer):
        if trainer.epoch == 2:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(CurvePlot, "on_epoch_complete", remove)
    arguments = ["--epochs", "3", "--quiet", "--device", "cpu", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 0, result.output
    assert open_run(tmp_path / "run", "cpu").config.recipe.epochs == 3


def test_a_folder_that_vanishes_is_told_once_and_training_goes_on(tmp_path, caplog):
    folder = tmp_path / "run"

    class Remove(Callback):
        def on_epoch_start(self, trainer):
            if trainer.epoch == 1:
                shutil.rmtree(folder)

    callbacks = [ModelCheckpoint(folder), JSONLLog(folder / "metrics.jsonl"), Remove()]
    trainer = make_trainer("mlp", *callbacks)
    trainer.fit(make_loader("mlp"), epochs=3)
    assert trainer.epoch == 3
    assert [line.count("training goes on") for line in caplog.messages] == [1, 1]
    assert not folder.exists()


def test_a_log_catches_up_when_it_can_be_written_again(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"

    class Block(Callback):
        def on_epoch_start(self, trainer):
            if trainer.epoch == 1:
                path.unlink()
                path.mkdir()
            if trainer.epoch == 3:
                path.rmdir()

    trainer = make_trainer("mlp", JSONLLog(path), Block())
    trainer.fit(make_loader("mlp"), epochs=4)
    assert [record["epoch"] for record in run.read_history(path)] == [1, 2, 3, 4]
    assert caplog.text.count("training goes on") == 1
