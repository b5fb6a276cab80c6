"""CUDA programs to shared libraries for the host: built once, kept, loaded, their kernels found.

A source is compiled unchanged, between device/launch.h and one line for each instantiation. The
libraries lie in the framework's cache under a hash of everything that goes into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels.cache import chosen_cache, user_cache
from kernels.cuda import compiler, nvrtc
from kernels.cuda.sources import Program, elementwise_kernels, programs

DEVICE = Path(__file__).parent / "device"

#: Set by test_sanitizer.py for the process that it starts under AddressSanitizer.
SANITIZE = os.environ.get("EMULATOR_SANITIZE") == "1"

#: -O1 builds in half the time of -O2 and runs as fast. No contraction of a * b + c: __fmul_rn must
#: not be fused. Variables that nobody set hold a pattern, not what the last thread left there.
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-w", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-ftrivial-auto-var-init=pattern"),
)
#: Without -fsanitize-sections variables in a section of their own, ours, have no gaps around them.
SANITIZER_FLAGS = ("-fsanitize=address", "-fsanitize-sections=cuda_shared")


@cache
def missing() -> str | None:
    """What the emulator lacks, as a sentence; None if it works."""
    if sys.platform == "win32":
        return "the emulator needs a POSIX system"
    if compiler_path() is None:
        return "no C++ compiler: install g++ (or set CXX)"
    if nvrtc.include() is None:
        return "no CUDA headers: pip install nvidia-cuda-runtime nvidia-cuda-crt"
    return None


@cache
def compiler_path() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")


@cache
def flags() -> tuple[str, ...]:
    return (*FLAGS, *(SANITIZER_FLAGS if SANITIZE else ()), f"-I{DEVICE}", f"-I{nvrtc.include()}")


# Building -----------------------------------------------------------------------------------------


def translation_unit(program: Program) -> str:
    """The C++ text of a program: #line gives errors and deadlocks the source's own places."""
    common = compiler.common()
    own = program.text.removeprefix(common)
    parts = ['#include "launch.h"', "namespace {"]
    if own != program.text:
        parts += ['#line 1 "common.cuh"', common]
    parts += [f'#line 1 "{program.name}.cu"', own, "}  // namespace"]
    kernels = (f"EMULATOR_KERNEL({i}, {e})" for i, e in enumerate(program.expressions))
    return "\n".join([*parts, *kernels, ""])


def build(program: Program) -> Path:
    """The shared library of `program`, from the cache if it is there."""
    text = translation_unit(program)
    path = _folder() / f"{program.name}-{_key(text)}.so"
    with _only_one(path):
        if not path.exists():
            _compile(["-shared", "-x", "c++", "-", "-x", "none", str(_threads())], text, path)
    return path


def _threads() -> Path:
    """threads.cpp, which goes into every library."""
    text = '#line 1 "threads.cpp"\n' + (DEVICE / "threads.cpp").read_text(encoding="utf-8")
    path = _folder() / f"threads-{_key(text)}.o"
    with _only_one(path):
        if not path.exists():
            _compile(["-c", "-x", "c++", "-"], text, path)
    return path


def _compile(arguments: list[str], text: str, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    command = [str(compiler_path()), *flags(), *arguments, "-o", temporary]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        os.unlink(temporary)
        raise nvrtc.CompileError(f"{path.stem}:\n{done.stderr}")
    os.replace(temporary, path)


def _folder() -> Path:
    folder = (chosen_cache() or user_cache()) / "cuda-emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(text: str) -> str:
    return hashlib.sha256((_fixed() + text).encode()).hexdigest()[:16]


@cache
def _fixed() -> str:
    """What all libraries depend on beside their own text."""
    version = subprocess.run([str(compiler_path()), "--version"], capture_output=True, text=True)
    headers = [f.read_text(encoding="utf-8") for f in sorted(DEVICE.rglob("*")) if f.is_file()]
    return "\0".join([version.stdout, *flags(), *headers])


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One test process at a time builds `path`; the others wait for it."""
    import fcntl

    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Loading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompiledKernel:
    """One instantiation: the addresses to call and its parameters, "float32*" or "int64"."""

    name: str
    program: str
    call: ctypes.c_void_p
    launch: ctypes._CFuncPtr
    parameters: tuple[str, ...]


def find(text: str, expression: str) -> CompiledKernel:
    """The kernel called `expression` of a source, of whose program all others are built too."""
    program = _program(text, expression)
    library = _load(program)
    i = program.expressions.index(expression)
    signature = getattr(library, f"emulator_signature_{i}")
    signature.restype = ctypes.c_char_p
    return CompiledKernel(
        name=expression,
        program=program.name,
        call=ctypes.cast(getattr(library, f"emulator_call_{i}"), ctypes.c_void_p),
        launch=library.emulator_launch,
        parameters=tuple(signature().decode().split()),
    )


def _program(text: str, expression: str) -> Program:
    """The program that `text` belongs to; a text of a test's own is a program of one kernel."""
    program = known_programs().get(text)
    if program is None or expression not in program.expressions:
        return Program("own", text, (expression,))
    return program


@cache
def known_programs() -> dict[str, Program]:
    """The program of each text that the launching code hands over."""
    families = {p.text: p for p in programs()}
    (together,) = (p for p in programs() if p.name == "elementwise")
    return families | {compiler.common() + k.cuda_source(): together for k in elementwise_kernels()}


@cache
def _load(program: Program) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(program)))
    words = ctypes.POINTER(ctypes.c_uint)
    library.emulator_launch.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, words, words, ctypes.c_size_t, ctypes.c_uint64),
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
    )
    return library


@cache
def stacks() -> ctypes.c_void_p:
    """Memory for the stacks of a block's threads, from whichever library is the first."""
    make = _load(programs()[0]).emulator_stacks
    make.restype = ctypes.c_void_p
    if (memory := make()) is None:
        raise MemoryError("no address space for the stacks of 1024 threads")
    return ctypes.c_void_p(memory)
