"""Memory in use, its peak, and what is said and given back when it runs out."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L
from framework.autograd import record
from framework.backend import device as backend, memory
from framework.backend.out_of_memory import size
from framework.layers.errors import name_leaves
from framework.optimizers import AdamW
from framework.trainer import Callback, Trainer

TOO_MUCH = 1 << 60


def too_much():
    """NumPy's own error."""
    np.empty(TOO_MUCH, np.uint8)


class Hungry(L.Module):
    """Passes its input on; runs out of memory forward or backward when told to."""

    def __init__(self, when="never"):
        super().__init__()
        self.when, self.kept = when, None

    def forward(self, x):
        a = x.data * 1.0  # what a layer computes, and saves for its gradient
        self.kept = weakref.ref(a)
        if self.when == "forward":
            too_much()

        def backward(dy):
            if self.when == "backward":
                too_much()
            return [dy * (a == a)]

        return record(a, [x], backward)


# In use and at most -------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")
def test_the_peak_of_the_process_starts_anew():
    block = mmap.mmap(-1, 40_000_000)
    np.frombuffer(block, np.uint8)[:] = 1
    block.close()
    assert fw.peak_memory("cpu") >= fw.memory_used("cpu")
    try:
        fw.reset_peak_memory("cpu")
    except NotImplementedError as error:
        pytest.skip(str(error))
    first = fw.peak_memory("cpu")
    block = mmap.mmap(-1, 40_000_000)
    np.frombuffer(block, np.uint8)[:] = 1
    block.close()
    assert fw.peak_memory("cpu") - first > 30_000_000
    assert fw.peak_memory("cpu") - fw.memory_used("cpu") > 30_000_000


class FakePool:
    """CuPy's pool as far as memory.py uses it, with its hooks."""

    def __init__(self):
        self.hooks, self.live, self.reserved = [], 0, 0
        fake = self

        class MemoryHook:
            def __enter__(self):
                fake.hooks.append(self)

        self.module = ModuleType("cupy")
        self.module.get_default_memory_pool = lambda: self

        class MemoryPool:
            __slots__ = ("total",)  # no weak references, as CuPy's

            def total_bytes(self):
                return self.total

        self.module.cuda = SimpleNamespace(
            MemoryHook=MemoryHook,
            MemoryPool=MemoryPool,
            Device=lambda index=0: backend.nullcontext(),
            memory=SimpleNamespace(OutOfMemoryError=FakeOutOfMemory),
            runtime=SimpleNamespace(
                getDevice=lambda: 0,
                getDeviceCount=lambda: 1,
                memGetInfo=lambda: (1 << 30, 80 << 30),
            ),
        )

    def malloc(self, count):
        self.live += count
        self.reserved = max(self.reserved, self.live)
        for hook in self.hooks:
            hook.malloc_postprocess(device_id=0, size=count, mem_size=count, mem_ptr=1, pmem_id=1)

    def used_bytes(self):
        return self.live

    def total_bytes(self):
        return self.reserved

    def get_limit(self):
        return 0

    def free_all_blocks(self):
        self.reserved = self.live


class FakeOutOfMemory(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size, total):
        self._size = size
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,}).")


@pytest.fixture
def pool(monkeypatch):
    pool = FakePool()
    monkeypatch.setitem(sys.modules, "cupy", pool.module)
    monkeypatch.setattr(backend, "probe_cuda", lambda: backend.Probe(True, hardware=True))
    monkeypatch.setattr(backend, "_default", backend.CPU)  # chosen once for all tests
    monkeypatch.setattr(fw.backend.memory, "_peaks", {})
    return pool


def test_the_peak_of_a_cuda_device_counts_from_its_reset(pool):
    pool.malloc(1000)
    pool.live -= 600
    assert fw.memory_used("cuda") == fw.cuda.memory_allocated() == 400
    assert fw.peak_memory("cuda") == fw.cuda.memory_reserved() == 1000  # nothing counts yet
    assert not pool.hooks
    fw.reset_peak_memory("cuda")
    assert fw.peak_memory("cuda") == 400
    pool.malloc(300)
    pool.live -= 500
    pool.malloc(50)
    assert fw.cuda.max_memory_allocated() == 700
    fw.cuda.reset_peak_memory_stats()
    assert fw.cuda.max_memory_allocated() == 250
    assert len(pool.hooks) == 1
    fw.cuda.empty_cache()
    assert fw.cuda.memory_reserved() == 250


