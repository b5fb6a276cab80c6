"""Metrics against numbers worked out by hand, in pieces as in one, and with bad input."""

from __future__ import annotations

import numpy as np
import pytest

from framework.autograd import tensor
from framework.functional import cross_entropy, mse_loss
from framework.trainer import (
    F1,
    R2,
    Accuracy,
    ConfusionMatrix,
    Loss,
    Mean,
    Precision,
    Recall,
    TopK,
)

#        taken for: 1    0    2    2    1    0
LOGITS = np.array(
    [[0, 3, 1], [2, 1, 0], [0, 1, 5], [1, 0, 2], [0, 1, 0], [4, 3, 0]], dtype=np.float32
)
TARGET = np.array([1, 0, 2, 0, 2, 0])


def test_known_values():
    found = {}
    for metric in (Accuracy(), TopK(2), Precision(3), Recall(3), F1(3), F1(3, "micro")):
        metric.update(LOGITS, TARGET)
        found[f"{metric.name}-{getattr(metric, 'average', '')}"] = metric.compute()
    assert found["accuracy-"] == pytest.approx(4 / 6)
    # class 0 taken for 2 with its second highest logit; class 2 ties with 0 behind 1, and loses
    assert found["top2-"] == pytest.approx(5 / 6)
    assert found["precision-macro"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["recall-macro"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert found["f1-macro"] == pytest.approx((0.8 + 2 / 3 + 0.5) / 3)
    assert found["f1-micro"] == pytest.approx(4 / 6)


def test_confusion_matrix_rows_are_the_truth():
    metric = ConfusionMatrix(3)
    metric.update(tensor(LOGITS), tensor(TARGET))
    assert metric.compute().tolist() == [[2, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert metric.compute().dtype == np.int64


def test_per_class_scores_and_absent_classes():
    metric = Precision(4, "none")
    metric.update(np.eye(4, dtype=np.float32)[[0, 0, 1]], np.array([0, 1, 1]))
    assert metric.compute().tolist() == [0.5, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "metric",
    [Accuracy(), TopK(2), ConfusionMatrix(3), Precision(3), F1(3, "none"), Loss(cross_entropy)],
    ids=lambda metric: metric.name,
)
def test_pieces_give_the_same_as_one_batch(metric):
    metric.update(tensor(LOGITS), tensor(TARGET))
    whole = metric.compute()
    metric.reset()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(tensor(LOGITS[part]), tensor(TARGET[part]))
    np.testing.assert_allclose(metric.compute(), whole, rtol=1e-6)


def test_r2_by_its_definition_and_far_from_zero():
    t = np.random.default_rng(0).normal(1e4, 1.0, (50, 1)).astype(np.float32)
    y = t + np.float32(0.25)
    metric = R2()
    for part in (slice(0, 7), slice(7, 50)):
        metric.update(y[part], t[part])
    exact = 1 - ((y.astype(float) - t) ** 2).sum() / ((t - t.astype(float).mean()) ** 2).sum()
    assert metric.compute() == pytest.approx(exact, rel=1e-9)


def test_accuracy_of_one_logit_and_of_positions():
    metric = Accuracy()
    metric.update(np.array([[2.0], [-1.0], [0.5]]), np.array([1, 0, 0]))
    assert metric.compute() == pytest.approx(2 / 3)
    metric.reset()
    metric.update(np.zeros((2, 3, 4), np.float32), np.zeros((2, 4), np.int64))
    assert metric.compute() == 1.0


def test_nan_logits_are_never_right():
    for metric in (TopK(1), TopK(2), Accuracy()):
        metric.update(np.array([[np.nan, 1.0], [1.0, 0.0]]), np.array([0, 0]))
        assert metric.compute() == 0.5
    nothing = np.full((3, 2), np.nan)
    for target in (np.zeros(3, int), np.eye(2)[[0, 0, 0]], np.zeros((3, 2), bool)):
        metric = Accuracy()
        metric.update(nothing, target)
        assert metric.compute() == 0


def test_mean_is_weighted():
    mean = Mean()
    mean.update(1.0, 3)
    mean.update(tensor(5.0), 1)
    assert mean.compute() == 2.0
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        mean.update(tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("metric", "output", "target", "error", "message"),
    [
        (Accuracy(), np.zeros((0, 3)), np.zeros(0, int), ValueError, "batch is empty"),
        (Accuracy(), np.zeros((2, 3)), np.zeros(3, int), ValueError, r"\(2, 3\), target \(3,\)"),
        (
            Accuracy(),
            np.zeros((2, 3)),
            np.zeros((2, 2), int),
            ValueError,
            r"expected \(N, C, ...\)",
        ),
        (Accuracy(), np.zeros((2, 3), int), np.zeros(2, int), TypeError, "output is int64"),
        (Accuracy(), np.zeros((2, 3)), np.zeros(2), TypeError, "target is float64"),
        (Accuracy(), np.zeros((2, 3)), np.array([0, 3]), ValueError, "target 3 is outside 0..2"),
        (TopK(4), np.zeros((2, 3)), np.zeros(2, int), ValueError, "only 3 classes"),
        (
            ConfusionMatrix(4),
            np.zeros((2, 3)),
            np.zeros(2, int),
            ValueError,
            "3 classes, expected 4",
        ),
        (F1(3), np.zeros((2, 3)), np.array([-1, 0]), ValueError, "target -1 is outside"),
        (R2(), np.zeros((2, 1)), np.zeros(2), ValueError, "must be equal"),
    ],
)
def test_bad_batches(metric, output, target, error, message):
    with pytest.raises(error, match=message):
        metric.update(output, target)


def test_nothing_to_compute():
    for metric in (Accuracy(), TopK(), R2(), ConfusionMatrix(2), F1(2), Loss(mse_loss)):
        with pytest.raises(ValueError, match=r"update\(\) was not called yet"):
            metric.compute()
    metric = R2()
    metric.update(np.zeros(3), np.ones(3))
    assert np.isnan(metric.compute())


def test_ignored_positions_do_not_count():
    target = np.where(np.arange(6) < 2, -100, TARGET)
    for make in (
        lambda **k: Accuracy(**k),
        lambda **k: TopK(2, **k),
        lambda **k: ConfusionMatrix(3, **k),
        lambda **k: F1(3, "none", **k),
    ):
        metric, rest = make(ignore_index=-100), make()
        metric.update(tensor(LOGITS), tensor(target))
        rest.update(LOGITS[2:], TARGET[2:])
        np.testing.assert_allclose(metric.compute(), rest.compute())
    metric = Accuracy(ignore_index=0)
    metric.update(LOGITS[:1], np.array([0]))
    assert np.isnan(metric.compute())
    metric.update(LOGITS[:1], np.array([1]))
    assert metric.compute() == 1.0
    with pytest.raises(ValueError, match="target -1 is outside"):
        metric.update(LOGITS[:1], np.array([-1]))


def test_accuracy_of_one_hot_targets_and_of_several_yes_or_no():
    metric = Accuracy()
    metric.update(LOGITS, np.eye(3, dtype=np.float32)[TARGET])  # 4 of 6, all logits are >= 0
    assert metric.compute() == pytest.approx(4 / 6)
    metric = Accuracy(multilabel=True)
    metric.update(np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert metric.compute() == 1.0
    metric.reset()
    metric.update(np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert metric.compute() == 0.5


@pytest.mark.parametrize("multilabel", [False, True])
def test_accuracy_does_not_depend_on_the_batches(multilabel):
    """Rows that sum to 1 are no other kind of target than those beside them."""
    logits = np.array([[1.0, 1.0, -1.0], [1.0, 2.0, 3.0], [1.0, -1.0, -1.0]])
    target = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    whole, parts = Accuracy(multilabel=multilabel), Accuracy(multilabel=multilabel)
    whole.update(logits, target)
    for i in range(3):
        parts.update(logits[i : i + 1], target[i : i + 1])
    assert parts.compute() == whole.compute() == pytest.approx(5 / 9 if multilabel else 2 / 3)
    whole.reset()
    whole.update(logits, target.astype(int))  # integers are answers, whatever the option
    assert whole.compute() == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopK(0),
        lambda: TopK(True),
        lambda: ConfusionMatrix(1),
        lambda: F1(3, "weighted"),
        lambda: Accuracy(ignore_index=1.0),
        lambda: Accuracy(multilabel="yes"),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ValueError, match="expected"):
        make()
