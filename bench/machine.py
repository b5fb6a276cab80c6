"""Where figures come from: the machine, the versions and the commit; and writing them down."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.sizes import Device

#: Changes when a reader of older files would misread newer ones.
FORMAT = 1

_PACKAGES = (
    *("numpy", "numba", "llvmlite", "ml_dtypes", "torch", "triton"),
    *("cupy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cublas", "nvidia-cublas-cu12"),
)
_PEERS = ("cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton")
#: What decides which vector code runs.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "neon", "asimd", "sve")


def describe(threads: int | None = None, device: Device = "cpu") -> dict[str, Any]:
    """Processor, cores, features, versions, commit and load, and the GPU if that is measured, for
    JSON.
    """
    cpu = _proc_cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "format": FORMAT,
        "device": device,
        **({"gpu": gpu()} if device == "cuda" else {}),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": threads or os.cpu_count() or 1,
        "features": [f for f in _FEATURES if f in flags],
        "memory": _memory(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {p: v for p in _PACKAGES if (v := _version(p))},
        "commit": commit(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def gpu() -> dict[str, Any]:
    """The current CUDA device: its name, memory, caches, the driver and the runtime."""
    import cupy

    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    name = properties["name"]
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": int(properties["multiProcessorCount"]),
        "memory": int(properties["totalGlobalMem"]),
        "l2_cache": int(properties["l2CacheSize"]),
        "driver": _nvidia_driver(),
        "cuda_of_driver": cuda_version(runtime.driverGetVersion()),
        "cuda_runtime": cuda_version(runtime.runtimeGetVersion()),
    }


def cuda_version(number: int) -> str:
    """13.1 for 13010."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _nvidia_driver() -> str | None:
    """The driver's own version, which CUDA does not tell; None where the system does not either."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    if found := re.search(r"Module.*?\s(\d+\.[\d.]+)\s", text):
        return found[1]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (run.stdout.split() or [None])[0] if run.returncode == 0 else None


def headline(facts: dict[str, Any]) -> str:
    """One line about the machine for the top of a table."""
    if "gpu" in facts:
        gpu = facts["gpu"]
        versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if k in _PEERS)
        driver = f"driver {gpu['driver']}, CUDA {gpu['cuda_runtime']}"
        return f"{gpu['name']}, {driver}; {versions}"
    features = next((f for f in ("avx512f", "avx2", "asimd") if f in facts["features"]), "")
    busy = facts["load"] is not None and facts["load"] > facts["cores"] / 2
    load = f", BUSY: load {facts['load']:g} before the run" if busy else ""
    versions = ", ".join(
        f"{k} {v}" for k, v in facts["versions"].items() if k in ("numba", "torch")
    )
    cores = f"{facts['cores']} cores {features}".strip()
    return f"{facts['cpu']}, {cores}, {facts['threads']} threads a side{load}; {versions}"


def has_torch() -> bool:
    """Is the peer installed? (It is not imported here.)"""
    return find_spec("torch") is not None


TORCH_IS_MISSING = (
    "torch is not installed, so it is not compared: pip install torch "
    "--index-url https://download.pytorch.org/whl/cpu (or pip install -e '.[bench]')"
)


def has_compiler() -> bool:
    """Is there what torch.compile builds its CPU code with?"""
    return any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))))


COMPILER_IS_MISSING = (
    "torch.compile needs a C++ compiler on the CPU, so it is not compared: install g++ or set CXX"
)


def has_triton() -> bool:
    """Is it installed? (It comes with torch for CUDA on Linux.)"""
    return find_spec("triton") is not None


TRITON_IS_MISSING = "triton is not installed, so it is not compared: pip install triton"

#: Where results that README shows are kept.
RESULTS = Path(__file__).parent / "results"


def result_path(facts: dict[str, Any]) -> Path:
    """A file for results of the machine that `facts` describe."""
    name = facts["gpu"]["name"] if "gpu" in facts else facts["cpu"]
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / f"{words}-{facts['date'][:19].replace(':', '')}.json"


def commit() -> str | None:
    """The commit of this tree, with "+" if it has been changed since; None outside git."""
    root = Path(__file__).parent
    try:
        run = [
            subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10)
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if run[0].returncode:
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")


def write(path: Path, facts: dict[str, Any]) -> None:
    """`facts` as JSON, in which NaN and infinities become null. Raises OSError."""
    text = json.dumps(_finite(facts), indent=1, allow_nan=False)
    if path.exists() and not path.is_file():  # a pipe or /dev/stdout
        path.write_text(text + "\n", encoding="utf-8")
        return
    # renamed into place: a kill leaves the figures of before
    new = path.with_name(path.name + ".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _proc_cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty elsewhere than on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory() -> int | None:
    """Bytes of main memory, where the system says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
