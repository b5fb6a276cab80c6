"""bench/overlap.py on the emulated device: what it computes, not how fast."""

import pytest

from bench import overlap
from framework.backend import device as backend
from tests.cuda_emulator import copies
from tests.cuda_emulator.conftest import require_emulator


@pytest.fixture
def device(monkeypatch):
    require_emulator()
    monkeypatch.setattr(backend, "probe_cuda", lambda: backend.Probe(True, hardware=True))
    monkeypatch.setattr(backend, "_default", backend.CPU)  # chosen once for all tests
    with copies.installed("late", immediate=True) as device:
        yield device


def test_every_way_is_timed(device):
    found = overlap.measure_overlap("cuda", shape=(32, 16), batches=3, turns=2)
    assert 0 <= found["hidden"] <= 1 and 0 <= found["hidden_plain"] <= 1
    for way in ("copy", "transfer", "compute", "plain", "pipeline"):
        assert 0 < found[way]["p20"] <= found[way]["median"] <= found[way]["p80"]
    assert found["bytes"] == 32 * 16 * 4
    assert found["bandwidth"] == pytest.approx(found["bytes"] / found["copy"]["median"])
    assert found["products"] >= 1


def test_a_pipeline_that_gives_other_batches_is_not_timed(device):
    device.ignore = "waits of compute"
    with pytest.raises(RuntimeError, match="differ"):
        overlap.measure_overlap("cuda", shape=(32, 16), batches=3, turns=1)


def test_the_share_is_what_does_not_show(device, monkeypatch):
    seconds = iter([4.0, 10.0, *[8.0, 10.0, 15.0, 25.0, 17.0] * 4])
    monkeypatch.setattr(overlap, "_seconds", lambda place, work: next(seconds))
    found = overlap.measure_overlap("cuda", shape=(8, 8), batches=1, turns=3)
    assert found["hidden"] == pytest.approx(0.8)
    assert found["hidden_plain"] == 0
    assert found["products"] == 15


def test_the_cpu_has_nothing_to_copy_to():
    with pytest.raises(ValueError, match="device is cpu"):
        overlap.measure_overlap("cpu")


@pytest.mark.cuda
def test_copies_are_hidden_on_a_real_device():
    found = overlap.measure_overlap("cuda", batches=6, turns=3)
    assert found["hidden"] > 0.5, found
