"""fw.profile: what it records, that nothing of it is left behind, and how it is shown."""

import threading
import time

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers
from framework.autograd import Tensor
from framework.autograd.graph import record
from framework.backend import memory
from framework.data import ArrayDataset, DataLoader
from framework.optimizers import SGD
from framework.profiler import hooks, spans
from framework.profiler.report import OUTSIDE
from kernels.activations import relu


def current():
    """What stands in the places of the hooks."""
    return [vars(owner)[name] for owner, name, _ in hooks.HOOKS]


ORIGINALS = current()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    assert all(a is b for a, b in zip(current(), ORIGINALS, strict=True))
    yield
    assert all(a is b for a, b in zip(current(), ORIGINALS, strict=True))
    assert spans.recording == ()
    assert spans.innermost() is None
    assert not hooks._owners
    assert not hooks.names._known


class Slow(layers.Module):
    """Sleeps: `forward` and `backward` seconds."""

    def __init__(self, forward=0.0, backward=0.0, inner=None):
        super().__init__()
        self.seconds = forward, backward
        self.inner = inner

    def forward(self, x):
        time.sleep(self.seconds[0])
        x = x if self.inner is None else self.inner(x)

        def backward(dy):
            time.sleep(self.seconds[1])
            return [dy]

        return record(x.data.copy(), [x], backward)


def leaf(*shape):
    return fw.tensor(np.ones(shape, "float32"), requires_grad=True)


def rows(profile):
    return {row.name: row for row in profile.layers()}


# What is recorded ---------------------------------------------------------------------------------


def test_a_layer_has_its_own_time_forward_and_backward():
    model = layers.Sequential(Slow(0.02), Slow(0.0, 0.03, inner=Slow(0.01, 0.01)))
    with fw.profile() as p:
        model(leaf(2)).sum().backward()
    found = rows(p)
    assert set(found) == {"Sequential", "0", "1", "1.inner", OUTSIDE}
    assert [found[n].kind for n in ("Sequential", "0", "1.inner")] == ["Sequential", "Slow", "Slow"]
    assert all(found[name].calls == 1 for name in ("Sequential", "0", "1", "1.inner"))
    assert found["0"].forward >= 0.02
    assert found["1.inner"].forward >= 0.01
    assert found["1"].backward >= 0.03
    assert found["1.inner"].backward >= 0.01
    # what is inside is not counted again
    whole = {s.name: (s.end - s.start) / 1e9 for s in p.spans if s.category == "layer"}
    own = whole["Sequential"] - whole["0"] - whole["1"]
    assert found["Sequential"].forward == pytest.approx(own)
    assert found["1"].forward == pytest.approx(whole["1"] - whole["1.inner"])
    assert found["0"].forward == pytest.approx(whole["0"])
    assert sum(row.total for row in found.values()) <= p.seconds
    totals = [row.total for row in p.layers()]
    assert totals == sorted(totals, reverse=True)


def test_names_are_those_of_the_model():
    inner = layers.Sequential(layers.Linear(3, 3), layers.ReLU())
    model = layers.Sequential({"body": inner, "head": layers.Linear(3, 2)})
    with fw.profile() as p:
        model(leaf(4, 3))
    assert set(rows(p)) == {"Sequential", "body", "body.0", "body.1", "head"}
    with fw.profile() as p:  # a part alone, which does not know what it is part of
        inner(leaf(4, 3))
    assert set(rows(p)) == {"Sequential", "0", "1"}
    with fw.profile(model) as p:
        inner(leaf(4, 3))
    assert set(rows(p)) == {"body", "body.0", "body.1"}


def test_two_models_do_not_share_names():
    a, b = (layers.Sequential(layers.ReLU()) for _ in range(2))
    with fw.profile() as p:
        b(a(leaf(2)))
    assert set(rows(p)) == {"Sequential", "0", "Sequential#2", "Sequential#2.0"}


def test_what_belongs_to_no_layer_has_a_row():
    layer = layers.Linear(3, 2)
    with fw.profile() as p:
        F.cross_entropy(layer(leaf(4, 3)), fw.tensor([0, 1, 0, 1])).backward()
    outside = rows(p)[OUTSIDE]
    assert outside.forward > 0
    assert outside.backward > 0


def test_kernels_are_counted_by_name():
    x = np.ones(5, "float32")
    with fw.profile() as p:
        for _ in range(3):
            relu(x)
        relu(x.astype("float16"))  # calls itself in float32: one call all the same
        F.softmax(fw.tensor(x))
    found = {row.name: row for row in p.kernels()}
    assert {name: row.calls for name, row in found.items()} == {"relu": 4, "softmax": 1}
    assert all(row.seconds > 0 for row in found.values())