def test_memory_of_captured_graphs_counts(pool):
    pool.malloc(1000)
    graph = memory.private_pool(fw.Device("cuda"))
    graph.total = 5000
    assert fw.memory_used("cuda") == fw.peak_memory("cuda") == fw.cuda.memory_reserved() == 6000
    fw.reset_peak_memory("cuda")
    graph.total = 7000
    pool.malloc(1)
    assert fw.peak_memory("cuda") == 8001
    error = fw.OutOfMemoryError.of(FakeOutOfMemory(10, 8001))
    assert error.used == 8001
    assert "pools hold 7.8 KiB" in str(error)
    assert "1001 bytes in arrays, 6.8 KiB in captured graphs, 0 bytes in blocks" in str(error)
    del graph
    assert fw.memory_used("cuda") == 1001
    assert "captured" not in str(fw.OutOfMemoryError.of(FakeOutOfMemory(10, 1001)))


@pytest.mark.cuda
def test_memory_of_a_real_device():
    before = fw.memory_used("cuda")
    fw.reset_peak_memory("cuda")
    x = fw.zeros(1 << 20, device="cuda")
    y = fw.zeros(1 << 20, device="cuda")
    assert fw.memory_used("cuda") - before == 8 << 20
    del x, y
    assert fw.memory_used("cuda") == before
    assert fw.peak_memory("cuda") - before == 8 << 20
    assert fw.cuda.memory_reserved() >= fw.peak_memory("cuda")


# Out of memory ------------------------------------------------------------------------------------


def test_sizes_are_short():
    assert [size(n) for n in (0, 1023, 1024, 3 << 29, 5 << 40)] == [
        *("0 bytes", "1023 bytes", "1.0 KiB", "1.5 GiB", "5.0 TiB"),
    ]


def test_a_layer_that_runs_out_of_memory_is_named():
    model = L.Sequential(L.Linear(4, 3), L.Sequential(L.ReLU(), Hungry("forward")))
    with pytest.raises(fw.OutOfMemoryError) as caught:
        model(fw.ones(5, 4))
    first, second, third, last = str(caught.value).splitlines()
    assert first == (
        "out of memory on cpu: the layer 1.1 (Hungry) given (5, 3) asked for 1048576.0 TiB "
        f"(an array ({TOO_MUCH},) of uint8)"
    )
    assert second.startswith("the process holds ")
    assert third.startswith("held by weights 60 bytes, gradients 0 bytes, the rest (activations")
    assert last == "lower the batch size"
    assert isinstance(caught.value.__cause__, MemoryError)
    assert not isinstance(caught.value.__cause__, fw.OutOfMemoryError)
    assert caught.value.requested == TOO_MUCH


def test_cupys_error_says_what_the_pool_holds(pool):
    class Big(L.Module):
        def forward(self, x):
            pool.malloc(60 << 30)
            pool.live -= 20 << 30
            raise FakeOutOfMemory(50 << 30, 60 << 30)

    with pytest.raises(fw.OutOfMemoryError) as caught:
        L.Sequential(L.Identity(), Big())(fw.ones(2, device="cpu"))
    first, second, *_ = str(caught.value).splitlines()
    assert first == "out of memory on cuda: the layer 1 (Big) given (2,) asked for 50.0 GiB"
    assert second == (
        "CuPy's pool holds 60.0 GiB of the 80.0 GiB of cuda: 40.0 GiB in arrays, 20.0 GiB in "
        "blocks that do not fit; 1.0 GiB of the device are free"
    )


def test_a_memory_error_without_a_size():
    class Vague(L.Module):
        def forward(self, x):
            raise MemoryError("no address space")

    with pytest.raises(
        fw.OutOfMemoryError, match=r"Vague given \(2,\) asked for more .* \(no address space\)"
    ):
        Vague()(fw.ones(2))


def test_a_backward_pass_names_the_operation():
    x = fw.ones(3, requires_grad=True)
    y = Hungry("backward")(x)
    with pytest.raises(fw.OutOfMemoryError, match="the gradient of Hungry.forward asked for"):
        y.sum().backward()


def test_the_gradient_of_a_layer_with_weights_is_that_layers():
    trainer = make()
    weight = trainer.model[3].weight
    y = record(weight.data.sum(keepdims=True), [weight], lambda dy: too_much())
    with pytest.raises(fw.OutOfMemoryError) as caught:
        y.backward()
    name_leaves(caught.value, trainer.model)
    assert " of the layer 3 (Linear) asked for" in str(caught.value)


def make(when="never", **options):
    fw.manual_seed(0)
    model = L.Sequential(L.Linear(4, 8), L.ReLU(), Hungry(), L.Linear(8, 1))
    trainer = Trainer(model, F.mse_loss, AdamW(model.parameters(), lr=0.1), **options)
    trainer.hungry = model[2]
    return trainer


