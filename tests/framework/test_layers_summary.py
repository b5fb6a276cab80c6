"""The summary table: shapes, parameters, multiply-adds, and that it leaves no trace."""

import numpy as np
import pytest

import framework as fw
from framework.layers import (
    BatchNorm1d,
    Bilinear,
    Dropout,
    Embedding,
    Flatten,
    GroupNorm,
    LayerNorm,
    Linear,
    Module,
    ReLU,
    RMSNorm,
    Sequential,
)


def model():
    return Sequential(Flatten(), Linear(64, 32), BatchNorm1d(32), ReLU(), Dropout(), Linear(32, 10))


def test_rows_and_totals():
    summary = model().summary((5, 8, 8))
    rows = {r.name: r for r in summary.rows}
    assert list(rows) == ["0", "1", "2", "3", "4", "5"]
    assert (rows["0"].kind, rows["0"].output) == ("Flatten", "(5, 64)")
    assert (rows["1"].parameters, rows["1"].multiply_adds) == (64 * 32 + 32, 5 * 64 * 32)
    assert (rows["2"].parameters, rows["2"].multiply_adds) == (64, 5 * 32)
    assert rows["5"].output == "(5, 10)"
    assert summary.parameters == summary.trainable == 2080 + 64 + 330
    assert summary.multiply_adds == 5 * (64 * 32 + 32 + 320)
    assert summary.size == 4 * (2474 + 64) + 8
    assert len(str(summary).splitlines()) == 3 + 6 + 2
    assert "2,474 parameters, 10.16 kB, 12,000 multiply-adds" in str(summary)


def test_frozen_parameters_are_told_apart():
    m = model()
    m[1].requires_grad_(False)
    assert "2,474 parameters (394 trainable)" in str(m.summary((1, 8, 8)))


def test_no_trace_is_left():
    m = model()
    m[4].eval()
    before = {name: x.data.copy() for name, x in m.state_dict().items()}
    counter = fw.Generator().state(), [mod.training for mod in m.modules()]
    m.summary((1, 64))
    assert [mod.training for mod in m.modules()] == counter[1]
    assert not any(mod._hooks for mod in m.modules())
    for name, x in m.state_dict().items():
        np.testing.assert_array_equal(x.data, before[name])
    with pytest.raises(ValueError, match="features"):
        m.summary((1, 65))
    assert not any(mod._hooks for mod in m.modules())
    assert m.training


def test_several_inputs_tensors_and_layers_used_twice():
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.embedding = Embedding(10, 4)
            self.mix = Linear(4, 4)
            self.join = Bilinear(4, 3, 2)
            self.unused = Linear(2, 2)

        def forward(self, ids, x):
            return self.join(self.mix(self.mix(self.embedding(ids))), x)

    summary = Two().summary([fw.tensor([1, 2]), (2, 3)])
    rows = {r.name: r for r in summary.rows}
    assert rows["embedding"].output == "(2, 4)"
    assert rows["mix"].multiply_adds == 2 * (2 * 4 * 4)
    assert rows["join"].multiply_adds == 2 * 2 * (4 * 3 + 3)
    assert rows["unused"].cells() == ("unused", "Linear", "", "6", "")


def test_a_tied_parameter_counts_once():
    shared = Linear(3, 3)
    tied = Linear(3, 3)
    tied.weight = shared.weight
    assert Sequential(shared, tied).summary((1, 3)).parameters == 9 + 3 + 3


@pytest.mark.parametrize("norm", [LayerNorm(4), RMSNorm(4), GroupNorm(2, 4)])
def test_norms_count_two_for_an_element(norm):
    assert norm.summary((3, 4)).multiply_adds == 24


def test_bad_inputs():
    with pytest.raises(TypeError, match=r"inputs='x', expected a shape"):
        model().summary("x")
    with pytest.raises(ValueError, match=r"inputs=\[\]"):
        model().summary([])


def test_a_model_without_parameters():
    summary = Sequential(ReLU()).summary((2, 2))
    assert summary.parameters == 0
    assert "0 parameters, 0 B" in str(summary)
