"""Callbacks: what each sees, writes and restores."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import re
import time

import numpy as np
import pytest

import framework as fw
from framework import layers, optimizers, waiting
from framework.autograd import tensor
from framework.data import ArrayDataset, DataLoader
from framework.functional import cross_entropy, mse_loss
from framework.interop import safetensors
from framework.interop.atomic import FileError
from framework.trainer import (
    R2,
    Accuracy,
    Callback,
    CSVLog,
    CurvePlot,
    EarlyStopping,
    JSONLLog,
    LRMonitor,
    ModelCheckpoint,
    NonFiniteError,
    Progress,
    Stopped,
    TerminateOnNaN,
    Trainer,
)
from framework.trainer.callbacks.curve_plot import draw_curves
from framework.trainer.callbacks.log import plain
from framework.trainer.store import newest
from kernels import compiling

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class Scores(Callback):
    """Writes a given score into each epoch's record."""

    def __init__(self, *scores, name="val_loss"):
        self.scores, self.name = scores, name

    def on_epoch_end(self, trainer):
        trainer.history[-1][self.name] = self.scores[trainer.epoch - 1]


def make_trainer(*callbacks, lr=0.1, **options):
    fw.manual_seed(0)
    model = layers.Sequential(layers.Linear(4, 6), layers.Tanh(), layers.Linear(6, 2))
    optimizer = optimizers.SGD(model.parameters(), lr=lr)
    return Trainer(model, cross_entropy, optimizer, callbacks=callbacks, **options)


def loader():
    return DataLoader(ArrayDataset(X, Y), 8, device="cpu")


def weights_after(epochs):
    trainer = make_trainer()
    trainer.fit(loader(), epochs=epochs)
    return trainer.model.state_dict()["0.weight"].data.copy()


def test_the_moments_come_in_their_order():
    seen = []

    class Spy(Callback):
        pass

    for hook in [name for name in vars(Callback) if name.startswith("on_")]:
        setattr(Spy, hook, lambda self, trainer, *error, hook=hook: seen.append(hook))
    make_trainer(Spy()).fit([(tensor(X), tensor(Y))])
    step = ["on_step_start", "on_gradients", "on_step_end"]
    epoch = ["on_epoch_start", *step, "on_settle", "on_epoch_end", "on_epoch_complete"]
    assert seen == ["on_fit_start", *epoch, "on_fit_end"]


def test_an_error_reaches_the_callbacks_and_the_caller():
    seen = []

    class Spy(Callback):
        def on_exception(self, trainer, error):
            seen.append(error)

        def on_step_end(self, trainer):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make_trainer(Spy()).fit(loader())
    assert [type(error) for error in seen] == [KeyError]


@pytest.mark.parametrize(
    ("scores", "epochs", "ran", "best"),
    [
        ((3, 2, 2.5, 2.5, 1), 5, 4, 2),  # patience of 2 runs out
        ((3, 1, 2), 3, 3, 2),  # the epochs run out: the best weights all the same
        ((3, 2, 1), 3, 3, 3),
        ((math.nan, 2, math.nan), 3, 3, 2),
    ],
)
def test_early_stopping_restores_the_best_weights(scores, epochs, ran, best):
    stopping = EarlyStopping("val_loss", patience=2)
    trainer = make_trainer(Scores(*scores), stopping)
    history = trainer.fit(loader(), epochs=epochs)
    assert len(history) == ran
    assert stopping.best_epoch == best
    now = trainer.model.state_dict()["0.weight"].data
    assert now.tobytes() == weights_after(best).tobytes()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((3, 1, 2, 2, 2), "stopped after epoch 4: val_loss was best in epoch 2"),
        ((3, 1, 2), "val_loss was best in epoch 2"),
        ((3, 2, 1), ""),
    ],
)
def test_progress_says_which_weights_early_stopping_has_restored(
    scores, said, terminal, monkeypatch
):
    from rich.console import Console

    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=terminal, width=100))
    trainer = make_trainer(progress, Scores(*scores), EarlyStopping("val_loss", patience=2))
    trainer.fit(loader(), epochs=len(scores))
    last = screen.getvalue().rstrip("\n").rpartition("\n")[2]
    if said:
        shown = last.removeprefix("\x1b[?25h")  # the cursor is there again
        assert shown == f"{said}, whose weights are restored"
    else:
        assert "restored" not in screen.getvalue()


def test_early_stopping_restores_after_an_error_too():
    class Break(Callback):
        def on_step_end(self, trainer):
            if trainer.epoch == 2:
                raise KeyboardInterrupt

    trainer = make_trainer(Scores(2, 1), EarlyStopping("val_loss"), Break())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader(), epochs=3)
    now = trainer.model.state_dict()["0.weight"].data
    assert now.tobytes() == weights_after(2).tobytes()


