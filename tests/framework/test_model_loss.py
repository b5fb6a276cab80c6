"""A loss that the model computes itself: the numbers of logits and their loss, everywhere in the
trainer.
"""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import layers
from framework.data import ArrayDataset, DataLoader
from framework.functional import cross_entropy
from framework.trainer import Accuracy, ModelLoss, TerminateOnNaN, Trainer, find_lr
from framework.trainer.language import token_loss
from framework.trainer.run import Recipe, loss_for, optimizer_for
from models import build

SMALL = {"vocabulary": 17, "block": 8, "depth": 1, "heads": 2, "width": 16}
IDS = np.random.default_rng(0).integers(0, 17, (24, 9))

pytestmark = pytest.mark.usefixtures("device")


def loader():
    data = ArrayDataset(IDS[:, :-1], IDS[:, 1:])
    return DataLoader(data, 4, shuffle=True, seed=1, device=fw.default_device())


def trainer(loss, **options):
    fw.manual_seed(2)
    model = build("gpt", **SMALL).to(fw.default_device())
    return Trainer(model, loss, optimizer_for(Recipe(lr=1e-2), model), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_trains_as_the_loss_of_logits_does(smoothing):
    def of_logits(logits, target):
        return token_loss(logits, target, smoothing)

    runs = [trainer(of_logits, accumulate=2), trainer(ModelLoss(label_smoothing=smoothing))]
    runs[1].accumulate = 2
    before, after = (run.fit(loader(), {"test": loader()}, 3) for run in runs)
    for a, b in zip(before, after, strict=True):
        for key in ("loss", "test_loss"):
            assert b[key] == pytest.approx(a[key], rel=1e-5)
    assert after[-1]["loss"] < 0.96 * after[0]["loss"]
    x = IDS[:5, :-1]
    found = runs[1].predict(x).numpy()
    assert found.shape == (5, 8, 17)
    np.testing.assert_allclose(found, runs[0].predict(x).numpy(), rtol=1e-3, atol=1e-4)


def test_mixed_precision_keeps_the_loss_in_float32():
    whole, mixed = (trainer(ModelLoss(), precision=p) for p in ("float32", "bf16-mixed"))
    expected, found = (run.fit(loader(), epochs=1)[0]["loss"] for run in (whole, mixed))
    assert found == pytest.approx(expected, rel=1e-2) and found != expected


def test_what_comes_before_a_long_run():
    run = trainer(ModelLoss(), callbacks=[TerminateOnNaN()])
    (record,) = run.fit(loader(), loader(), fast_dev_run=True)
    assert record["loss"] > 0 and record["val_loss"] > 0 and run.step == 0
    assert len(find_lr(run, loader(), steps=5).losses) == 5


def test_what_cannot_be():
    with pytest.raises(ValueError, match="metrics are accuracy, but loss is a ModelLoss"):
        trainer(ModelLoss(), metrics=[Accuracy()])
    plain = layers.Linear(2, 3)
    with pytest.raises(TypeError, match=r"but Linear has no loss\(\*inputs, target\)"):
        Trainer(plain, ModelLoss(), optimizer_for(Recipe(), plain))


def test_errors_name_the_layer_as_seen_from_the_model():
    long = DataLoader(ArrayDataset(IDS, IDS), 4, device=fw.default_device())
    with pytest.raises(ValueError, match="at most block=8") as caught:
        trainer(ModelLoss()).fit(long)
    assert caught.value.__notes__ == ["in GPT given (4, 9), (4, 9)"]
    run = trainer(ModelLoss(), callbacks=[TerminateOnNaN()])
    run.model.blocks.each[0].attention.out.weight.data[...] = np.nan
    with pytest.raises(ArithmeticError, match=r"blocks.each.0.attention.out.weight is not finite"):
        run.fit(loader())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("charlstm", {"hidden": 12, "layers": 2, "dropout": 0.2}),
        ("charlstm", {"hidden": 12, "embedding": 12, "tied": True}),
        ("nplm", {"hidden": 12, "dropout": 0.2}),
        ("nplm", {"hidden": 12, "direct": True}),
    ],
)
def test_recurrent_models_have_one_too_with_the_state_that_they_carry(name, settings):
    ids, target = (fw.tensor(a, device=fw.default_device()) for a in (IDS[:4, :-1], IDS[:4, 1:]))
    fresh = [fw.tensor(np.full(4, new), device=fw.default_device()) for new in (True, False)]
    found = []
    for own in (False, True):
        fw.manual_seed(0)
        model = build(name, vocabulary=17, **settings)
        losses = []
        for batch in ((ids,), (ids, fresh[0]), (target, fresh[1])):
            if own:
                losses.append(model.loss(*batch, target, label_smoothing=0.1))
            else:
                losses.append(token_loss(model(*batch), target, 0.1))
        sum(losses).backward()
        found.append([x.item() for x in losses] + [p.grad.numpy() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_recipes_take_the_loss_of_a_model_that_has_one():
    gpt, plain = build("gpt", **SMALL), layers.Linear(2, 3)
    found = loss_for("language", gpt, 0.1)
    assert isinstance(found, ModelLoss) and found.options == {"label_smoothing": 0.1}
    assert loss_for("language", plain).func is token_loss
    assert not isinstance(loss_for("classification", gpt), ModelLoss)
    x, target = fw.tensor(np.eye(3, dtype=np.float32)), fw.tensor(np.arange(3))
    assert loss_for("classification", gpt)(x, target).item() == cross_entropy(x, target).item()
