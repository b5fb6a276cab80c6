"""A model of every family, saved on one device, goes on on the other."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from bench.families import FAMILIES
from framework.backend.random import default_generator
from framework.trainer import Callback, Trainer, checkpoint
from tests.cuda_emulator import whole
from tests.cuda_emulator.conftest import require_emulator


@pytest.fixture(autouse=True)
def cupy():
    require_emulator()
    with whole.device() as module:
        yield module


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_on_one_device_it_resumes_on_the_other(family, first, second):
    """Inside an epoch: the same data, dropout masks and carried state, numbers within rounding."""
    made = FAMILIES[family]

    def fit(device, state=None, *callbacks):
        fw.manual_seed(3)
        model = made.model().to(device)
        trainer = Trainer(
            model, made.loss, made.optimizer(model), callbacks=callbacks, device=device
        )
        if state is not None:
            trainer.load_state_dict(state)
        trainer.fit(made.loader(), epochs=1)
        return trainer

    class Keep(Callback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                self.state = checkpoint.to_bytes(trainer.state_dict())

    expected, keep = fit("cpu"), Keep()
    generator = default_generator.state()
    fit(first, None, keep)
    parts = fit(second, checkpoint.from_bytes(keep.state, "c"))
    assert default_generator.state() == generator
    assert parts.step == expected.step
    losses = [[record["loss"] for record in run.history] for run in (parts, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
