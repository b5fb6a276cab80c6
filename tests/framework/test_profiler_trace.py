"""The trace that a profile writes, checked against the Chrome format; and a fake CUDA device."""

import json
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import framework as fw
from framework import functional as F, layers
from framework.interop.atomic import FileError
from framework.profiler import CATEGORIES, Profile, profile as module, spans
from framework.profiler.trace import DEVICE, HOST
from kernels.registry import Kernel


def check(events):
    """Keys and types of every event, an order, and spans that do not overlap but nest."""
    last = 0.0
    rows = {}
    named = set()
    for event in events:
        assert isinstance(event["name"], str)
        assert event["name"]
        assert event["ph"] in ("X", "M", "C")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        assert event["ts"] >= 0
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            named.add((event["name"], event["pid"], event["tid"]))
            assert not rows, "names come first"
            continue
        assert event["ts"] >= last, "sorted by time"
        last = event["ts"]
        if event["ph"] == "C":
            assert event["args"]["bytes"] >= 0
            continue
        assert event["cat"] in CATEGORIES
        assert event["dur"] >= 0
        rows.setdefault((event["pid"], event["tid"]), []).append(event)
    for (pid, tid), row in rows.items():
        assert {("process_name", pid, 0), ("thread_name", pid, tid)} <= named
        open_until = []
        for event in row:
            start, end = round(event["ts"] * 1e3), round((event["ts"] + event["dur"]) * 1e3)
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or end <= open_until[-1], f"{event['name']} overlaps"
            open_until.append(end)
    return rows


