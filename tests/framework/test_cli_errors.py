"""What cannot be ends as one clear line on stderr with exit code 2, never as a traceback."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from framework.cli import app


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    from framework.backend import set_default_device

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMEWORK_DATA", raising=False)
    monkeypatch.setenv("FRAMEWORK_DEVICE", "cpu")
    yield tmp_path
    set_default_device("cpu")


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def error(*args):
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = call("train", "--epochs", 1, "--out", run, "--quiet", "--device", "cpu")
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mpl"], "unknown model 'mpl' (did you mean mlp?); there are: mlp"),
        (["mlp", "--dataset", "digit"], "unknown dataset 'digit' (did you mean digits?)"),
        (["--epochs", 0], "epochs is 0, expected an integer of at least 1"),
        (["--batch-size", -3], "batch_size is -3"),
        (["--lr", "nan"], "lr is nan, expected a number above 0"),
        (["--seed", -1], "--seed -1: expected 0 or more"),
        (["--device", "gpu"], "--device='gpu': expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (["--set", "droput=0.1"], "unknown setting 'droput' (did you mean dropout?); there are:"),
        (["--set", "dropout"], "--set dropout: expected key=value"),
        (["--set", "dropout=lots"], "--set dropout=lots: expected a number"),
        (["--set", "dropout=2"], "dropout is 2.0, expected a probability"),
        (["--set", "hidden=8,x"], "expected integers with commas between"),
        (["--set", "hidden=0"], "hidden is 0"),
        (["--set", "residual=perhaps"], "expected true or false"),
        (["--set", "norm=group"], "--set norm=group: expected one of batch, layer, rms, none"),
        (["--set", "activation=rleu"], "activation is 'rleu', expected one of relu"),
        (["--set", "lr=none"], "cannot be none"),
        (["--set", "epochs=1.5"], "expected an integer"),
        (["--set", "patience=3"], "patience is 3, but nothing is held out to watch"),
        (["--dataset", "moons", "--set", "shift=1"], "shift is 1, but moons has no images"),
        (["--resume", "nowhere"], "nowhere is no run folder: there is no such folder"),
        (["--resume", ".", "--epochs", 3], "leave out --dataset, --epochs"),
        (["--resume", ".", "--seed", 0], "leave out --dataset, --epochs"),
        (["--resume", ".", "--dataset", "moons"], "leave out --dataset, --epochs"),
        (["--batch-size", 1], "batch_size is 1, but batch norm needs at least 2 samples"),
        (["--set", "hidden=1000000000000"], "not enough memory"),
        (["--set", "hidden=1" + "0" * 30], "describes no model"),
    ],
)
def test_train(args, message, folder):
    assert message in error("train", *args)
    assert not (folder / "runs").exists()


def test_cuda_by_name_without_cuda(monkeypatch):
    from framework.backend import device

    missing = device.Probe(False, "CuPy is not installed", device.INSTALL_CUPY)
    monkeypatch.setattr(device, "probe_cuda", lambda: missing)
    text = error("train", "--device", "cuda")
    assert "device 'cuda' cannot be used: CuPy is not installed; pip install" in text


def test_corrupt_and_wrong_files(folder, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_DATA", str(folder))
    monkeypatch.setenv("FRAMEWORK_CACHE", str(folder / "cache"))
    (folder / "mnist").mkdir()
    image = folder / "mnist" / "t10k-images-idx3-ubyte"
    label = folder / "mnist" / "t10k-labels-idx1-ubyte"
    label.write_bytes(b"\0\0\x08\x01\0\0\0\x02\1\2")
    image.write_bytes(b"\0\0\x08\x03\0\0\0\x02\0\0\0\x04")
    assert str(image) in error("train", "--dataset", "mnist")
    image.unlink()
    packed = folder / "mnist" / "t10k-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\0" * 40))
    assert str(packed) in error("train", "--dataset", "mnist")
    monkeypatch.setenv("FRAMEWORK_DATA", str(folder / "none"))
    assert "which is not a folder" in error("train", "--dataset", "mnist")


def test_a_folder_that_holds_a_run(run):
    assert "holds a run already" in error("train", "--out", run)
    assert "is complete" in error("train", "--resume", run)


def test_a_folder_that_cannot_be_made(folder):
    (folder / "file").write_text("")
    assert "cannot make" in error("train", "--out", folder / "file" / "run", "--quiet")


@pytest.mark.parametrize("command", [["evaluate"], ["predict"]])
def test_run_folders_that_cannot_be_read(command, run, folder):
    np.save(folder / "x.npy", np.zeros((1, 64)))
    file = [folder / "x.npy"] if command == ["predict"] else []
    config = run / "config.json"
    text = config.read_text()

    def says(path=run):
        return error(*command, path, *file)

    assert "there is no such folder" in says(folder / "none")
    assert "it has no config.json" in says(folder)
    config.write_text(text[: len(text) // 2])
    assert "config.json is damaged" in says()
    config.write_text("[]")
    assert "config.json is damaged" in says()
    content = json.loads(text)
    config.write_text(json.dumps(content | {"format": 7}))
    assert "has format 7, this version reads 1" in says()
    config.write_text(json.dumps(content | {"extra": 1}))
    assert "wrong or missing entries (extra)" in says()
    wider = content["model_config"] | {"hidden": [9]}
    config.write_text(json.dumps(content | {"model_config": wider}))
    assert "model.safetensors does not fit" in says()
    config.write_text(json.dumps(content | {"model_config": {"depth": 3}}))
    assert "describes no model: mlp has no 'depth'" in says()
    config.write_text(text)
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9])
    assert "model.safetensors is no safetensors file, or a damaged one" in says()
    (run / "model.safetensors").unlink()
    assert "model.safetensors does not exist" in says()
    (run / "last.safetensors").write_bytes(b"")
    assert f"go on with train --resume {run}" in says()


def test_a_damaged_checkpoint(run):
    (run / "last.safetensors").write_bytes(b"damaged")
    assert "last.safetensors is no safetensors file" in error("train", "--resume", run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"no array", "is no .npy file of numbers"),
        (np.array(["a"]), "holds <U1"),
        (np.zeros((3, 7)), "has shape (3, 7), expected inputs (N, 1, 8, 8)"),
        (np.zeros((0, 64)), "has shape (0, 64)"),
        (np.full((2, 64), np.nan), "NaN or infinite"),
    ],
)
def test_inputs_that_cannot_be(trained, folder, content, message):
    file = folder / "x.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    assert message in error("predict", trained, file)


def test_divergence_is_one_line(folder):
    text = error("train", "--lr", "1e30", "--set", "warmup=0", "--set", "norm=none", "--quiet")
    assert "the loss is nan; the first layer with such an output is" in text
    assert "Lower the learning rate" in text


def test_debug_shows_the_error(trained):
    result = call("evaluate", trained / "none", "--debug")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "FileError"


def test_usage_errors_of_the_command_line():
    for args in (["trian"], ["train", "--epoch", 3], ["train", "--epochs", "x"], ["evaluate"]):
        result = call(*args)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