def test_a_run_that_is_to_go_on_keeps_the_weights_it_goes_on_from():
    class Stop(Callback):
        def on_step_end(self, trainer):
            if trainer.epoch == 2:
                self.weights = trainer.model.state_dict()["0.weight"].data.tobytes()
                raise Stopped

    stop = Stop()
    trainer = make_trainer(Scores(1, 2), EarlyStopping("val_loss"), stop)
    with pytest.raises(Stopped):
        trainer.fit(loader(), epochs=3)
    now = trainer.model.state_dict()["0.weight"].data
    assert now.tobytes() == stop.weights != weights_after(1).tobytes()


def test_early_stopping_mode_and_min_delta():
    stopping = EarlyStopping("val_accuracy", patience=1, min_delta=0.1)
    trainer = make_trainer(Scores(0.5, 0.61, 0.7, 0.9, name="val_accuracy"), stopping)
    assert len(trainer.fit(loader(), epochs=4)) == 3
    assert stopping.best_epoch == 2
    with pytest.raises(ValueError, match="monitors 'val_los'; the records have: epoch, step, loss"):
        make_trainer(EarlyStopping("val_los")).fit(loader())


def test_early_stopping_with_averaged_weights():
    trainer = make_trainer(Scores(1, 2, 3), EarlyStopping("val_loss", patience=5))
    trainer.ema = optimizers.EMA(trainer.model, 0.5)
    seen = []

    class Look(Callback):
        def on_epoch_end(self, trainer):
            seen.append(trainer.predict(X).data.copy())

    trainer.callbacks.append(Look())
    trainer.fit(loader(), epochs=3)
    np.testing.assert_array_equal(trainer.predict(X).data, seen[0])
    trainer.model.eval()
    with fw.no_grad():
        np.testing.assert_array_equal(trainer.model(tensor(X)).data, seen[0])


def test_model_checkpoint_keeps_best_and_last(tmp_path):
    trainer = make_trainer(Scores(2, 1, 3), ModelCheckpoint(tmp_path / "new", monitor="val_loss"))
    trainer.fit(loader(), epochs=3)
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [
        "best.safetensors", "checkpoint-000002.safetensors", "checkpoint-000003.safetensors",
        "manifest.json",
    ]  # fmt: skip
    best = safetensors.load(tmp_path / "new" / "best.safetensors")
    assert best["0.weight"].tobytes() == weights_after(2).tobytes()


@pytest.mark.parametrize("seconds", [None, 1000.0])
def test_model_checkpoint_spares_the_disk(tmp_path, seconds):
    written = []

    class Look(Callback):
        def on_epoch_complete(self, trainer):
            _, state = newest(tmp_path)
            written.append(state["epoch"] == trainer.epoch)

    trainer = make_trainer(ModelCheckpoint(tmp_path, every_seconds=seconds), Look())
    trainer.fit(loader(), epochs=2)
    assert newest(tmp_path)[1]["epoch"] == 2
    assert written == [True, seconds is None]  # the first is written at once


def test_logs_hold_every_epoch(tmp_path):
    trainer = make_trainer(
        Scores(0.5, math.nan), LRMonitor(), JSONLLog(tmp_path / "a" / "m.jsonl"),
        CSVLog(tmp_path / "m.csv"), metrics=[Accuracy()],
    )  # fmt: skip
    trainer.fit(loader(), epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "a" / "m.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["val_loss"] for line in lines] == [0.5, None]
    assert lines[0]["lr"] == 0.1
    assert lines[1]["loss"] == trainer.history[1]["loss"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "m.csv").read_text())))
    assert float(rows[1]["accuracy"]) == trainer.history[1]["accuracy"]


def test_a_resumed_log_has_no_line_twice(tmp_path):
    trainer = make_trainer(JSONLLog(tmp_path / "m.jsonl"))
    trainer.fit(loader(), epochs=2)
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n')  # an epoch after the checkpoint
    trainer.fit(loader(), epochs=4)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert "loss" in lines[2]


def test_logs_that_cannot_be_written(tmp_path):
    for log in (JSONLLog(tmp_path), CSVLog(tmp_path)):
        with pytest.raises(FileError, match="cannot write"):
            make_trainer(log).fit(loader())


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "a" / "b"
    for callback in (JSONLLog(inside), CSVLog(inside), ModelCheckpoint(inside)):
        with pytest.raises(FileError, match="cannot make"):
            make_trainer(callback).fit(loader())


def test_plain_values():
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": (math.inf, 1, None, "x")}
    assert plain(value) == {"a": 0.5, "b": [0, 1], "c": [None, 1, None, "x"]}