def exported(profile, tmp_path):
    path = tmp_path / "trace.json"
    profile.export(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["displayTimeUnit"] == "ms"
    return content["traceEvents"]


def model_of_two():
    return layers.Sequential(layers.Linear(4, 4), layers.ReLU())


def step(model):
    model(fw.ones((3, 4))).sum().backward()


def test_a_trace_is_valid_and_complete(tmp_path):
    model = model_of_two()
    with fw.profile(model) as p:
        worker = threading.Thread(target=step, args=(model,), name="worker")
        worker.start()
        for i in range(3):
            with p.range(f"step {i}"):
                step(model)
        worker.join()
    rows = check(exported(p, tmp_path))
    assert sum(map(len, rows.values())) == len(p.spans)
    assert len(rows) == 2
    everything = [event for row in rows.values() for event in row]
    assert {event["cat"] for event in everything} == {"layer", "kernel", "autograd", "step"}
    linear = [e for e in everything if e["name"] == "linear backward"]
    assert len(linear) == 4
    assert {e["args"]["layer"] for e in linear} == {"0"}
    assert {e["args"].get("type") for e in everything if e["name"] == "1"} == {"ReLU"}


def test_the_check_finds_what_is_wrong():
    name = [
        {"name": n, "ph": "M", "ts": 0, "pid": 1, "tid": 0, "args": {"name": "x"}}
        for n in ("process_name", "thread_name")
    ]

    def span(ts, dur, **others):
        event = {"name": "a", "cat": "step", "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": 0}
        return event | {"args": {}} | others

    check([*name, span(0, 10), span(2, 3), span(5, 5), span(10, 1)])
    for wrong in (
        [*name, span(0, 10), span(5, 6)],
        [*name, span(5, 1), span(0, 1)],
        [*name, span(0, 1, cat="gpu")],
        [*name, span(0, -1)],
        [*name, span(0, 1, pid=2)],
        [*name, span(0, 1, args=None)],
    ):
        with pytest.raises(AssertionError):
            check(wrong)


def test_an_empty_trace_is_valid(tmp_path):
    with fw.profile() as p:
        pass
    assert check(exported(p, tmp_path)) == {}


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with fw.profile() as p:
        pass
    with pytest.raises(FileError, match=r"cannot write .*trace\.json: No such file"):
        p.export(tmp_path / "no" / "trace.json")


# A CUDA device that is none -----------------------------------------------------------------------


class FakeCuda:
    """The parts of CuPy that the profiler uses. A kernel takes 3 ms of the device's time, of which
    the host knows nothing; all else takes 1 us there.
    """

    def __init__(self):
        self.now = 0.0  # milliseconds on the device
        self.ranges = []  # open ones
        self.pushed = []
        self.capturing = False
        self.current = 0
        fake = self

        class Event:
            def record(self):
                assert not fake.capturing
                fake.now += 0.001
                self.at = fake.now

            def synchronize(self):
                pass

        def push(name):
            self.ranges.append(name)
            self.pushed.append(name)

        self.nvtx = SimpleNamespace(available=True, RangePush=push, RangePop=self.ranges.pop)
        cuda = SimpleNamespace(
            Event=Event,
            Device=lambda: SimpleNamespace(synchronize=lambda: None),
            get_elapsed_time=lambda begin, end: end.at - begin.at,
            get_current_stream=lambda: SimpleNamespace(is_capturing=lambda: self.capturing),
            runtime=SimpleNamespace(getDevice=lambda: self.current),
            nvtx=self.nvtx,
        )
        self.module = SimpleNamespace(cuda=cuda)
        self.device = SimpleNamespace(kind="cuda", index=0, module=self.module, context=nullcontext)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(module, "choose_device", lambda name: fake.device)
    monkeypatch.setattr(module.memory, "memory_used", lambda device: 1000 + round(fake.now))
    plain = Kernel.__call__

    def call(self, *args, **options):
        fake.now += 3.0
        return plain(self, *args, **options)

    monkeypatch.setattr(Kernel, "__call__", call)
    yield fake
    assert not fake.ranges
    assert spans.recording == ()


def test_times_are_the_devices(gpu, tmp_path):
    model = model_of_two()
    with Profile(model, "cuda") as p:
        step(model)
    found = {row.name: row for row in p.kernels()}
    assert found["relu"].calls == 1
    assert found["relu"].seconds == pytest.approx(3e-3, abs=1e-4)
    by_name = {row.name: row for row in p.layers()}
    assert by_name["1"].forward == pytest.approx(3e-3, abs=1e-4)
    assert by_name["1"].backward == pytest.approx(3e-3, abs=1e-4)
    assert by_name["Sequential"].forward < 1e-4  # without what is inside
    assert p.memory[2] > 1000
    assert "Memory of live arrays" in p.text(200)
    rows = check(exported(p, tmp_path))
    assert {pid for pid, _ in rows} == {HOST, DEVICE}
    device = next(row for (pid, _), row in rows.items() if pid == DEVICE)
    assert len(device) == len(p.spans)
    relu = next(event for event in device if event["name"] == "relu")
    assert relu["dur"] == pytest.approx(3000, abs=100)


def test_nsight_sees_the_layers(gpu):
    model = model_of_two()
    with Profile(model, "cuda"):
        step(model)
    assert gpu.pushed[:4] == ["Sequential", "0", "0: matmul", "1"]
    assert "1: relu" in gpu.pushed
    assert "0: linear backward" in gpu.pushed
    assert "backward" in gpu.pushed


def test_ranges_are_closed_by_an_error(gpu):
    with pytest.raises(KeyError), Profile(device="cuda") as p, p.range("step 1"):
        assert gpu.ranges == ["step 1"]
        spans.begin("step", "left open")
        raise KeyError
    assert gpu.ranges == []
    assert [span.name for span in p.spans] == ["step 1"]


def test_without_nvtx_there_are_times_all_the_same(gpu):
    gpu.nvtx.available = False
    with Profile(device="cuda") as p:
        F.relu(fw.ones(2))
    assert gpu.pushed == []
    assert p.kernels()[0].seconds == pytest.approx(3e-3, abs=1e-4)


@pytest.mark.parametrize("why", ["capturing", "another device"])
def test_where_there_is_no_event_the_hosts_time_stands_in(gpu, why):
    with Profile(device="cuda") as p:
        gpu.capturing, gpu.current = why == "capturing", int(why == "another device")
        F.relu(fw.ones(2))
        gpu.capturing, gpu.current = False, 0
        F.gelu(fw.ones(2))
    relu, gelu = (next(s for s in p.spans if s.name == name) for name in ("relu", "gelu"))
    assert not p.has_device_time(relu)
    assert p.nanoseconds(relu) == relu.end - relu.start
    assert p.nanoseconds(gelu) == pytest.approx(3e6, abs=1e5)


def test_profiles_of_one_device_can_be_nested_and_the_host_watched_too(gpu):
    host = fw.profile(device=None)
    with host, Profile(device="cuda") as outer:
        F.relu(fw.ones(2))
        with Profile(device="cuda") as inner:
            F.gelu(fw.ones(2))
    assert inner.kernels()[0].seconds == pytest.approx(3e-3, abs=1e-4)
    assert [row.seconds for row in outer.kernels()] == pytest.approx([3e-3] * 2, abs=1e-4)
    assert len(gpu.pushed) == 2
    for span in host.spans:
        assert host.nanoseconds(span) == span.end - span.start
