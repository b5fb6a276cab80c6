"""Captured steps on the emulator: the same bits as steps that are run, and what prevents a capture.

The emulator launches a graph with the arguments that were captured, numbers by value, so that a
number which should change and does not shows in the weights.
"""

import gc
import itertools
import logging
import weakref
from functools import partial

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.backend import cuda, graph, out_of_memory
from framework.backend.live import CaptureError
from framework.backend.random import Generator
from framework.data import DataLoader, StreamSampler, Windows, load
from framework.trainer import (
    Callback,
    Metric,
    ModelLoss,
    TerminateOnNaN,
    Trainer,
    batch_size,
    checkpoint,
)
from framework.trainer.config import Recipe
from framework.trainer.language import token_loss
from framework.trainer.run import load_data
from kernels.arrays import is_cuda
from models import build
from models.mlp import MLP, MLPConfig
from tests.cuda_emulator import memory, streams, training, whole
from tests.cuda_emulator.conftest import require_emulator


@pytest.fixture(autouse=True)
def cupy():
    require_emulator()
    with whole.device() as module:
        yield module


def fitted(capture="auto", epochs=4, sizes=(16, 16, 16, 16, 9), **options):
    run = training.trainer("cuda", capture, **options)
    run.fit(training.batches(sizes), epochs=epochs)
    return run


def test_the_framework_finds_the_emulator():
    assert fw.cuda.is_available()
    assert fw.cuda.device_count() == 1
    x = fw.tensor([1.0, 2.0]).to("cuda")
    assert is_cuda(x.data)
    assert (x * 2).sum().item() == 6


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_captured_equals_eager(optimizer):
    eager, captured = (fitted(capture, optimizer=optimizer) for capture in (False, "auto"))
    assert training.differences(eager, captured) == []
    whole_step = captured._captured.whole
    # of 4 epochs: each shape is run twice, then captured and replayed
    assert (whole_step.captures, whole_step.replays, whole_step.reason) == (2, 14 + 2, None)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["bf16-mixed", "tf32"])
def test_captured_equals_eager_in_other_precisions(precision, accumulate):
    """The 16-bit copies of the weights are made anew in every replay."""
    eager, captured = (
        fitted(capture, precision=precision, accumulate=accumulate) for capture in (False, "auto")
    )
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.replays >= 8
    assert training.differences(fitted(False, accumulate=accumulate), captured)  # than float32


def test_fp16_mixed_runs_as_it_is_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, "framework"):
        eager, auto = (fitted(capture, precision="fp16-mixed") for capture in (False, "auto"))
    assert training.differences(eager, auto) == []
    assert auto._captured.whole.captures == 0
    assert sum("fp16-mixed" in record.getMessage() for record in caplog.records) == 1


