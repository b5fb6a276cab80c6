"""Any bytes at all end in the framework's own error, or in content: hypothesis looks for others."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from framework.data import DataError, corpora, load_text
from framework.data.idx import read_idx
from framework.interop import safetensors
from framework.interop.atomic import FileError, read_bytes
from framework.trainer import CheckpointError, checkpoint, store
from framework.trainer.inputs import read_inputs
from framework.trainer.language import TOKENIZER, read_tokenizer
from framework.trainer.run import RunConfig, read_history

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def refused(read, path):
    """Its own error names the file in one line; content is the only other way to end."""
    try:
        return read(path)
    except (FileError, DataError) as error:
        assert path.name in str(error) or str(path.parent) in str(error)
        assert "\n" not in str(error)
        return None


READERS = {
    "text": lambda path: load_text(str(path)),
    "archive": corpora.read_wikitext2,
    "checkpoint": checkpoint.load,
    "weights": safetensors.load,
    "idx": read_idx,
    "history": read_history,
    "inputs": lambda path: read_inputs(path, (2, 2)),
}
#: How files of each kind begin.
BEGINNINGS = {
    "text": st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"words\r\n"]),
    "archive": st.just(b"PK\3\4"),
    "checkpoint": st.just(b"\x40\0\0\0\0\0\0\0{"),
    "weights": st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + b"{"),
    "idx": st.sampled_from([b"\0\0\x08\x01", b"\0\0\x0e\x08", b"\x1f\x8b\x08\0"]),
    "history": st.just(b'{"epoch": 1, "step": '),
    "inputs": st.just(b"\x93NUMPY\x01\0\x20\0{'descr': "),
}


@few
@given(data=st.data())
@pytest.mark.parametrize("kind", READERS)
def test_any_bytes(kind, folder, data):
    content = data.draw(st.one_of(st.just(b""), BEGINNINGS[kind])) + data.draw(st.binary())
    (folder / kind).write_bytes(content)
    refused(READERS[kind], folder / kind)


@few
@given(content=plain)
def test_any_json_as_config_and_as_manifest(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    refused(lambda path: RunConfig.read(path.parent), folder / "config.json")
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        store.newest(folder)


#: A tokenizer's state and an entry of it.
STATES = {
    "characters": ({}, "characters"),
    "words": ({}, "words"),
    "bpe": ({"vocabulary": {"a": 0, "b": 1}, "merges": []}, "vocabulary"),
    "bpe merges": ({"type": "bpe", "vocabulary": {"a": 0, "b": 1}}, "merges"),
    "wordpiece": ({"lowercase": True}, "tokens"),
    "case": ({"type": "wordpiece", "tokens": ["[UNK]"]}, "lowercase"),
}


@few
@given(content=plain)
@pytest.mark.parametrize("kind", STATES)
def test_any_json_as_tokenizer(kind, folder, content):
    good, entry = STATES[kind]
    for state in (content, {"type": kind} | good | {entry: content}):
        (folder / TOKENIZER).write_text(json.dumps(state))
        tokenizer = refused(lambda path: read_tokenizer(path.parent), folder / TOKENIZER)
        if tokenizer is not None:
            tokenizer.decode(range(min(tokenizer.size, 3)))


@few
@given(data=st.data(), content=plain)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_any_json_as_configuration_of_transformers(kind, folder, data, content):
    from bench.mutate_targets import _new

    place = folder / kind
    model = _new(kind)
    model.save_pretrained(place)
    path = place / "config.json"
    whole = json.loads(path.read_text())
    name = data.draw(st.sampled_from(sorted(whole)))
    for config in (content, whole | {name: content}):
        path.write_text(json.dumps(config))
        refused(lambda path: type(model).from_pretrained(path.parent), path)


@few
@given(content=plain)
def test_any_plain_values_come_back(folder, content):
    state = {"content": content, "array": np.arange(3)}
    checkpoint.save(folder / "c", state)
    back = checkpoint.load(folder / "c")
    assert json.dumps(back["content"]) == json.dumps(content)


@few
@given(content=plain)
def test_any_state_that_is_none_of_a_run_is_refused(folder, content):
    from bench.mutate_targets import _trainer

    trainer = _trainer("mlp")
    before = checkpoint.to_bytes(trainer.state_dict())
    state = trainer.state_dict()
    name = sorted(state)[hash(json.dumps(content)) % len(state)]
    checkpoint.save(folder / "c", state | {name: content})
    try:
        checkpoint.load_trainer(folder / "c", trainer)
    except CheckpointError as error:
        assert "does not fit this run" in str(error)
        assert checkpoint.to_bytes(trainer.state_dict()) == before


def header(names):
    """A safetensors file whose header says so, over 64 bytes."""
    text = json.dumps(names).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]},
        {"dtype": "F32", "shape": [2**60, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [16], "data_offsets": [2**63, 2**63 + 64]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]},
        {"dtype": "F4", "shape": [128], "data_offsets": [0, 64]},
    ],
)
def test_headers_that_claim_too_much(folder, entry):
    path = folder / "w.safetensors"
    path.write_bytes(header({"w": entry}))
    with pytest.raises(FileError, match=r"w\.safetensors"):
        safetensors.load(path)
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(FileError, match=r"w\.safetensors"):
        safetensors.load(path)


@pytest.mark.skipif(os.name == "nt", reason="pipes and /dev are POSIX")
def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(FileError, match="it is no file"):
            read_bytes(path)
        with pytest.raises(DataError, match="is no file|Is a directory"):
            read_idx(path)
