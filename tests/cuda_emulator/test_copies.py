"""The input pipeline on a device whose copies and kernels come at the worst moment."""

from __future__ import annotations

import gc
import itertools
import re
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L
from framework.backend import device as backend
from framework.backend.transfer import send_ahead
from framework.data import ArrayDataset, DataLoader, LoaderError, loader as loading, prefetch
from framework.optimizers import AdamW
from framework.trainer import Accuracy, Callback, Trainer, batch_size
from tests.cuda_emulator import copies
from tests.cuda_emulator.conftest import require_emulator

CUDA = fw.Device("cuda")


@pytest.fixture
def emulate(monkeypatch):
    """Makes `copies.installed` one of the framework's devices."""
    require_emulator()
    monkeypatch.setattr(backend, "probe_cuda", lambda: backend.Probe(True, hardware=True))
    monkeypatch.setattr(backend, "_default", backend.CPU)  # chosen once for all tests
    return copies.installed


def batches(count=7, seed=0):
    """Several dtypes and memory orders, an array without elements, a smaller last batch."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        n = 3 if number == count - 1 else 5
        x = rng.standard_normal((n, 4, 6)).astype(np.float32)
        yield (
            x,
            np.asfortranarray(x[..., 0].astype(np.float64)),
            x[::-1, 1:, ::2],  # no layout of its own
            rng.integers(0, 9, n),
            x[:, 0, 0] > 0,
            x[:, 1].astype(ml_dtypes.bfloat16),
            x[0].astype(">f4"),
            np.empty((n, 0), np.float16),
            np.array(number, np.int32),
        )


def go_through(device, source, ahead=1):
    """What kernels saw of each batch: launched in turn, and done when the device likes."""
    seen = []
    for batch in send_ahead(source, CUDA, ahead):
        seen.append([device.read(x) for x in batch])
        del batch
    device.current.synchronize()
    return seen


def same(a, b):
    """Values, dtypes (but for the byte order) and shapes agree, bit for bit."""

    def told(x):
        native = x.astype(x.dtype.newbyteorder("="))
        return native.dtype, native.shape, native.tobytes()

    pairs = zip(itertools.chain(*a), itertools.chain(*b), strict=True)
    return all(told(p) == told(q) for p, q in pairs)


@pytest.mark.parametrize("kernels_at_once", [False, True])
@pytest.mark.parametrize("copies_come", ["late", "early"])
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_kernels_see_every_batch_as_it_was(emulate, copies_come, kernels_at_once, ahead):
    with emulate(copies_come, kernels_at_once) as device:
        got = go_through(device, batches(), ahead)
        assert same(got, list(batches()))
        assert device.races == []
        assert len(device.pinned) <= 9 * (ahead + 2)  # filled again, not made again
        assert device.pool.live == 0


@pytest.mark.parametrize(
    ("forgotten", "copies_come", "kernels_at_once", "race"),
    [
        ("waits of compute", "late", True, r"kernel may happen before copy \d+ is done"),
        ("waits of stream 1", "early", False, r"copy \d+ may happen before kernel is done"),
        ("waits of the host", "late", False, None),  # a pinned buffer is filled before it is copied
    ],
)
def test_each_wait_is_needed(emulate, forgotten, copies_come, kernels_at_once, race):
    with emulate(copies_come, kernels_at_once, forgotten) as device:
        got = go_through(device, batches())
        assert not same(got, list(batches()))
        if race is not None:
            assert any(re.fullmatch(race, found) for found in device.races)


@pytest.mark.parametrize("position", [0, 1, 5], ids=["float32", "columns", "bfloat16"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_the_next_copy_does_not_wait_for_the_kernels_in_hand(emulate, ahead, position):
    full = [b[position : position + 1] for b in batches()][:-1]
    with emulate("late") as device:
        go_through(device, full, ahead)
    kernels = [a for a in device.accesses if a.what == "kernel"]
    sent = [a for a in device.accesses if a.what.startswith("copy")]
    assert len(kernels) == len(sent) == 6
    for number in range(1, 5):
        kernel, copy = kernels[number], sent[number + 1]
        assert copy.clock.get("compute", 0) < kernel.time, "the copy waits for the kernel before"
        assert kernel.clock.get("stream 1", 0) < copy.time, "the kernel waits for the next copy"
    first = device.log.index("compute: kernel")
    assert sum(": copy" in line for line in device.log[:first]) == ahead + 1


def test_the_sequence_of_a_batch(emulate):
    with emulate("late") as device:
        x = np.ones(4, np.float32)
        for batch in send_ahead([(x,), (x,)], CUDA, ahead=0):
            device.read(batch[0])
            del batch
    assert device.log == [
        *("compute: record event 3", "stream 1: wait event 3", "stream 1: copy 0"),
        *("stream 1: record event 1", "compute: wait event 1"),
        *("compute: record event 4", "compute: kernel"),
        *("stream 1: wait event 4", "stream 1: copy 1"),
        *("stream 1: record event 2", "compute: wait event 2"),
        *("compute: record event 5", "compute: kernel"),
        "host: wait stream 1",
    ]


def test_batches_that_are_kept_are_not_overwritten(emulate):
    with emulate("early") as device:
        kept = list(send_ahead(batches(), CUDA))
        device.current.synchronize()
        assert same([[x.get() for x in batch] for batch in kept], list(batches()))
        assert len(device.pinned) <= 9 * 3


def test_what_is_on_the_device_already_passes_through(emulate):
    with emulate("late"):
        import cupy

        there = cupy.ones(3, np.float32)
        for batch in send_ahead([(there, np.ones(2), "name"), (there,)], CUDA):
            assert batch[0] is there


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("ahead", [0, 1])
def test_stopping_half_way_leaves_nothing(emulate, stop, ahead):
    ended = []

    def source():
        try:
            yield from batches()
        finally:
            ended.append(True)

    with emulate("late") as device:
        for number, batch in enumerate(send_ahead(source(), CUDA, ahead), 1):
            device.read(batch[0])
            if number == stop:
                break
        del batch
        assert ended == [True]
        assert device.pool.live == 0 and not device.under_way
        assert device.races == []


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_error_of_the_source_comes_in_its_turn(emulate, ahead):
    failure = LoaderError("batch 3")

    def source():
        yield from itertools.islice(batches(), 3)
        raise failure

    with emulate("late") as device:
        seen = []
        with pytest.raises(LoaderError) as caught:
            for batch in send_ahead(source(), CUDA, ahead):
                seen.append([device.read(x) for x in batch])
                del batch
        assert caught.value is failure and failure.__cause__ is None
        device.current.synchronize()
        assert same(seen, list(itertools.islice(batches(), 3)))
        del caught
        failure.__traceback__ = None
        assert device.pool.live == 0


def test_an_error_of_the_source_is_freed_with_its_last_user(emulate):
    def source():
        yield from itertools.islice(batches(), 1)
        raise LoaderError("batch 1")

    gc.collect()
    gc.disable()
    try:
        with emulate("late"):
            try:
                list(send_ahead(source(), CUDA))
            except LoaderError as error:
                left = weakref.ref(error)
            assert left() is None, "a reference cycle keeps the error"
    finally:
        gc.enable()


# Loader and trainer -------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 30)


def make_loader(device="cpu", workers=0, **options):
    return DataLoader(
        ArrayDataset(X, Y), 8, shuffle=True, seed=3, workers=workers, device=device, **options
    )


def on_host(loader):
    return [[x.cpu().numpy() for x in batch] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_batches_are_the_cpus(emulate, workers):
    want = on_host(make_loader())
    with emulate("late", immediate=True) as device:
        loader = make_loader("cuda", workers)
        got = []
        for x, y in loader:
            assert x.device == y.device == CUDA
            got.append([x.data.get(), y.data.get()])
        assert same(got, want)
        iterator = iter(loader)
        state = [next(iterator), loader.state_dict()][1]
        assert state["position"] == 1  # the batch that is copied ahead is not handed out
        del iterator
        assert not [t for t in threading.enumerate() if t.name.startswith("framework-loader")]
        resumed = make_loader("cuda", workers)
        resumed.load_state_dict(state)
        rest = on_host(resumed)
        del x, y
        assert device.pool.live == 0
    again = make_loader()
    again.set_epoch(1)
    assert same(rest, on_host(again)[1:])


def make_trainer(**options):
    fw.manual_seed(0)
    model = L.Sequential(L.Linear(6, 16), L.ReLU(), L.Linear(16, 3)).to("cuda")
    optimizer = AdamW(model.parameters(), lr=1e-2)
    # not as graphs: here kernels come late, on the emulator of captures at once
    settings = {"metrics": [Accuracy()], "capture": False, **options}
    return Trainer(model, F.cross_entropy, optimizer, **settings)


def train(loader, validation, **options):
    """Weights and scores after two epochs."""
    trainer = make_trainer(**options)
    history = trainer.fit(loader, validation, epochs=2)
    timing = ("seconds", "samples_per_second")
    scores = [{k: v for k, v in record.items() if k not in timing} for record in history]
    predicted = trainer.predict(X).data.get()
    return [p.data.get() for p in trainer.model.parameters()], scores, predicted.tobytes()


LOADERS = {
    "a loader of the device": lambda: make_loader("cuda"),
    "a loader of the host": lambda: make_loader("cpu", workers=2),
    "a list": lambda: list(make_loader("cpu")),
    "another iterable": lambda: Again(),
}


class Again:
    """An iterable that is no DataLoader; what it gives depends on what was asked for."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        for i in range(4):
            self.given += 1
            yield fw.tensor(X[8 * i : 8 * i + 8]), fw.tensor(Y[8 * i : 8 * i + 8])


