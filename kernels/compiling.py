"""Says that kernels are being compiled, to whoever wants to show it: with an empty cache that takes
half a minute, in which nothing else moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nobody(begins: bool) -> None:
    pass


#: Called with True when a compiler begins and with False when it ends, by the thread that waits for
#: it; compilations nest. What comes from a cache is not told.
watch: Callable[[bool], None] = _nobody


@contextmanager
def told() -> Iterator[None]:
    """The block compiles."""
    watcher = watch
    watcher(True)
    try:
        yield
    finally:
        watcher(False)
