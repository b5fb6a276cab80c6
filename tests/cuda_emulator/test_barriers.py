"""Each barrier of the sources, left out, makes a result wrong on the emulator: none is there in
vain, and a missing one is found.
"""

import pytest

from kernels.cuda import compiler
from tests.cuda_emulator import matrix
from tests.cuda_emulator.launching import LaunchError
from tests.cuda_emulator.programs import known_programs

BARRIER = "__syncthreads();"

#: The modules whose kernels launch a source's templates, where they are not those of its own name.
USED_BY = {
    "common": ("normalization",),
    "channel_norm": ("channel_norm", "group_norm"),
    "reductions": ("reductions", "extremes"),
}

SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in compiler.FOLDER.glob("*.cu*")}
PLACES = [
    (name, place)
    for name, text in sorted(SOURCES.items())
    for place in range(len(text))
    if text.startswith(BARRIER, place)
]
LINES = [f"{name}-{SOURCES[name][:place].count(chr(10)) + 1}" for name, place in PLACES]


@pytest.mark.parametrize(("name", "place"), PLACES, ids=LINES)
def test_without_it_a_result_is_wrong(monkeypatch, cupy, name, place):
    text = SOURCES[name][:place] + SOURCES[name][place + len(BARRIER) :]
    sources = SOURCES | {name: text}
    known_programs()  # which keeps what it finds: the sources as they are
    monkeypatch.setattr(compiler, "source", lambda family: sources["common"] + sources[family])
    for kernel, sample in matrix.CASES:
        if kernel.family in USED_BY.get(name, (name,)) and fails(check, kernel, sample):
            return
    if name == "embedding" and fails(matrix.check_order):
        return
    pytest.fail("all results are right without this barrier")


def check(kernel, sample):
    for shape in (*matrix.FEW, *matrix.large(kernel, sample)[:3]):
        matrix.check(kernel, sample, "float32", shape)


def fails(run, *args) -> bool:
    try:
        run(*args)
    except (AssertionError, LaunchError):
        return True
    return False