@pytest.mark.parametrize("kind", LOADERS)
def test_training_is_the_plain_paths_bit_for_bit(emulate, monkeypatch, kind):
    def plain(batches, device, ahead=1):
        for batch in batches:
            yield tuple(
                backend.to_device(x, device) if isinstance(x, np.ndarray) else x for x in batch
            )

    with emulate("late", immediate=True) as device:
        options = {"accumulate": 2} if kind == "a list" else {}
        weights, scores, predicted = train(LOADERS[kind](), make_loader("cpu"), **options)
        assert any(": copy" in line for line in device.log)
        for module in (loading, prefetch):
            monkeypatch.setattr(module, "send_ahead", plain)
        copied = len(device.log)
        expected = train(LOADERS[kind](), make_loader("cpu"), **options)
        assert len(device.log) == copied
        assert same([weights], [expected[0]])
        assert (scores, predicted) == expected[1:]


def test_a_trainer_without_the_wait_learns_something_else(emulate):
    with emulate("late", immediate=True) as device:
        right = train(make_loader(), None)[0]
        device.ignore = "waits of compute"
        with np.errstate(all="ignore"):
            try:
                wrong = train(make_loader(), None)[0]
            except (ValueError, IndexError):  # labels that are no labels
                return
        assert not same([right], [wrong])


