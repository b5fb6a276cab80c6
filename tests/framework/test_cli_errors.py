"""What cannot be ends as one clear line on stderr with exit code 2, never as a traceback."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
        (["mpl"], "unknown model 'mpl' (did you mean mlp?); there are: "),
        (["mlp", "--dataset", "digit"], "unknown dataset 'digit' (did you mean digits?)"),
        (["--epochs", 0], "epochs is 0, expected an integer of at least 1"),
        (["--batch-size", -3], "batch_size is -3"),
        (
            ["--precision", "bf16"],
            "precision is 'bf16', expected one of float32, tf32, bf16-mixed, fp16-mixed",
        ),
        (["--set", "precision=16"], "precision is '16', expected one of float32, tf32"),
        (["--lr", "nan"], "lr is nan, expected a number above 0"),
        (["--seed", -1], "--seed -1: expected 0 or more"),
        (["--device", "gpu"], "--device='gpu': expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (["--set", "droput=0.1"], "unknown setting 'droput' (did you mean dropout?); there are:"),
        (["--set", "dropout"], "--set dropout: expected key=value"),
        (["--set", "dropout=lots"], "--set dropout=lots: expected a number"),
        (["--set", "dropout=2"], "dropout is 2.0, expected a probability"),
        (["--set", "hidden=8", "dropout=2"], "dropout is 2.0, expected a probability"),
        (["--set", "hidden=8", "norm=none", "lr=0"], "lr is 0.0, expected a number above 0"),
        (["--set", "hidden=8", "mlp", "--set", "dropout=2"], "dropout is 2.0, expected a prob"),
        (["--set", "hidden=8,x"], "expected integers with commas between"),
        (["--set", "hidden=0"], "hidden is 0"),
        (["--set", "residual=perhaps"], "expected true or false"),
        (["--set", "norm=group"], "--set norm=group: expected one of batch, layer, rms, none"),
        (["--set", "activation=rleu"], "activation is 'rleu', expected one of relu"),
        (["--set", "lr=none"], "cannot be none"),
        (["--set", "epochs=1.5"], "expected an integer"),
        (["--set", "patience=3"], "patience is 3, but nothing is held out to watch"),
        (["--dataset", "moons", "--set", "shift=1"], "shift is 1, but moons has no images"),
        (["--set", "shift=8"], "shift is 8, but the images of digits have 8x8 pixels"),
        (
            ["--dataset", "regression", "--set", "label_smoothing=0.1"],
            "label_smoothing is 0.1, but regression has no classes",
        ),
        (["--set", "lr=0.1", "--lr", 0.2], "lr is given twice: by --lr and by --set lr=..."),
        (["--set", "batch-size=8", "--batch-size", 8], "batch_size is given twice: by --batch-s"),
        (["--set", "lr=0.1", "--set", "lr=0.2"], "--set lr=0.2: lr is given twice"),
        (["--resume", "nowhere"], "nowhere is no run folder: there is no such folder"),
        (["--resume", ".", "--epochs", 3], ". is no run folder: it has no config.json"),
        (["--resume", ".", "--seed", 0], "leave out --dataset, --batch-size"),
        (["--resume", ".", "--dataset", "moons"], "leave out --dataset, --batch-size"),
        (["--batch-size", 1], "batch_size is 1, but batch norm needs at least 2 samples"),
        (["--set", "hidden=1000000000000"], "not enough memory"),
        (["--set", "hidden=1" + "0" * 30], "there is no mlp with inputs=64, hidden=(1000"),
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


def test_generate_is_for_language(run):
    assert "run has learnt classification, no language: it has predict" in error("generate", run)


def test_a_folder_that_holds_a_run(run):
    assert "holds a run already" in error("train", "--out", run)
    assert "is complete: there is nothing to go on with; --epochs N trains on, with N above 1" in (
        error("train", "--resume", run)
    )
    assert "is a run of 1 epochs, --resume takes more" in (
        error("train", "--resume", run, "--epochs", 1)
    )


def test_a_complete_run_that_cannot_be_trained_on(run):
    def says():
        text = error("train", "--resume", run, "--epochs", 2)
        assert json.loads(config.read_text())["recipe"]["epochs"] == 1
        return text

    config, log = run / "config.json", run / "metrics.jsonl"
    content = json.loads(config.read_text())
    log.write_text("{}")
    assert "metrics.jsonl is damaged" in says()
    log.unlink()
    assert "metrics.jsonl does not exist" in says()
    content["recipe"]["validation"] = 0.1
    config.write_text(json.dumps(content))
    assert "has its best epoch's weights by the validation loss" in says()


def test_a_folder_that_cannot_be_made(folder):
    (folder / "file").write_text("")
    assert "cannot make" in error("train", "--out", folder / "file" / "run", "--quiet")
    text = error("train", "--out", folder / "file", "--quiet")
    assert f"cannot make the folder {folder / 'file'}: there is a file of this name" in text


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
    for content in ("[]", "3"):
        config.write_text(content)
        assert f"config.json is damaged: it holds {content}, expected a run's settings" in says()
    assert "config.json is no run folder: it is a file" in says(config)
    content = json.loads(text)
    config.write_text(json.dumps(content | {"format": 7}))
    assert "has format 7, this version reads 1" in says()
    config.write_text(json.dumps(content | {"extra": 1}))
    assert "wrong or missing entries (extra)" in says()
    wider = content["model_config"] | {"hidden": [9]}
    config.write_text(json.dumps(content | {"model_config": wider}))
    assert "model.safetensors does not fit" in says()
    assert "nothing was loaded: blocks.0.linear.weight: shape" in says()
    config.write_text(json.dumps(content | {"model_config": {"depth": 3}}))
    assert "describes no model: mlp has no 'depth'" in says()
    config.write_text(text)
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9])
    assert "model.safetensors is no safetensors file, or a damaged one" in says()
    (run / "model.safetensors").unlink()
    assert "model.safetensors does not exist" in says()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "checkpoint-000001.safetensors").write_bytes(b"")
    assert f"go on with train --resume {run}" in says()


@pytest.mark.parametrize(
    ("entry", "value", "named"),
    [
        ("model", None, "model is None"),
        ("model", ["mlp"], "model is ['mlp']"),
        ("model", "cnn", "unknown model 'cnn'"),
        ("model_config", None, "model_config is None"),
        ("model_config.hidden", "wide", "hidden is 'wide'"),
        ("model_config.hidden", 8, "hidden is 8"),
        (
            "model_config.hidden",
            [10**13],
            "a weight of shape (10000000000000, 64) is more than",
        ),
        ("model_config.inputs", 63, "inputs of model_config do not fit"),
        ("dataset", None, "dataset is None"),
        ("dataset", ["digits"], "dataset is ['digits']"),
        ("dataset", "digit", "unknown dataset 'digit'"),
        ("dataset", "moons", "moons is not the data of this run: task|shape"),
        ("seed", "0", "seed is '0'"),
        ("seed", -1, "seed is -1"),
        ("device", "gpu", "device is 'gpu'"),
        ("recipe", [], "recipe is []"),
        ("recipe.epochs", None, "recipe is {"),
        ("recipe.epochs", "4", "epochs is '4', expected an integer"),
        ("recipe.batch_size", 2.5, "batch_size is 2.5, expected an integer"),
        ("recipe.lr", None, "lr is None"),
        ("recipe.shift", 1.0, "shift is 1.0"),
        ("task", "clustering", "task is 'clustering'"),
        ("task", "regression", "task of model_config do not fit"),
        ("input_transform", None, "input_transform is None"),
        ("input_transform.type", "Square", "unknown transform 'Square'"),
        ("input_range", None, "input_range is None"),
        ("input_range", [1, 0], "input_range is [1, 0]"),
        ("classes", None, "outputs of model_config do not fit"),
        ("classes", ["0", "1"], "outputs of model_config do not fit"),
        ("classes", [0] * 10, "classes is [0"),
        ("shape", "864", "shape is '864'"),
        ("shape", [1, 8, 9], "inputs of model_config do not fit"),
        ("shape", [1, 4, 16], "digits is not the data of this run: shape"),
        ("samples", [1438, 0], "samples is [1438, 0]"),
        ("fingerprint", [], "fingerprint is []"),
        ("fingerprint.test", 3, "fingerprint is {"),
        (
            "fingerprint.test",
            "0123",
            "digits is not the data of this run: as many test samples, but others than when the "
            "run began (their hash was 0123, now it is ",
        ),
        ("samples", [1438, 358], "samples was (1438, 358), now it is (1438, 359)"),
    ],
)
def test_a_config_that_was_edited(run, entry, value, named):
    file = run / "config.json"
    content = json.loads(file.read_text())
    *path, name = entry.split(".")
    place = content[path[0]] if path else content
    assert name in place
    place[name] = value
    file.write_text(json.dumps(content))
    text = error("evaluate", run)
    assert any(part in text for part in named.split("|")), text


def test_a_config_without_a_fingerprint(run):
    """As runs had it before there was one."""
    content = json.loads((run / "config.json").read_text())
    assert content.pop("fingerprint").keys() == {"training", "test"}
    (run / "config.json").write_text(json.dumps(content))
    assert call("evaluate", run).exit_code == 0


def test_resume_notices_other_data(run):
    (run / "model.safetensors").unlink()
    (run / "metrics.jsonl").unlink()
    file = run / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"samples": [1437, 360]}))
    assert "now it is (1438, 359)" in error("train", "--resume", run)


def test_what_resume_says_of_a_lost_checkpoint(run):
    done = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    assert "has lost its checkpoints" in error("train", "--resume", run)
    (run / "metrics.jsonl").write_text("")  # killed before anything was saved
    assert call("train", "--resume", run, "--quiet").exit_code == 0
    assert (run / "model.safetensors").read_bytes() == done


def test_what_is_no_run_to_resume(run, monkeypatch):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "checkpoint-000001.safetensors").write_bytes(b"")
    for name in ("config.json", "checkpoints", "checkpoints/checkpoint-000001.safetensors"):
        assert f"--resume {run / name}: expected the run folder, {run}" in (
            error("train", "--resume", run / name)
        )
    monkeypatch.chdir(run)
    assert "nowhere is no run folder: there is no such" in error("train", "--resume", "nowhere")


def test_settings_that_were_changed_within_a_run(folder, monkeypatch):
    """Only what differs is said."""
    from framework.trainer import LRMonitor, Stopped

    def stop(self, trainer):
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(LRMonitor, "on_epoch_end", stop)
        assert call("train", "--out", "r", "--quiet").exit_code == 130
    file = folder / "r" / "config.json"
    content = json.loads(file.read_text())
    for name, value, message in (
        ("model_config", {"hidden": [8]}, "the saved run has hidden [128, 128], this one [8]"),
        ("recipe", {"optimizer": "sgd"}, "the saved run has optimizer 'adamw', this one 'sgd'"),
        ("recipe", {"batch_size": 32}, "the saved run has batch_size 64, this one 32"),
        ("recipe", {"lr": 0.01}, "the saved run has lr 0.003, this one 0.01"),
        ("recipe", {"accumulate": 2}, "the saved run has accumulate 1, this one 2"),
        ("recipe", {"final_lr": 1}, "the saved run has final_lr 0.0, this one 1"),
        ("recipe", {"clip_norm": 1.5}, "the saved run has clip_norm None, this one 1.5"),
        ("recipe", {"precision": "tf32"}, "the saved run has precision 'float32', this one 'tf32'"),
    ):
        file.write_text(json.dumps(content | {name: content[name] | value}))
        assert error("train", "--resume", "r", "--quiet").endswith(message)
    # but for its epochs, and what an earlier version had not
    earlier = {k: v for k, v in content["recipe"].items() if k != "decay"} | {"epochs": 2}
    file.write_text(json.dumps(content | {"recipe": earlier}))
    assert call("train", "--resume", "r", "--quiet").exit_code == 0


def test_a_damaged_checkpoint(run):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "checkpoint-000001.safetensors").write_bytes(b"damaged")
    assert "checkpoint-000001.safetensors is no safetensors file" in error("train", "--resume", run)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_that_another_process_ends_while_this_one_reads_the_data(epochs, run, monkeypatch):
    from framework import training

    (run / "model.safetensors").rename(run / "elsewhere")
    (run / "metrics.jsonl").unlink()
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["epochs"] = epochs
    build_model = training.build_model

    def end_it(*args):
        (run / "config.json").write_text(json.dumps(config))
        if epochs == 1:
            (run / "elsewhere").rename(run / "model.safetensors")
        return build_model(*args)

    monkeypatch.setattr(training, "build_model", end_it)
    message = {
        1: "is complete: there is nothing to go on with",
        3: "was a run of 1 epochs, and another process has made it one of 3 in the meantime",
    }[epochs]
    assert message in error("train", "--resume", run)
    assert not (run / "metrics.jsonl").exists()


def test_a_folder_without_a_name(folder):
    assert error("train", "--out", "") == "error: --out is empty, expected the path of a folder"
    assert not list(folder.iterdir())


def test_a_model_that_no_array_can_hold(folder):
    """The setting is named, not a config.json that is still to be written."""
    message = error("train", "--set", "hidden=99999999999999999999999")
    assert "there is no mlp with inputs=64, hidden=(99999999999999999999999,), " in message
    assert "config.json" not in message
    assert not list(folder.iterdir())


LONG = "a" * 300


@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", LONG],
        ["train", "--resume", LONG],
        ["train", "--out", LONG, "--epochs", "1"],
        ["train", "gpt", "--dataset", LONG],
        ["predict", "run", "x.npy", "--out", LONG],
        ["predict", "run", LONG],
        ["explain", "run", LONG + ".png"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long(args, run, folder):
    np.save(folder / "x.npy", np.zeros((1, 64)))
    message = error(*args)
    assert LONG in message
    assert message.endswith(": File name too long")


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (["evaluate", "run"], "run"),
        (["train", "--resume", "run"], "run"),
        (["train", "--out", "new"], "new/config.json"),
        (["train", "gpt", "--dataset", "t.txt"], "t.txt"),
    ],
    ids=["evaluate", "resume", "out", "dataset"],
)
def test_a_path_that_may_not_be_looked_at(args, path, run, monkeypatch):
    """As in a folder of somebody else's: what `Path` asks the system ends in a PermissionError."""
    stat = Path.stat

    def refuse(self, **options):
        if self == Path(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert error(*args) == f"error: {path}: Permission denied"
    result = call(*args, "--debug")
    assert isinstance(result.exception, PermissionError)


def test_a_model_of_a_run_that_is_being_trained(run, folder, caplog):
    """Its own weights are not there yet, or are those from before it was trained on."""
    from framework.interop.lock import holder

    np.save(folder / "x.npy", np.zeros((1, 64)))
    other = [sys.executable, "-c", HOLD, str(run)]

    def said(*args):
        caplog.clear()
        result = call(*args)
        assert result.exit_code == 0, result.output
        return caplog.messages

    uses = (["evaluate", run], ["predict", run, "x.npy"], ["explain", run, "test:1"])
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert holder(run) == str(process.pid)
        for args in uses:
            assert said(*args) == [
                f"note: {run} is being trained by process {process.pid}; this is the model that it "
                "has so far, of epoch 1"
            ]
        (run / "model.safetensors").rename(run / "elsewhere")
        assert f"is being trained by process {process.pid}: wait" in error("evaluate", run)
        process.communicate()
    assert holder(run) is None
    (run / "elsewhere").rename(run / "model.safetensors")
    assert said("evaluate", run) == []
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "checkpoint-000001.safetensors").write_bytes(b"")
    assert said("evaluate", run) == []  # killed when all was done
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["epochs"] = 2
    (run / "config.json").write_text(json.dumps(config))
    (message,) = said("evaluate", run)
    assert f"has not ended its training (go on with train --resume {run})" in message


