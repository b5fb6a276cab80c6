"""The CPU engine: numba-compiled loops on one thread pool, compiled once and kept on disk.

A kernel author writes a serial function over 1-D or 2-D C-contiguous arrays and decorates it::

    @loop("x", "out")
    def scale(x, out, factor):
        for i in range(x.shape[0]):
            out[i] = x[i] * factor

`loop` names the arguments that are cut along their first axis. Calling ``scale(x, out, f)`` runs it
once when the work is small, and in equal pieces on all threads when it is large. What a piece
computes must not depend on where the cuts are, so that the result does not depend on the number of
threads.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import event

from kernels import compiling
from kernels.cache import chosen_cache, user_cache
from kernels.cpu.alignment import align_arrays
from kernels.cpu.team import has_team, on_team

log = logging.getLogger("framework")

#: The only files of this folder whose compiled functions may be called from other files.
SHARED = (
    "engine.py", "lanes.py", "philox.py", "rows.py", "summation.py", "team.py", "tiles.py",
    "vectormath.py",
)  # fmt: skip

#: Elements below which a piece of work stays on one thread: a parallel launch costs about 2 us,
#: which is what one core needs for 16-32 thousand cheap elements.
SERIAL_BELOW = 32_768

#: The pieces of a parallel loop at most: numba's number of threads at its start.
CORES = numba.config.NUMBA_NUM_THREADS

#: Never the whole of fastmath: infinities and NaN must survive (no nnan, no ninf).
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


def _prefer_wide_vectors() -> None:
    """Let LLVM use 512-bit vectors where the CPU has them (it prefers 256; 1.4x on a softmax)."""
    if numba.config.CPU_FEATURES is None and numba.config.CPU_NAME is None:
        features = llvm.get_host_cpu_features()
        if features.get("avx512f"):
            numba.config.CPU_FEATURES = features.flatten() + ",-prefer-256-bit"


def _choose_threading_layer() -> None:
    """OpenMP first: a launch costs 2 us there, 115-180 us on numba's own work queue."""
    if os.environ.get("NUMBA_THREADING_LAYER_PRIORITY") is None:
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


class _Compilations(event.Listener):  # type: ignore[misc]
    """numba tells of what it compiles, never of what it loads: a call costs nothing more."""

    def on_start(self, event: Any) -> None:
        compiling.watch(True)

    def on_end(self, event: Any) -> None:
        compiling.watch(False)


_prefer_wide_vectors()
_choose_threading_layer()
align_arrays()
event.register("numba:compile", _Compilations())


@cache
def cache_folder() -> Path:
    """The folder of compiled kernels, keyed by the versions that compile them and by the text of
    SHARED.

    numba recompiles a function when its own file changes, but does not see the functions that it
    calls: a change in vectormath.py would leave stale machine code behind. Hence: what compiled
    code calls across files lives in SHARED, and a change there starts a new folder.
    """
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version}".encode())
    for name in SHARED:
        digest.update(Path(__file__).with_name(name).read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    for base in _cache_roots():
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".writable-{os.getpid()}").touch()
            (folder / f".writable-{os.getpid()}").unlink()
        except OSError:
            continue
        return folder
    folder = Path(tempfile.mkdtemp(prefix=name))
    log.warning(
        "cannot write to %s; kernels go to %s and are compiled again at every start: set "
        "FRAMEWORK_CACHE to a folder that can be written",
        " or ".join(map(str, _cache_roots())),
        folder,
    )
    return folder


def _cache_roots() -> list[Path]:
    """Where to try: FRAMEWORK_CACHE alone, or else the user's cache folder, then the folder of
    installed packages.
    """
    chosen = chosen_cache()
    if chosen is not None:
        return [chosen]
    return [user_cache(), Path(sysconfig.get_path("purelib")) / "framework-cache"]


def jit(
    function: Callable[..., Any] | None = None, *, allocates: bool = False, **options: Any
) -> Any:
    """``numba.njit`` with the house's flags and the house's cache folder.

    Arrays are not reference-counted inside: two atomic additions for each slice ``x[r]`` cost more
    than a short row (a softmax over 65 columns took 19 us with them, 9 without). So a function can
    neither create nor return an array, unless it `allocates`: give such a function the scratch
    memory to make and another one the work.
    """
    if function is None:
        return lambda f: jit(f, allocates=allocates, **options)
    # NumPy's error model: the zero check of Python's division keeps a loop from being vectorised.
    settings = {
        "fastmath": FASTMATH,
        "error_model": "numpy",
        "nogil": True,
        "cache": True,
        "_nrt": allocates,
        **options,
    }
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        return numba.njit(**settings)(function)
    finally:
        numba.config.CACHE_DIR = previous


@cache
def _file_digest(file: str) -> bytes:
    # The name of a generated file tells apart what it calls in turn.
    return hashlib.sha256(Path(file).name.encode() + Path(file).read_bytes()).digest()


def define(name: str, source: str, **names: Any) -> Callable[..., Any]:
    """Execute generated `source` from a file of its own and return what it calls `name`.

    The file (in the cache folder) is what numba's cache needs, and what a debugger or a curious
    reader opens. Another text is another file, and so is another text of a compiled function among
    `names`: numba does not see that what it calls has changed.
    """
    text = hashlib.sha256(source.encode())
    for called in names.values():
        if hasattr(called, "py_func"):
            text.update(_file_digest(called.py_func.__code__.co_filename))
    digest = text.hexdigest()[:12]
    file = cache_folder() / f"{name}_{digest}.py"
    if not file.exists():
        scratch = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        scratch.write_text(source, encoding="utf-8")
        scratch.replace(file)
    # A cached function is rebuilt from its module's name, so the module has to be one that Python
    # knows.
    module = ModuleType(f"kernels.cpu.generated.{name}_{digest}")
    sys.modules[module.__name__] = module
    vars(module).update(names, __file__=str(file))
    exec(compile(source, str(file), "exec"), vars(module))
    return getattr(module, name)


