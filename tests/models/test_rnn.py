"""CharRNN and RNNClassifier: steps, streams, lengths, learning, wrong settings and inputs."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import optimizers
from framework.functional import cross_entropy
from models import CharRNNConfig, RNNClassifierConfig, build

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 9, (2, 12))

pytestmark = pytest.mark.usefixtures("device")

SMALL = {"vocabulary": 9, "embedding": 5, "hidden": 8}
MODELS = [
    {},
    {"cell": "gru", "layers": 2},
    {"cell": "rnn", "embedding": None},
    {"tied": True, "embedding": 8, "locked_dropout": True, "dropout": 0.5, "layers": 2},
]


def moved(array):
    return fw.tensor(array, device=fw.default_device())


def made(**settings):
    fw.manual_seed(0)
    return build("charlstm", **SMALL | settings)


@pytest.mark.parametrize("settings", MODELS)
def test_steps_equal_the_whole(settings):
    model = made(**settings).eval()
    whole = model(moved(IDS)).detach().numpy()
    assert whole.shape == (2, 12, 9)
    state, parts = model.start(2), []
    for ids in np.split(IDS, [1, 2, 7], axis=1):
        logits, state = model.step(moved(ids), state)
        parts.append(logits.detach().numpy())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", MODELS[:3])
def test_windows_of_a_stream_equal_the_whole(settings):
    """Also where an evaluation comes between; gradients end at a window's start."""
    model = made(**settings)
    whole = model(moved(IDS)).detach().numpy()
    parts = []
    for i, ids in enumerate(np.split(IDS, 3, axis=1)):
        logits = model(moved(ids), moved(np.full(2, i == 0)))
        parts.append(logits.detach().numpy())
        model.eval()
        model(moved(ids[:1]), moved(np.ones(1, bool)))
        model.train()
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-6)
    assert not any(x.requires_grad for x in map(fw.tensor, model.carry.kept()))


def test_one_hot_vectors_pick_columns_of_the_weight():
    model = made(embedding=None)
    assert model.rnn.weight_ih_l0.shape == (32, 9)
    assert "one_hot" not in model.state_dict()


def test_tied_weights_are_one_parameter():
    model = made(tied=True, embedding=8)
    assert model.output.weight is model.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "embedding.weight" in names and "output.weight" not in names
    model(moved(IDS)).sum().backward()
    both = model.embedding.weight.grad.numpy()
    assert (both != 0).all()  # of the output: every row, of the embedding: those read


def test_locked_dropout_is_the_same_at_every_step():
    model = made(locked_dropout=True, dropout=0.5)
    y = model.dropout(fw.ones(6, 2, 8, device=fw.default_device())).numpy()
    assert (y == y[:1]).all() and 0 < (y == 0).sum() < y.size


@pytest.mark.parametrize("settings", MODELS[:3])
def test_it_can_learn_a_sequence(settings):
    model = made(**settings | {"hidden": 24})
    optimizer = optimizers.AdamW(model.parameters(), lr=0.02)
    ids, target = moved(IDS[:, :-1]), moved(IDS[:, 1:].reshape(-1))
    for _ in range(100):
        loss = cross_entropy(model(ids).reshape(-1, 9), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden is 0, expected an integer of at least 1"),
        ({"layers": True}, "layers is True"),
        ({"embedding": 2.5}, "embedding is 2.5"),
        ({"cell": "ltsm"}, "cell is 'ltsm', expected one of lstm, gru, rnn"),
        ({"dropout": 1}, "dropout is 1, expected a probability"),
        ({"tied": 1}, "tied is 1, expected True or False"),
        ({"tied": True}, "tied weights need an embedding as large as hidden, 256, but it is 64"),
        ({"embedding": None, "vocabulary": 33278}, "one-hot vectors, which are for up to 4096"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        CharRNNConfig(**settings)


def test_input_that_cannot_be(device):
    model = made()
    with pytest.raises(ValueError, match=r"ids have shape \(12,\), expected \(rows, tokens\)"):
        model(moved(IDS[0]))
    state = model.start(3)
    with pytest.raises(ValueError, match=r"h0 has shape \(1, 3, 8\), expected \(1, 2, 8\)"):
        model.step(moved(IDS), state)
    with pytest.raises(TypeError, match="expected a pair of tensors, output and cell"):
        model.step(moved(IDS), state[0])
    if device == "cpu":  # on CUDA that would wait for the device
        for settings in ({}, {"embedding": None}):
            with pytest.raises(IndexError, match=r"indices\[0, 1\] is 9, expected 0 <= index < 9"):
                made(**settings)(moved(np.array([[0, 9]])))


# --- the classifier -------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_beyond_a_row_s_end_does_not_count(pooling, cell):
    fw.manual_seed(0)
    model = build("rnnclassifier", features=3, outputs=4, cell=cell, hidden=6, pooling=pooling)
    x = RNG.standard_normal((3, 5, 3)).astype(np.float32)
    lengths = [2, 5, 3]
    logits = model(moved(x), lengths).detach().numpy()
    assert logits.shape == (3, 4)
    for row, n in enumerate(lengths):
        alone = model(moved(x[row : row + 1, :n])).detach().numpy()
        np.testing.assert_allclose(logits[row : row + 1], alone, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"lengths\[0\]=6, lengths\[1\]=0: expected 1 to 5"):
        model(moved(x), [6, 0, 1])


def test_images_are_read_row_by_row_and_vectors_number_by_number():
    config = RNNClassifierConfig.for_data((3, 4, 5), 7, "classification")
    assert (config.features, config.outputs) == (15, 7)
    assert RNNClassifierConfig.for_data((9, 2), None, "regression").features == 2
    assert RNNClassifierConfig.for_data((9,), None, "regression").features == 1
    model = build("rnnclassifier", features=15, outputs=7, hidden=6)
    x = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    rows = x.transpose(0, 2, 1, 3).reshape(2, 4, 15)
    np.testing.assert_array_equal(
        model(moved(x)).detach().numpy(), model(moved(rows)).detach().numpy()
    )
    assert build("rnnclassifier", features=1)(moved(x[:, 0, 0])).shape == (2, 10)


def test_it_can_tell_where_a_token_is():
    """Classes of padded token sequences: was the 1 before the 2?"""
    fw.manual_seed(0)
    model = build("rnnclassifier", vocabulary=4, features=6, outputs=2, hidden=12)
    optimizer = optimizers.AdamW(model.parameters(), lr=0.02)
    ids = np.array([[1, 2, 0], [2, 1, 3], [1, 3, 2], [2, 3, 1], [3, 1, 2], [3, 2, 1]])
    lengths, target = [2, 3, 3, 3, 3, 3], moved(np.array([0, 1, 0, 1, 0, 1]))
    for _ in range(40):
        loss = cross_entropy(model(moved(ids), lengths), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    with pytest.raises(ValueError, match=r"ids have shape \(6,\), expected \(rows, tokens\)"):
        model(moved(ids[:, 0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features is 0"),
        ({"vocabulary": -1}, "vocabulary is -1"),
        ({"pooling": "first"}, "pooling is 'first', expected one of last, mean, max"),
        ({"bidirectional": 1}, "bidirectional is 1, expected True or False"),
    ],
)
def test_classifier_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        RNNClassifierConfig(**settings)
