"""NumPy's arrays on cache lines: kernels/cpu/alignment.py."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from kernels.registry import has_numba

if not has_numba():
    pytest.skip("numba (and with it llvmlite) is not installed", allow_module_level=True)

from kernels.cpu.alignment import ALIGNMENT, align_arrays

if not align_arrays():
    pytest.skip("only on 64-bit Linux and macOS", allow_module_level=True)


def offset(a, modulus=ALIGNMENT):
    return a.ctypes.data % modulus


@pytest.mark.parametrize("size", [0, 1, 63, 1000, 8191, 8192, 100_000, 1_000_000])
def test_arrays_begin_on_a_cache_line(size):
    kept = [np.empty(size, np.float32) for _ in range(5)]
    zeros = np.zeros(size, np.float32)
    assert {offset(a) for a in (*kept, zeros, np.arange(size), zeros + 1)} == {0}
    assert not zeros.any()


def test_large_neighbours_begin_at_different_places_of_their_pages():
    places = [offset(np.empty(64 * 1024, np.float32), 4096) for _ in range(64)]
    assert all(a != b for a, b in zip(places, places[1:], strict=False))
    assert len(set(places)) > 32


def test_arrays_that_grow_and_shrink_keep_their_elements():
    a = np.arange(10)
    for size in (100, 100_000, 5_000, 300_000, 7):
        known = min(a.size, size)
        before = a[:known].copy()
        a.resize(size, refcheck=False)
        assert offset(a) == 0
        np.testing.assert_array_equal(a[:known], before)
    many = np.fromiter(iter(range(200_000)), np.int64)
    np.testing.assert_array_equal(many, np.arange(200_000))


def test_an_array_may_be_freed_by_another_thread():
    made = [np.ones(100_000)]
    made += [made[0].copy()]
    thread = threading.Thread(target=made.clear)
    thread.start()
    thread.join()
    assert not made


def test_more_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError):
        np.empty(1 << 58)


def test_arrays_may_outlive_everything_else():
    code = (
        "import numpy as np; from kernels.cpu.alignment import align_arrays; align_arrays();"
        "np.kept = [np.ones(n) for n in range(0, 100_000, 999)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_system_s_allocator_can_be_kept(monkeypatch):
    monkeypatch.setenv("FRAMEWORK_MALLOC", "system")
    assert not align_arrays()
