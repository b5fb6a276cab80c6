"""Corpora: the embedded one, published ones from a folder, any text file; what is missing."""

from __future__ import annotations

import platform
import tracemalloc
import zipfile

import pytest

from framework.data import CharTokenizer, DataError, WordTokenizer, corpora, load_text
from tests.framework.test_data_catalog import DATA, folders, offline  # noqa: F401  (fixtures)


def test_the_language_reference_of_python():
    corpus = load_text("python-reference")
    assert f"Python {platform.python_version()}" in corpus.description
    assert "90% to train" in corpus.description
    assert len(corpus.train) == len(corpus.text) * 9 // 10 > 200_000
    assert 'The "assert" statement' in corpus.text
    assert load_text("python-reference") == corpus


@pytest.mark.skipif(
    not (DATA / "tinyshakespeare").is_dir(),
    reason="needs the text; set FRAMEWORK_DATA to its folder",
)
def test_tinyshakespeare(monkeypatch):
    monkeypatch.setenv("FRAMEWORK_DATA", str(DATA))
    corpus = load_text("tinyshakespeare")
    assert (len(corpus.train), len(corpus.test)) == (1_003_854, 111_540)
    assert CharTokenizer.train(corpus.text).size == 65


def test_wikitext(folders, offline):  # noqa: F811
    folder = folders / "wikitext-2"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"{part}.txt").write_text(f" = {part} = \n a <unk> , b \n")
    corpus = load_text("wikitext-2")
    assert corpus.train.startswith(" = train") and corpus.words
    assert corpus.description.endswith("the published split")
    assert WordTokenizer.train(corpus.train).size == 2 + 5
    (folder / "train.txt").unlink()
    corpus = load_text("wikitext-2")
    assert corpus.train.startswith(" = valid") and corpus.test.startswith(" = test")
    assert corpus.description.endswith("lacks train.txt, so valid.txt is trained on")
    with zipfile.ZipFile(folder / corpora.WIKITEXT2.name, "w") as archive:
        for part in ("train", "test"):
            archive.writestr(f"wikitext-2/wiki.{part}.tokens", f"packed {part}")
    assert load_text("wikitext-2").train == "packed train"
    (folder / corpora.WIKITEXT2.name).write_bytes(b"PK")
    with pytest.raises(DataError, match="wikitext-2-v1.zip: File is not a zip file"):
        load_text("wikitext-2")


TRAIN, TEST = (f"wikitext-2/wiki.{part}.tokens" for part in ("train", "test"))


def archive(path, train, claimed=None, names=(TRAIN, TEST)):
    """wikitext-2's, whose training text is said to have `claimed` bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in zip(names, (train, b"a test"), strict=True):
            file.writestr(name, content)
        if claimed is not None:
            file.getinfo(names[0]).file_size = claimed
    return path


@pytest.mark.parametrize(
    ("train", "claimed", "message"),
    [
        (bytes(2**22), None, "has 4,194,304 bytes, expected at most 1,048,576"),
        (b"small", 10**10, "has 10,000,000,000 bytes, expected at most"),
        (b"small", 2**62, "has 4,611,686,018,427,387,904 bytes, expected at most"),
        (bytes(2**22), 1000, "Bad CRC-32"),
        (b"small", 2000, "ends after 5 of 2,000 bytes"),
        (b"\xff", None, "can't decode byte 0xff"),
    ],
)
def test_archives_that_unpack_to_more_or_less(tmp_path, monkeypatch, train, claimed, message):
    monkeypatch.setattr(corpora, "LONGEST", 2**20)
    path = archive(tmp_path / "w.zip", train, claimed)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"w\.zip: .*{message}"):
            corpora.read_wikitext2(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_names_in_an_archive_lead_nowhere(tmp_path):
    names = f"../{TRAIN}", f"/{TEST}"
    path = archive(tmp_path / "w.zip", b"elsewhere", names=names)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"w\.zip: .*There is no item named"):
        corpora.read_wikitext2(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n" * 10)
    corpus = load_text(str(tmp_path / "a.txt"))
    assert corpus.text.startswith("one\ntwo\n")
    assert corpus.name == str(tmp_path / "a.txt")
    splits = corpus.tokenised(CharTokenizer.train(corpus.text), 4)
    assert splits.characters_per_token == (1.0, 1.0)
    with pytest.raises(DataError, match="a.txt, test part: window is 10, but the text has"):
        corpus.tokenised(CharTokenizer.train(corpus.text), 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", "is empty: expected a text to learn from"),
        (b"abc\xff", "is no UTF-8 text: byte 0xff at position 3"),
        (b"\x89PNG\0\0", "is no text: it has zero bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text(str(tmp_path / "a.txt"))


def test_names_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"'tinyshakspeare' \(did you mean tinyshakespeare\?\)"):
        load_text("tinyshakspeare")
    with pytest.raises(DataError, match=r"'none.txt' cannot be read: there is no such file"):
        load_text("none.txt")
    with pytest.raises(DataError, match="cannot be read: it is a folder"):
        load_text(str(tmp_path))
