"""The part of the contract that runs under AddressSanitizer, in a process of its own:

    python -m tests.cuda_emulator.sanitizer matrix float32      # every case, small sizes
    python -m tests.cuda_emulator.sanitizer planted global      # a mistake that must be found

`environment` is what such a process has to be started with: Python itself knows nothing of the
sanitizer, so its library is loaded before all others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import numpy as np

#: Where an access goes wrong: the kernel, and what the report says of the memory.
PLANTED = {
    "global": (
        "__global__ void f(float* y) { y[0] = y[4]; }",
        "heap-buffer-overflow",
    ),
    "static shared": (
        "__global__ void f(float* y) {"
        " __shared__ float a[5], b[5]; a[threadIdx.x] = b[threadIdx.x] = 1.0f;"
        " y[threadIdx.x] = a[threadIdx.x + 2] + b[threadIdx.x + 2]; }",
        "global-buffer-overflow",
    ),
    "dynamic shared": (
        "__global__ void f(float* y) { SHARED_MEMORY(float, s);"
        " s[threadIdx.x] = 1.0f; y[threadIdx.x] = s[threadIdx.x + 1]; }",
        "heap-buffer-overflow",
    ),
}


@cache
def library() -> str | None:
    """The compiler's libasan.so; None if it has none."""
    from tests.cuda_emulator import programs

    command = [str(programs.compiler_path()), "-print-file-name=libasan.so"]
    path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) else None


def missing() -> str | None:
    return None if library() else "the C++ compiler has no libasan.so"


def environment() -> dict[str, str]:
    # Python leaks by design; the emulator's stacks are none that the sanitizer could move
    options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0"
    variables = {"LD_PRELOAD": str(library()), "ASAN_OPTIONS": options, "EMULATOR_SANITIZE": "1"}
    return os.environ | variables


def main(what: str, which: str) -> None:
    from kernels.cuda import compiler
    from tests.cuda_emulator import cupy_module, matrix

    with cupy_module.installed() as cupy:
        if what == "matrix":
            matrix.check_few(which)
        else:
            module = cupy.RawModule(
                code=compiler.common() + PLANTED[which][0],
                options=compiler.OPTIONS,
                name_expressions=("f",),
            )
            y = cupy.empty(4, np.float32)
            module.get_function("f")((1,), (4,), (y,), shared_mem=16)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
