"""Labels, ids, places and lengths out of range on the emulator: the errors of the CPU, for who asks
and for a step that has gone wrong.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import framework as fw
from framework import functional as F, layers, optimizers
from framework.data import ArrayDataset, DataLoader
from framework.trainer import (
    F1,
    Accuracy,
    ConfusionMatrix,
    NonFiniteError,
    TerminateOnNaN,
    TopK,
    Trainer,
)
from tests.cuda_emulator import training, whole
from tests.cuda_emulator.conftest import require_emulator


@pytest.fixture(autouse=True)
def cupy():
    require_emulator()
    with whole.device() as module:
        yield module


DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(4, 6)).astype(np.float32)
TABLE = DRAW.normal(size=(5, 6)).astype(np.float32)
IDS = np.array([[0, 4], [5, -1]])
LABELS = np.array([0, 5, 6, 1])


def pooled(x, places):
    return F.max_unpool1d(x.reshape(1, 4, 6), places.reshape(1, 4, 1) + 0 * x_places(x), 2)


def x_places(x):
    return fw.tensor(np.zeros((1, 4, 6), np.int64)).to(x.device)


def attended(x, lengths):
    q = x.reshape(1, 1, 4, 6)
    return F.scaled_dot_product_attention(q, q, q, lengths=lengths[1:2])


def recurrent(x, lengths):
    w = x[:, :4].reshape(4, 4)
    return F.rnn(x[:, :4].reshape(1, 4, 4), w, w, lengths=lengths)[0]


CASES = {
    "embedding": (lambda x, n: F.embedding(n, x), TABLE, IDS, IndexError),
    "positions": (lambda x, n: F.embedding_at_positions(n, x, x), TABLE, IDS, IndexError),
    "cross_entropy": (F.cross_entropy, X, LABELS, IndexError),
    "nll": (F.nll_loss, X, LABELS, IndexError),
    "linear_cross_entropy": (
        lambda x, n: F.linear_cross_entropy(x, x[:3], n, reduction="sum"), X, LABELS, IndexError,
    ),
    "max_unpool": (pooled, X, LABELS * 7, IndexError),
    "attention": (attended, X, LABELS, ValueError),
    "recurrent": (recurrent, X, LABELS, ValueError),
    "getitem": (lambda x, n: x[n], TABLE, IDS + 1, IndexError),
    "hinge": (F.hinge_loss, X[:, 0], LABELS.astype(np.float32), ValueError),
    "accuracy": (Accuracy.update, X, LABELS, ValueError),
    "confusion": (ConfusionMatrix.update, X, LABELS, ValueError),
}  # fmt: skip


def called(case, device):
    function, x, numbers, _ = CASES[case]
    args = [fw.tensor(x, device=device), fw.tensor(numbers, device=device)]
    if function.__qualname__.endswith(".update"):
        owner = {"accuracy": Accuracy, "confusion": lambda: ConfusionMatrix(6)}[case]()
        return owner.update(*args)
    return function(*args)


@pytest.mark.parametrize("case", CASES)
def test_within_the_block_the_error_is_that_of_the_cpu(case):
    kind = CASES[case][3]
    with pytest.raises(kind) as on_cpu:
        called(case, "cpu")
    with fw.check_indices(), pytest.raises(kind) as on_device:
        called(case, "cuda")
    assert str(on_device.value) == str(on_cpu.value)
    if case != "getitem":  # where the emulator is stricter than CuPy
        called(case, "cuda")  # outside nobody looks


def fit(data, model, **options):
    trainer = Trainer(
        model.to("cuda"), F.cross_entropy, optimizers.Adam(model.parameters(), lr=0.01),
        callbacks=[TerminateOnNaN(**options)],
    )  # fmt: skip
    before = []
    call = trainer._call
    trainer._call = lambda hook, *args: (kept(hook, before, model), call(hook, *args))
    with pytest.raises((IndexError, NonFiniteError)) as raised:
        trainer.fit(data, epochs=1)
    assert all(
        a.data.get().tobytes() == b
        for a, b in zip(model.parameters(), before[trainer.step], strict=True)
    )
    return trainer, raised.value


def kept(hook, before, model):
    if hook == "on_step_start":
        before.append([p.data.get().tobytes() for p in model.parameters()])


@pytest.mark.parametrize("skip", [False, True])
def test_a_wrong_label_ends_a_run_with_its_row(skip):
    data = training.batches([8] * 6)
    data[4][1].data[3] = 7
    trainer, error = fit(data, training.model(), skip=skip)
    assert trainer.step == 4
    assert str(error) == "target 7 at row 3 is outside [0, 3)"


@pytest.mark.parametrize("capture", [False, "auto"])
def test_metrics_forget_the_step_with_a_wrong_label(capture):
    data = training.batches([8] * 6)
    run = training.trainer("cuda", capture, callbacks=[TerminateOnNaN()])
    run.metrics += [TopK(2), ConfusionMatrix(3)]
    run.fit(data, epochs=2)
    data[4][1].data[3] = 7
    with pytest.raises(IndexError, match="target 7 at row 3"):
        run.fit(data, epochs=3)
    assert run.metrics[2].compute().sum() == run.samples == 32
    assert all(0 <= metric.compute() <= 1 for metric in run.metrics[:2])


def test_a_wrong_id_ends_a_run_with_its_layer():
    data = [(fw.tensor(DRAW.integers(0, 9, (8, 2))), fw.tensor(DRAW.integers(0, 3, 8)))] * 4
    data[3] = (fw.tensor(np.full((8, 2), 9)), data[3][1])
    model = layers.Sequential(layers.Embedding(9, 4), layers.Flatten(), layers.Linear(8, 3))
    trainer, error = fit(data, model)
    assert trainer.step == 3
    assert isinstance(error, IndexError)
    assert str(error) == (
        "embedding: indices[0, 0] is 9, expected 0 <= index < 9, the rows of the table, in the "
        "layer 0 (Embedding(9, 4))"
    )


METRICS = {
    "accuracy": Accuracy, "top2": lambda **o: TopK(2, **o),
    "confusion": lambda **o: ConfusionMatrix(3, **o), "f1": lambda **o: F1(3, "none", **o),
}  # fmt: skip


def gathered(metric, device, y):
    output = np.random.default_rng(5).normal(size=(len(y), 3)).astype(np.float32)
    for half in (slice(0, 5), slice(5, None)):
        metric.update(fw.tensor(output[half], device=device), fw.tensor(y[half], device=device))
    return metric.compute()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", METRICS)
def test_ignored_labels_are_in_no_metric(name, device):
    y = np.array([0, -100, 1, 2, -100, 1, 2, 0, -100, 1])
    mine = gathered(METRICS[name](), device, y)
    output = np.random.default_rng(5).normal(size=(len(y), 3)).astype(np.float32)
    rest = METRICS[name](ignore_index=None)
    rest.update(output[y != -100], y[y != -100])
    np.testing.assert_array_equal(mine, rest.compute())
    for small in (np.uint8, np.int8):  # one of which has no -100
        counted = gathered(METRICS[name](), device, abs(y).astype(small) % 3)
        np.testing.assert_array_equal(counted, gathered(METRICS[name](), "cpu", abs(y) % 3))


@pytest.mark.parametrize("wrong", [3, 7, -1, -7, 2**40, -(2**40), -100])
@pytest.mark.parametrize("name", METRICS)
def test_other_labels_end_a_metric_with_their_value(name, wrong):
    y = np.array([0, 1, -100, 2, 0, 1, 1, 0])
    y[6] = wrong
    ignored = None if wrong == -100 else -100
    if ignored is None:
        y[2] = 0
    for device in ("cpu", "cuda"):
        metric = METRICS[name](ignore_index=ignored)
        with pytest.raises(ValueError, match=rf": target {wrong} is outside 0\.\.2$"):
            gathered(metric, device, y)
        metric.reset()
        assert np.isfinite(gathered(metric, device, np.array([0, 1, 2, 0, 1, 1]))).all()


@pytest.mark.parametrize("capture", [False, "auto"])
def test_labels_of_a_run_that_are_ignored_and_that_are_wrong(capture):
    records = []
    for device in ("cpu", "cuda"):
        data = training.batches([8] * 5)
        data[1][1].data[3] = data[4][1].data[:2] = -100
        run = training.trainer(device, capture if device == "cuda" else False)
        run.metrics += [TopK(2), ConfusionMatrix(3)]
        records.append(run.fit(data, epochs=4))
        assert {r["confusion"].sum() for r in run.history} == {37}
        assert run.evaluate(data)["confusion"].sum() == 37
    assert [r["accuracy"] for r in records[0]] == [r["accuracy"] for r in records[1]]
    assert [r["top2"] for r in records[0]] == [r["top2"] for r in records[1]]
    if capture:
        assert run._captured.whole.replays > 10
    data[2][1].data[3] = 7
    with pytest.raises(ValueError, match="^accuracy: target 7 is outside 0..2$"):
        run.fit(data, epochs=5)


def evaluated(device, loader, **options):
    model = training.model().to(device)
    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    return Trainer(model, F.cross_entropy, optimizer, **options).evaluate(loader)


@pytest.mark.parametrize("kind", [list, "DataLoader", "fit"])
def test_a_wrong_label_ends_an_evaluation(kind):
    x, y = (np.concatenate([b[i].numpy() for b in training.batches()]) for i in (0, 1))
    y[40] = 7
    for device in ("cpu", "cuda"):
        loader = DataLoader(ArrayDataset(x, y), 10, shuffle=kind is not list, device="cpu")
        if kind is list:
            loader = list(loader)
        with pytest.raises(IndexError, match=r"^target 7 at row \d is outside \[0, 3\)$"):
            if kind == "fit":
                training.trainer(device).fit(training.batches(), loader)
            else:
                evaluated(device, loader)


def test_a_wrong_id_ends_an_evaluation_with_its_layer():
    data = [(fw.tensor(np.full((8, 2), i)), fw.tensor(DRAW.integers(0, 3, 8))) for i in (8, 9)]
    model = layers.Sequential(layers.Embedding(9, 4), layers.Flatten(), layers.Linear(8, 3))
    trainer = Trainer(model.to("cuda"), F.cross_entropy, optimizers.SGD(model.parameters(), lr=0.1))
    with pytest.raises(IndexError, match=r"indices\[0, 0\] is 9, .* in the layer 0 \(Embedding"):
        trainer.evaluate(data)
    assert model.training


@pytest.mark.parametrize("once", [False, True])
def test_an_evaluation_that_is_nan_without_a_wrong_index(once, caplog):
    batches = training.batches()
    batches[3][0].data[0, 0] = np.nan
    loader = iter(batches) if once else batches
    assert np.isnan(evaluated("cuda", loader)["loss"])
    assert [r.getMessage() for r in caplog.records] == ["evaluate: the loss of batch 3 is nan"]


def test_a_loader_goes_on_after_it_was_gone_through_twice():
    x, y = X.copy(), np.array([0, 1, 2, 0])
    orders = []
    for bad in (0.0, np.nan):
        x[2, 3] = bad
        loader = DataLoader(ArrayDataset(x[:, :6].repeat(2, 1)[:, :8], y), 2, shuffle=True)
        evaluated("cuda", loader)
        orders.append([batch[1].numpy().tolist() for batch in loader])
    assert orders[0] == orders[1]


def test_a_step_with_checks_is_not_captured(caplog):
    run = training.trainer("cuda")
    with fw.check_indices():
        run.fit(training.batches(), epochs=3)
    assert run._captured.whole.captures == 0
    assert "it waits for the device" in run._captured.whole.reason
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("value", "said"), [("0", "False"), ("1", "True"), ("yes", "expected '0'")]
)
def test_the_setting_of_the_environment(value, said):
    code = "from kernels import checking; print(checking._looking)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"FRAMEWORK_CHECK": value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said in run.stdout + run.stderr
