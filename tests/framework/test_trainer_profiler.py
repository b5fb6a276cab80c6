"""The Profiler callback, and `train --profile`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from framework import functional as F, layers
from framework.data import ArrayDataset, DataLoader
from framework.interop.atomic import FileError
from framework.optimizers import SGD
from framework.profiler import spans
from framework.trainer import Accuracy, Callback, Profiler, Trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    assert spans.recording == ()
    assert spans.innermost() is None


def trainer(*callbacks):
    model = layers.Sequential(layers.Linear(3, 4), layers.ReLU(), layers.Linear(4, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    return Trainer(model, F.cross_entropy, optimizer, metrics=[Accuracy()], callbacks=callbacks)


def loader(batches):
    x = np.ones((2 * batches, 3), "float32")
    return DataLoader(ArrayDataset(x, np.zeros(2 * batches, "int64")), 2)


def names(profiler, category):
    return [s.name for s in profiler.profile.spans if s.category == category]


def test_some_steps_are_recorded_after_the_warm_up(tmp_path):
    profiler = Profiler(tmp_path / "new", warmup=2, steps=3)
    trainer(profiler).fit(loader(8), epochs=2)
    assert profiler.recorded == 3
    assert names(profiler, "step") == [
        name for i in (3, 4, 5) for name in ("SGD.step", f"step {i}")
    ]
    assert names(profiler, "data") == ["make batch", "next batch"] * 3
    rows = {row.name: row.calls for row in profiler.profile.layers()}
    assert rows == {"Sequential": 3, "0": 3, "1": 3, "2": 3, "(outside layers)": 0}
    text = (tmp_path / "new" / "profile.txt").read_text(encoding="utf-8")
    assert text.startswith("3 steps, after 2 of warm-up\n")
    assert "cross_entropy" in text
    events = json.loads((tmp_path / "new" / "trace.json").read_text(encoding="utf-8"))
    assert {"layer", "kernel", "autograd", "step", "data"} == {
        event["cat"] for event in events["traceEvents"] if event["ph"] == "X"
    }


def test_evaluations_between_epochs_are_left_out():
    profiler = Profiler(warmup=1, steps=10)
    trainer(profiler).fit(loader(2), validation=loader(50), epochs=3)
    assert profiler.recorded == 5
    steps = [name for name in names(profiler, "step") if name != "SGD.step"]
    assert steps == [f"step {i}" for i in range(2, 7)]
    assert len(names(profiler, "data")) == 2 * 5
    rows = {row.name: row.calls for row in profiler.profile.layers()}
    assert rows["0"] == 5
    assert len(profiler.profile.intervals) == 3 + 1  # each evaluation cuts it


def test_without_a_warm_up_the_first_batch_is_in_it():
    profiler = Profiler(warmup=0, steps=1)
    trainer(profiler).fit(loader(2))
    assert names(profiler, "data") == ["make batch", "next batch"]
    assert names(profiler, "step") == ["SGD.step", "step 1"]


def test_a_run_that_is_too_short_has_no_steps_and_no_files(tmp_path):
    profiler = Profiler(tmp_path, warmup=3)
    trainer(profiler).fit(loader(2))
    assert (profiler.seen, profiler.recorded) == (2, 0)
    assert not list(tmp_path.iterdir())


def test_it_can_be_used_again():
    profiler = Profiler(warmup=1, steps=2)
    for _ in range(2):
        trainer(profiler).fit(loader(4))
        assert profiler.recorded == 2
        assert len([s for s in profiler.profile.spans if s.name == "0"]) == 2


class Breaks(Callback):
    def __init__(self, moment, step):
        self.step = step
        setattr(self, moment, self.act)

    def act(self, trainer):
        if trainer.step == self.step:
            raise KeyError("broken")


@pytest.mark.parametrize("moment", ["on_step_start", "on_gradients", "on_step_end", "on_epoch_end"])
def test_an_error_ends_it(tmp_path, moment):
    profiler = Profiler(tmp_path, warmup=1)
    with pytest.raises(KeyError):
        trainer(profiler, Breaks(moment, 4)).fit(loader(4), epochs=2)
    assert not profiler.profile.recording
    assert not list(tmp_path.iterdir())


def test_it_saves_nothing_in_a_checkpoint():
    assert Profiler().state_dict() == {}


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(ValueError, match="warmup is -1, expected an integer of at least 0"):
        Profiler(warmup=-1)
    with pytest.raises(ValueError, match="steps is 0, expected an integer of at least 1"):
        Profiler(steps=0)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileError):
        trainer(Profiler(file / "folder")).fit(loader(2))


# The command --------------------------------------------------------------------------------------


def train(folder, *args):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FRAMEWORK_DEVICE": "cpu"}
    command = [sys.executable, "-m", "framework", "train", "mlp", "--profile", "--out", "run"]
    return subprocess.run(
        [*command, *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_train_profile_prints_tables_and_writes_files(tmp_path):
    result = train(tmp_path, "--epochs", "1")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert "profile of 20 steps, after 3 of warm-up" in lines
    for part in ("blocks.0.linear", "adam_step", "forward", "data", "profile.txt, trace.json"):
        assert part in result.stdout
    assert lines[-1].startswith("test accuracy")
    text = (tmp_path / "run" / "profile.txt").read_text(encoding="utf-8")
    assert "blocks.1.activation" in text
    trace = json.loads((tmp_path / "run" / "trace.json").read_text(encoding="utf-8"))
    steps = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"].startswith("step ")]
    assert [e["name"] for e in steps] == [f"step {i}" for i in range(4, 24)]


def test_quiet_prints_the_result_only_and_short_runs_say_why_there_is_nothing(tmp_path):
    result = train(tmp_path, "--epochs", "1", "--batch-size", "1000", "--quiet")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert not (tmp_path / "run" / "trace.json").exists()
    assert result.stderr == ("nothing was profiled: the run has 2 steps, the first 3 are warm-up\n")
