"""`pytest bench/`: the cases of `python -m bench kernels` under pytest-benchmark, on the CPU.

    pytest bench/ -k softmax --benchmark-json new.json
    pytest bench/ --bench-against reference,torch --benchmark-group-by group --benchmark-autosave
    pytest bench/ --bench-quick --benchmark-compare --benchmark-compare-fail=median:10%

All sides share this process, and with it each other's idle threads: ratios to be shown come from
`python -m bench kernels`, which gives each side its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SIDES = ("ours", "reference", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the cases."""
    group = parser.getgroup("bench", "cases of bench/cases.py")
    group.addoption(
        "--bench-against", default="none", metavar="SIDES", help="reference, torch, or none"
    )
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
    found = cases.find(quick=config.getoption("--bench-quick"))
    metafunc.parametrize("case", found, ids=str)
    metafunc.parametrize("side", _sides(config.getoption("--bench-against")))


def _sides(text: str) -> list[str]:
    chosen = [side.strip() for side in text.split(",") if side.strip() not in ("", "none")]
    for side in chosen:
        if side not in SIDES:
            known = ", ".join(SIDES[1:])
            raise pytest.UsageError(f"--bench-against {side}: there are {known}, none")
    return list(dict.fromkeys(["ours", *chosen]))
