"""Captured steps on the emulator: the same bits as steps that are run, and what prevents a capture.

The emulator launches a graph with the arguments that were captured, numbers by value, so that a
number which should change and does not shows in the weights.
"""

import gc
import logging
import weakref

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.backend import graph
from framework.backend.live import CaptureError
from framework.backend.random import Generator, default_generator
from framework.trainer import Callback, Metric, TerminateOnNaN
from kernels.arrays import is_cuda
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


def test_dropout_draws_the_cpus_masks():
    x = fw.tensor(np.ones((5, 7), np.float32), device="cpu")
    fw.manual_seed(11)
    expected = [(F.dropout(x, 0.5).numpy(), F.dropout(x, 0.2).numpy()) for _ in range(6)]
    fw.manual_seed(11)
    draw = fw.cuda.graph(lambda x: (F.dropout(x, 0.5), F.dropout(x, 0.2)), device="cuda")
    for wanted in expected:
        for mask, other in zip(draw(x), wanted, strict=True):
            np.testing.assert_array_equal(mask.data.get(), other)
    assert draw.replays == 4


def test_other_draws_are_captured_too():
    def draws(like):
        return [fw.rand(3, device=like.device), fw.randn(5, device=like.device)]

    def numbers(step, x):
        fw.manual_seed(5)
        return [y.data.get().tolist() for _ in range(5) for y in step(x)]

    x = fw.zeros((1,), device="cuda")
    assert numbers(fw.cuda.graph(draws, device="cuda"), x) == numbers(draws, x)


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


def test_nothing_is_waited_for_and_no_memory_grows(monkeypatch):
    trainer = training.trainer("cuda")
    data = training.batches([16] * 4)
    trainer.fit(data, epochs=2)
    waited = []
    gc.collect()  # of other tests
    monkeypatch.setattr(streams, "waits", waited.append)
    before = sum(m.size for m in memory.live())
    for _ in range(100):
        trainer._train_step([data[0]])
    assert set(waited) == {"set()"}  # batches and numbers, copied in
    assert sum(m.size for m in memory.live()) == before
    assert trainer._captured.whole.replays == 6 + 100


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


@pytest.mark.parametrize(
    "change", [freeze, decay, other_array, clip, reload, forget_gradients, hold_gradients]
)
def test_changes_between_steps_are_followed(change):
    eager, captured = (fitted(capture, callbacks=[Changes(change)]) for capture in (False, "auto"))
    assert training.differences(eager, captured) == []
    assert captured._captured.whole.reason is None
    assert captured._captured.whole.replays > 8


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


def test_asked_for_by_name_it_is_an_error():
    trainer = training.trainer("cuda", True)
    trainer.loss = reads_the_loss
    with pytest.raises(CaptureError, match="cannot be captured: it waits for the device"):
        trainer.fit(training.batches(), epochs=2)


def test_an_error_during_the_capture_counts_nothing():
    """The step goes on as it is, from where it was: counters, gradients, the random stream."""

    def run(capture):
        fw.manual_seed(2)
        net = training.model().to("cuda")
        optimizer = optimizers.AdamW(net.parameters(), lr=0.01)
        x, target = training.batches()[0]

        def step(x, target):
            loss = F.cross_entropy(net(x), target)
            loss.backward()  # gradients add up over the steps
            optimizer.step()
            float(loss)
            return loss

        call = fw.cuda.graph(step, device="cuda") if capture else step
        x, target = x.to("cuda"), target.to("cuda")
        losses = [float(call(x, target)) for _ in range(6)]
        return losses, optimizer.state_dict()["steps"], default_generator.state()

    assert run(True) == run(False)


def test_the_default_stream_cannot_be_captured(cupy, caplog):
    def step(x):
        with cupy.cuda.Stream.null:
            return x + 1

    call = fw.cuda.graph(step, device="cuda")
    with caplog.at_level(logging.WARNING, "framework"):
        for i in range(4):
            assert call(fw.tensor([float(i)], device="cuda")).item() == i + 1
    assert "it uses the default stream" in call.reason
    assert len(caplog.records) == 1


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


# --- fw.cuda.graph --------------------------------------------------------------------------------


def test_more_shapes_than_graphs(caplog):
    call = fw.cuda.graph(lambda x: x * 2, device="cuda", most=2)
    with caplog.at_level(logging.WARNING, "framework"):
        for _ in range(4):
            for n in (1, 2, 3, 4):
                y = call(fw.tensor(np.arange(n, dtype=np.float32), device="cpu"))
                np.testing.assert_array_equal(y.data.get(), 2.0 * np.arange(n))
    assert call.captures == 2
    assert len(caplog.records) == 1


def test_outputs_keep_their_structure_and_inputs_their_type(cupy):
    def step(x, scale):
        return {"y": x * scale, "both": (x, None)}

    call = fw.cuda.graph(step, device="cuda")
    for i in range(5):
        x = cupy.full(3, float(i), "float32")
        result = call(x, 2)
        assert isinstance(result["y"], cupy.ndarray)
        assert result["y"].get().tolist() == [2.0 * i] * 3
        assert result["both"][1] is None
    assert call.replays == 3
    assert call(cupy.ones(3, "float32"), 3)["y"].get().tolist() == [3] * 3  # a signature of its own