RNG = np.random.default_rng(0)
BATCHES = [
    (
        fw.tensor(RNG.standard_normal((6, 4)).astype("float32")),
        fw.tensor(RNG.standard_normal((6, 1)).astype("float32")),
    )
    for _ in range(4)
]


class At(Callback):
    """Makes memory run out in a step."""

    def __init__(self, step, when):
        self.step, self.when, self.freed = step, when, None

    def on_step_start(self, trainer):
        if trainer.step == self.step:
            trainer.hungry.when = self.when

    def on_exception(self, trainer, error):
        assert isinstance(error, fw.OutOfMemoryError)
        self.freed = trainer.hungry.kept() is None


@pytest.mark.parametrize(
    ("when", "where"),
    [
        ("forward", r"the layer 2 \(Hungry\) given \(6, 8\) asked for"),
        ("backward", r"the gradient of Hungry.forward after the layer 0 \(Linear\) asked for"),
        ("loss", "an operation outside the model's layers asked for"),
    ],
)
def test_after_the_error_the_trainer_has_the_last_good_weights_and_no_activations(when, where):
    want = make()
    want.fit(BATCHES[:2])
    callback = At(2, when)
    trainer = make(callbacks=[callback])
    if when == "loss":

        def loss(output, target):
            if trainer.step == 2:
                too_much()
            return F.mse_loss(output, target)

        trainer.loss = loss
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(fw.OutOfMemoryError, match=where) as caught:
            trainer.fit(BATCHES)
        assert trainer.hungry.kept() is None, "an activation is still held"
    finally:
        gc.enable()
    assert callback.freed, "held while the callbacks run"
    assert trainer.step == 2
    for p, q in zip(trainer.model.parameters(), want.model.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)
        assert p.grad is None
    notes = getattr(caught.value.__cause__, "__notes__", [])
    assert any("in too_much" in note for note in notes) == (when != "forward")
    text = str(caught.value)
    assert "held by weights 196 bytes, gradients " in text and "optimizer state " in text
    assert text.splitlines()[-1] == (
        "lower the batch size (6 samples), with accumulate=2 for the same steps "
        "or the precision (precision='bf16-mixed') or the model's size"
    )
    trainer.hungry.when, trainer.callbacks, trainer.loss = "never", [], F.mse_loss
    trainer.fit(BATCHES[2:], epochs=1)
    want.epoch, want.epochs = 0, 1
    want.fit(BATCHES[2:], epochs=1)
    for p, q in zip(trainer.model.parameters(), want.model.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_the_error_says_what_the_activations_hold():
    class Wide(L.Module):
        def forward(self, x):
            return record(np.ones((1 << 23,), np.float32), [x], lambda dy: [x.data])  # 32 MiB

    trainer = make()
    trainer.model = L.Sequential(trainer.model[0], Wide(), Hungry("forward"))
    with pytest.raises(fw.OutOfMemoryError) as caught:
        trainer.fit(BATCHES)
    assert 24 << 20 < caught.value.held["activations"] < 2 << 30
    assert ", activations " in str(caught.value)
    assert "the rest (batches, the program itself, ...) " in str(caught.value)


def test_evaluation_and_prediction_explain_it_too():
    trainer = make()
    trainer.hungry.when = "forward"
    for call in (lambda: trainer.evaluate(BATCHES), lambda: trainer.predict(BATCHES)):
        with pytest.raises(fw.OutOfMemoryError, match="optimizer state"):
            call()
        assert trainer.hungry.kept() is None


@pytest.mark.cuda
def test_a_real_device_that_runs_out_of_memory():
    import cupy

    pool = cupy.get_default_memory_pool()
    with fw.Device("cuda").context():
        pool.free_all_blocks()
        pool.set_limit(size=pool.total_bytes() + (64 << 20))
        try:
            model = L.Sequential(L.Linear(256, 256), L.ReLU(), L.Linear(256, 256)).to("cuda")
            trainer = Trainer(model, F.mse_loss, AdamW(model.parameters(), lr=0.1))
            x = fw.ones(1 << 16, 256, device="cpu")
            used = fw.memory_used("cuda")
            with pytest.raises(fw.OutOfMemoryError, match="limited to"):
                trainer.fit([(x, x)])
            assert fw.memory_used("cuda") - used < 1 << 20
            trainer.fit([(x[:64], x[:64])])
        finally:
            pool.set_limit(size=0)
