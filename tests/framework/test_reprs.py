"""What print shows of objects that hold much: names and sizes."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework.data import ArrayDataset, DataLoader, Subset
from framework.data.corpora import Corpus
from framework.trainer.find_lr import LRCurve

DATA = ArrayDataset(np.zeros((2000, 3), np.float32), np.zeros(2000, np.int64))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            Corpus("tiny", "a" * 9000, "b" * 1000, "a's and b's"),
            "Corpus('tiny', 9,000 characters to train, 1,000 to test)",
        ),
        (DATA, "ArrayDataset(2,000 samples)"),
        (Subset(DATA, [3, 1]), "Subset(2 samples of ArrayDataset(2,000 samples))"),
        (DataLoader(DATA, 32), "DataLoader(ArrayDataset(2,000 samples), 63 batches of 32)"),
        (DataLoader(DATA, 2000), "DataLoader(ArrayDataset(2,000 samples), 1 batch of 2,000)"),
        (
            LRCurve([1e-3, 1e-2, 1e-1], [2.0, 2.0, 1.0], [2.0, 1.8, 1.0]),
            "LRCurve(suggestion=0.1, 3 steps, lr 0.001 to 0.1)",
        ),
        (
            LRCurve([1e-3, 1e-2, 1e-1], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
            "LRCurve(no suggestion, 3 steps, lr 0.001 to 0.1)",
        ),
    ],
)
def test_a_line_with_sizes(value, text):
    assert repr(value) == text


def test_a_tensor_does_not_say_that_its_graph_is_freed():
    loss = (fw.tensor([1.0, 2.0], requires_grad=True) ** 2).sum()
    assert "from=" in repr(loss)
    loss.backward()
    assert repr(loss) == "tensor(5.)"