def test_a_graph_that_is_kept_is_attributed_twice():
    layer = Slow(0.0, 0.01)
    with fw.profile() as p:
        y = layer(leaf(2)).sum()
        y.backward(retain_graph=True)
        y.backward()
    assert rows(p)["Slow"].backward >= 0.02


def test_a_graph_from_before_the_profile_belongs_to_no_layer():
    y = Slow(0.0, 0.01)(leaf(2)).sum()
    with fw.profile() as p:
        y.backward()
    assert rows(p)[OUTSIDE].backward >= 0.01


def test_phases_and_the_rest_of_the_steps():
    model = Slow(0.01, 0.02)
    weight = leaf(2)
    optimizer = SGD([weight], lr=0.1)
    data = DataLoader(ArrayDataset(np.ones((4, 2), "float32"), np.zeros(4)), 2)
    with fw.profile() as p:
        for i, (x, _) in enumerate(data):
            with p.range(f"step {i}"):
                time.sleep(0.005)
                model(x * weight).sum().backward()
                optimizer.step()
    found = {row.name: row for row in p.phases()}
    names = {"forward", "backward", "optimizer", "data", "rest of the steps"}
    assert names | {"loss, metrics, others"} == set(found)
    assert all(found[name].calls == 2 for name in names)
    assert found["forward"].seconds >= 0.02
    assert found["backward"].seconds >= 0.04
    assert found["rest of the steps"].seconds >= 0.01
    assert sum(row.seconds for row in found.values()) <= p.seconds


def test_memory_before_after_and_at_most(monkeypatch):
    in_use = [100]

    class Holds(layers.Module):
        def forward(self, x):
            in_use[0] = 700
            return F.relu(x)

    monkeypatch.setattr(memory, "memory_used", lambda device: in_use[0])
    with fw.profile() as p:
        Holds()(leaf(2))
        in_use[0] = 300
    assert p.memory == (100, 300, 700)
    monkeypatch.undo()
    with fw.profile() as p:  # of this process, which holds Python and NumPy at least
        pass
    assert min(p.memory) > 10 << 20


# Threads ------------------------------------------------------------------------------------------


