"""NVIDIA's compute-sanitizer over every kernel: accesses out of bounds, races in shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_tests import ROOT
from kernels.cuda.nvrtc import cuda_roots

TOOLS = ("memcheck", "racecheck")

MISSING = (
    "compute-sanitizer is not installed, so memory accesses are not checked: it comes with the "
    "CUDA toolkit, or pip install nvidia-cuda-sanitizer-api (nvidia-cuda-sanitizer-api-cu12)"
)

#: Lines of the tool that are kept.
_MOST_LINES = 40

PROGRAM = (sys.executable, "-m", "bench.every_kernel")


def find() -> str | None:
    """The tool: on the path, in a pip wheel or in a toolkit."""
    inside = ("compute-sanitizer", "bin", "cuda_sanitizer_api/bin")
    folders = [None, *(str(root / folder) for root in cuda_roots() for folder in inside)]
    found = (shutil.which("compute-sanitizer", path=folder) for folder in folders)
    return next((path for path in found if path), None)


def run(
    tool: str, seconds: float, program: Sequence[str] = PROGRAM, sanitizer: str | None = None
) -> dict[str, Any]:
    """`program` under `tool` for at most `seconds`: errors, their first lines, how far it came."""
    sanitizer = sanitizer or find()
    if sanitizer is None:
        return {"tool": tool, "problem": MISSING}
    begin = time.monotonic()
    command = [sanitizer, "--tool", tool, "--print-limit", "20", *program]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(seconds, 1.0),
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = _text(error.stdout), None
    except OSError as error:
        return {"tool": tool, "problem": f"{Path(sanitizer).name} does not start: {error.strerror}"}
    return read(tool, output, code) | {"seconds": round(time.monotonic() - begin, 1)}


def _text(output: Any) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def read(tool: str, output: str, code: int | None) -> dict[str, Any]:
    """What the tool said; `code` is None where the time was up."""
    lines = output.splitlines()
    ran = [line.removeprefix("kernel ") for line in lines if line.startswith("kernel ")]
    said = [line for line in lines if line.startswith("=========")]
    counts = [m for line in said if (m := re.search(r"SUMMARY: (\d+) (?:error|hazard)", line))]
    # without a summary, which a killed tool does not write: the headings of its reports
    found = [line for line in said if re.search(r"Invalid|Error:|Race reported|Program hit", line)]
    complete = "every kernel ran" in lines
    problem = None
    if code is not None and not complete:
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        problem = f"ended with code {code} in {ran[-1] if ran else 'no kernel'}: {last[:200]}"
    return {
        "tool": tool,
        "errors": int(counts[-1][1]) if counts else len(found),
        "kernels": len(ran),
        "complete": complete,
        "last": ran[-1] if ran and not complete else None,
        "problem": problem,
        "report": [line for line in said if line.strip("= ")][:_MOST_LINES],
    }
