"""CUDA sources to modules: common.cuh + one .cu file, compiled by CuPy through NVRTC and kept."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from kernels import compiling

FOLDER = Path(__file__).parent

#: --fmad stays on (the default); no fast-math: NaN, infinities and 1 ulp matter more than a few
#: percent.
OPTIONS = ("-std=c++17",)

#: NumPy's dtype name -> CUDA C++ type.
TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}


@cache
def common() -> str:
    """The text that goes before every source."""
    return (FOLDER / "common.cuh").read_text(encoding="utf-8")


@cache
def source(family: str) -> str:
    """The whole text of kernels/cuda/<family>.cu, ready to compile."""
    return common() + (FOLDER / f"{family}.cu").read_text(encoding="utf-8")


@cache
def function(family: str, expression: str) -> Any:
    """The compiled kernel `expression` (a template instantiation, ``softmax_rows<float>``) of
    <family>.cu.
    """
    return compiled(source(family), expression)


@cache
def compiled(text: str, expression: str) -> Any:
    """Compile `text` for the current device and return the kernel called `expression`.

    One instantiation a module: what a process uses is compiled (0.1-0.3 s, then in CuPy's disk
    cache), nothing else.
    """
    import cupy

    with compiling.told():
        module = cupy.RawModule(code=text, options=OPTIONS, name_expressions=(expression,))
        return module.get_function(expression)