@pytest.mark.parametrize("epoch", [np.array([1, 2]), np.array(1.5), np.array(np.nan)])
def test_a_model_with_an_odd_epoch(run, epoch):
    from framework.interop import safetensors

    file = run / "model.safetensors"
    safetensors.save(safetensors.load(file) | {"run.epoch": epoch}, file)
    assert "model.safetensors does not fit" in error("evaluate", run)


HOLD = """
import sys
from framework.interop.lock import FolderLock
with FolderLock(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def huge_npy():
    """A header of a petabyte, and no numbers."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 64)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"no array", "is no .npy file of numbers"),
        (np.array(["a"]), "holds <U1"),
        (np.zeros((3, 7)), "has shape (3, 7), expected inputs (N, 1, 8, 8)"),
        (np.zeros((0, 64)), "has shape (0, 64): it holds no inputs, expected at least one"),
        (np.zeros((0, 8, 8)), "has shape (0, 8, 8): it holds no inputs"),
        (np.zeros((0, 7)), "has shape (0, 7), expected inputs (N, 1, 8, 8)"),
        (np.full((2, 64), np.nan), "NaN or infinite"),
        (np.full((2, 64), 1e300), "NaN or infinite"),
        (np.zeros((8, 1, 8)), "has shape (8, 1, 8), expected inputs (N, 1, 8, 8)"),
        (np.zeros((2, 32)), "has shape (2, 32), expected inputs (N, 1, 8, 8)"),
        (np.zeros((2, 2, 4, 8)), "has shape (2, 2, 4, 8)"),
        (np.array(0.5), "has shape ()"),
        (b"PK\x03\x04 zip", "is no .npy file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': (", "a damaged one"),
        (b"\x93NUMPY\x01\x00\x08\x00{((((((\n", "a damaged one"),
        (b"\x93NUMPY\x01\x00\x08\x00\x00\xff\xfe  '\n\n", "a damaged one"),
        (huge_npy(), "a damaged one"),
    ],
)
def test_inputs_that_cannot_be(trained, folder, content, message):
    file = folder / "x.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    assert message in error("predict", trained, file)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 8, 8), (2, 64), (2, 8, 8), (2, 1, 8, 8)])
