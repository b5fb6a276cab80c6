"""Training on text: recipes, loaders, loss and scores, exact resume with a carried state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import framework as fw
from framework.data import CharTokenizer, Corpus
from framework.functional import cross_entropy
from framework.optimizers import SGD, AdamW
from framework.trainer import Callback, SampleText, Trainer, checkpoint
from framework.trainer.language import (
    LanguageScores,
    language_scores,
    token_loaders,
    token_loss,
    tokenizer_for,
)
from framework.trainer.run import Recipe, load_data, optimizer_for
from models import build

TEXT = "".join(np.random.default_rng(0).choice(list("abcde \n"), 1200))
CORPUS = Corpus("letters", TEXT[:1000], TEXT[1000:], "seven characters by chance")
SPLITS = CORPUS.tokenised(CharTokenizer.train(TEXT), 8)
STREAM = Recipe(epochs=2, batch_size=4, window=8, sampling="stream")


def trainer(recipe, *callbacks):
    fw.manual_seed(1)
    model = build("nplm", vocabulary=7, context=5, embedding=4, hidden=8, dropout=0.1)
    optimizer = optimizer_for(recipe, model)
    return Trainer(model, token_loss, optimizer, callbacks=list(callbacks), device="cpu")


def test_loss_is_the_mean_over_all_tokens():
    logits = fw.tensor(np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32))
    target = fw.tensor(np.array([[0, 1, 2], [3, 4, 0]]))
    each = [cross_entropy(logits[i], target[i]).item() for i in range(2)]
    assert token_loss(logits, target).item() == pytest.approx(np.mean(each), rel=1e-6)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3, 5\), the target \(6,\)"):
        token_loss(logits, target.reshape(-1))


def test_scores():
    found = language_scores(math.log(8), characters_per_token=1.5)
    assert found == pytest.approx({"bpc": 2.0, "perplexity": 8.0})
    assert language_scores(1e9, 1.0)["perplexity"] > 1e300


@pytest.mark.parametrize("sampling", ["random", "stream"])
def test_loaders(sampling):
    recipe = Recipe(epochs=2, batch_size=4, window=8, sampling=sampling, validation=0.2)
    train, validation, test = token_loaders(SPLITS, recipe, 0, "cpu")
    assert len(train) == {"random": 25, "stream": 24}[sampling]  # 800 tokens
    (ids, *_), count = next(iter(train)), len(ids_of(test))
    assert ids.shape == (4, 8)
    assert validation is not None and count == {"random": 24 * 8, "stream": 24 * 8}[sampling]
    parts = replace(recipe, steps=21, epochs=4, accumulate=3)
    assert len(token_loaders(SPLITS, parts, 0, "cpu")[0]) == 18


def ids_of(loader):
    return np.concatenate([batch[0].numpy().reshape(-1) for batch in loader])


def test_tokenizers_by_recipe():
    words = Corpus("words", "a b <unk>\n" * 9, "b c\n", "words", words=True)
    assert tokenizer_for(words, Recipe()).kind == "words"
    assert tokenizer_for(words, Recipe(vocabulary=3)).size == 3
    assert tokenizer_for(CORPUS, Recipe()).size == 7
    assert tokenizer_for(CORPUS, Recipe(tokenizer="bpe", vocabulary=260)).size == 260
    with pytest.raises(ValueError, match="vocabulary is 9, but the vocabulary of characters is"):
        tokenizer_for(CORPUS, Recipe(vocabulary=9))


def test_optimizers_by_recipe():
    model = build("nplm", vocabulary=7)
    adam = optimizer_for(Recipe(momentum=0.8, beta2=0.99, decay="matrices"), model)
    assert isinstance(adam, AdamW)
    decayed, others = adam.param_groups
    assert decayed["betas"] == (0.8, 0.99) and decayed["weight_decay"] == 0.01
    assert others["weight_decay"] == 0 and {p.ndim for p in others["params"]} == {1}
    sgd = optimizer_for(Recipe(optimizer="sgd", lr=0.1), model)
    assert isinstance(sgd, SGD) and sgd.param_groups[0]["nesterov"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam', expected one of adamw, sgd"),
        ({"tokenizer": "letters"}, "tokenizer is 'letters', expected one of characters, words, bp"),
        ({"steps": 0}, "steps is 0, expected an integer of at least 1"),
        ({"window": None}, "window is None, expected an integer of at least 1"),
        ({"momentum": 1.0}, "momentum is 1.0, expected a number from 0 to below 1"),
        ({"final_lr": -1.0}, "final_lr is -1.0, expected a number 0 or more"),
    ],
)
def test_recipes_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_settings_of_text_are_for_text():
    from framework.data import load

    with pytest.raises(ValueError, match="steps is 9, which is for text, but moons is none"):
        load_data(load("moons"), Recipe(steps=9), 0, "cpu")
    with pytest.raises(ValueError, match="shift is 1, but letters has no images"):
        load_data(SPLITS, Recipe(shift=1), 0, "cpu")


def test_a_longer_run_has_epochs_of_the_same_length():
    recipe = Recipe(steps=100, epochs=8)  # seven of 13 steps, the last one of 9
    longer = recipe.trained_on(16)
    assert recipe.steps_of_epoch == longer.steps_of_epoch == 13
    assert (longer.steps, longer.epochs) == (100 + 8 * 13, 16)
    assert Recipe(epochs=8).trained_on(16).steps is None
    assert Recipe(steps=100).epochs_for(10**6) == 10
    assert Recipe(steps=20, epochs=8).epochs_for(10**6) == 7  # six of 3 steps, one of 2


class Stop(Callback):
    """Saves the run in the middle of its second epoch, and ends it."""

    def __init__(self, path):
        self.path = path

    def on_step_end(self, trainer):
        if trainer.step == 40:
            checkpoint.save_trainer(self.path, trainer)
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampling", ["random", "stream"])
def test_resumed_in_the_middle_of_an_epoch(tmp_path, sampling):
    """Position in the text and the carried state are those of the run that was not interrupted."""
    recipe = replace(STREAM, sampling=sampling, steps=60)

    def loader():
        return token_loaders(SPLITS, recipe, 3, "cpu")[0]

    whole = trainer(recipe)
    whole.fit(loader(), epochs=2)
    first = trainer(recipe, Stop(tmp_path / "x"))
    with pytest.raises(KeyboardInterrupt):
        first.fit(loader(), epochs=2)
    rest = trainer(recipe)
    checkpoint.load_trainer(tmp_path / "x", rest)
    if sampling == "stream":
        assert rest.model.carry.kept()[0].shape == (4, 4)
    rest.fit(loader(), epochs=2)
    assert rest.step == whole.step == 60
    for name, x in whole.model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), rest.model.state_dict()[name].numpy(), name)


def test_samples_and_scores_leave_the_training_as_it_is():
    shown = []
    sample = SampleText(
        SPLITS.tokenizer, "ab", tokens=12, show=lambda epoch, text: shown.append((epoch, text))
    )
    train, _, test = token_loaders(SPLITS, STREAM, 0, "cpu")
    plain = trainer(STREAM).fit(train, {"test": test}, 2)
    train, _, test = token_loaders(SPLITS, STREAM, 0, "cpu")
    both = trainer(STREAM, LanguageScores(SPLITS), sample).fit(train, {"test": test}, 2)
    assert [epoch for epoch, _ in shown] == [1, 2]
    assert all(text.startswith("ab") and len(text) == 14 for _, text in shown)
    for a, b in zip(plain, both, strict=True):
        assert a["loss"] == b["loss"] and a["test_loss"] == b["test_loss"]
        assert b["test_bpc"] == pytest.approx(b["test_loss"] / math.log(2))
        assert b["perplexity"] == pytest.approx(math.exp(b["loss"]))
