"""The ladder's CUDA steps: compiled for every architecture, and run on the emulator."""

from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import machine
from bench.__main__ import app
from bench.cases import TOLERANCE, error
from bench.ladder import run, sides
from bench.ladder.steps import OPERATIONS, Step, steps
from framework.backend import cuda
from kernels.cuda import report
from kernels.cuda.sources import Program
from tests.cuda_emulator import launching
from tests.kernels.test_cuda_compile import ARCHITECTURES, OPTIONS, needs_nvrtc

ALL = [step for operation in OPERATIONS for step in steps(operation, "cuda")]
SOURCES = [step for step in ALL if step.path.suffix == ".cu"]

#: One element, rows and columns alone, odd sizes, several tiles, rows that a lane holds in part, in
#: whole and not at all, a row in several turns of a block.
SHAPES = [(1, 1), (1, 37), (37, 1), (3, 5), (33, 64), (70, 36), (9, 132), (3, 1024), (2, 1028)]


def name(step: Step) -> str:
    return f"{step.operation}-{step.path.stem}"


def off(step, shape) -> float:
    """How far a step is from float64, on the emulator."""
    import cupy

    operation = OPERATIONS[step.operation]
    args = operation.arguments(*shape)
    truth = operation.truth(*(a.astype(np.float64) for a in args))
    return error([sides.function(step)(*map(cupy.asarray, args)).get()], [truth])


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("step", SOURCES, ids=name)
def test_compiles_without_a_warning_and_without_spills(step, arch):
    program = Program(name(step), sides.cuda_source(step), (step.operation,))
    (usage,) = report.measured(program, arch, OPTIONS).values()
    assert usage.local == 0
    assert (usage.shared > 0) == ("__shared__" in step.source)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("step", ALL, ids=name)
def test_is_right_in_any_order_of_threads(step):
    for seed in (0, 1):
        with launching.shuffled(seed):
            for shape in SHAPES:
                assert off(step, shape) <= TOLERANCE, (seed, shape)


BARRIER = "__syncthreads();"
PLACES = [
    pytest.param(step, place, id=f"{name(step)}-{step.source[:place].count(chr(10)) + 1}")
    for step in SOURCES
    for place in range(len(step.source))
    if step.source.startswith(BARRIER, place)
]


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(("step", "place"), PLACES)
def test_without_a_barrier_a_result_is_wrong(tmp_path, step, place):
    path = tmp_path / step.path.name
    path.write_text(step.source[:place] + step.source[place + len(BARRIER) :], encoding="utf-8")
    broken = Step(step.operation, step.device, step.number, path)
    assert max(off(broken, shape) for shape in ((3, 64), (33, 64))) > TOLERANCE


def test_every_source_has_a_launch_and_every_launch_a_source():
    assert set(sides.LAUNCHES) == {(step.operation, step.path.stem) for step in SOURCES}


# What only a GPU can time, on stand-ins for its clock ---------------------------------------------


class Event:
    """2 ms pass on the device from one event to the next."""

    clock = 0.0

    def record(self):
        Event.clock += 2.0
        self.at = Event.clock

    def synchronize(self):
        pass


@pytest.fixture
def gpu(cupy, monkeypatch):
    cupy.cuda.Event = Event
    cupy.cuda.get_elapsed_time = lambda begin, end: end.at - begin.at
    cupy.copyto = lambda target, source: target.__setitem__(slice(None), source)
    monkeypatch.setattr(sides, "TOUCHED", 5000)
    monkeypatch.setattr(sides, "COPY_BYTES", 256)
    return SimpleNamespace(cupy=cupy)


@pytest.mark.usefixtures("gpu")
def test_an_iteration_is_many_launches_on_arrays_of_their_own():
    work = sides.cuda(steps("layer_norm", "cuda")[2], 8, 16)
    assert work.facts["error"] <= TOLERANCE
    assert work.facts["scale"] == pytest.approx(1 / 20)  # 4 x 5 launches of 1 KB touch 5000 bytes
    device, host = work.step()
    assert device == pytest.approx(2e-3)
    assert host >= 0
    assert len(work.laps) == 2


@pytest.mark.usefixtures("gpu")
def test_the_copy_says_what_it_moved():
    work = sides.cuda_copy()
    assert work.facts == {"bytes": 2 * 4 * 256}
    assert work.step()[0] == pytest.approx(2e-3)


@pytest.mark.usefixtures("gpu")
def test_the_command_runs_on_the_emulator(local, monkeypatch):
    monkeypatch.setattr(run, "Worker", local)
    monkeypatch.setattr(cuda, "why_not", lambda: "")
    card = {"name": "no GPU at all", "driver": "0", "cuda_runtime": "13.0"}
    monkeypatch.setattr(machine, "gpu", lambda: card)
    options = ["--device", "cuda", "--size", "40x36", "--seconds", "0.01", "--turns", "3"]
    result = CliRunner().invoke(app, ["ladder", "transpose", *options])
    assert result.exit_code == 0, result.output
    for part in ("no GPU at all", "40 x 36 float32, cuda", "no two lanes in one bank", "fastest"):
        assert part in result.output
