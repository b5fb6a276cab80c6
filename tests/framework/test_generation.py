"""Sampling from logits, and generation: state carried, seeds, full contexts, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers
from framework.backend.random import default_generator
from framework.data import CharTokenizer, DataError
from framework.generation import Sampling
from models import build

LOGITS = np.log([0.1, 0.4, 0.05, 0.3, 0.15])


def test_probabilities():
    np.testing.assert_allclose(Sampling().probabilities(LOGITS), np.exp(LOGITS))
    np.testing.assert_allclose(
        Sampling(temperature=0.5).probabilities(LOGITS), np.exp(2 * LOGITS) / 0.285, rtol=1e-12
    )
    assert Sampling(temperature=0).probabilities(LOGITS).tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_allclose(
        Sampling(top_k=2).probabilities(LOGITS), np.array([0, 4, 0, 3, 0]) / 7
    )
    # 0.4 + 0.3 do not reach 0.75 yet
    np.testing.assert_allclose(
        Sampling(top_p=0.75).probabilities(LOGITS), np.array([0, 8, 0, 6, 3]) / 17
    )
    assert Sampling(top_p=0.01).probabilities(LOGITS)[1] == 1
    ties = Sampling(top_k=1).probabilities(np.zeros(4))
    assert ties.tolist() == [1, 0, 0, 0]
    ties = Sampling(top_k=3).probabilities(np.array([1.0, 0.0, 2.0, 0.0, 0.0, 1.0]))
    assert (ties > 0).tolist() == [True, False, True, False, False, True]
    ties = Sampling(top_k=4).probabilities(np.array([1.0, 0.0, 2.0, 0.0, 0.0, 1.0]))
    assert (ties > 0).tolist() == [True, True, True, False, False, True]
    shifted = Sampling().probabilities(LOGITS + 1e4)
    np.testing.assert_allclose(shifted, np.exp(LOGITS), rtol=1e-10)
    banned = Sampling().probabilities(np.array([0.0, -np.inf]))
    assert banned.tolist() == [1, 0]


def test_a_nucleus_is_the_smallest_that_suffices():
    """Against the definition, by sorting all."""
    scores = np.random.default_rng(0).normal(size=300) * 2
    p = Sampling().probabilities(scores)
    order = (-p).argsort()
    for top_p in (0.01, 0.5, 0.9, 0.999, 1.0):
        count = np.searchsorted(np.cumsum(p[order]), top_p * (1 - 1e-12)) + 1
        found = Sampling(top_p=top_p).probabilities(scores)
        assert np.flatnonzero(found).tolist() == sorted(order[:count].tolist())
        np.testing.assert_allclose(found.sum(), 1)


def test_repetition_penalty():
    p = Sampling(repetition_penalty=2.0).probabilities(np.array([2.0, -1.0, 1.0]), seen=[0, 1, 0])
    np.testing.assert_allclose(p, np.exp([1.0, -2.0, 1.0]) / np.exp([1.0, -2.0, 1.0]).sum())


def test_draws_have_these_probabilities():
    found = [Sampling().choose(LOGITS, 7, position) for position in range(4000)]
    shares = np.bincount(found, minlength=5) / 4000
    np.testing.assert_allclose(shares, np.exp(LOGITS), atol=0.03)
    assert found[:50] == [Sampling().choose(LOGITS, 7, position) for position in range(50)]
    assert found[:50] != [Sampling().choose(LOGITS, 8, position) for position in range(50)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1, expected 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "a"}, "temperature is 'a', expected 0 or more"),
        ({"top_p": "a"}, "top_p is 'a', expected above 0 to 1"),
        ({"repetition_penalty": None}, "repetition_penalty is None, expected above 0"),
        ({"top_k": True}, "top_k is True"),
        ({"top_k": 0}, "top_k is 0, expected an integer of at least 1"),
        ({"top_p": 1.5}, "top_p is 1.5, expected above 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"tokens": -1}, "tokens is -1, expected an integer of at least 0"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"prompt": []}, r"prompt is float64 \(0,\), expected at least one token"),
        ({"prompt": [[1]]}, r"prompt is int64 \(1, 1\)"),
    ],
)
def test_what_cannot_be(options, message):
    """Said at once, not with the first token."""
    options = {"prompt": [1], "tokens": 3} | options
    with pytest.raises(ValueError, match=message):
        fw.generate(build("nplm", vocabulary=5), options.pop("prompt"), **options)


def test_integers_of_numpy_and_tiny_temperatures():
    model = build("nplm", vocabulary=5)
    plain = list(fw.generate(model, [1], 3, top_k=3, seed=2))
    assert list(fw.generate(model, [1], np.int64(3), top_k=np.uint8(3), seed=np.int64(2))) == plain
    scores = np.array([1.0, 3.0, 3.0, -1e300])
    for tiny in (1e-310, 5e-324):
        np.testing.assert_array_equal(Sampling(tiny).probabilities(scores), [0, 0.5, 0.5, 0])


def test_models_and_logits_that_are_none():
    with pytest.raises(TypeError, match=r"Linear is no language model: it has no start\(batch\)"):
        fw.generate(layers.Linear(2, 3), [0], 3)
    with pytest.raises(ValueError, match="the logits hold NaN or infinity"):
        Sampling().probabilities(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"logits have shape \(1, 2\)"):
        Sampling().probabilities(np.zeros((1, 2)))


@pytest.fixture
def model():
    fw.manual_seed(0)
    return build("nplm", vocabulary=11, context=4, embedding=6, hidden=16, dropout=0.5)


@pytest.mark.usefixtures("device")
def test_the_carried_state_equals_reading_all_again(model):
    model.to(fw.default_device())
    text = [3, 1, 4]
    for options in ({"temperature": 0}, {"seed": 5, "top_k": 4}):
        found = list(fw.generate(model, text, 12, **options))
        expected = list(text)
        model.eval()
        for position in range(12):
            with fw.no_grad():
                ids = fw.tensor(np.array([expected]), device=fw.default_device())
                logits = model(ids)[0, -1].numpy()
            sampling = Sampling(options.get("temperature", 1.0), options.get("top_k"))
            expected.append(sampling.choose(logits, options.get("seed", 0), position))
        model.train()
        assert found == expected[3:]
        assert text == [3, 1, 4]


def test_training_goes_on_between_tokens(model):
    tokens = fw.generate(model, [1], 3)
    next(tokens)
    assert model.training and model.dropout.training and fw.is_grad_enabled()
    before = default_generator.state()
    assert len(list(tokens)) == 2
    assert list(fw.generate(model, [1], 3)) == list(fw.generate(model, [1], 3))
    assert default_generator.state() == before


class Counted(layers.Module):
    """A model that reads at most `block` tokens, and says how many it has read."""

    block = 6

    def __init__(self):
        super().__init__()
        self.weight = fw.Parameter(np.zeros(1, np.float32))

    def start(self, batch):
        return 0

    def step(self, ids, state):
        read = state + ids.shape[1]
        assert read <= self.block
        return fw.tensor(np.eye(10, dtype=np.float32)[None, [read]]), read


def test_a_context_that_is_full_starts_anew_with_its_last_half():
    assert list(fw.generate(Counted(), [0, 0], 9, temperature=0)) == [2, 3, 4, 5, 6, 3, 4, 5, 6]
    assert list(fw.generate(Counted(), [0] * 20, 2, temperature=0)) == [6, 3]


def test_text(model):
    tokenizer = CharTokenizer.train("abcdefghijk")
    pieces = list(fw.generate_text(model, tokenizer, "abc", 8, seed=2))
    ids = fw.generate(model, tokenizer.encode("abc"), 8, seed=2)
    assert "".join(pieces) == tokenizer.decode(list(ids)) and len(pieces) == 8
    with pytest.raises(DataError, match="'!' .*position 1"):
        fw.generate_text(model, tokenizer, "a!", 8)