def test_threads_have_spans_of_their_own():
    model = layers.Sequential(Slow(0.01), Slow(0.01))

    def work():
        model(leaf(2)).sum().backward()

    with fw.profile(model) as p:
        threads = [threading.Thread(target=work, name=f"worker {i}") for i in range(3)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
    assert {span.thread[1] for span in p.spans} == {
        "MainThread",
        *(f"worker {i}" for i in range(3)),
    }
    assert rows(p)["1"].calls == 4
    for span in p.spans:
        assert span.parent is None or span.parent.thread == span.thread


def test_batches_are_made_in_worker_threads():
    data = DataLoader(ArrayDataset(np.ones((8, 2)), np.zeros(8)), 2, workers=2)
    with fw.profile() as p:
        list(data)
    made = [span for span in p.spans if span.category == "data"]
    assert len(made) == 4
    assert all(span.thread[1].startswith("framework-loader") for span in made)


def test_another_thread_may_be_in_the_middle_when_a_profile_begins_and_ends():
    inside, go_on = threading.Event(), threading.Event()

    class Waits(layers.Module):
        def forward(self, x):
            inside.set()
            go_on.wait(10)
            return F.relu(x)

    for begin_first in (True, False):
        inside.clear()
        go_on.clear()
        thread = threading.Thread(target=Waits(), args=(fw.ones(2),))
        p = fw.profile()
        if begin_first:
            p.__enter__()
        thread.start()
        assert inside.wait(10)
        if not begin_first:
            p.__enter__()
        else:
            p.__exit__()
        go_on.set()
        thread.join()
        if not begin_first:
            p.__exit__()
        # a span that was cut at either end is not in it
        assert [span.name for span in p.spans] == ([] if begin_first else ["relu"])


# Blocks -------------------------------------------------------------------------------------------


def test_an_error_inside_leaves_nothing_behind():
    class Broken(layers.Module):
        def forward(self, x):
            raise KeyError("no")

    model = layers.Sequential(layers.ReLU(), Broken())
    with pytest.raises(KeyError), fw.profile() as p, p.range("step 1"):
        model(fw.ones(2))
    assert [span.name for span in p.spans] == ["relu", "0", "1", "Sequential", "step 1"]
    assert spans.innermost() is None
    with fw.profile() as p:
        layers.ReLU()(fw.ones(2))
    assert [span.name for span in p.spans] == ["relu", "ReLU"]


def test_profiles_can_be_nested():
    with fw.profile() as outer:
        F.relu(fw.ones(2))
        with fw.profile() as inner:
            F.gelu(fw.ones(2))
        F.silu(fw.ones(2))
    assert [row.name for row in inner.kernels()] == ["gelu"]
    assert {row.name for row in outer.kernels()} == {"relu", "gelu", "silu"}


def test_a_profile_inside_a_layer_has_what_is_inside_of_it():
    class Watched(layers.Module):
        def forward(self, x):
            with fw.profile() as self.__dict__["profile"]:
                return F.relu(x)

    model = Watched()
    with fw.profile():
        model(fw.ones(2))
    (phase,) = model.profile.phases()
    assert (phase.name, phase.calls) == ("loss, metrics, others", 1)


def test_a_profile_goes_on_when_it_is_entered_again():
    p = fw.profile()
    for _ in range(2):
        with p:
            F.relu(fw.ones(2))
        F.gelu(fw.ones(2))
    assert [(row.name, row.calls) for row in p.kernels()] == [("relu", 2)]
    assert len(p.intervals) == 2


def test_what_is_left_out_is_not_there():
    begun = time.perf_counter()
    with fw.profile() as p:
        F.relu(fw.ones(2))
        since = time.perf_counter_ns()
        F.gelu(fw.ones(2))
        time.sleep(0.05)
        p.leave_out(since)
        F.silu(fw.ones(2))
    assert {row.name for row in p.kernels()} == {"relu", "silu"}
    assert p.seconds <= time.perf_counter() - begun - 0.05


def test_what_cannot_be_is_said():
    p = fw.profile()
    with pytest.raises(RuntimeError, match="does not record"):
        p.leave_out(0)
    with p:
        with pytest.raises(RuntimeError, match="records already"):
            p.__enter__()
        for look in (
            p.layers,
            p.kernels,
            p.phases,
            p.text,
            lambda: p.memory,
            lambda: p.export("x"),
        ):
            with pytest.raises(RuntimeError, match="leave its with block first"):
                look()
        with pytest.raises(ValueError, match="category is 'gpu', expected one of layer, kernel"):
            p.range("x", "gpu").__enter__()
    with pytest.raises(TypeError, match="model is a int, expected a Module"):
        fw.profile(3)
    with pytest.raises(ValueError, match="'tpu'"):
        fw.profile(device="tpu")


def test_results_are_the_same_bits():
    model = layers.Sequential(layers.Linear(8, 8), layers.GELU(), layers.Linear(8, 1))

    def gradients():
        model.zero_grad()
        model(Tensor(np.linspace(-1, 1, 64, dtype="float32").reshape(8, 8))).sum().backward()
        return [parameter.grad.numpy().copy() for parameter in model.parameters()]

    plain = gradients()
    with fw.profile():
        watched = gradients()
    for a, b in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(a, b)


# Tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_width_and_are_sorted(width):
    named = {f"encoder_block_number_{i}": layers.Linear(4, 4) for i in range(3)}
    model = layers.Sequential({**named, "head": Slow(0.01)})
    with fw.profile() as p:
        model(leaf(2, 4)).sum().backward()
    text = p.text(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    first = next(i for i, line in enumerate(lines) if line.split()[:1] == ["layer"])
    heads = ["layer", "type", "calls", "forward", "ms", "backward", "ms", "share"]
    assert lines[first].split() == heads
    slowest = p.layers()[0]
    assert lines[first + 2].split()[1:3] == [slowest.kind, str(slowest.calls)]
    assert slowest.name.startswith(lines[first + 2].split()[0])
    for word in ("kernel", "mean us", "matmul", "phase", "backward", "ms recorded", "MiB"):
        assert word in text
    assert str(p) == p.text(100)


def test_a_limit_adds_up_the_rest():
    from rich.console import Console

    model = layers.Sequential(*(layers.ReLU() for _ in range(5)))
    with fw.profile() as p:
        model(leaf(2))
    console = Console(width=80)
    with console.capture() as shown:
        console.print(p.tables(limit=2)[0])
    body = [line for line in shown.get().splitlines() if "%" in line]
    assert len(body) == 3
    assert body[-1].split()[:2] == ["4", "more"]


def test_an_empty_profile_can_be_shown():
    with fw.profile() as p:
        pass
    assert p.layers() == p.kernels() == p.phases() == []
    assert "ms recorded" in p.text(80)
