"""`pytest bench/`: the cases of `python -m bench kernels` under pytest-benchmark.

    pytest bench/ -k softmax --benchmark-json new.json
    pytest bench/ --bench-against reference,torch --benchmark-autosave
    pytest bench/ --bench-quick --benchmark-compare --benchmark-compare-fail=median:10%

What is measured and how is the command's (bench/cases.py, bench/kernel_bench.py): each side in its
own process, in turns. A turn is a round of pytest-benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cases import Case
from bench.kernel_bench import SIDES, KernelBench, Row


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the cases."""
    group = parser.getgroup("bench", "cases of bench/cases.py")
    group.addoption("--bench-device", default="cpu", choices=list(SIDES), help="cpu or cuda")
    group.addoption("--bench-against", default="none", metavar="SIDES", help="reference,torch")
    group.addoption("--bench-seconds", default=0.3, type=float, help="time on each side of a case")
    group.addoption("--bench-threads", default=None, type=int, help="threads of each side")
    group.addoption("--bench-quick", action="store_true", help="small arrays: a look, no result")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """One process, whatever addopts say: benchmarks beside each other time each other."""
    root = Path(__file__).parent
    paths = [Path(str(config.invocation_params.dir), a.split("::")[0]) for a in config.args]
    if all(path.resolve().is_relative_to(root) for path in paths) and hasattr(config.option, "tx"):
        config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case and side."""
    if "case" not in metafunc.fixturenames:
        return
    from bench import cases

    config = metafunc.config
    device = config.getoption("--bench-device")
    found = cases.find(quick=config.getoption("--bench-quick"), device=device)
    metafunc.parametrize("case", found, ids=str)
    metafunc.parametrize("side", ["ours", *_against(config)])


def _against(config: pytest.Config) -> list[str]:
    text, known = config.getoption("--bench-against"), SIDES[config.getoption("--bench-device")]
    chosen = [side.strip() for side in text.split(",") if side.strip() not in ("", "none")]
    for side in chosen:
        if side not in known:
            raise pytest.UsageError(f"--bench-against {side}: there are {', '.join(known)}, none")
    return list(dict.fromkeys(chosen))


@pytest.fixture(scope="session")
def kernel_bench(pytestconfig: pytest.Config) -> Iterator[KernelBench]:
    """The workers."""
    from bench import machine

    option = pytestconfig.getoption
    against = [s for s in _against(pytestconfig) if s == "reference" or machine.has_torch()]
    seconds, turns = option("--bench-seconds"), 15
    if option("--bench-quick"):
        seconds, turns = min(seconds, 0.03), 5
    device, threads = option("--bench-device"), option("--bench-threads")
    if device == "cuda":
        from framework.backend.device import require_cuda

        require_cuda()
    with KernelBench(against, seconds, turns, threads, device) as bench:
        yield bench


@pytest.fixture(scope="session")
def rows() -> dict[Case, Row]:
    """What was measured: all sides of a case at once, told one by one."""
    return {}


@pytest.fixture
def row(case: Case, kernel_bench: KernelBench, rows: dict[Case, Row]) -> Row:
    """The case, checked and measured."""
    if case not in rows:
        rows[case] = kernel_bench.run(case)
    return rows[case]
