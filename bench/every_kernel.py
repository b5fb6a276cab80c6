"""Every kernel once on CUDA, for tools that watch a program: python -m bench.every_kernel

Arrays come straight from cudaMalloc instead of CuPy's pool: only so does an access beyond an array
leave what the tool knows to be allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import cases
from bench.cases import Shape, size_text
from bench.cuda_sides import to_device
from kernels.registry import Draw, Kernel

#: Odd sizes, and rows that one block shares out: the ends of packs and of loops.
SHAPES = [(33, 65), (3, 1101)]


@dataclass(frozen=True)
class Call:
    """One of the kernel's own samples at a size, in a dtype."""

    kernel: Kernel
    sample: str
    shape: Shape
    dtype: str

    def __str__(self) -> str:
        sample = "" if self.sample == "_" else f"-{self.sample}"
        return f"{self.kernel.name}{sample}[{size_text(self.shape)}] {self.dtype}"

    def run(self) -> Any:
        """The kernel's results."""
        drawn = self.kernel.samples[self.sample](Draw(1), self.shape)
        dtype = cases.DTYPES[self.dtype]
        args = [cases.cast(a, dtype) for a in drawn]
        return self.kernel(*(to_device(a) if isinstance(a, np.ndarray) else a for a in args))


def every() -> list[Call]:
    """Each sample of each kernel with a CUDA version, at each size and dtype."""
    return [
        Call(kernel, sample, shape, dtype)
        for kernel in cases.load().values()
        if any(device == "cuda" for device, _ in kernel._versions)
        for sample in kernel.samples
        for shape in SHAPES
        for dtype in cases.DTYPES
    ]


def main() -> None:
    """Run all, each named before: the last name is where a tool's limit ended it."""
    import cupy

    cupy.cuda.set_allocator(None)
    for call in every():
        print(f"kernel {call}", flush=True)
        call.run()
        cupy.cuda.Device().synchronize()
    print("every kernel ran", flush=True)


if __name__ == "__main__":
    main()
