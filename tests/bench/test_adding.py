"""The adding problem: its sequences, what is learnt of short ones, and gradients that vanish."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import framework as fw
from bench import adding
from bench.__main__ import app
from models import build


def test_two_numbers_are_marked_and_added():
    x, y = (a.numpy() for a in adding.sequences(500, 8, np.random.default_rng(0)))
    assert x.shape == (500, 8, 2) and y.shape == (500, 1)
    assert (x[:, :4, 1].sum(1) == 1).all() and (x[:, 4:, 1].sum(1) == 1).all()
    np.testing.assert_allclose((x[:, :, 0] * x[:, :, 1]).sum(1), y[:, 0], rtol=1e-6)
    assert ((y - 1) ** 2).mean() == pytest.approx(adding.CHANCE, abs=0.02)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_short_sequences_are_learnt(cell):
    setting = adding.Setting(length=10, hidden=24, batch=32, lr=0.01, steps=600, enough=0.005)
    assert adding.train(cell, setting).test_error < 0.01


def test_the_gradient_of_a_plain_network_vanishes():
    fw.manual_seed(0)
    model = build("rnnclassifier", features=2, outputs=1, cell="rnn", bidirectional=False)
    norms = adding.gradient_norms(model, *adding.sequences(20, 60, np.random.default_rng(0)))
    assert len(norms) == 60
    assert 0 < norms[0] < 1e-8 * norms[-1]
    assert all(p.grad is None for p in model.parameters())


def test_the_command(tmp_path):
    png, out = tmp_path / "adding.png", tmp_path / "adding.json"
    args = ["adding", "--length", "4", "--steps", "60", "--png", str(png), "--json", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("LSTM", "GRU", "tanh RNN"))
    assert png.read_bytes().startswith(b"\x89PNG")
    networks = json.loads(out.read_text())["networks"]
    assert [n["cell"] for n in networks] == ["lstm", "gru", "rnn"]
    assert [len(n["errors"]) for n in networks] == [2, 2, 2]  # means of 50 steps
    assert len(networks[0]["gradients"]["after"]) == 4
    args[6] = str(tmp_path / "none" / "adding.png")
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "--png" in result.output
