"""train, evaluate and generate with text, in this process."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from framework.data import load_text
from framework.interop.safetensors import load, save
from framework.planning import UsageError, plan_run
from models import ZOO, open_run
from tests.framework.test_cli_errors import call, error, folder  # noqa: F401  (a fixture)

OPTIONS = ["train", "nplm", "--epochs", 3, "--batch-size", 8]
OPTIONS += ["--set", "hidden=16", "--set", "window=16", "--set", "steps=30"]


def good(*args):
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The beginning of Python's reference, as a file."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(load_text("python-reference").text[:6000], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    run = tmp_path_factory.mktemp("language") / "run"
    return run, good(*OPTIONS, "--dataset", text, "--out", run, "--device", "cpu")


def test_train(trained, text):
    run, shown = trained
    for words in (
        "different characters · 5,400 to train · 600 to test",
        "30 steps · 3 epochs · batches of 8 windows of 16 · AdamW, learning rate 0.002",
        "after epoch 3 it writes",
    ):
        assert words in shown
    names = {file.name for file in run.iterdir()} - {"curves.png"}
    assert names == {"config.json", "metrics.jsonl", "model.safetensors", "tokenizer.json"}
    config = json.loads((run / "config.json").read_text())
    assert config["dataset"] == str(text) and config["samples"] == [5400, 600]
    assert config["recipe"]["clip_norm"] == 1.0  # of the family
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 30
    score = f"test loss {last['test_loss']:.4f} bpc {last['test_bpc']:.4f} perplexity "
    assert shown.splitlines()[-1].startswith(score)
    evaluated = good("evaluate", run)
    assert evaluated.splitlines()[-1] == shown.splitlines()[-1]
    assert "600 test tokens" in evaluated


def test_generate(trained):
    run, _ = trained
    written = good("generate", run, "--prompt", "The ", "--tokens", 40, "--seed", 1)
    assert written.startswith("The ") and len(written) == 4 + 40 + 1
    again = ("generate", run, "--prompt", "The ", "--tokens", 40, "--seed")
    assert good(*again, 1) == written != good(*again, 2)
    greedy = good("generate", run, "--prompt", "T", "--tokens", 9, "--temperature", 0)
    assert greedy == good("generate", run, "--prompt", "T", "--tokens", 9, "--top-k", 1)
    opened = open_run(run, "cpu")
    import framework as fw

    pieces = fw.generate_text(opened.model, opened.tokenizer, "T", 9, temperature=0)
    assert "T" + "".join(pieces) + "\n" == greedy


def test_streams_of_words_and_a_longer_run(text, folder):  # noqa: F811
    """A complete run trained on; its epochs keep their length."""
    options = [*OPTIONS, "--set", "sampling=stream", "--set", "tokenizer=words", "--quiet"]
    good(*options, "--dataset", text, "--out", "words")
    good("train", "--resume", "words", "--epochs", 5, "--quiet")
    records = (folder / "words" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [10, 20, 30, 40, 50]
    assert good("generate", "words", "--tokens", 5).startswith("\n")


@pytest.mark.parametrize(
    ("steps", "epochs", "ends"),
    [(3, 10, [1, 2, 3]), (10, 4, [3, 6, 9, 10]), (9, 4, [3, 6, 9]), (6, 2, [3, 6])],
)
def test_exactly_as_many_steps(text, folder, caplog, steps, epochs, ends):  # noqa: F811
    good(
        *("train", "nplm", "--dataset", text, "--epochs", epochs, "--batch-size", 2, "--out", "s"),
        *("--set", "hidden=8", "--set", "window=8", "--set", f"steps={steps}", "--quiet"),
    )

    def records():
        lines = (folder / "s" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    assert [record["step"] for record in records()] == ends
    assert json.loads((folder / "s" / "config.json").read_text())["recipe"]["epochs"] == len(ends)
    caplog.clear()
    good("train", "--resume", "s", "--epochs", len(ends) + 2, "--quiet")
    assert not caplog.messages
    longest = ends[0]
    more = [ends[-1] + longest, ends[-1] + 2 * longest]
    assert [record["step"] for record in records()] == ends + more


def test_charlstm(text, folder):  # noqa: F811
    """Streams by default; it writes with its state."""
    options = ["train", "charlstm", "--dataset", text, "--epochs", 2, "--batch-size", 4]
    options += ["--set", "hidden=16", "--set", "window=16", "--set", "steps=20"]
    shown = good(*options, "--set", "cell=gru", "--out", "run")
    assert "20 steps · 2 epochs · batches of 4 windows of 16" in shown
    assert good("evaluate", "run").splitlines()[-1] == shown.splitlines()[-1]
    assert (
        json.loads((folder / "run" / "config.json").read_text())["recipe"]["sampling"] == "stream"
    )
    written = good("generate", "run", "--prompt", "The ", "--tokens", 40, "--seed", 1)
    assert written.startswith("The ") and len(written) == 4 + 40 + 1
    assert "'☃' (the first at position 1)" in error("generate", "run", "--prompt", "a☃")


def test_a_transformer_writes_past_its_block(text, folder):  # noqa: F811
    options = ["--set", "window=16", "--set", "steps=4", "--set", "depth=1", "--set", "width=16"]
    good("train", "gpt", "--dataset", text, *options, "--epochs", 2, "--out", "gpt", "--quiet")
    config = json.loads((folder / "gpt" / "config.json").read_text())
    assert config["model_config"]["block"] == 16 and config["recipe"]["decay"] == "matrices"
    assert len(good("generate", "gpt", "--prompt", "The ", "--tokens", 40)) == 4 + 40 + 1
    if importlib.util.find_spec("matplotlib") is None:
        return
    assert "gpt/explain/test/attention.png" in good("explain", "gpt")
    assert "gpt/explain/text/attention.png" in good("explain", "gpt", "--text", "The end")
    assert "explain it by --text, not on test:3" in error("explain", "gpt", "test:3")
    assert "has no tokens, expected at least one" in error("explain", "gpt", "--text", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gpt", "--set", "heads=3"], "heads is 3, which does not divide width=128"),
        (["vit", "--dataset", "moons"], "ViT is for images (C, H, W), this data has the shape"),
        (["nplm", "--dataset", "digits"], "nplm is for language, but digits is no text: take"),
        (["gpt", "--dataset", "mnist"], "mnist is no text: take one of python-reference, tinysh"),
        (["lenet", "--dataset", "wikitext-2"], "but wikitext-2 is data for language: take one of"),
        (
            ["mlp", "--dataset", "python-reference"],
            "data for language: take one of charlstm, gpt, nplm",
        ),
        (["nplm", "--dataset", "none.txt"], "'none.txt' cannot be read: there is no such file"),
        (["nplm", "--dataset", "pytho-reference"], "(did you mean python-reference?)"),
        (["nplm", "--set", "window=99999"], "test part: window is 99999, but the text has"),
        (["nplm", "--set", "sampling=stream", "--batch-size", 90000], "too few for a window of 64"),
        (["nplm", "--set", "vocabulary=9"], "the vocabulary of characters is all that"),
        (["nplm", "--set", "tokenizer=letters"], "expected one of characters, words, bpe, word"),
        (["charlstm", "--set", "hidden=0"], "hidden is 0, expected an integer of at least 1"),
        (["charlstm", "--set", "tied=true"], "an embedding as large as hidden, 256, but it is 64"),
        (["charlstm", "--set", "cell=ltsm"], "expected one of lstm, gru, rnn"),
        (["charlstm", "--batch-size", 90000], "too few for a window of 64"),
        (["rnnseq2seq"], "rnnseq2seq has no data to train on from here; train it from Python"),
        (
            ["mlp", "--set", "steps=9"],
            "steps is 9, which is for text, but digits is none: it is a setting of charlstm, gpt, "
            "nplm, not of mlp",
        ),
        (["lenet", "--set", "window=64"], "window is 64, which is for text, but digits is none"),
        (["mlp", "--set", "sampling=random"], "sampling is random, which is for text"),
        (["mlp", "--set", "cell=gru"], "cell is a setting of charlstm, rnnclassifier"),
        (["lenet", "--set", "cell=gru"], "not of lenet; there are: "),
        (["resnet18", "--set", "beta2=0.9"], "beta2 is 0.9, which is AdamW's, but the optimizer"),
    ],
)
def test_what_cannot_be_trained(args, message, folder):  # noqa: F811
    assert message in error("train", *args)
    assert not (folder / "runs").exists()


def test_what_cannot_be_generated(trained, folder, text):  # noqa: F811
    run = shutil.copytree(trained[0], folder / "run")
    assert "1 character is outside the vocabulary of" in error("generate", run, "--prompt", "a☃")
    assert "'☃' (the first at position 1)" in error("generate", run, "--prompt", "a☃")
    assert "expected at least one token" in error("generate", run, "--prompt", "")
    assert "temperature is -1" in error("generate", run, "--temperature", -1)
    assert "it has generate, not predict" in error("predict", run, text)
    if importlib.util.find_spec("matplotlib") is not None:
        assert "is a nplm, which has no attention to look at: explain is" in error("explain", run)
    tokenizer = run / "tokenizer.json"
    content = tokenizer.read_text(encoding="utf-8")
    for damaged, message in (
        (content[:-9], "tokenizer.json is damaged"),
        ('{"type": "characters", "characters": "ab"}', "has 2 tokens, but the model has"),
    ):
        tokenizer.write_text(damaged, encoding="utf-8")
        assert message in error("generate", run)
    tokenizer.unlink()
    assert "tokenizer.json does not exist" in error("generate", run)


@pytest.mark.parametrize("kind", ["characters", "wordpiece"])
def test_without_a_new_line_in_the_vocabulary(kind, text, folder):  # noqa: F811
    if kind == "wordpiece":
        pytest.importorskip("tokenizers", reason="WordPiece needs the tokenizers library")
    one_line = folder / "line.txt"
    one_line.write_text(text.read_text(encoding="utf-8").replace("\n", " "), encoding="utf-8")
    options = [*OPTIONS, "--set", f"tokenizer={kind}", "--epochs", 1]
    if kind == "wordpiece":
        options += ["--set", "vocabulary=150"]
    shown = good(*options, "--dataset", one_line, "--out", "run")
    assert "after epoch 1 it writes" in shown
    assert len(good("generate", "run", "--tokens", 5)) > 5


def test_a_model_that_broke(trained, folder):  # noqa: F811
    run = shutil.copytree(trained[0], folder / "run")
    arrays = load(run / "model.safetensors")
    arrays["output.bias"][0] = np.nan
    save(arrays, run / "model.safetensors")
    assert "the logits hold NaN or infinity: the model has" in error("generate", run)


def test_a_text_that_has_changed(trained, folder, text):  # noqa: F811
    run = shutil.copytree(trained[0], folder / "run")
    config = json.loads((run / "config.json").read_text())
    other = folder / "other.txt"
    other.write_text(load_text("python-reference").text[:5000], encoding="utf-8")
    (run / "config.json").write_text(json.dumps(config | {"dataset": str(other)}))
    assert "is not the data of this run: samples was (5400, 600)" in error("evaluate", run)


def test_a_text_of_the_same_length_that_has_changed(trained, folder, text):  # noqa: F811
    run = shutil.copytree(trained[0], folder / "run")
    content = text.read_text(encoding="utf-8")
    middle = len(content) // 2
    for cut, part in ((middle, "training"), (len(content) - 40, "test")):
        assert content[cut] != content[cut + 1]
        swapped = content[cut + 1] + content[cut]
        text.write_text(content[:cut] + swapped + content[cut + 2 :], encoding="utf-8")
        try:
            for args in (("evaluate", run), ("train", "--resume", run, "--epochs", 5)):
                assert f"as many {part} samples, but others than when" in error(*args)
        finally:
            text.write_text(content, encoding="utf-8")
    good("evaluate", run)


def test_recipes_are_the_family_s_and_then_the_user_s(folder, monkeypatch):  # noqa: F811
    plan = plan_run("nplm", None, 0, "cpu", folder / "x", {"lr": 0.5}, ["batch_size=7"])
    recipe = plan.config.recipe
    assert plan.config.dataset == "python-reference"
    assert (recipe.lr, recipe.batch_size, recipe.clip_norm) == (0.5, 7, 1.0)
    monkeypatch.setitem(ZOO, "nplm", replace(ZOO["nplm"], carries=False))
    with pytest.raises(UsageError, match="sampling is stream, but nplm carries no state"):
        plan_run("nplm", None, 0, "cpu", folder / "x", {}, ["sampling=stream"])
