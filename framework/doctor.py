"""``python -m framework doctor``: what this machine has, and which version of each kernel would
run.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
from collections import defaultdict
from typing import Any

from rich.markup import escape

from framework.backend.device import Device, DeviceError, default_device, probe_cuda
from framework.screen import console, device_name, facts, table, title
from framework.trainer.run import version_of

#: Library -> what it is for, and how to get it.
LIBRARIES = {
    "numpy": ("arrays on the CPU", "numpy"),
    "numba": ("the CPU kernels' engine; without it the references run", "numba"),
    "ml_dtypes": ("bfloat16 on the CPU", "ml_dtypes"),
    "safetensors": ("weights and checkpoints", "safetensors"),
    "rich": ("tables and progress", "rich"),
    "typer": ("this command line", "typer"),
    "cupy": ("arrays and kernels on CUDA", '"cupy-cuda13x[ctk]"'),
    "nvidia-cudnn-frontend": (
        "convolutions and 16-bit attention on CUDA; without it our own kernels",
        "nvidia-cudnn-frontend nvidia-cudnn-cu13",
    ),
    "matplotlib": ("curves.png", "matplotlib"),
    "tokenizers": ("byte-level BPE and WordPiece", "tokenizers"),
    "torch": ("a peer for python -m bench", "torch"),
}

#: Columns where the output is no terminal: what people paste into a report of a bug.
WIDTH = 100

#: The one that is no Python package.
CUBLASLT = ("matrix products on CUDA; without it CuPy's", "nvidia-cublas")


def report() -> None:
    """Print everything."""
    width = None if console().is_terminal else WIDTH
    title("machine")
    console().print(facts(machine()), width=width)
    title("\ndevices")
    console().print(facts(devices()), width=width)
    title("\nlibraries")
    console().print(libraries(), width=width)
    title("kernels")
    console().print(kernel_table(), width=width)


def machine() -> dict[str, str]:
    """Versions, the CPU, the threading layer, folders."""
    from framework import __version__
    from framework.data import cache_folder, data_folder

    rows = {
        "framework": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{_cpu_name()}, {os.cpu_count()} threads",
        **_engine(),
        "data folder": str(data_folder() or "FRAMEWORK_DATA is not set"),
        "downloads": str(cache_folder()),
    }
    return {name: escape(text) for name, text in rows.items()}


def _engine() -> dict[str, str]:
    """What numba sees: features, threading layer, cache."""
    from kernels.registry import has_numba

    if not has_numba():
        return {"cpu kernels": "numba is not installed: the references run"}
    import llvmlite.binding as llvm

    from kernels.cpu import engine

    features = llvm.get_host_cpu_features()
    notable = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bf16", "neon", "sve")
    return {
        "cpu model": llvm.get_host_cpu_name(),
        "cpu features": ", ".join(name for name in notable if features.get(name)) or "none of note",
        "threading": _threading_layer(engine.threads()),
        "kernel cache": str(engine.cache_folder()),
    }


def _threading_layer(threads: int) -> str:
    """What starts the threads: GCC's OpenMP, called directly, or what numba chooses when it runs a
    parallel loop.
    """
    import numba
    import numpy as np

    from kernels import activations
    from kernels.cpu.team import has_team

    if threads == 1:
        return "one thread"
    if has_team():
        return f"OpenMP (libgomp), {threads} threads"
    activations.relu(np.zeros(1 << 17, np.float32))
    return f"{numba.threading_layer()}, {threads} threads"


def devices() -> dict[str, str]:
    """The CPU, every CUDA device or why there is none, and the default."""
    rows = {"cpu": device_name("cpu").removeprefix("cpu ").strip("()")}
    probe = probe_cuda()
    if probe.usable:
        count = Device("cuda").module.cuda.runtime.getDeviceCount()
        rows |= {f"cuda:{i}": device_name(f"cuda:{i}") for i in range(count)}
    else:
        rows["cuda"] = escape(f"not usable: {probe}")
    try:
        rows["default"] = str(default_device())
    except (ValueError, DeviceError) as error:  # a wrong FRAMEWORK_DEVICE
        rows["default"] = f"[red]{escape(str(error))}[/]"
    return rows


def libraries() -> Any:
    """Found and missing, each missing one with its pip command."""
    from kernels.cuda import cublaslt

    out = table("library", "version", "for")
    rows = [(name, version_of(name), *about) for name, about in LIBRARIES.items()]
    found = None if cublaslt.missing() else ".".join(map(str, cublaslt.version()))
    after_cupy = list(LIBRARIES).index("cupy") + 1
    rows.insert(after_cupy, ("cuBLASLt", found, *CUBLASLT))
    for name, version, purpose, package in rows:
        if version is None:
            out.add_row(
                name, "[yellow]missing[/]", f"{purpose}: [bold]pip install {escape(package)}[/]"
            )
        else:
            out.add_row(name, f"[green]{version}[/]", purpose)
    return out


def kernel_table() -> Any:
    """The kernels of each family by the versions that run for float32: on the CPU and on CUDA."""
    import kernels
    from kernels.registry import all_kernels

    for module in pkgutil.iter_modules(kernels.__path__):
        if not module.ispkg:
            importlib.import_module(f"kernels.{module.name}")
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, kernel in all_kernels().items():
        groups[kernel.family, on_cpu(kernel), on_cuda(kernel)].append(name)
    usable = probe_cuda().usable
    out = table("family", "cpu", "cuda" if usable else "cuda (not here)", "kernels")
    last = ""
    for (family, cpu, cuda), names in sorted(groups.items()):
        cuda = cuda if usable else f"[dim]{cuda}[/]"
        shown = family if family != last else ""
        out.add_row(shown, _coloured(cpu), cuda, f"[dim]{', '.join(names)}[/]")
        last = family
    return out


def on_cpu(kernel: Any) -> str:
    """The version: "numba", or "reference" where the array maths runs on NumPy."""
    return "numba" if _tuned(kernel, "cpu") is not None else "reference"


def _tuned(kernel: Any, device: str) -> Any:
    """The tuned version for float32, or for the integers that some draws fill; None without."""
    return kernel.version(device) or kernel.version(device, "int64")


def on_cuda(kernel: Any) -> str:
    """The version: "compiled" from a .cu file, "generated" from a formula, "cuBLASLt" or "CuPy" for
    matrix products, or "reference", the array maths on CuPy.
    """
    from kernels.cuda import cublaslt
    from kernels.elementwise import Elementwise

    version = _tuned(kernel, "cuda")
    if version is None:
        return "reference"
    if kernel.family in ("matmul", "linear"):
        return "CuPy" if cublaslt.missing() else "cuBLASLt"
    generated = isinstance(kernel, Elementwise) and getattr(version, "__self__", None) is kernel
    return "generated" if generated else "compiled"


def _coloured(version: str) -> str:
    return f"[yellow]{version}[/]" if version == "reference" else f"[green]{version}[/]"


def _cpu_name() -> str:
    """The CPU's name as its maker gives it."""
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