def test_captured_equals_the_cpu_within_rounding():
    captured = fitted()
    cpu = training.trainer("cpu")
    cpu.fit(training.batches(), epochs=4)
    assert cpu._captured is None
    for name in ("generator", "steps", "updates", "lr", "step"):
        assert training.bits(captured)[name] == training.bits(cpu)[name]
    losses = [[record["loss"] for record in run.history] for run in (captured, cpu)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    mine, theirs = (dict(run.model.named_parameters()) for run in (captured, cpu))
    for name in mine.keys() - {"0.bias"}:  # batch norm takes it out: its gradient is rounding
        np.testing.assert_allclose(mine[name].data.get(), theirs[name].data, 5e-3, 1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_callback_that_looks_at_gradients_splits_the_step(accumulate):
    class Look(Callback):
        def __init__(self):
            self.seen = []

        def on_gradients(self, trainer):
            grads = [p.grad.data.get() for p in trainer.model.parameters()]
            self.seen.append([g.tobytes() for g in grads])

    looks = Look(), Look()
    eager, captured = (
        fitted(capture, callbacks=[look, TerminateOnNaN()], accumulate=accumulate)
        for capture, look in zip((False, "auto"), looks, strict=True)
    )
    assert training.differences(eager, captured) == []
    assert looks[0].seen == looks[1].seen
    steps = captured._captured
    assert steps.whole.captures == 0
    assert steps.gradients.captures == 2
    assert steps.move.captures == 1


@pytest.mark.parametrize("capture", [False, "auto"])
def test_looking_for_batches_to_leave_out_waits_once_a_step(monkeypatch, capture):
    waited = []

    class Counted(TerminateOnNaN):
        def on_gradients(self, trainer):
            before = len(waited)
            super().on_gradients(trainer)
            self.each.append(waited[before:])

    watch = Counted(skip=True)
    watch.each = []
    waits = streams.waits
    monkeypatch.setattr(streams, "waits", lambda what: (waited.append(what), waits(what)))
    fitted(capture, callbacks=[watch], accumulate=2)
    assert len(watch.each) == 12
    assert all(len(each) == 1 for each in watch.each), watch.each


def test_the_norm_of_gradients_in_many_buffers_is_captured():
    def run(capture):
        fw.manual_seed(0)
        sizes = (training.FEATURES, 5, 6, 7, 5, training.CLASSES)
        parts = [layers.Linear(*pair) for pair in itertools.pairwise(sizes)]
        net = layers.Sequential(*parts).to("cuda")
        groups = [{"params": [p], "lr": 0.01 * i} for i, p in enumerate(net.parameters())]
        optimizer = optimizers.SGD(groups)
        assert len(groups) == 10
        trainer = Trainer(
            net, F.cross_entropy, optimizer, device="cuda", clip_norm=0.1, capture=capture
        )
        trainer.fit(training.batches((16,) * 4))
        return trainer

    eager, captured = run(False), run(True)
    for mine, theirs in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        np.testing.assert_array_equal(mine.data.get(), theirs.data.get())
    assert captured._captured.whole.captures == 1


def test_accumulated_gradients_are_one_graph():
    eager, captured = (fitted(capture, accumulate=2) for capture in (False, "auto"))
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.captures == 2


def test_metrics_that_wait_are_told_after_the_replay():
    class Largest(Metric):
        name = "largest"

        def reset(self):
            self.seen = 0.0

        def update(self, output, target):
            self.seen = max(self.seen, float(output.data.max()))

        def compute(self):
            return self.seen

    def run(capture):
        trainer = training.trainer("cuda", capture)
        trainer.metrics.append(Largest())
        trainer.fit(training.batches(), epochs=4)
        return trainer

    eager, captured = run(False), run("auto")
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.replays == 16


def test_losses_and_outputs_may_be_kept():
    class Keeps(Metric):
        name = "kept"

        def __init__(self):
            self.all = []

        def reset(self):
            self.seen = []

        def update(self, output, target):
            self.seen += [output, target]
            self.all += [output, target]

        def compute(self):
            return float(sum(x.data.get().sum() for x in self.seen))

    class KeepsLosses(Callback):
        def __init__(self):
            self.kept = []

        def on_step_end(self, trainer):
            self.kept += trainer.losses

    def run(capture):
        callback, metric = KeepsLosses(), Keeps()
        trainer = training.trainer("cuda", capture, callbacks=[callback])
        trainer.metrics.append(metric)
        trainer.fit(training.batches(), epochs=4)
        return trainer, [x.data.get().tolist() for x in [*callback.kept, *metric.all]]

    (eager, expected), (captured, kept) = run(False), run("auto")
    assert kept == expected
    assert training.differences(eager, captured) == []


def test_a_resumed_run_equals_one_that_went_on():
    whole_run = fitted(epochs=6)
    first = fitted(epochs=3)
    state = first.state_dict()
    state["optimizer"]["arrays"] = {
        name: fw.Tensor(x.data.copy()) for name, x in state["optimizer"]["arrays"].items()
    }
    second = training.trainer("cuda")
    second.load_state_dict(state)
    second.fit(training.batches(), epochs=6)
    assert training.differences(whole_run, second) == []


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("at", [7, 10])
def test_saved_on_one_device_it_resumes_on_the_other(first, second, at):
    """Inside an epoch and at its end: the same data and dropout masks, numbers within rounding."""

    class Keep(Callback):
        def on_step_end(self, trainer):
            if trainer.step == at:
                self.state = checkpoint.to_bytes(trainer.state_dict())

    cpu = training.trainer("cpu")
    cpu.fit(training.batches(), epochs=4)
    expected = training.bits(cpu)  # its generator is everybody's
    keep = Keep()
    training.trainer(first, callbacks=[keep]).fit(training.batches(), epochs=4)
    parts = training.trainer(second)
    parts.load_state_dict(checkpoint.from_bytes(keep.state, "c"))
    parts.fit(training.batches(), epochs=4)
    for name in ("generator", "steps", "updates", "lr", "step"):
        assert training.bits(parts)[name] == expected[name]
    losses = [[record["loss"] for record in run.history] for run in (parts, cpu)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_a_batch_is_left_out_of_captured_steps_too():
    data = training.batches()
    data[2][0].data[0, 0] = np.nan
    runs = []
    for capture in (False, "auto"):
        runs.append(training.trainer("cuda", capture, callbacks=[TerminateOnNaN(skip=True)]))
        runs[-1].fit(data, epochs=4)
    assert training.differences(*runs) == []
    assert [(run.step, run.skipped) for run in runs] == [(16, 4)] * 2


def test_a_look_at_the_units_leaves_the_graphs_alone():
    """On their own the steps are looked at as they are, replayed ones beside them."""
    found = []
    for capture in (False, "auto"):
        health = fw.trainer.Health(every=2)
        run = training.trainer("cuda", capture)
        run.model[1].bias.data[:3] = -1e3  # of the norm before the ReLU
        run.callbacks.append(health)
        run.fit(training.batches(), epochs=2)
        run.fit(training.batches([16] * 8), epochs=3)
        assert not any(module.has_hooks for module in run.model.modules())
        found.append([report.partition(": ")[2] for report in health.reports])
    assert run._captured.whole.captures == 1
    assert run._captured.whole.replays > 8
    assert found[0] == found[1]
    assert any("3 of 16 units of 2 are dead" in report for report in found[0])


def test_nothing_is_waited_for_and_no_memory_grows(monkeypatch):
    trainer = training.trainer("cuda")
    data = training.batches([16] * 4)
    trainer.fit(data, epochs=2)
    trainer._train_step([data[0]])  # it leaves its loss
    waited = []
    gc.collect()  # of other tests
    monkeypatch.setattr(streams, "waits", waited.append)
    before = sum(m.size for m in memory.live())
    for _ in range(100):
        trainer._train_step([data[0]])
    assert set(waited) == {"set()"}  # batches and numbers, copied in
    assert sum(m.size for m in memory.live()) == before
    assert trainer._captured.whole.replays == 6 + 101


def test_a_recipe_trains_on_the_device_as_on_the_cpu():
    """The run that `python -m framework train` makes, with its loader, on the emulator."""

    def run(device, capture):
        fw.manual_seed(1)
        digits = load("digits", seed=0)
        data = load_data(digits, Recipe(epochs=2, batch_size=256), 1, device)
        net = MLP(MLPConfig(inputs=64, hidden=(16,), outputs=10, dropout=0.2)).to(device)
        trainer = Trainer(
            net,
            F.cross_entropy,
            optimizers.AdamW(net.parameters(), lr=0.01),
            callbacks=[TerminateOnNaN()],
            device=device,
            capture=capture,
        )
        trainer.fit(data.train, data.validation, epochs=2)
        return trainer

    runs = [run("cpu", "auto"), run("cuda", False), run("cuda", "auto")]
    losses = [[record["loss"] for record in r.history] for r in runs]
    assert losses[1] == losses[2]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert runs[2]._captured.whole.captures >= 1


# --- numbers that do not change are found ---------------------------------------------------------


def baked_learning_rate(monkeypatch):
    update = optimizers.AdamW.update
    monkeypatch.setattr(optimizers.AdamW, "update", lambda *args: update(*args[:-1], None))


def baked_place(monkeypatch):
    monkeypatch.setattr(Generator, "advance", Generator._take)


def baked_average(monkeypatch):
    monkeypatch.setattr(optimizers.EMA, "_live_weight", lambda self, _: self._next_weight())


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (baked_learning_rate, "model 0.weight"),
        (baked_place, "model 0.weight"),
        (baked_average, "ema 0.weight"),
    ],
)
def test_a_number_that_was_captured_by_value_shows(fault, found, monkeypatch):
    eager = fitted(False)
    with monkeypatch.context() as patch:
        fault(patch)
        captured = fitted()
    assert captured._captured.whole.captures == 2
    assert found in training.differences(eager, captured)


# --- changes between steps ------------------------------------------------------------------------


class Changes(Callback):
    """Does something to the trainer before its 9th step."""

    def __init__(self, change):
        self.change = change

    def on_step_start(self, trainer):
        if trainer.step == 8:
            self.change(trainer)


def freeze(trainer):
    next(iter(trainer.model.parameters())).requires_grad_(False)


def decay(trainer):
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.3


def other_array(trainer):
    p = next(iter(trainer.model.parameters()))
    p.data = p.data * 0.5


def clip(trainer):
    trainer.clip_norm = 0.01


def reload(trainer):
    trainer.model.load_state_dict({n: x * 0.5 for n, x in trainer.model.state_dict().items()})


def forget_gradients(trainer):
    trainer.optimizer.zero_grad()


def hold_gradients(trainer):
    trainer.held = [p.grad for p in trainer.model.parameters()]


def other_statistics(trainer):
    mean = trainer.model[1].running_mean
    mean.data = mean.data * 0.5


def other_buffer(trainer):
    trainer.model[1].running_mean = fw.Tensor(trainer.model[1].running_mean.data + 1)


def there_and_back(trainer):
    trainer.model.to("cpu")
    trainer.model.to("cuda")


def other_layer(trainer):
    trainer.model[2] = layers.Tanh()


def drop_more(trainer):
    trainer.model[3].p = 0.6


@pytest.mark.parametrize(
    "change",
    [
        freeze,
        decay,
        other_array,
        clip,
        reload,
        forget_gradients,
        hold_gradients,
        other_statistics,
        other_buffer,
        there_and_back,
        other_layer,
        drop_more,
    ],
)
def test_changes_between_steps_are_followed(change):
    eager, captured = (fitted(capture, callbacks=[Changes(change)]) for capture in (False, "auto"))
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.reason is None
    assert captured._captured.whole.replays > 8


def test_frozen_parameters_are_followed():
    """The optimizer does not know them."""

    def run(capture):
        trainer = training.trainer("cuda", capture, callbacks=[Changes(other_array)])
        first, *rest = trainer.model.parameters()
        first.requires_grad_(False)
        trainer.optimizer = optimizers.SGD(rest, lr=0.1)
        trainer.fit(training.batches(), epochs=4)
        return trainer

    eager, captured = run(False), run("auto")
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.replays > 8


class Smoothed:
    def __init__(self):
        self.smoothing, self.calls = 0.0, 0

    def __call__(self, output, target):
        self.calls += 1  # by the step itself: no setting
        return F.cross_entropy(output, target, label_smoothing=self.smoothing)


class ByClass:
    @classmethod
    def loss(cls, output, target):
        return F.cross_entropy(output, target)


@pytest.mark.parametrize(
    "loss_of", [lambda x: x, lambda x: x.__call__, partial, lambda _: ByClass.loss]
)
def test_a_losss_attributes_are_followed(loss_of):
    def run(capture):
        smoothed = Smoothed()

        def change(_):
            smoothed.smoothing = 0.4

        trainer = training.trainer("cuda", capture, callbacks=[Changes(change)])
        trainer.loss = loss_of(smoothed)
        trainer.fit(training.batches(), epochs=4)
        return trainer

    eager, captured = run(False), run("auto")
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.replays > 8


def test_a_layer_that_gives_its_buffer_another_array_runs_as_it_is(caplog):
    class Counts(layers.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", fw.zeros((1,)))

        def forward(self, x):
            self.seen.data = self.seen.data + 1
            return x * (1 + 0.01 * self.seen)

    def run(capture):
        trainer = training.trainer("cuda", capture)
        trainer.model = layers.Sequential(trainer.model, Counts().to("cuda"))
        trainer.fit(training.batches(), epochs=4)
        return trainer

    eager = run(False)
    with caplog.at_level(logging.WARNING, "framework"):
        captured = run("auto")
    assert training.differences(eager, captured) == []
    (message,) = [r.getMessage() for r in caplog.records]
    assert "gives parameters or buffers other arrays" in message


def test_an_option_out_of_range_is_an_error_and_counts_nothing():
    trainer = fitted(epochs=3)
    before = training.bits(trainer)
    trainer.optimizer.param_groups[0]["eps"] = -1.0
    with pytest.raises(ValueError, match="eps=-1.0"):
        trainer._train_step([training.batches()[0]])
    after = training.bits(trainer)
    assert {n for n in before if before[n] != after[n]} <= {"lr"}


# --- what cannot be captured ----------------------------------------------------------------------


def reads_the_loss(output, target):
    loss = F.cross_entropy(output, target)
    assert float(loss) < 100
    return loss


def from_the_host(output, target):
    weights = fw.tensor([1.0] * training.CLASSES, device="cuda")
    return F.cross_entropy(output, target, weight=weights)


@pytest.mark.parametrize("loss", [reads_the_loss, from_the_host])
def test_a_step_that_cannot_be_captured_runs_as_it_is(loss, caplog):
    def run(capture):
        trainer = training.trainer("cuda", capture)
        trainer.loss = loss
        trainer.fit(training.batches(), epochs=4)
        return trainer

    eager = run(False)
    with caplog.at_level(logging.WARNING, "framework"):
        captured = run("auto")
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.captures == 0
    (message,) = [r.getMessage() for r in caplog.records]
    assert "is not captured into a CUDA graph" in message
    assert "waits for the device or copies from the host at test_captured_training.py:" in message


def test_an_input_that_wants_a_gradient_gets_it():
    def run(capture):
        data = training.batches()
        for x, _ in data:
            x.requires_grad_(True)
        trainer = training.trainer("cuda", capture)
        trainer.fit(data, epochs=3)
        return trainer, [x.grad.numpy().tolist() for x, _ in data]

    (eager, expected), (captured, gradients) = run(False), run("auto")
    assert gradients == expected
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.captures == 0


def test_asked_for_by_name_it_is_an_error():
    trainer = training.trainer("cuda", True)
    trainer.loss = reads_the_loss
    with pytest.raises(CaptureError, match="cannot be captured: it waits for the device"):
        trainer.fit(training.batches(), epochs=2)


def test_a_rule_without_numbers_is_not_captured():
    class Plain(optimizers.SGD):
        numbers = optimizers.Optimizer.numbers

    training.OPTIMIZERS["plain"] = lambda ps: Plain(ps, lr=0.1)
    try:
        eager, captured = (fitted(capture, optimizer="plain") for capture in (False, "auto"))
    finally:
        del training.OPTIMIZERS["plain"]
    assert training.differences(eager, captured) == []
    assert "Plain has no numbers()" in captured._captured.whole.reason


def test_hooks_run_in_every_step(caplog):
    seen = []

    def run(capture):
        trainer = training.trainer("cuda", capture)
        trainer.model.register_forward_hook(lambda *_: seen.append(capture))
        with caplog.at_level(logging.WARNING, "framework"):
            trainer.fit(training.batches(), epochs=3)
        return trainer

    assert training.differences(run(False), run("auto")) == []
    assert seen.count("auto") == seen.count(False) == 15
    assert len(caplog.records) == 1


def test_graphs_are_given_back_where_memory_runs_out(monkeypatch):
    monkeypatch.setattr(out_of_memory, "_pool_of", lambda device: {})  # figures of a real pool
    monkeypatch.setattr(batch_size, "_free", lambda device: 0)  # so that no size is looked for
    monkeypatch.setattr(batch_size, "_largest", lambda *_: None)
    trainer = fitted(epochs=3)
    steps = trainer._captured
    pools = [weakref.ref(x._memory) for x in steps.whole._known.values()]
    assert len(pools) == 2
    left = []

    def runs_out(*_):
        raise fw.OutOfMemoryError(trainer.device, 1 << 40)

    with monkeypatch.context() as patch:
        patch.setattr(graph._Captured, "replay", runs_out)
        patch.setattr(cuda, "empty_cache", lambda _: left.extend(x() for x in pools))
        with pytest.raises(fw.OutOfMemoryError, match="lower the batch size"):
            trainer.fit(training.batches(), epochs=4)
    assert left == [None, None]
    trainer.fit(training.batches(), epochs=6)
    assert steps.whole.captures == 4
    assert steps.whole.reason is None


def test_graphs_go_with_their_trainer():
    trainer = fitted(epochs=3)
    gone = weakref.ref(trainer._captured.whole)
    assert gone().captures == 2
    gc.disable()  # what it would have to find is a cycle of references
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


# --- a state from window to window ----------------------------------------------------------------


def streamed(capture, loss):
    """A language model over streams: three windows, again and again."""
    ids = np.random.default_rng(0).integers(0, 7, 37)
    sampler = StreamSampler(len(ids), 4, 3, batches=6)
    loader = DataLoader(Windows(ids, 4, sampler.length), 3, sampler=sampler, device="cuda")
    fw.manual_seed(0)
    model = build("nplm", vocabulary=7, context=6, embedding=4, hidden=8).to("cuda")
    optimizer = optimizers.SGD(model.parameters(), lr=0.5)
    run = Trainer(model, loss, optimizer, capture=capture)
    run.fit(loader, epochs=2)
    return run


@pytest.mark.parametrize("loss", [token_loss, ModelLoss()], ids=["of logits", "the model's"])
def test_a_carried_state_goes_on_in_replays(loss):
    eager, captured = streamed(False, loss), streamed(True, loss)
    assert captured._captured.whole.replays == 10
    for name, x in eager.model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), captured.model.state_dict()[name].numpy(), name)
    kept = [run.model.carry.kept()[0].get() for run in (eager, captured)]
    np.testing.assert_array_equal(*kept)