@lru_cache(256)
def numbers(count: int) -> np.ndarray:
    """0, 1, ..., count - 1 (int64): what a loop cuts whose pieces need to know which piece they
    are.
    """
    return np.arange(count)


def workers() -> np.ndarray:
    """A number for each core: what a loop cuts whose pieces take a fixed share of the tasks each
    and have scratch memory of their own. Not for each thread that is asked for: LLVM may round
    differently in the serial twin.
    """
    return numbers(CORES)


#: True in a process that was forked from one whose threads had started: OpenMP ends such a process
#: when it asks for threads.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    if one_launch_at_a_time.locked():  # by a thread that is not here
        one_launch_at_a_time.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


#: Threads that were asked for, at most CORES.
_threads = CORES


def threads() -> int:
    """Threads a parallel loop uses: one in a forked process."""
    return 1 if _forked else _threads


def set_threads(count: int) -> None:
    """Use `count` threads from now on, 1 up to CORES. No result depends on it but the last bit of
    large matrix products.
    """
    if not 1 <= count <= CORES:
        raise ValueError(f"set_threads: count is {count}, expected 1 to {CORES}")
    global _threads
    _threads = count
    numba.set_num_threads(count)


def spread(name: str, piece: Callable[..., Any], parameters: str) -> Callable[..., Any]:
    """A compiled function name(pieces, team, `parameters`) which calls the compiled
    piece(i, pieces, `parameters`) for each i below `pieces`, on `team` threads.
    """
    source = (
        f'"""Generated by kernels/cpu/engine.py: all pieces of {piece.__name__}."""\n'
        f"def {name}(pieces, team, {parameters}):\n"
    )
    if has_team():
        source += f"    on_team(piece, pieces, team, ({parameters},))\n"
        return jit(define(name, source, piece=piece, on_team=on_team))
    source += f"    for i in prange(pieces):\n        piece(i, pieces, {parameters})\n"
    return jit(define(name, source, piece=piece, prange=numba.prange), parallel=True)


class Loop:
    """A compiled serial function and its parallel twin; see the module's text."""

    def __init__(
        self,
        function: Callable[..., Any],
        cut: tuple[str, ...],
        finish: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        parameters = list(inspect.signature(function).parameters)
        unknown = [name for name in cut if name not in parameters]
        if unknown or not cut:
            raise TypeError(
                f"loop({', '.join(cut)}): {function.__name__} has {', '.join(parameters)}"
            )
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._parameters = parameters
        self._cut = cut
        self._lead = parameters.index(cut[0])
        self._serial = jit(function, **options)
        self._finish = finish
        self._parallel: Callable[..., Any] | None = None

    def __call__(self, *args: Any, work: int | None = None) -> None:
        """Run over `args`. `work` is the number of elements touched (default: size of the first cut
        array).
        """
        lead = args[self._lead]
        length = lead.shape[0]
        # Never by the number of threads: LLVM rounds differently in the twin, and the bits must not
        # depend on how many there are.
        if (lead.size if work is None else work) < SERIAL_BELOW or length < 2 or _forked:
            self._serial(*args)
            if self._finish is not None:
                self._finish(*args)
            return
        if self._parallel is None:
            self._parallel = self._build_parallel()
        with one_launch_at_a_time:
            # one a core: where fewer threads were asked for, a thread takes several
            self._parallel(length if length < CORES else CORES, _threads, *args)

    @property
    def serial(self) -> Callable[..., Any]:
        """The compiled serial function, callable from other compiled functions."""
        return self._serial

    def _build_parallel(self) -> Callable[..., Any]:
        name, parameters = self.__name__, ", ".join(self._parameters)
        cut = [f"{p}[start:stop]" if p in self._cut else p for p in self._parameters]
        # Cuts at multiples of 16 elements keep every piece's rows on cache lines of its own.
        source = (
            f'"""Generated by kernels/cpu/engine.py: a piece of {name}."""\n'
            f"def {name}_piece(piece, pieces, {parameters}):\n"
            f"    n = {self._cut[0]}.shape[0]\n"
            f"    grain = 16 if n >= 64 * pieces else 1\n"
            f"    start = n * piece // pieces // grain * grain\n"
            f"    stop = n * (piece + 1) // pieces // grain * grain\n"
            f"    if piece == pieces - 1:\n"
            f"        stop = n\n"
            f"    serial({', '.join(cut)})\n"
        )
        piece = jit(define(f"{name}_piece", source, serial=self._serial))
        pieces = spread(f"{name}_parallel", piece, parameters)
        if self._finish is None:
            return pieces
        source = (
            f'"""Generated by kernels/cpu/engine.py: {name} and what finishes it."""\n'
            f"def {name}_finished(pieces, team, {parameters}):\n"
            f"    run(pieces, team, {parameters})\n"
            f"    finish({parameters})\n"
        )
        return jit(define(f"{name}_finished", source, run=pieces, finish=self._finish))


#: numba's fallback pool (workqueue) is not thread-safe; two Python threads must not launch at once.
one_launch_at_a_time = threading.Lock()


def loop(
    *cut: str, finish: Callable[..., Any] | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Loop]:
    """Decorate a serial function; `cut` names the array arguments split along their first axis.

    `finish`, compiled and with the same parameters, runs once after all pieces: to add up what they
    left, without another call from Python.
    """
    return lambda function: Loop(function, cut, finish, **options)
