"""Captured steps: what can be said on the CPU, and the real thing on a GPU.

What they do is tested on the emulator, tests/cuda_emulator/test_captured_training.py.
"""

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.backend import live
from framework.trainer import Trainer
from tests.cuda_emulator import training


def make(capture="auto", device="cpu"):
    net = layers.Linear(2, 1)
    return Trainer(
        net, F.mse_loss, optimizers.SGD(net.parameters()), device=device, capture=capture
    )


def test_on_the_cpu_a_graph_is_the_step_itself():
    def step(x):
        return x

    assert fw.cuda.graph(step, device="cpu") is step
    if not fw.cuda.is_available():
        assert fw.cuda.graph(step) is step


def test_on_the_cpu_the_trainer_replays_nothing():
    assert make()._captured is None
    assert make(False)._captured is None
    with pytest.raises(ValueError, match="capture=True needs a CUDA device"):
        make(True)
    with pytest.raises(ValueError, match="capture is 'never'"):
        make("never")


def test_no_step_is_recorded_unless_one_is_captured():
    assert live.recording() is None


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_captured_equals_eager_on_a_gpu(optimizer):
    eager, captured = (
        training.trainer("cuda", capture, optimizer=optimizer) for capture in (False, True)
    )
    for run in (eager, captured):
        run.fit(training.batches(), epochs=6)
    assert training.differences(eager, captured) == []
    steps = captured._captured.whole
    assert (steps.captures, steps.replays, steps.reason) == (2, 22 + 4, None)


@pytest.mark.cuda
def test_dropout_draws_the_cpus_masks_on_a_gpu():
    x = fw.tensor(np.ones((5, 7), np.float32), device="cpu")
    fw.manual_seed(11)
    expected = [F.dropout(x, 0.5).numpy() for _ in range(6)]
    fw.manual_seed(11)
    draw = fw.cuda.graph(lambda x: F.dropout(x, 0.5), device="cuda", strict=True)
    for wanted in expected:
        np.testing.assert_array_equal(draw(x).numpy(), wanted)
    assert draw.replays == 4


@pytest.mark.cuda
def test_no_memory_grows_over_100_replays_on_a_gpu():
    import cupy

    run = training.trainer("cuda", True)
    data = training.batches([16] * 4)
    run.fit(data, epochs=3)
    for _ in range(10):
        run._train_step([data[0]])
    cupy.cuda.Device().synchronize()
    pool, free = cupy.get_default_memory_pool(), cupy.cuda.runtime.memGetInfo()[0]
    before = pool.used_bytes(), pool.total_bytes()
    for _ in range(100):
        run._train_step([data[0]])
    cupy.cuda.Device().synchronize()
    assert (pool.used_bytes(), pool.total_bytes()) == before
    assert cupy.cuda.runtime.memGetInfo()[0] >= free
    assert run._captured.whole.replays == 10 + 10 + 100


@pytest.mark.cuda
def test_an_embedding_and_what_waits_on_a_gpu():
    table = layers.Embedding(50, 8).to("cuda")

    def step(indices):
        table.weight.zero_grad()
        (table(indices) ** 2).sum().backward()
        return table.weight.grad

    draw = np.random.default_rng(0)
    call = fw.cuda.graph(step, device="cuda", strict=True)
    for _ in range(5):
        indices = fw.tensor(draw.integers(0, 50, (16, 70)), device="cuda")
        captured = call(indices).numpy()
        np.testing.assert_array_equal(captured, step(indices).numpy())
    assert call.replays == 3

    waits = fw.cuda.graph(lambda x: x * float(x.sum()), device="cuda")
    for _ in range(4):
        assert waits(fw.ones((2,), device="cuda")).tolist() == [2, 2]
    assert "waits for the device" in waits.reason