def test_gradients_are_where_the_step_leaves_them():
    w = fw.tensor([1.0, 2.0], device="cuda", requires_grad=True)

    def step(x):
        w.zero_grad()
        (w * x).sum().backward()

    call = fw.cuda.graph(step, device="cuda")
    for i in range(5):
        w.zero_grad()
        call(fw.tensor([float(i), 1.0], device="cuda"))
        assert w.grad.data.get().tolist() == [i, 1]
    assert call.replays == 3


def test_a_replay_waits_for_the_current_stream_and_the_other_way_round(cupy, monkeypatch):
    call = fw.cuda.graph(lambda x: x * 2, device="cuda")
    x = fw.tensor([1.0, 2.0], device="cuda")
    for _ in range(3):
        call(x)
    (capture, *_) = graph._capture_stream(fw.Device("cuda"))
    seen = []

    def spy(owner, name):
        method = getattr(owner, name)

        def spied(self, argument):
            seen.append((name, self.ptr if owner is streams.Stream else argument.ptr, argument))
            return method(self, argument)

        monkeypatch.setattr(owner, name, spied)

    spy(streams.Stream, "record")
    spy(streams.Stream, "wait_event")
    spy(streams.Graph, "launch")
    with cupy.cuda.Stream(non_blocking=True) as mine:
        call(x)
    (_, _, before), (_, _, waited), _, (_, _, after), (_, _, joined) = seen
    assert [entry[:2] for entry in seen] == [
        ("record", mine.ptr),
        ("wait_event", capture.ptr),
        ("launch", capture.ptr),
        ("record", capture.ptr),
        ("wait_event", mine.ptr),
    ]
    assert before is waited is not after is joined


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


def test_results_outlive_their_graph():
    """Their memory pool stays as long as they do, and no longer."""
    call = fw.cuda.graph(lambda x: x * 2, device="cuda")
    x = fw.tensor([1.0, 2.0], device="cuda")
    y = [call(x) for _ in range(3)][-1]
    call.forget()
    assert y.data.get().tolist() == [2, 4]
    assert len(graph._retired) == 1
    del y
    for _ in range(3):
        call(x)
    call.forget()
    assert graph._retired == []


def test_an_input_that_wants_a_gradient_is_refused():
    call = fw.cuda.graph(lambda x: x * 2, device="cuda")
    with pytest.raises(ValueError, match="requires a gradient"):
        call(fw.tensor([1.0], device="cuda", requires_grad=True))
    with pytest.raises(ValueError, match="warmup is 0"):
        fw.cuda.graph(lambda x: x, device="cuda", warmup=0)


def test_a_graph_within_a_graph_is_part_of_it():
    inner = fw.cuda.graph(lambda x: x + 1, device="cuda")
    outer = fw.cuda.graph(lambda x: inner(x) * 2, device="cuda", warmup=1)
    for i in range(4):
        assert outer(fw.tensor([float(i)], device="cuda")).item() == 2 * (i + 1)
    assert outer.replays == 3
    assert outer.reason is None


def test_a_layers_buffers_follow():
    """Batch norm counts its batches and keeps its statistics in place."""

    def run(capture):
        fw.manual_seed(0)
        norm = layers.BatchNorm1d(4).to("cuda")
        call = fw.cuda.graph(norm, device="cuda") if capture else norm
        draw = np.random.default_rng(0)
        for _ in range(5):
            call(fw.tensor(draw.standard_normal((6, 4)).astype(np.float32), device="cuda"))
        return {name: x.data.get().tolist() for name, x in norm.state_dict().items()}

    assert run(True) == run(False)
    assert run(True)["num_batches_tracked"] == 5


@pytest.mark.parametrize("n", [1, 6, 300])
def test_an_embeddings_gradient_is_sorted_without_waiting(n):
    """CuPy's sort cannot be captured; the order is the same, so the sums are too."""

    def run(capture):
        fw.manual_seed(0)
        table = layers.Embedding(5, 3).to("cuda")
        draw = np.random.default_rng(n)
        weights = fw.tensor(draw.standard_normal((n, 3)).astype(np.float32), device="cuda")

        def step(indices):
            table.weight.zero_grad()
            (table(indices) * weights).sum().backward()
            return table.weight.grad

        call = fw.cuda.graph(step, device="cuda") if capture else step
        drawn = [fw.tensor(draw.integers(0, 5, n), device="cuda") for _ in range(5)]
        grads = [call(indices).data.get().tolist() for indices in drawn]
        return grads, getattr(call, "reason", None)

    assert run(True) == run(False)


def test_sorting_in_a_step_is_refused_before_it_starts():
    call = fw.cuda.graph(lambda x: x + fw.randperm(4, device="cuda"), device="cuda")
    x = fw.zeros((4,), device="cuda")
    for _ in range(4):
        assert call(x).data.get().sum() == 6
    assert "waits for the device" in call.reason

    w = fw.tensor([1.0, 2.0, 3.0], device="cuda", requires_grad=True)

    def step(indices):
        w.zero_grad()
        w[indices].sum().backward()

    call = fw.cuda.graph(step, device="cuda")
    for _ in range(4):
        call(fw.tensor([2, 0, 2], device="cuda"))
        assert w.grad.data.get().tolist() == [1, 0, 2]
    assert call.reason == "the gradient of indexing with arrays is not captured"