def test_inputs_in_every_form(trained, folder, shape):
    np.save(folder / "x.npy", np.zeros(shape))
    result = call("predict", trained, folder / "x.npy")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1 + (2 if shape[0] == 2 else 1)


def test_the_file_of_predictions(trained, folder, monkeypatch):
    from framework.trainer import run

    np.save(folder / "x.npy", np.zeros((2, 64)))
    result = call("predict", trained, "x.npy", "--out", "p.txt")
    assert result.exit_code == 0, result.output
    assert np.load(folder / "p.txt").shape == (2, 10)
    assert not (folder / "p.txt.npy").exists()
    monkeypatch.setattr(run, "outputs_for", None)  # found before anything is computed
    for out, message in (("none/p.npy", "there is no folder none"), (".", "it is no file")):
        assert message in error("predict", trained, "x.npy", "--out", out)


def test_predict_needs_no_data_set(trained, folder, monkeypatch):
    from framework import data

    monkeypatch.setattr(data, "load", None)
    np.save(folder / "x.npy", np.zeros((2, 64)))
    assert call("predict", trained, "x.npy").exit_code == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "doctor"])
@pytest.mark.parametrize("device", ["foo", "cuda"])
def test_the_device_of_the_environment(trained, folder, monkeypatch, command, device):
    from framework.backend import device as devices

    missing = devices.Probe(False, "CuPy is not installed", devices.INSTALL_CUPY)
    monkeypatch.setattr(devices, "probe_cuda", lambda: missing)
    monkeypatch.setattr(devices, "_default", None)
    monkeypatch.setenv("FRAMEWORK_DEVICE", device)
    wrong = "FRAMEWORK_DEVICE='foo': expected" if device == "foo" else "'cuda' cannot be used"
    np.save(folder / "x.npy", np.zeros((2, 64)))
    if command == "doctor":
        result = call("doctor")
        assert result.exit_code == 0, result.output
        assert wrong in result.stdout
        assert "softmax" in result.stdout
    else:
        args = {"train": [], "evaluate": [trained], "predict": [trained, "x.npy"]}[command]
        assert wrong in error(command, *args)