def test_nothing_is_asked_of_an_iterable_before_its_turn(emulate):
    class Count(Callback):
        def on_step_end(self, trainer):
            assert trainer.train_loader.given == trainer.step

    with emulate("late", immediate=True):
        make_trainer(callbacks=[Count()]).fit(Again())


def test_fifty_steps_take_no_more_memory_than_five(emulate):
    live, fresh = [], []

    class Count(Callback):
        def on_step_end(self, trainer):
            live.append((device.pool.live, device.pool.live_bytes))
            fresh.append(device.pool.fresh)

    data = ArrayDataset(np.tile(X, (2, 1))[:48], np.tile(Y, 2)[:48])
    with emulate("late", immediate=True) as device:
        loader = DataLoader(data, 8, shuffle=True, device="cuda")
        make_trainer(callbacks=[Count()]).fit(loader, epochs=9)
    assert len(live) == 54
    steady = live[6:]  # the same place of an epoch: at its end nothing is sent ahead
    assert all(steady[i] == steady[i % 6] for i in range(len(steady)))
    assert fresh[12] == fresh[-1], "temporaries are not taken from the pool"


@pytest.mark.parametrize(
    ("room", "where"),
    [
        (500, "a batch on its way to the device asked for "),
        (4000, r"the layer 0 \(Linear\) given \(30, 6\) asked for "),
        (8500, r"the gradient of \S+ (of|after) the layer \d \(Linear\) asked for "),
    ],
)
def test_a_device_that_runs_out_of_memory(emulate, monkeypatch, room, where):
    monkeypatch.setattr(batch_size, "_free", lambda device: 0)  # so that no size is looked for
    monkeypatch.setattr(batch_size, "_largest", lambda *_: None)
    small, large = (ArrayDataset(X[:n], Y[:n]) for n in (8, 30))
    with emulate("late", immediate=True) as device:
        trainer = make_trainer()
        trainer.fit(DataLoader(small, 8, device="cuda"))
        before = [p.data.get() for p in trainer.model.parameters()]
        trainer.running.reset(), trainer.metrics[0].reset()
        live = device.pool.live
        device.pool.limit = device.pool.live_bytes + room
        gc.disable()
        try:
            with pytest.raises(fw.OutOfMemoryError, match=where) as caught:
                trainer.fit(DataLoader(large, 30, device="cuda"), epochs=2)
            assert "limited to" in str(caught.value) and "optimizer state" in str(caught.value)
            trainer.running.reset(), trainer.metrics[0].reset()
            assert device.pool.live == live and device.races == []
        finally:
            gc.enable()
        assert same([before], [[p.data.get() for p in trainer.model.parameters()]])
        device.pool.limit = 0
        trainer.fit(DataLoader(large, 30, device="cuda"), epochs=2)
        assert trainer.step == 2
