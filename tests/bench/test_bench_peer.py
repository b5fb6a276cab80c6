"""The protocol with a worker, its errors, and the arithmetic of turns."""

import os
import signal
import time

import numpy as np
import pytest

from bench.measure import Spread, Turns, measure
from bench.peer import PeerError, Work, Worker

HERE = "bench_test_sides:"


@pytest.fixture
def sides(tmp_path, monkeypatch):
    """A module of fake sides that workers can import."""
    (tmp_path / "bench_test_sides.py").write_text(
        "import os, time\n"
        "from bench.peer import Work, threads\n"
        "def steady(value=1):\n"
        "    return Work(lambda: None, {'value': value, 'pid': os.getpid()})\n"
        "def sleeper(seconds):\n"
        "    return Work(lambda: time.sleep(seconds))\n"
        "def laps():\n"
        "    add = lambda x, y: x + y\n"
        "    return Work(lambda: (1.0, 2.0), laps=('a', 'b'), answers={'add': add})\n"
        "def broken():\n"
        "    raise ValueError('no such thing\\nsecond line')\n"
        "def spin():\n"
        "    timeout = os.environ['OPENBLAS_THREAD_TIMEOUT']\n"
        "    return Work(lambda: None, {'timeout': timeout, 'threads': threads()})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_work_is_prepared_and_run_in_another_process(sides):
    with Worker("fake", HERE + "steady") as worker:
        facts = worker.call("prepare", 7)
        assert facts["value"] == 7
        assert facts["pid"] != os.getpid()
        assert 0 < worker.call("warm", 0.001) < 0.1
        times = worker.call("run", 5, 1.0)
        assert len(times) == 5
        assert all(len(laps) == 1 and laps[0] >= 0 for laps in times)


def test_laps_and_answers_come_from_the_work(sides):
    with Worker("fake", HERE + "laps") as worker:
        worker.call("prepare")
        assert worker.call("run", 3, 1.0) == [(1.0, 2.0)] * 3
        assert worker.call("ask", "add", 2, 3) == 5


def test_a_turn_ends_when_its_patience_does(sides):
    with Worker("fake", HERE + "sleeper") as worker:
        worker.call("prepare", 0.01)
        assert len(worker.call("run", 1000, 0.03)) < 10


def test_threads_and_their_waiting_are_set_only_in_workers(sides, monkeypatch):
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with Worker("fake", HERE + "spin", threads=3) as worker:
        assert worker.call("prepare") == {"timeout": "4", "threads": 3}
    assert "OPENBLAS_THREAD_TIMEOUT" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_an_error_over_there_is_one_line_here_and_the_worker_lives_on(sides):
    with Worker("fake", HERE + "broken") as worker:
        with pytest.raises(PeerError, match=r"^fake: ValueError: no such thing$") as caught:
            worker.call("prepare")
        assert "second line" in caught.value.details
        with pytest.raises(PeerError, match="nothing was prepared"):
            worker.call("run", 1, 1.0)


def test_a_worker_that_died_says_so(sides):
    with Worker("fake", HERE + "steady") as worker:
        pid = worker.call("prepare")["pid"]
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        with pytest.raises(PeerError, match=r"worker of fake ended with exit code -?\d+"):
            worker.call("run", 1, 1.0)


def test_a_worker_without_an_answer_is_ended(sides):
    with Worker("fake", HERE + "sleeper", timeout=1.0) as worker:
        worker.call("prepare", 60)
        start = time.perf_counter()
        with pytest.raises(PeerError, match=r"no answer to 'warm' within 1 s"):
            worker.call("warm", 1.0)
        assert time.perf_counter() - start < 20


def test_a_missing_factory_names_it(sides):
    with Worker("fake", HERE + "nothing") as worker, pytest.raises(PeerError, match="nothing"):
        worker.call("prepare")


# Turns --------------------------------------------------------------------------------------------


def test_turns_alternate_and_give_each_side_as_many(sides):
    with Worker("a", HERE + "sleeper") as a, Worker("b", HERE + "sleeper") as b:
        a.call("prepare", 0.001)
        b.call("prepare", 0.004)
        done = []
        turns = measure({"ours": a, "b": b}, 0.06, 6, lambda: done.append(1))
    assert len(done) == len(turns.laps["ours"]) == len(turns.laps["b"]) == 6
    assert turns.speedup("b").median > 1.5
    assert turns.best_speedup("b") > 1.5


class Recorded:
    """A worker that takes what it is told, and notes the order of the turns."""

    def __init__(self, name, taken, log):
        self.name, self.taken, self.log = name, taken, log

    def call(self, request, *args):
        if request == "warm":
            return self.taken
        self.log.append((self.name, args[0]))
        return [(self.taken,)] * args[0]


def test_the_order_rotates_and_iterations_fill_a_turn():
    log = []
    sides = {"ours": Recorded("ours", 0.01, log), "b": Recorded("b", 0.02, log)}
    measure(sides, 0.4, 4)
    assert log == [("ours", 10), ("b", 5), ("b", 5), ("ours", 10)] * 2


def test_a_slow_side_stops_early_and_ours_never():
    log = []
    sides = {"ours": Recorded("ours", 0.01, log), "slow": Recorded("slow", 1.0, log)}
    turns = measure(sides, 0.1, 10)
    assert len(turns.laps["ours"]) == 10
    assert len(turns.laps["slow"]) == 3
    assert turns.speedup("slow").median == pytest.approx(100)


def test_ratios_are_taken_turn_by_turn():
    turns = Turns(["ours", "b"])
    for ours, other in ((1.0, 2.0), (10.0, 20.0), (100.0, 200.0)):
        turns.add("ours", [(ours,)])
        turns.add("b", [(other,)])
    assert turns.speedup("b") == Spread(2.0, 2.0, 2.0)
    assert turns.seconds("ours").median == 10.0
    assert turns.best_speedup("b") == 2.0


def test_a_disturbed_run_is_noticed():
    turns = Turns(["ours", "b"])
    for seconds in (1.0, 1.5, 2.0):
        turns.add("ours", [(seconds,)])
        turns.add("b", [(1.0,)])
    assert not turns.disturbed
    turns.add("b", [(8.0,), (8.0,), (1.0,)])
    turns.add("b", [(8.0,), (9.0,)])
    turns.add("b", [(8.0,), (9.0,)])
    assert turns.disturbed


def test_spread_is_numpys_quantiles():
    values = np.random.default_rng(0).random(17)
    spread = Spread.of(values)
    expected = np.quantile(values, [0.5, 0.2, 0.8])
    np.testing.assert_allclose([spread.median, spread.p20, spread.p80], expected)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="at least one value"):
        Spread.of([])


def test_work_has_one_lap_unless_told():
    assert Work(lambda: None).laps == ("total",)
