"""What holds for a model of every family: no memory grows, evaluation leaves no trace, the best
weights are copies, small batches and clipping make the step of the big one.
"""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

import framework as fw
from bench.families import FAMILIES, SAMPLES
from framework import optimizers
from framework.data import DataLoader, Subset
from framework.trainer import Callback, EarlyStopping, Trainer

each_family = pytest.mark.parametrize("family", FAMILIES)


def make_trainer(family, *callbacks, model=None, **options):
    fw.manual_seed(2)
    made = FAMILIES[family]
    model = made.model() if model is None else model
    return Trainer(model, made.loss, made.optimizer(model), callbacks=callbacks, **options)


def make_loader(family):
    return FAMILIES[family].loader()


def contents(model):
    return {name: x.data.tobytes() for name, x in model.state_dict().items()}


@each_family
def test_a_thousand_steps_take_no_memory(family):
    """No Python object is left, none waits for the collector, and the process has not grown."""
    trainer, batches = make_trainer(family), list(make_loader(family))
    more = -(-1000 // len(batches))
    trainer.fit(batches, epochs=30)
    gc.collect()
    gc.disable()
    try:
        trainer.history.clear()
        blocks, used, steps = sys.getallocatedblocks(), fw.memory_used("cpu"), trainer.step
        trainer.fit(batches, epochs=30 + more)
        trainer.history.clear()
        assert trainer.step - steps >= 1000
        assert fw.memory_used("cpu") - used < 1 << 20  # a leak of 1 KB a step
        assert gc.collect() <= 10  # cycles of the fit itself
        assert sys.getallocatedblocks() - blocks < 200
    finally:
        gc.enable()


@each_family
def test_evaluation_changes_no_running_statistics(family):
    trainer, loader = make_trainer(family), make_loader(family)
    trainer.fit(loader)
    before = contents(trainer.model)
    trainer.evaluate(loader)
    trainer.predict(loader)
    assert contents(trainer.model) == before


@each_family
def test_the_best_weights_are_deep_copies(family):
    class Scores(Callback):
        def on_epoch_end(self, trainer):
            trainer.history[-1]["val_loss"] = float(trainer.epoch)  # the first is the best

    kept = {}

    class Keep(Callback):
        def on_epoch_complete(self, trainer):
            kept.setdefault("first", contents(trainer.model))

    stopping = EarlyStopping("val_loss", patience=9)
    trainer = make_trainer(family, Scores(), stopping, Keep())
    trainer.fit(make_loader(family), epochs=4)
    assert contents(trainer.model) == kept["first"]
    arrays = [x.data for x in trainer.model.state_dict().values()]
    mine = stopping.weights.values()
    assert not any(np.shares_memory(a, b) for a, b in zip(arrays, mine, strict=True))


@each_family
def test_small_batches_and_clipping_make_the_step_of_the_big_one(family):
    """50 samples in windows of 3 x 6 = 18, 18, 6 + 6 + 2 = 14, all of them clipped."""

    def train(batch_size, accumulate):
        fw.manual_seed(2)
        model = FAMILIES[family].model().to("float64")
        model.eval().train = lambda mode=True: model  # batch norm and dropout see the small ones
        norms = []

        class Look(Callback):
            def on_gradients(self, trainer):
                squares = [(p.grad.data**2).sum() for p in model.parameters()]
                norms.append(np.sqrt(sum(squares)))

        trainer = Trainer(
            model, FAMILIES[family].loss, optimizers.SGD(model.parameters(), lr=0.1),
            callbacks=[Look()], accumulate=accumulate, clip_norm=0.01,
        )  # fmt: skip
        samples = Subset(FAMILIES[family].data(), range(SAMPLES))
        loader = DataLoader(samples, batch_size, device="cpu")
        trainer.fit([widened(batch) for batch in loader], epochs=2)
        assert max(norms) <= 0.01 * (1 + 1e-6)
        return [x.numpy() for x in model.state_dict().values()], trainer.step

    small, steps = train(6, 3)
    big, expected = train(18, 1)
    assert steps == expected == 6
    for a, b in zip(small, big, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def widened(batch):
    return [x.to("float64") if x.data.dtype.kind == "f" else x for x in batch]
