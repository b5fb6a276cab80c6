"""The character LSTM on tinyshakespeare against torch's: the same weights, windows and carried
state, so the same losses.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import framework as fw
from framework.data import CharTokenizer, DataLoader, StreamSampler, Windows, load_text
from framework.functional import cross_entropy
from framework.optimizers import Adam
from models import build

# The published text, if it is there: FRAMEWORK_DATA, else a folder beside the checkout.
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FRAMEWORK_DATA") or ROOT.parent / "shared" / "data")

HIDDEN, STEPS, LR = 256, 200, 2e-3


def batches(batch, window):
    """ids, fresh and targets of `STEPS` steps along streams of the text, and its vocabulary."""
    text = load_text("tinyshakespeare").text
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    sampler = StreamSampler(len(ids), window, batch, STEPS)
    loader = DataLoader(Windows(ids, window, sampler.length), batch, sampler=sampler)
    return [[x.numpy() for x in batch] for batch in loader], tokenizer.size


def our_losses(model, data):
    optimizer = Adam(model.parameters(), lr=LR)
    found = []
    for ids, fresh, target in data:
        logits = model(fw.tensor(ids), fw.tensor(fresh))
        loss = cross_entropy(logits.reshape(-1, logits.shape[-1]), fw.tensor(target.reshape(-1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def torch_losses(weights, data, vocabulary, embedding):
    import torch

    net = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(vocabulary, embedding),
            "rnn": torch.nn.LSTM(embedding, HIDDEN, batch_first=True),
            "output": torch.nn.Linear(HIDDEN, vocabulary),
        }
    )
    net.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    found, state = [], None
    for ids, fresh, target in data:
        y, state = net["rnn"](net["embedding"](torch.from_numpy(ids)), None if fresh[0] else state)
        state = tuple(s.detach() for s in state)
        logits = net["output"](y).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def compared(batch, window):
    """Losses of ours and of torch's, (2, STEPS)."""
    data, vocabulary = batches(batch, window)
    fw.manual_seed(0)
    model = build("charlstm", vocabulary=vocabulary, hidden=HIDDEN)
    weights = {name: w.numpy().copy() for name, w in model.state_dict().items()}
    theirs = torch_losses(weights, data, vocabulary, model.config.embedding)
    return np.array([our_losses(model, data), theirs])


@pytest.mark.skipif(
    not (DATA / "tinyshakespeare").is_dir(),
    reason="needs the text; set FRAMEWORK_DATA to its folder",
)
def test_the_losses_follow_torch(monkeypatch):
    pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[bench]"')
    monkeypatch.setenv("FRAMEWORK_DATA", str(DATA))
    ours, theirs = compared(batch=8, window=32)
    assert len(ours) == STEPS and ours[-1] < 2.6 < ours[0]
    assert np.abs(ours - theirs).max() < 0.01
