"""NVIDIA's run-time compiler through ctypes: compiles CUDA C++ where there is neither CuPy nor a
driver nor a GPU.

Programs that run go through CuPy (compiler.py). This is for checking sources and for reading what
the compiler made of them. It needs the pip wheels nvidia-cuda-nvrtc, nvidia-cuda-runtime and
nvidia-cuda-crt (the library and its headers), or a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_NAMES = "nvrtc64_*.dll" if sys.platform == "win32" else "libnvrtc.so*"
_HEADERS = ("cuda_fp16.h", "cuda_bf16.h", "vector_types.h", "crt/host_defines.h")


class CompileError(RuntimeError):
    """The source does not compile; the message is the compiler's log."""


@cache
def missing() -> str | None:
    """What is not installed, as a sentence; None if `compile` will work."""
    if _library_path() is None:
        return "no NVRTC library: pip install nvidia-cuda-nvrtc"
    if include() is None:
        return "no CUDA headers: pip install nvidia-cuda-runtime nvidia-cuda-crt"
    return None


def version() -> tuple[int, int]:
    """(major, minor) of the compiler."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def compile(  # noqa: A001 - the module's one verb
    text: str, expressions: Iterable[str], arch: str, options: Iterable[str] = ("-std=c++17",)
) -> tuple[bytes, dict[str, str]]:
    """Compile `text` for `arch` ("sm_90") with the template instantiations `expressions`.

    Returns the machine code (a cubin) and the mangled name of each expression. Raises CompileError
    with the log.
    """
    nvrtc, program, expressions = _library(), ctypes.c_void_p(), list(expressions)
    _check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"source.cu", 0, None, None)
    )
    try:
        for expression in expressions:
            _check(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
        flags = [f"-arch={arch}", f"-I{include()}", *options]
        c_flags = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        failed = nvrtc.nvrtcCompileProgram(program, len(flags), c_flags)
        if failed:
            raise CompileError(_text(nvrtc, program, "ProgramLog"))
        lowered = {}
        for expression in expressions:
            name = ctypes.c_char_p()
            _check(nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
            lowered[expression] = (name.value or b"").decode()
        return _bytes(nvrtc, program, "CUBIN"), lowered
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    return _bytes(nvrtc, program, what).rstrip(b"\0").decode(errors="replace")


def _check(status: int) -> None:
    if status:
        nvrtc = _library()
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status).decode()}")


@cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    if path is None:
        raise RuntimeError(missing())
    return ctypes.CDLL(str(path))


@cache
def _library_path() -> Path | None:
    found = [
        file
        for root in cuda_roots()
        for folder in ("lib", "lib64", "bin", "cuda_nvrtc/lib", "bin/x86_64")
        for file in sorted((root / folder).glob(_NAMES))
    ]
    return found[0] if found else None


@cache
def include() -> Path | None:
    """The first folder that holds every header our sources need."""
    for root in cuda_roots():
        for folder in (root / "include", root / "cuda_runtime" / "include"):
            if all((folder / header).exists() for header in _HEADERS):
                return folder
    return None


def cuda_roots() -> list[Path]:
    """Where CUDA may be: the pip wheels' folders, then a toolkit."""
    spec = find_spec("nvidia")
    wheels = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    toolkit = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return [
        *(
            versioned
            for folder in wheels
            for versioned in sorted(folder.glob("cu[0-9]*"), reverse=True)
        ),
        *wheels,
        Path(toolkit),
    ]
