"""RNNSeq2Seq: it learns to write sequences backwards, whatever stands beyond their ends."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import optimizers
from framework.data import Sequences
from framework.functional import cross_entropy
from models import RNNSeq2SeqConfig, build

BEGIN, END, LETTERS = 0, 1, 8

pytestmark = pytest.mark.usefixtures("device")


def moved(array):
    return fw.tensor(array, device=fw.default_device())


def reversals(count, seed):
    """Sequences of 2 to 5 letters, to be written backwards."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(2, LETTERS, draw.integers(2, 6)) for _ in range(count)]
    return Sequences(ids, [np.array([BEGIN, *row[::-1], END]) for row in ids])


@pytest.fixture(scope="module")
def sizes():
    return {"vocabulary": LETTERS, "outputs": LETTERS, "embedding": 16, "hidden": 32}


def test_it_learns_to_write_backwards(sizes):
    fw.manual_seed(0)
    model = build("rnnseq2seq", **sizes, attention=16)
    optimizer = optimizers.AdamW(model.parameters(), lr=0.01)
    data = reversals(1000, 0)
    draw = np.random.default_rng(0)
    for _ in range(250):
        ids, lengths, previous, target = map(moved, data.batch(draw.integers(0, len(data), 32)))
        logits = model(ids, lengths, previous)
        loss = cross_entropy(logits.reshape(-1, LETTERS), target.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new = reversals(40, 1)
    ids, lengths, *_ = new.batch(np.arange(40))
    written = model.decode(moved(ids), moved(lengths), begin=BEGIN, end=END, tokens=8)
    right = [row == new.ids[i][::-1].tolist() for i, row in enumerate(written)]
    assert np.mean(right) > 0.9
    assert model.training


def test_what_is_beyond_a_row_s_end_does_not_count(sizes):
    fw.manual_seed(0)
    model = build("rnnseq2seq", **sizes)
    ids, lengths, previous, _ = reversals(6, 2).batch(np.arange(6))
    logits = model(moved(ids), moved(lengths), moved(previous)).detach().numpy()
    assert logits.shape == (*previous.shape, LETTERS)
    for i, n in enumerate(lengths):
        alone = model(moved(ids[i : i + 1, :n]), None, moved(previous[i : i + 1]))
        np.testing.assert_allclose(logits[i], alone.detach().numpy()[0], rtol=1e-4, atol=1e-6)


def test_attention_is_over_what_was_read(sizes):
    model = build("rnnseq2seq", **sizes)
    read, state = model.read(moved(np.array([[2, 3, 4], [5, 0, 0]])), [3, 1])
    _, weights = model.attention(state, *read)
    weights = weights.detach().numpy()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    assert (weights[0] > 0).all() and weights[1].tolist() == [1, 0, 0]


def test_input_that_cannot_be(sizes):
    model = build("rnnseq2seq", **sizes)
    ids, previous = moved(np.full((2, 3), 2)), moved(np.zeros((2, 4), np.int64))
    with pytest.raises(ValueError, match=r"ids have shape \(3,\), expected \(rows, tokens\)"):
        model(ids[0], None, previous)
    with pytest.raises(ValueError, match=r"previous has shape \(1, 4\), .* with the 2 rows of ids"):
        model(ids, None, previous[:1])
    with pytest.raises(ValueError, match=r"lengths\[1\]=4: expected 1 to 3"):
        model(ids, [3, 4], previous)
    with pytest.raises(ValueError, match="end is 8, expected 0 to 7"):
        model.decode(ids, begin=0, end=8, tokens=3)
    with pytest.raises(ValueError, match="attention is 0"):
        RNNSeq2SeqConfig(attention=0)
