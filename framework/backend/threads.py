"""How many threads the CPU's kernels use."""

from __future__ import annotations


def get_num_threads() -> int:
    """Threads of the CPU kernels: at first one a core, or what NUMBA_NUM_THREADS says; 1 without
    numba.
    """
    from kernels.registry import has_numba

    if not has_numba():
        return 1
    from kernels.cpu.engine import threads

    return threads()


def set_num_threads(count: int) -> None:
    """Use `count` threads from now on. ValueError unless 1 <= count <= the number at the start.

    No result depends on it, but for the last bits of large matrix products.
    """
    from kernels.registry import has_numba

    if not has_numba():
        if count != 1:
            raise ValueError(
                f"set_num_threads: count is {count}, without numba there is one thread"
            )
        return
    from kernels.cpu.engine import set_threads

    set_threads(count)
