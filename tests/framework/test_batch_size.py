"""The batch that fits: found by measuring, and told where one did not."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import framework as fw
from framework import layers, optimizers
from framework.cli import app
from framework.data import ArrayDataset, BucketSampler, DataLoader, StreamSampler, Windows
from framework.functional import mse_loss
from framework.trainer import Trainer, batch_size, checkpoint, find_batch_size
from models import CharRNN, CharRNNConfig

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

X = np.zeros((64, 4), np.float32)


class Wide(layers.Module):
    """Half a mebibyte for each sample, and more in the backward pass."""

    def __init__(self, most=None):
        super().__init__()
        self.linear, self.norm, self.most = layers.Linear(4, 1 << 17), layers.BatchNorm1d(4), most

    def forward(self, x):
        if self.most is not None and len(x) > self.most:
            raise MemoryError("too many")
        return self.linear(self.norm(x)).mean(1, keepdim=True)


def make_trainer(model, **options):
    return Trainer(
        model,
        lambda o, t: mse_loss(o, t[:, :1]),
        optimizers.SGD(model.parameters(), 0.0),
        **options,
    )


def make_loader(size=2):
    return DataLoader(ArrayDataset(X, X), size, device="cpu")


@linux
def test_the_largest_batch_within_a_limit():
    trainer = make_trainer(Wide())
    before = checkpoint.to_bytes(trainer.state_dict())
    sizes = [find_batch_size(trainer, make_loader(), mib << 20) for mib in (128, 256, 512)]
    assert sizes == sorted(sizes)
    assert 32 <= sizes[1]
    assert 0.4 < (256 / (sizes[2] - sizes[1])) < 4  # MiB for a sample
    assert all(size % 8 == 0 for size in sizes)
    assert find_batch_size(trainer, make_loader(), 64 << 20, most=5) == 5
    assert checkpoint.to_bytes(trainer.state_dict()) == before
    with pytest.raises(fw.OutOfMemoryError, match="a batch of 2 samples in 1,048,576 bytes"):
        find_batch_size(make_trainer(Wide(most=0)), make_loader(), 1 << 20)
    with pytest.raises(ValueError, match="no batches"):
        find_batch_size(trainer, [])


@linux
def test_what_the_first_step_alone_takes_is_no_samples():
    class First(Wide):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.table = np.ones(12 << 20, np.float32)  # 48 MiB, which stay
            return super().forward(x)

    assert 8 <= find_batch_size(make_trainer(First()), make_loader(), 256 << 20) < 1000


@linux
def test_limits_of_the_process_count(monkeypatch, tmp_path):
    import resource

    device = fw.Device("cpu")
    whole = batch_size._free(device)
    monkeypatch.setattr(batch_size, "GROUPS", [(tmp_path, "max", "now", "inactive_file ")])
    (tmp_path / "now").write_text(f"{90 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {20 << 20}\n")
    (tmp_path / "max").write_text("max\n")
    assert batch_size._free(device) > whole // 2
    (tmp_path / "max").write_text(f"{100 << 20}\n")
    assert batch_size._free(device) == 30 << 20
    used = batch_size._entry("/proc/self/status", "VmSize:")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + (9 << 20), used << 1))
    assert batch_size._free(device) <= 9 << 20


@linux
def test_the_error_says_what_would_fit():
    trainer = make_trainer(Wide(most=24))
    with pytest.raises(fw.OutOfMemoryError, match=r"\(64 samples; 16 would fit\)") as caught:
        trainer.fit(make_loader(64))
    assert "too many" in str(caught.value)


@linux
def test_auto_and_a_number(monkeypatch, tmp_path):
    monkeypatch.setattr(batch_size, "_free", lambda device: 40 << 20)
    trainer, loader = make_trainer(Wide(), batch_size="auto"), make_loader()
    trainer.fit(loader)
    found = trainer.batch_size
    assert loader.batch_size == found > 2
    assert trainer.step == -(-64 // found)
    checkpoint.save_trainer(tmp_path / "c", trainer)
    monkeypatch.setattr(batch_size, "_free", lambda device: 1 << 30)
    again, loader = make_trainer(Wide(), batch_size="auto"), make_loader()
    again.fit(loader, epochs=2, resume=tmp_path / "c")
    assert loader.batch_size == found  # a resumed run keeps its own
    loader = make_loader()
    make_trainer(Wide(), batch_size=32).fit(loader)
    assert loader.batch_size == 32
    with pytest.raises(TypeError, match="needs a DataLoader, got a list"):
        make_trainer(Wide(), batch_size=32).fit(list(loader))
    with pytest.raises(ValueError, match="batch_size is 'big'"):
        make_trainer(Wide(), batch_size="big")


@linux
@pytest.mark.parametrize("done", [0, 2])
def test_looking_for_a_size_uses_up_nothing(done):
    """The loader's order goes on where it was, and so does the state that streams carry."""

    def rest(look):
        loader = DataLoader(
            ArrayDataset(X + np.arange(64, dtype=np.float32)[:, None], X), 8, shuffle=True, seed=1
        )
        loader.skip(done)
        if look:
            find_batch_size(make_trainer(Wide()), loader, 64 << 20, most=4)
        return loader.epoch, [x.numpy().tolist() for x, _ in loader]

    assert rest(True) == rest(False)
    model = CharRNN(CharRNNConfig(vocabulary=5, embedding=4, hidden=4))
    trainer = Trainer(
        model, lambda o, t: o.mean() + 0 * t.sum(), optimizers.SGD(model.parameters(), 0.0)
    )
    loader = make_streams()
    trainer.fit(loader)
    before = checkpoint.to_bytes({"carried": trainer.state_dict()["carried"]})
    assert len(before) > 200
    find_batch_size(trainer, loader, 64 << 20, most=8)
    assert checkpoint.to_bytes({"carried": trainer.state_dict()["carried"]}) == before