def test_progress_without_a_terminal_is_a_line_an_epoch(capsys):
    trainer = make_trainer(Progress(), metrics=[Accuracy()])
    trainer.fit(loader(), {"test": loader()}, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    record = trainer.history[1]
    assert lines[1].startswith(
        f"epoch 2/2  loss {record['loss']:.4f}  accuracy {record['accuracy']:.4f}  "
        f"test loss {record['test_loss']:.4f}  test accuracy {record['test_accuracy']:.4f}  "
    )
    assert lines[1].endswith(" samples/s")


@pytest.mark.parametrize("width", [80, 120])
def test_progress_in_a_terminal(width, monkeypatch):
    from rich.console import Console

    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, legacy_windows=False)
    trainer = make_trainer(Progress(console), metrics=[Accuracy()])
    trainer.fit(loader(), {"test": loader()}, epochs=3)
    shown = screen.getvalue()
    assert "epoch 3/3" in shown
    assert f"{trainer.history[-1]['test_accuracy']:.4f}" in shown
    assert "samples/s" in shown
    assert shown.count("\n") <= 2  # one live line
    frames = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in shown.split("\r")]
    frames = [frame.rstrip() for frame in frames if "loss" in frame]
    assert any(frame.endswith(" s left") for frame in frames)
    assert frames[-1].endswith("took 0 s")
    assert len({frame.index("loss") for frame in frames}) == 1  # no jump as a score joins
    assert max(map(len, frames)) <= width


def test_progress_says_what_the_first_step_waits_for(monkeypatch):
    from rich.console import Console

    class Compiles(Callback):
        def on_fit_start(self, trainer):
            with compiling.told():
                time.sleep(0.05)

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(waiting, "PATIENCE", 0.02)
    monkeypatch.setattr(waiting, "FRAME", 0.005)
    screen, before = io.StringIO(), compiling.watch
    console = Console(file=screen, force_terminal=True, width=120, legacy_windows=False)
    make_trainer(Progress(console), Compiles()).fit(loader(), epochs=1)
    shown = screen.getvalue()
    assert shown.index("compiling kernels, once on this machine: 0 s") < shown.index("loss")
    assert compiling.watch is before


def test_progress_while_all_targets_are_equal(monkeypatch):
    from rich.console import Console

    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    model = layers.Linear(4, 1)
    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    progress = Progress(Console(file=screen, force_terminal=True, width=120))
    trainer = Trainer(model, mse_loss, optimizer, metrics=[R2()], callbacks=[progress])
    trainer.fit([(tensor(X), tensor(np.ones((32, 1), np.float32)))])
    assert "nan" in screen.getvalue()
    assert math.isnan(trainer.history[0]["r2"])


def test_progress_of_a_loader_without_length(monkeypatch):
    from rich.console import Console

    class Endless:
        def __iter__(self):
            return iter(loader())

    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    make_trainer(Progress(Console(file=screen, force_terminal=True))).fit(Endless(), epochs=2)
    assert "epoch 2/2" in screen.getvalue()


class Poison(layers.Module):
    """Passes x on, until it is told to divide by zero."""

    def __init__(self):
        super().__init__()
        self.active = False

    def forward(self, x):
        return (x - x.detach()) / (x - x.detach()) if self.active else x


def poisoned(**options):
    fw.manual_seed(0)
    model = layers.Sequential(
        layers.Linear(4, 6), layers.BatchNorm1d(6), Poison(), layers.Tanh(), layers.Linear(6, 2)
    )
    seen = []

    class Keep(Callback):
        def on_step_end(self, trainer):
            seen.append({n: x.data.copy() for n, x in model.state_dict().items()})
            model[2].active = trainer.step == 3

    optimizer = optimizers.AdamW(model.parameters(), lr=0.1)
    callbacks = [TerminateOnNaN(), Keep()]
    return Trainer(model, cross_entropy, optimizer, callbacks=callbacks, **options), seen


def test_nan_names_the_first_layer_and_keeps_the_last_good_weights():
    trainer, seen = poisoned()
    with pytest.raises(NonFiniteError, match=r"step 4, epoch 1: the loss is nan; the first layer "
                       r"with such an output is 2 \(Poison\(\)\)"):  # fmt: skip
        trainer.fit(loader(), epochs=2)
    now = trainer.model.state_dict()
    assert {n: x.data.tobytes() for n, x in now.items()} == {
        n: x.tobytes() for n, x in seen[-1].items()
    }
    assert trainer.step == 3
    assert not any(m._hooks for m in trainer.model.modules())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, x: x.__setitem__((3, 1), np.nan), "the batch itself has values"),
        (
            lambda model, x: model[0].weight.data.__setitem__((0, 0), np.nan),
            "the weight 0.weight is not finite",
        ),
    ],
)
def test_nan_from_outside(spoil, message):
    trainer = make_trainer(TerminateOnNaN())
    x = X.copy()
    spoil(trainer.model, x)
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit(DataLoader(ArrayDataset(x, Y), 8, device="cpu"))


