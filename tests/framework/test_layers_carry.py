"""Carry: nested states, windows without gradients between them, evaluation apart from training."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers

pytestmark = pytest.mark.usefixtures("device")


class Sums(layers.Module):
    """h += x, c counts windows; the batch is the second axis of h, as in a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.weight = fw.Parameter(np.ones(1, np.float32)).to(fw.default_device())
        self.carry = layers.Carry()

    def forward(self, x, fresh):
        zeros = fw.zeros(1, len(x), device=x.device)
        state = self.carry({"h": zeros, "c": (zeros, None)}, fresh)
        h = state["h"] + (self.weight * x).unsqueeze(0)
        state = {"h": h, "c": (state["c"][0] + 1, None)}
        self.carry.keep(state)
        return h[0], state["c"][0][0]


def window(*values):
    return fw.tensor(np.array(values, np.float32), device=fw.default_device())


def test_states_go_on_and_begin_anew():
    model = Sums()
    old, new = (fw.tensor(np.full(2, x), device=fw.default_device()) for x in (False, True))
    found = [model(window(1, 2), fresh)[0].tolist() for fresh in (new, old, old, new, old)]
    assert found == [[1, 2], [2, 4], [3, 6], [1, 2], [2, 4]]
    model.eval()
    assert model(window(5), new[:1])[1].tolist() == [1]  # another batch size too
    assert model(window(5), old[:1])[1].tolist() == [2]
    model.train()
    assert model(window(1, 2), old)[0].tolist() == [3, 6]
    copy = Sums()
    copy.carry.restore([x.copy() for x in model.carry.kept()])
    assert copy(window(1, 2), old)[0].tolist() == [4, 8]


def test_gradients_stay_within_a_window():
    model = Sums()
    for fresh in (True, False):
        h, _ = model(window(1, 2), fw.tensor(np.full(2, fresh), device=fw.default_device()))
    h.sum().backward()
    assert model.weight.grad.tolist() == [3]


def test_a_state_of_something_else():
    with pytest.raises(TypeError, match="a state holds a int, expected Tensors"):
        layers.Carry()((1,), window(1))
