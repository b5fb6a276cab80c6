"""Profiles of a CUDA device, on the emulator: what is recorded, and that training is the same."""

from types import SimpleNamespace

import pytest

import framework as fw
from framework import layers
from framework.profiler import spans
from framework.trainer import Profiler
from tests.cuda_emulator import training, whole
from tests.cuda_emulator.conftest import require_emulator


@pytest.fixture(autouse=True)
def ranges():
    """The open ranges of NVTX, and the names of all that were opened."""
    require_emulator()
    with whole.device() as cupy:
        now, names = [], []

        def push(name):
            now.append(name)
            names.append(name)

        cupy.cuda.nvtx = SimpleNamespace(available=True, RangePush=push, RangePop=now.pop)
        yield SimpleNamespace(open=now, names=names)
        assert now == []
        assert spans.recording == ()


def fitted(*callbacks):
    run = training.trainer("cuda", callbacks=callbacks)
    run.fit(training.batches((16, 16, 16, 9)), epochs=4)
    return run


def test_profiled_steps_are_run_and_the_others_replayed(ranges, tmp_path):
    plain = fitted()
    profiler = Profiler(tmp_path, warmup=5, steps=4)
    run = fitted(profiler)
    assert training.differences(plain, run) == []
    assert profiler.recorded == 4
    captured = run._captured.whole
    assert captured.replays > 0
    assert captured.reason is None
    assert captured.replays < plain._captured.whole.replays
    rows = {row.name: row for row in profiler.profile.layers()}
    assert [rows[name].calls for name in ("0", "1", "2", "3", "4")] == [4] * 5
    assert all(rows[name].forward > 0 and rows[name].backward > 0 for name in ("0", "1", "4"))
    assert (tmp_path / "trace.json").stat().st_size > 1000
    assert {"step 6", "0", "0: matmul", "4: linear backward", "AdamW.step"} <= set(ranges.names)


def test_times_are_those_of_events(ranges):
    model = layers.Linear(3, 2).to("cuda")
    with fw.profile(device="cuda") as p:
        model(fw.ones((4, 3), device="cuda")).sum().backward()
    assert p.spans
    assert all(p.has_device_time(span) for span in p.spans)
    assert min(p.memory) > 0
    assert ranges.names[:2] == ["Linear", "Linear: matmul"]
    # a profile of the host beside it has the host's times
    with fw.profile(device="cpu") as p:
        model(fw.ones((4, 3), device="cuda"))
    assert not any(p.has_device_time(span) for span in p.spans)


def test_a_capture_inside_a_profile_has_no_events_in_it(ranges):
    model = layers.Linear(3, 2).to("cuda")
    x = fw.ones((4, 3), device="cuda")
    step = fw.cuda.graph(lambda x: model(x), device="cuda")
    with fw.profile(device="cuda") as p:
        results = [step(x).detach().cpu().numpy() for _ in range(6)]
    assert all((y == results[0]).all() for y in results)
    with_time = [p.has_device_time(s) for s in p.spans if s.category == "layer"]
    assert True in with_time  # the warm-up
    assert False in with_time  # the capture
    assert len(with_time) < 6  # a replay calls no layer
