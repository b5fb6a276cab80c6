"""Tokenizers: round trips, files of GPT-2 and BERT, text piece by piece, what is refused."""

from __future__ import annotations

import json
import sys

import pytest

from framework.data import (
    BPETokenizer,
    CharTokenizer,
    DataError,
    WordPieceTokenizer,
    WordTokenizer,
    tokenizer_from_json,
)

TEXT = "the cat saw the dog, and the dog saw naïve cats: 123 ☃\n\nwhat a sight!\n" * 4
KINDS = {
    "characters": lambda: CharTokenizer.train(TEXT),
    "words": lambda: WordTokenizer.train(TEXT),
    "bpe": lambda: BPETokenizer.train(TEXT, 300),
    "wordpiece": lambda: WordPieceTokenizer.train(TEXT, 80),
}


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_it_back(kind):
    tokenizer = KINDS[kind]()
    assert tokenizer.kind == kind
    again = tokenizer_from_json(tokenizer.to_json())
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == "int64" and ids.max() < tokenizer.size == again.size
    assert (again.encode(TEXT) == ids).all()
    assert again.decode(ids) == tokenizer.decode(ids)
    assert KINDS[kind]().to_json() == tokenizer.to_json()  # training is deterministic
    if kind in ("characters", "bpe"):
        assert tokenizer.decode(ids) == TEXT
    with pytest.raises(ValueError, match=f"token {tokenizer.size} is outside the vocabulary, 0"):
        tokenizer.decode([0, tokenizer.size])


@pytest.mark.parametrize("kind", KINDS)
def test_piece_by_piece_is_the_text(kind):
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(TEXT).tolist()
    pieces = list(tokenizer.stream(iter(ids[3:]), ids[:3]))
    assert tokenizer.decode(ids[:3]) + "".join(pieces) == tokenizer.decode(ids)
    assert len(pieces) > 20


def test_characters_outside_the_vocabulary_are_shown():
    tokenizer = CharTokenizer.train("abc")
    with pytest.raises(
        DataError,
        match=r"2 characters are outside the vocabulary of 3: 'z', 'ß' \(the first at position 1\)",
    ):
        tokenizer.encode("aßbzz")
    assert tokenizer.encode("").size == 0


def test_rare_words_are_unknown():
    tokenizer = WordTokenizer.train("a a a b b c <unk> c d\n", size=5)
    assert tokenizer.words == ("<unk>", "<eos>", "a", "b", "c")
    assert WordTokenizer.train("a a a b b c\n", min_count=2).words[2:] == ("a", "b")
    assert tokenizer.decode(tokenizer.encode("a d b\n\nc\n")) == "a <unk> b\n\nc\n"


def test_files_of_gpt2(tmp_path):
    """The two files, as they are published: bytes as characters, merges in their order."""
    alphabet = [c for c in sorted(KINDS["bpe"]().vocabulary) if len(c) == 1]
    table = {c: i for i, c in enumerate([*alphabet, "th", "the", "Ġthe", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    merges = "#version: 0.2\nt h\nth e\nĠ the\n"
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    tokenizer = BPETokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    ids = tokenizer.encode("the the<|endoftext|>é")
    assert ids[:3].tolist() == [table["the"], table["Ġthe"], tokenizer.id_of("<|endoftext|>")]
    assert tokenizer.decode(ids) == "the the<|endoftext|>é"
    (tmp_path / "out").mkdir()
    tokenizer.save_files(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "vocab.json").read_text("utf-8")) == table
    assert (tmp_path / "out" / "merges.txt").read_text("utf-8") == merges
    (tmp_path / "merges.txt").write_text("t h e\n", encoding="utf-8")
    with pytest.raises(DataError, match="no tokenizer of GPT-2: .*has 't h e', expected two"):
        BPETokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    with pytest.raises(DataError, match="cannot read .*none.json: No such file"):
        BPETokenizer.from_files(tmp_path / "none.json", tmp_path / "merges.txt")


def test_vocabulary_of_bert(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##ed", ",", "cafe"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = WordPieceTokenizer.from_file(tmp_path / "vocab.txt")
    assert tokenizer.encode("Playing, Café played [MASK] zzz").tolist() == [5, 6, 8, 9, 5, 7, 4, 1]
    tokenizer.save_file(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"no vocabulary of BERT: there is no \[UNK\] among the 2"):
        WordPieceTokenizer.from_file(tmp_path / "vocab.txt")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"BPE needs the tokenizers library: pip install .*\[text"):
        BPETokenizer.train(TEXT)
    assert CharTokenizer.train("ab").size == 2


BPE = '{"type": "bpe", "vocabulary": {"a": 0}, "merges": [["x", "y"]]}'
WORDS = '{"type": "words", "words": ["<unk>", "<eos>", 5]}'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CharTokenizer.train(""), "the text is empty"),
        (lambda: WordTokenizer.train(" \t"), "the text is empty"),
        (lambda: BPETokenizer.train(""), "the text is empty"),
        (lambda: BPETokenizer.train(TEXT, 100), "size is 100, expected at least 257"),
        (lambda: WordPieceTokenizer.train("  "), "the text is empty"),
        (lambda: BPETokenizer({"a": 1}, []), r"the 1 ids are not 0\.\.0"),
        (lambda: tokenizer_from_json("{}"), "describes no tokenizer: KeyError"),
        (lambda: tokenizer_from_json('{"type": "chars"}'), "describes no tokenizer"),
        (lambda: tokenizer_from_json("["), "describes no tokenizer"),
        (lambda: tokenizer_from_json("[" * 100_000), "describes no tokenizer: RecursionError"),
        (lambda: tokenizer_from_json(BPE), "describes no tokenizer: .*out of vocabulary"),
        (lambda: tokenizer_from_json(WORDS), "describes no tokenizer: .*has 5, expected strings"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
