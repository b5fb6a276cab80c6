"""safetensors: what goes in comes out, other libraries read it, damaged files say so."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import safetensors.numpy

from framework.autograd import tensor
from framework.autograd.tensor import as_dtype
from framework.interop.atomic import FileError, write_bytes
from framework.interop.safetensors import DTYPES, load, load_with_metadata, save, to_bytes
from framework.layers import BatchNorm1d, Linear, Sequential
from framework.trainer import checkpoint


@pytest.mark.parametrize("name", DTYPES.values())
def test_every_dtype_and_layout_comes_back(tmp_path, name):
    values = (np.arange(24) % 2).reshape(4, 6).astype(as_dtype(name))
    arrays = {
        "plain": values,
        "transposed": values.T,
        "strided": values[::2, 1::2],
        "zero_dim": values[0, 1:2].reshape(()),
        "empty": values[:0],
        "big_endian": values.astype(values.dtype.newbyteorder(">")),
    }
    save(arrays, tmp_path / "x.safetensors")
    for key, back in load(tmp_path / "x.safetensors").items():
        assert back.shape == arrays[key].shape
        assert back.dtype == values.dtype
        assert back.flags.writeable
        assert back.tobytes() == arrays[key].astype(values.dtype).tobytes()


def test_state_dict_round_trip_and_other_readers(tmp_path):
    model = Sequential(Linear(3, 4), BatchNorm1d(4))
    path = tmp_path / "model.safetensors"
    save(model.state_dict(), path, {"title": "a test"})
    theirs = safetensors.numpy.load_file(path)
    assert set(theirs) == set(model.state_dict())
    other = Sequential(Linear(3, 4), BatchNorm1d(4))
    other.load_state_dict(load(path))
    for name, value in model.state_dict().items():
        assert other.state_dict()[name].data.tobytes() == value.data.tobytes()
        assert theirs[name].tobytes() == value.data.tobytes()
    assert load_with_metadata(path)[1] == {"title": "a test"}


def test_same_tensors_same_bytes():
    a, b = np.ones(3, np.float32), np.zeros((2, 2))
    assert to_bytes({"a": a, "b": b}) == to_bytes({"b": b.copy(), "a": a.copy()})


@pytest.mark.parametrize("damage", ["empty", "short", "text", "header", "tail", "more"])
def test_damaged_files(tmp_path, damage):
    whole = to_bytes({"w": np.ones(100, np.float32)})
    content = {
        "empty": b"",
        "short": whole[:5],
        "text": b"this is no safetensors file at all" * 9,
        "header": whole[:8] + b"#" + whole[9:],
        "tail": whole[:-1],
        "more": whole + b"x",
    }[damage]
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"w.safetensors is no safetensors file") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_other_errors(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="cannot read"):
        load(tmp_path)
    with pytest.raises(FileError, match="cannot write"):
        save({"w": np.ones(1)}, tmp_path / "no-folder" / "x")
    with pytest.raises(TypeError, match="'w' is a list"):
        save({"w": [1.0]}, tmp_path / "x")
    with pytest.raises(TypeError, match="'w' has dtype complex128"):
        save({"w": np.ones(1, complex)}, tmp_path / "x")


def test_unknown_dtype_of_the_format(tmp_path):
    data = to_bytes({"w": np.zeros(4, np.uint8)})
    path = tmp_path / "w.safetensors"
    path.write_bytes(_as_f8(data))
    with pytest.raises(FileError, match="'w' has dtype F8_E4M3"):
        load(path)


def _as_f8(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"U8"', b'"F8_E4M3"').rstrip()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_a_folder_that_cannot_be_flushed_is_no_failed_write(tmp_path, monkeypatch):
    flush, opened = os.fsync, []

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            opened.append(handle)
            raise OSError(22, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_bytes(tmp_path / "x.bin", b"new")
    assert (tmp_path / "x.bin").read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]
    assert os.name == "nt" or len(opened) == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "x.bin", b"")
    (tmp_path / "y.bin").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x.bin", "y.bin")}
    assert len(modes) == 1


def test_tensors_are_taken_too():
    assert to_bytes({"a": tensor([1.0, 2.0])}) == to_bytes({"a": np.array([1, 2], np.float32)})


@pytest.mark.parametrize("value", [{"lr": 0.1}, 3, [1.0]])
def test_what_is_no_tensor_is_sent_to_checkpoints(tmp_path, value):
    advice = r"'a' is a \w+, .* framework.trainer.checkpoint.save\(path, state\)"
    with pytest.raises(TypeError, match=advice):
        save({"a": value}, tmp_path / "x.safetensors")
    checkpoint.save(tmp_path / "c", {"a": value})
    assert checkpoint.load(tmp_path / "c") == {"a": value}
