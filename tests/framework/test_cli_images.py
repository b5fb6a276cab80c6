"""train and explain for models of images."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from framework.cli import app
from framework.data import cifar

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEWORK_DEVICE", "cpu")


def call(*args, code=0):
    """A command in this process: the data's sizes can be changed for it."""
    with pytest.raises(SystemExit) as end:
        app([str(arg) for arg in args])
    assert end.value.code == code


def small_cifar(folder: Path, monkeypatch):
    """Files as CIFAR-10 has them, of 40 images each: the class is how bright they are."""
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", 40)
    monkeypatch.setenv("FRAMEWORK_DATA", str(folder))
    (folder / "cifar10").mkdir()
    for name in cifar.TRAIN + cifar.TEST:
        labels = RNG.integers(0, 10, 40)
        images = labels[:, None] * 25 + RNG.integers(0, 10, (40, 3 * 32 * 32))
        records = np.concatenate([labels[:, None], images], axis=1).astype(np.uint8)
        (folder / "cifar10" / name).write_bytes(records.tobytes())


def test_resnet_on_cifar10(tmp_path, monkeypatch, capsys):
    small_cifar(tmp_path, monkeypatch)
    augmented = ["cutout=8", "rand_augment=0.3", "mixup=0.2"]
    settings = [x for s in ("width=4", "validation=0.1", *augmented) for x in ("--set", s)]
    call("train", "resnet18", "--dataset", "cifar10", "--epochs", 2, "--out", "run", *settings)
    out = capsys.readouterr().out
    assert "layer4.1.conv2" in out
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert (recipe["shift"], recipe["flip"], recipe["mixup"]) == (4, True, 0.2)  # 4: the data's
    assert out.splitlines()[-1].startswith("test accuracy ")
    if importlib.util.find_spec("matplotlib") is None:
        return
    call("explain", "run", "test:3")
    shown = capsys.readouterr().out
    assert "what it is" in shown or shown.count("0.") >= 5
    pictures = {"saliency.png", "filters.png", "feature-maps.png"}
    assert {file.name for file in (tmp_path / "run/explain/test-3").iterdir()} == pictures
    call("explain", "run", "test:40", code=2)
    assert "error: test:40: expected test:0 to test:39" in capsys.readouterr().err
    call("explain", "run", "cat.jpg", code=2)
    assert "cat.jpg" in capsys.readouterr().err
    call("explain", "run", "--text", "cat", code=2)
    assert "run has learnt images: name one to explain" in capsys.readouterr().err


def test_lenet_learns_the_small_digits(capsys):
    call("train", "lenet", "--quiet", "--out", "run")
    assert float(capsys.readouterr().out.split()[-1]) > 0.97


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_png_is_read_as_npy_is(tmp_path, capsys):
    from matplotlib.image import imsave

    call("train", "mlp", "--epochs", 1, "--quiet", "--out", "run")
    levels = RNG.integers(0, 256, (3, 8, 8))
    np.save("three.npy", levels / np.float32(255))
    for i, image in enumerate(levels):
        imsave(f"{i}.png", np.repeat(image[..., None], 3, axis=2).astype(np.uint8))
    capsys.readouterr()
    call("predict", "run", "three.npy")
    table = capsys.readouterr().out
    call("predict", "run", "0.png", "1.png", "2.png")
    assert capsys.readouterr().out == table
    assert len(table.splitlines()) == 4
    np.save("0.npy", levels[0] / np.float32(255))
    for file in ("0.png", "0.npy"):
        call("explain", "run", file)
    assert {folder.name for folder in (tmp_path / "run/explain").iterdir()} == {"0-png", "0-npy"}
    imsave("large.png", np.zeros((9, 8)))
    call("predict", "run", "0.png", "large.png", code=2)
    assert "error: large.png has 9x8 pixels, expected 8x8" in capsys.readouterr().err
    call("train", "mlp", "--dataset", "moons", "--epochs", 1, "--quiet", "--out", "plain")
    call("predict", "plain", "0.png", code=2)
    assert "0.png is an image, but the model takes inputs (2,)" in capsys.readouterr().err


def test_models_of_images_refuse_other_data(capsys):
    call("train", "lenet", "--dataset", "moons", "--out", "run", code=2)
    assert "inputs have shape (2): expected images" in capsys.readouterr().err
    call("train", "resnet18", "--dataset", "regression", "--out", "run", code=2)
    assert "resnet18 is for classification" in capsys.readouterr().err
    call("train", "--dataset", "moons", "--set", "flip=true", "--out", "run", code=2)
    assert "flip is True, but moons has no images" in capsys.readouterr().err
    call("train", "vgg", "--batch-size", 1, "--out", "run", code=2)
    error = capsys.readouterr().err
    assert error.endswith("batch norm needs at least 2 samples in a batch: take larger batches\n")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_only_images_are_explained(capsys):
    call("train", "--dataset", "moons", "--epochs", 1, "--quiet", "--out", "run")
    call("explain", "run", "test:0", code=2)
    assert "explain is for images and their classes" in capsys.readouterr().err


def test_explain_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr("framework.trainer.drawing.has_matplotlib", lambda: False)
    call("explain", "run", "test:0", code=2)
    assert 'not installed: pip install "matplotlib>=3.8"' in capsys.readouterr().err
