"""The input pipeline and the memory of a training run, on a real GPU."""

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers as L
from framework.backend.device import to_device
from framework.backend.transfer import send_ahead
from framework.data import ArrayDataset, DataLoader
from framework.optimizers import AdamW
from framework.trainer import Callback, Trainer

pytestmark = pytest.mark.cuda
CUDA = fw.Device("cuda")


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("products", [0, 20])
def test_large_batches_arrive_whole(ahead, products):
    rng = np.random.default_rng(0)
    hosts = [rng.standard_normal((n, 2048)).astype("float32") for n in [2048] * 12 + [777]]
    labels = [rng.integers(0, 9, len(x)) for x in hosts]
    with CUDA.context():
        weight = to_device(rng.standard_normal((2048, 2048)).astype("float32") / 2048, CUDA)

        def work(x):
            """Keeps the device busy behind the host, then reads the batch."""
            y = weight
            for _ in range(products):
                y = y @ weight
            return x * 2 + (y[0, 0] - y[0, 0])

        want = [work(to_device(x, CUDA)) for x in hosts]
        got = []
        for x, y in send_ahead(zip(hosts, labels, strict=True), CUDA, ahead):
            got.append((work(x), y + 1))
            del x, y
        for (x, y), expected, label in zip(got, want, labels, strict=True):
            np.testing.assert_array_equal(x.get(), expected.get())
            np.testing.assert_array_equal(y.get(), label + 1)


def make(callbacks=()):
    fw.manual_seed(0)
    model = L.Sequential(L.Linear(64, 256), L.ReLU(), L.Linear(256, 10)).to("cuda")
    return Trainer(model, F.cross_entropy, AdamW(model.parameters()), callbacks=callbacks)


def data(samples):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 64)).astype("float32")
    return ArrayDataset(x, rng.integers(0, 10, samples))


def test_training_is_the_same_whoever_copies():
    weights = []
    for device, workers in (("cuda", 0), ("cpu", 0), ("cpu", 2)):
        trainer = make()
        loader = DataLoader(data(1000), 64, shuffle=True, workers=workers, device=device)
        trainer.fit(loader, loader, epochs=2)
        weights.append([p.data.get() for p in trainer.model.parameters()])
    for other in weights[1:]:
        for p, q in zip(weights[0], other, strict=True):
            np.testing.assert_array_equal(p, q)


def test_a_thousand_steps_take_no_more_memory_than_a_hundred():
    used, reserved = [], []

    class Count(Callback):
        def on_step_end(self, trainer):
            used.append(fw.memory_used("cuda"))
            reserved.append(fw.cuda.memory_reserved())

    loader = DataLoader(data(64 * 20), 64, shuffle=True, device="cuda")
    make([Count()]).fit(loader, epochs=55)
    assert len(used) == 1100
    assert used[100::20] == [used[100]] * 50  # the same place of an epoch
    assert reserved[-1] == reserved[100], "temporaries are not taken from the pool"
