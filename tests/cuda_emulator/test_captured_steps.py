"""`fw.cuda.graph` on the emulator: draws, inputs, results, gradients, memory, streams, sorting."""

import logging
from functools import cache

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.backend import graph
from framework.backend.random import default_generator
from kernels.cuda import compiler
from tests.cuda_emulator import memory, streams, training, whole
from tests.cuda_emulator.conftest import require_emulator


@pytest.fixture(autouse=True)
def cupy():
    require_emulator()
    with whole.device() as module:
        yield module


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


def test_what_a_failed_capture_took_is_free_when_the_step_runs_as_it_is():
    before = []
    w = fw.tensor(np.ones((100, 100), np.float32), device="cuda", requires_grad=True)

    def step(x):
        before.append(sum(m.size for m in memory.live()))
        kept = (x * w).exp()
        loss = (kept * kept).sum()
        float(loss)
        return loss

    call = fw.cuda.graph(step, device="cuda")
    x = fw.tensor([2.0], device="cuda")
    for _ in range(3):
        call(x)
    assert "waits for the device" in call.reason
    _, warm, _, again = before
    assert again == warm


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


def test_more_shapes_than_graphs(caplog):
    call = fw.cuda.graph(lambda x: x * 2, device="cuda", most=2)
    with caplog.at_level(logging.WARNING, "framework"):
        for _ in range(4):
            for n in (1, 2, 3, 4):
                y = call(fw.tensor(np.arange(n, dtype=np.float32), device="cpu"))
                np.testing.assert_array_equal(y.data.get(), 2.0 * np.arange(n))
    assert call.captures == 2
    assert len(caplog.records) == 1


def test_a_shape_that_cannot_be_captured_leaves_the_other_graphs(caplog):
    def step(x):
        if len(x) > 2:
            float(x.sum())
        return x * 2

    call = fw.cuda.graph(step, device="cuda")
    with caplog.at_level(logging.WARNING, "framework"):
        for _ in range(5):
            for n in (1, 3, 2, 4):
                y = call(fw.tensor(np.arange(n, dtype=np.float32), device="cuda"))
                np.testing.assert_array_equal(y.data.get(), 2.0 * np.arange(n))
    assert (call.reason, call.captures, call.replays) == (None, 2, 6)
    (message,) = [r.getMessage() for r in caplog.records]
    assert "for inputs of shape (3,)" in message
    assert "waits for the device" in message


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


def test_a_leafs_other_array_is_followed():
    w = fw.tensor([1.0, 2.0], device="cuda", requires_grad=True)

    def step(x):
        w.zero_grad()
        loss = (w * w * x).sum()
        loss.backward()
        return loss

    call = fw.cuda.graph(step, device="cuda")
    x = fw.tensor([1.0, 1.0], device="cuda")
    for i in range(8):
        if i in (4, 5):
            w.data = w.data * 2
        factor = 1 + (i > 3) + 2 * (i > 4)
        assert call(x).item() == 5 * factor**2
        assert w.grad.data.get().tolist() == [2 * factor, 4 * factor]
    assert call.reason is None
    assert call.captures == 2


def test_a_step_that_gives_a_leaf_another_array_runs_as_it_is():
    w = fw.tensor([8.0], device="cuda", requires_grad=True)

    def step(x):
        w.zero_grad()
        (w * w * x).sum().backward()
        w.data = w.data - 0.25 * w.grad.data  # by hand

    call = fw.cuda.graph(step, device="cuda")
    for i in range(6):
        call(fw.tensor([1.0], device="cuda"))
        assert w.item() == 8 * 0.5 ** (i + 1)
    assert "is given another array" in call.reason


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


def test_an_input_that_wants_a_gradient_gets_it(caplog):
    def step(x):
        y = (x * x).sum()
        if x.requires_grad:
            y.backward()
        return y

    call = fw.cuda.graph(step, device="cuda")
    with caplog.at_level(logging.WARNING, "framework"):
        for i in range(4):
            for place in ("cuda", "cpu"):
                x = fw.tensor([float(i)], device=place, requires_grad=True)
                assert call(x).item() == i * i
                assert x.grad.item() == 2 * i
            assert call(x.detach()).item() == i * i
    assert call.replays == 2
    (message,) = [r.getMessage() for r in caplog.records]
    assert "an input of shape (1,) requires a gradient" in message


def test_an_input_that_wants_a_gradient_is_refused_where_a_capture_is_demanded():
    call = fw.cuda.graph(lambda x: x * 2, device="cuda", strict=True)
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


def test_no_kernel_is_compiled_in_a_capture(monkeypatch):
    """The order's kernel is launched in captures only."""
    compiled = []
    of_module = compiler.compiled.__wrapped__

    def spy(text, expression):
        compiled.append((expression, streams.is_capturing()))
        return of_module(text, expression)

    monkeypatch.setattr(compiler, "compiled", cache(spy))
    table = layers.Embedding(5, 3).to("cuda")

    def step(indices):
        table.weight.zero_grad()
        table(indices).sum().backward()

    call = fw.cuda.graph(step, device="cuda", warmup=1, strict=True)
    for _ in range(3):
        call(fw.tensor([1, 4, 1], device="cuda"))
    assert ("embedding_order<long long>", False) in compiled
    assert not any(capturing for _, capturing in compiled)


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


# --- autocast -------------------------------------------------------------------------------------


def test_a_block_around_the_calls_casts_in_every_replay():
    """The 16-bit weights of the warm-up are not those of the replays, nor theirs later ones'."""

    def run(capture):
        fw.manual_seed(0)
        net = layers.Linear(8, 3).to("cuda")
        optimizer = optimizers.SGD(net.parameters(), lr=0.1)

        def train(x, target):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()
            return loss

        def look(x):
            return net(x)

        calls = [fw.cuda.graph(f, device="cuda") if capture else f for f in (train, look)]
        draw = np.random.default_rng(0)
        seen = []
        for _ in range(2):
            with fw.autocast("bfloat16"):
                for _ in range(6):
                    x = fw.tensor(draw.standard_normal((4, 8)).astype(np.float32), device="cuda")
                    target = fw.tensor([0, 1, 2, 0], device="cuda")
                    seen.append(float(calls[0](x, target)))
                    seen.append(calls[1](x).data.get().tolist())
                    seen.append(look(x).data.get().tolist())
        return seen

    assert run(True) == run(False)


def test_each_mode_has_its_graph():
    """Autocast and grad mode are looked at by Python, which a replay does not run."""
    w = fw.tensor([[1.0, 2.0], [3.0, 1.0]], device="cuda", requires_grad=True)

    def step(x):
        y = x @ w
        if fw.is_grad_enabled():
            y = y * 2
        return y

    call = fw.cuda.graph(step, device="cuda")
    x = fw.tensor([[1.0, 1.0]], device="cuda")
    for _ in range(4):
        assert call(x).dtype == np.float32
        with fw.autocast("bfloat16"):
            assert call(x).dtype.name == "bfloat16"
        with fw.autocast("float16"):
            assert call(x).dtype == np.float16
        with fw.no_grad():
            assert call(x).data.get().tolist() == [[4, 3]]
        assert call(x).data.get().tolist() == [[8, 6]]
    assert call.captures == 4
