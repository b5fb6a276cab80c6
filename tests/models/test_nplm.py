"""NPLM: what it sees, state from step to step and from window to window, wrong settings."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import optimizers
from framework.functional import cross_entropy
from models import NPLMConfig, build

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 9, (2, 12))

pytestmark = pytest.mark.usefixtures("device")


def moved(array):
    return fw.tensor(array, device=fw.default_device())


@pytest.fixture
def model():
    fw.manual_seed(0)
    return build("nplm", vocabulary=9, context=3, embedding=4, hidden=8, direct=True)


def test_it_sees_the_last_tokens_only(model):
    logits = model(moved(IDS)).detach().numpy()
    assert logits.shape == (2, 12, 9)
    changed = IDS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 9
    differs = (model(moved(changed)).detach().numpy() != logits).any(axis=(0, 2))
    assert np.flatnonzero(differs).tolist() == [5, 6, 7]


@pytest.mark.parametrize("cuts", [[4], [1, 2, 3], [11]])
def test_steps_equal_the_whole(model, cuts):
    whole = model(moved(IDS)).detach().numpy()
    state, parts = model.start(2), []
    for ids in np.split(IDS, cuts, axis=1):
        logits, state = model.step(moved(ids), state)
        parts.append(logits.detach().numpy())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-6)


def test_windows_of_a_stream_equal_the_whole(model):
    """Also where an evaluation comes between."""
    whole = model(moved(IDS)).detach().numpy()
    parts = []
    for i, ids in enumerate(np.split(IDS, 3, axis=1)):
        parts.append(model(moved(ids), moved(np.full(2, i == 0))).detach().numpy())
        model.eval()
        model(moved(ids[:1]), moved(np.ones(1, bool)))
        model.train()
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-6)


def test_it_can_learn_a_sequence(model):
    optimizer = optimizers.AdamW(model.parameters(), lr=0.02)
    ids, target = moved(IDS[:, :-1]), moved(IDS[:, 1:].reshape(-1))
    for _ in range(150):
        loss = cross_entropy(model(ids).reshape(-1, 9), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0}, "context is 0, expected an integer of at least 1"),
        ({"hidden": 1.5}, "hidden is 1.5"),
        ({"dropout": 1}, "dropout is 1, expected a probability"),
        ({"direct": 1}, "direct is 1, expected True or False"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        NPLMConfig(**settings)
