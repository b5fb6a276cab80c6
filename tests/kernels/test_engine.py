"""How loops are spread over threads: kernels/cpu/engine.py and team.py."""

import numpy as np
import pytest

from kernels.registry import has_numba

if not has_numba():
    pytest.skip("numba is not installed", allow_module_level=True)

import framework as fw
from kernels.cpu import engine
from kernels.cpu.engine import CORES, jit, loop, set_threads, spread


@jit
def mark(piece, pieces, out, value):
    for i in range(out.shape[1]):
        out[piece, i] += value + piece * pieces


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("team", [1, 2, 5])
def test_every_piece_runs_once_whatever_the_team(pieces, team):
    out = np.zeros((pieces, 5), np.float32)
    run(pieces, team, out, np.float32(3))
    expected = 3 + pieces * np.arange(pieces, dtype=np.float32)
    np.testing.assert_array_equal(out, np.repeat(expected[:, None], 5, 1))


run = spread("marks", mark, "out, value")


@jit
def add_up(x, doubled, total):
    total[0] = doubled.sum()


@loop("x", "doubled", finish=add_up)
def double(x, doubled, total):
    for i in range(x.shape[0]):
        doubled[i] = 2 * x[i]


@pytest.mark.parametrize("size", [0, 1, 5, 40_000, 100_003])
def test_a_loop_covers_its_array_and_finishes(size):
    x = np.arange(size, dtype=np.float64)
    doubled, total = np.zeros(size), np.zeros(1)
    double(x, doubled, total)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert total[0] == 2 * x.sum()


def test_fewer_threads_when_asked_for():
    before = fw.get_num_threads()
    try:
        fw.set_num_threads(1)
        assert fw.get_num_threads() == engine.threads() == 1
        test_a_loop_covers_its_array_and_finishes(100_003)
    finally:
        fw.set_num_threads(before)
    assert fw.get_num_threads() == before


@pytest.mark.parametrize("count", [0, -1, CORES + 1])
def test_a_number_of_threads_that_cannot_be(count):
    with pytest.raises(ValueError, match=f"count is {count}, expected 1 to {CORES}"):
        set_threads(count)