def test_nan_in_a_gradient_alone():
    fw.manual_seed(0)
    model = layers.Sequential(layers.Linear(4, 1))

    def loss(output, target):  # sqrt(0): a finite loss, an infinite slope
        return mse_loss(output, output.detach()).sqrt()

    trainer = Trainer(
        model, loss, optimizers.SGD(model.parameters(), lr=0.1), callbacks=[TerminateOnNaN()]
    )
    before = model[0].weight.data.copy()
    with pytest.raises(
        NonFiniteError, match=r"the gradient of 0\.weight is not finite; every layer"
    ):
        trainer.fit([(tensor(X), tensor(X[:, :1]))])
    np.testing.assert_array_equal(model[0].weight.data, before)


@pytest.mark.parametrize("held", [True, False])
def test_nan_in_a_gradient_that_the_optimizer_has_or_has_not(held):
    model = layers.Sequential(layers.Linear(4, 3), layers.Linear(3, 1))

    class Spoil(Callback):
        def on_gradients(self, trainer):
            model[0].bias.grad.data[1] = np.inf

    chosen = model if held else model[1]
    optimizer = optimizers.SGD(chosen.parameters(), lr=0.1)
    trainer = Trainer(model, mse_loss, optimizer, callbacks=[Spoil(), TerminateOnNaN()])
    with pytest.raises(NonFiniteError, match=r"the gradient of 0\.bias is not finite"):
        trainer.fit([(tensor(X), tensor(X[:, :1]))])


def test_gradients_whose_sum_overflows_are_not_nan():
    model = layers.Linear(4, 1)

    class Enlarge(Callback):
        def on_gradients(self, trainer):
            model.weight.grad.data[...] = 3e38

    trainer = Trainer(
        model, mse_loss, optimizers.SGD(model.parameters(), lr=0.0),
        callbacks=[Enlarge(), TerminateOnNaN()],
    )  # fmt: skip
    trainer.fit([(tensor(X), tensor(X[:, :1]))])
    assert trainer.step == 1


def test_large_finite_values_are_not_nan():
    trainer = make_trainer(TerminateOnNaN(), lr=0.0)
    trainer.model[2].bias.data[:] = [3e38, 3e38]
    trainer.fit(loader())


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_curves(tmp_path, caplog):
    trainer = make_trainer(CurvePlot(tmp_path / "curves.png"), metrics=[Accuracy()])
    trainer.fit(loader(), {"test": loader()}, epochs=3)
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    assert len(list(tmp_path.iterdir())) == 1
    make_trainer(CurvePlot(tmp_path / "none" / "curves.png")).fit(loader())
    assert "cannot write" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
@pytest.mark.parametrize(
    ("last", "labels"),
    [(0.04, ["0.05", "0.1", "0.2", "0.5", "1"]), (1e-4, ["0.0001", "0.001", "0.01", "0.1", "1"])],
)
def test_the_axis_of_losses_has_decimals(last, labels, monkeypatch):
    from matplotlib.figure import Figure

    shown = []

    def look(figure, *args, **options):
        figure.canvas.draw()
        axis = figure.axes[0].yaxis
        low, high = axis.get_view_interval()
        for minor in (False, True):
            ticks = zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor), strict=False)
            shown.extend(text.get_text() for at, text in ticks if low <= at <= high)
        raise FileNotFoundError("nothing is written")

    monkeypatch.setattr(Figure, "savefig", look)
    history = [{"epoch": i, "loss": loss} for i, loss in enumerate((0.95, 0.3, last), 1)]
    with pytest.raises(FileError, match="cannot write"):
        draw_curves(history, "curves.png", [])
    assert list(filter(None, shown)) == labels


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_curves_of_losses_that_are_no_numbers(tmp_path):
    for loss in (math.nan, math.inf):
        draw_curves([{"epoch": 1, "loss": loss}], tmp_path / "curves.png", [])
        assert (tmp_path / "curves.png").exists()


def test_curves_without_matplotlib(tmp_path, monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    make_trainer(CurvePlot(tmp_path / "curves.png")).fit(loader())
    assert "matplotlib is not installed (pip install" in caplog.text
    caplog.clear()
    make_trainer(CurvePlot(tmp_path / "curves.png", quiet=True)).fit(loader())
    assert caplog.text == ""
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=0),
        lambda: EarlyStopping(mode="lowest"),
        lambda: EarlyStopping(min_delta=-1),
        lambda: ModelCheckpoint("x", every_seconds=-1),
        lambda: ModelCheckpoint("x", every_steps=0),
        lambda: ModelCheckpoint("x", keep=0),
        lambda: TerminateOnNaN(every=0),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ValueError, match="expected"):
        make()