def make_streams():
    sampler = StreamSampler(50, 6, 4)
    windows = Windows(np.arange(50) % 5, 6, sampler.length)
    return DataLoader(windows, 4, sampler=sampler, device="cpu")


@pytest.mark.parametrize("size", ["auto", 8])
def test_batches_that_a_sampler_lays_out_keep_their_size(size):
    buckets = DataLoader(ArrayDataset(X, X), 4, sampler=BucketSampler([1] * 64, 4), device="cpu")
    for loader in (buckets, make_streams()):
        name = type(loader.sampler).__name__
        message = f"batch_size is {size!r}, but the loader's {name} lays out batches of 4"
        with pytest.raises(ValueError, match=message):
            make_trainer(Wide(), batch_size=size).fit(loader)
        assert loader.batch_size == 4
    with pytest.raises(ValueError, match="batch_size is 3, but the BucketSampler lays out"):
        DataLoader(ArrayDataset(X, X), 3, sampler=BucketSampler([1] * 64, 4))


@linux
def test_auto_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "_free", lambda device: 60 << 20)
    run = tmp_path / "run"
    options = ("train", "--device", "cpu", "--batch-size", "auto", "--epochs", "1")
    shown = invoke(*options, "--out", run, "--set", "hidden=4096")
    found = json.loads((run / "config.json").read_text())["recipe"]["batch_size"]
    assert f"batch size {found:,}: the largest that fits into memory\n" in shown
    assert f"batches of {found}" in shown
    assert 8 <= found < 1438
    invoke("train", "--resume", run, "--epochs", "2", "--quiet")  # with the same
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [-(-1438 // found), 2 * -(-1438 // found)]
    monkeypatch.setattr(batch_size, "_free", lambda device: 1 << 40)
    shown = invoke(*options, "--fast-dev-run", "--set", "hidden=8")
    assert "batch size 1,438: all training data at once\n" in shown
    assert "expected an integer, or auto" in invoke("train", "--batch-size", "x", code=2)
    assert "--batch-size auto" in invoke("train", "--set", "batch_size=auto", code=2)


def invoke(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output