def test_divergence_is_one_line(folder, caplog):
    text = error("train", "--lr", "1e30", "--set", "warmup=0", "--set", "norm=none", "--quiet")
    assert "the loss is nan; the first layer with such an output is" in text
    assert "Lower the learning rate" in text
    run = folder / "runs" / "mlp-digits-seed0"
    name = run.relative_to(folder)
    assert f"The last good weights are in {name}/model.safetensors" in text
    assert text.endswith(f"choose another --out or remove {name}")
    np.save(folder / "x.npy", np.ones((2, 64)))
    for args in (["predict", run, "x.npy"], ["explain", run, "test:3"]):
        assert f"the model of {run} makes NaN or infinity of this" in error(*args)
    assert f"{run} ended in epoch 1 of 40, as its loss diverged; this is the model" in caplog.text
    for more in ([], ["--epochs", 99]):
        assert "diverged in its first epoch" in error("train", "--resume", run, *more)
    from framework.interop import safetensors

    weights = safetensors.load(run / "model.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())


def test_divergence_that_leaves_nothing_leaves_no_folder(folder, monkeypatch):
    """The same command, with a lower rate, starts again."""
    from framework.trainer import TerminateOnNaN

    look = TerminateOnNaN.on_gradients

    def spoil(self, trainer):
        for parameter in trainer.model.parameters():
            parameter.data[...] = np.nan
        trainer.losses[0].data[...] = np.nan
        look(self, trainer)

    with monkeypatch.context() as patched:
        patched.setattr(TerminateOnNaN, "on_gradients", spoil)
        assert "nothing is kept" in error("train", "--out", "first", "--quiet")
    assert not (folder / "first").exists()
    assert call("train", "--out", "first", "--quiet", "--epochs", 1).exit_code == 0


@pytest.mark.parametrize("step", [3, 30])
def test_an_error_while_it_trains(folder, monkeypatch, step):
    """What to go on with, where there is something; else the folder's name is free again."""
    from framework.trainer import TerminateOnNaN

    def run_out(self, trainer):
        if trainer.step == step:
            raise MemoryError("too much")

    with monkeypatch.context() as patched:
        patched.setattr(TerminateOnNaN, "on_gradients", run_out)
        result = call("train", "--out", "r", "--quiet", "--epochs", 2)
    assert result.exit_code == 2
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: not enough memory (out of memory on cpu: ")
    assert before == (
        []
        if step == 3
        else [
            "",
            "stopped; the last state is in r/checkpoints",
            "go on with: python -m framework train mlp --resume r",
        ]
    )
    again = ["--resume", "r"] if step == 30 else ["--out", "r", "--epochs", 1]
    assert (folder / "r").exists() == (step == 30)
    assert call("train", "--quiet", *again).exit_code == 0


def test_a_full_disk_from_the_first_file_on(folder, monkeypatch):
    """Nothing is left: not of the lock, and not of a run whose settings cannot be written."""
    from framework.interop import atomic, lock

    def full(*args):
        raise OSError(28, "No space left on device")

    for owner, name, file in ((lock.os, "ftruncate", ".lock"), (atomic.os, "fsync", "config.json")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            text = error("train", "--out", "r", "--quiet", "--epochs", 1)
        assert text == f"error: cannot write r/{file}: No space left on device"
        assert not (folder / "r").exists()
    assert call("train", "--out", "r", "--quiet", "--epochs", 1).exit_code == 0


def test_a_run_whose_model_cannot_be_written_keeps_its_records(folder, monkeypatch):
    from framework.interop import atomic

    real = atomic.os.replace

    def replace(source, target):
        if "safetensors" in str(target):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    text = error("train", "--out", "r", "--quiet", "--epochs", 2)
    assert text == "error: cannot write r/model.safetensors: No space left on device"
    assert (folder / "r" / "metrics.jsonl").read_text().count("\n") == 2


def test_a_final_loss_that_is_no_number_is_an_error(folder, monkeypatch):
    """The weights are there, and the exit code says that something is wrong."""
    from framework.data import catalog

    load = catalog.CATALOG["digits"].load

    def spoilt(seed):
        splits = load(seed)
        monkeypatch.setattr(
            splits.test, "batch", lambda rows: spoil(*type(splits.test).batch(splits.test, rows))
        )
        return splits

    def spoil(images, labels):
        return np.full_like(images, np.inf), labels

    monkeypatch.setitem(catalog.CATALOG, "digits", replace(catalog.CATALOG["digits"], load=spoilt))
    for args in (["train", "--epochs", 1, "--out", "r", "--quiet"], ["evaluate", "r"]):
        result = call(*args)
        assert result.exit_code == 1
        assert "error: the loss on the test data is nan: r has learnt nothing to rely on" in (
            result.stderr
        )
        assert "test accuracy" not in result.stdout
    assert (folder / "r" / "model.safetensors").is_file()
    assert not (folder / "r" / "checkpoints").exists()


def test_divergence_later_keeps_the_epochs_before(folder, monkeypatch):
    from framework.trainer import TerminateOnNaN

    look = TerminateOnNaN.on_gradients

    def spoil(self, trainer):
        if trainer.epoch == 1:
            trainer.losses[0].data[...] = np.nan
        look(self, trainer)

    monkeypatch.setattr(TerminateOnNaN, "on_gradients", spoil)
    text = error("train", "--out", "late", "--quiet", "--epochs", 3)
    assert "The last good weights are in late/model.safetensors" in text
    result = call("evaluate", "late")
    assert float(result.stdout.split()[-1]) > 0.5


def test_a_single_training_sample(monkeypatch, folder):
    from framework import data

    load = data.load
    monkeypatch.setattr(
        data, "load", lambda *a: replace(s := load(*a), train=data.Subset(s.train, np.arange(1)))
    )
    assert "there is 1 training sample, but batch norm" in error("train", "--out", "one")
    assert not (folder / "one").exists()


def test_a_fast_dev_run_writes_nothing(folder):
    result = call("train", "--fast-dev-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("one batch went through everything: loss 2.")
    assert "validation_loss" in call("train", "--fast-dev-run", "--set", "validation=0.1").stdout
    assert "--set, " not in error("train", "--fast-dev-run", "--lr", "nan")
    assert not (folder / "runs").exists()


def test_a_fast_dev_run_of_a_run_to_go_on_with(run, folder):
    """Its weights, its loss; nothing is written."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shown = call("train", "--fast-dev-run", "--resume", run, "--epochs", 2)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("one batch went through everything after epoch 1: loss ")
    assert float(shown.stdout.split()[-1]) < 1.5  # new weights: 2.5
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "is complete: there is nothing to go on with" in (
        error("train", "--fast-dev-run", "--resume", run)
    )


@pytest.mark.parametrize("every", ["0", "-3", "soon", "m", "1x", "1.5"])
def test_checkpoint_every(folder, every):
    assert f"--checkpoint-every {every}: expected a number of steps, or a time" in error(
        "train", f"--checkpoint-every={every}", "--epochs", 1
    )


@pytest.mark.parametrize("every", ["7", "0.01s", "10m", "2h"])
def test_checkpoint_every_steps_or_time(folder, every, monkeypatch):
    from framework.trainer.callbacks import model_checkpoint

    saves = []
    monkeypatch.setattr(
        model_checkpoint.Store, "save", lambda self, data, **about: saves.append(about["batch"])
    )
    args = ("train", "--checkpoint-every", every, "--epochs", 1, "--out", "r", "--quiet")
    assert call(*args).exit_code == 0
    if every == "7":
        assert saves == [7, 14, 21, 0]
    else:
        assert saves[-1] == 0


def test_debug_shows_the_error(trained):
    result = call("evaluate", trained / "none", "--debug")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "FileError"


def test_usage_errors_of_the_command_line():
    text = error("trian")
    assert "there is no command 'trian' (did you mean train?); there are: train, evaluate" in text
    for args in (["train", "--epoch", 3], ["train", "--epochs", "x"], ["evaluate"]):
        result = call(*args)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


# Being stopped at awkward moments -----------------------------------------------------------------

MOMENTS = {
    "while layers are shown": ("framework.screen.show_training", 1),
    "in a step": ("framework.trainer.trainer.Trainer.compute_gradients", 1),
    "in a step, twice": ("framework.trainer.trainer.Trainer.compute_gradients", 2),
    "in an evaluation": ("framework.trainer.trainer.Trainer.evaluate", 1),
    "in an evaluation, twice": ("framework.trainer.trainer.Trainer.evaluate", 2),
    "while a checkpoint is written": ("framework.trainer.store.Store.save", 1),
    "while a checkpoint is written, three times": ("framework.trainer.store.Store.save", 3),
    "while the model is written": ("framework.training.save_model", 1),
    "while checkpoints are removed": ("framework.trainer.store.Store.remove", 1),
    "in the last evaluation": ("framework.training.screen.print_score", 1),
}


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_at_awkward_moments(moment, folder, monkeypatch):
    """One line that says how to go on, never a traceback; gone on with, it is the same run."""
    target, times = MOMENTS[moment]
    options = ["train", "--epochs", 2, "--set", "hidden=8", "--checkpoint-every", 9]
    assert call(*options, "--out", "whole").exit_code == 0
    place, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(place)
    real = getattr(owner, name)

    def interrupt(*args, **options):
        monkeypatch.setattr(owner, name, real)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = call(*options, "--out", "parts")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == 130, stopped.output
    assert "Traceback" not in stopped.output
    last = stopped.stderr.splitlines()[-1]
    if "evaluate parts" in last:
        assert last == "score it with: python -m framework evaluate parts"
    else:
        assert last == "go on with: python -m framework train mlp --resume parts"
        gone_on = call("train", "--resume", "parts")
        assert gone_on.exit_code == 0, gone_on.output
    assert call("evaluate", "parts").stdout == call("evaluate", "whole").stdout.replace(
        "whole", "parts"
    )
    mine, theirs = (folder / run / "model.safetensors" for run in ("parts", "whole"))
    assert mine.read_bytes() == theirs.read_bytes()
