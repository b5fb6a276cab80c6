"""Layer norm, step 6: the framework's kernel.

Idea: kernels/cuda/normalization.cu is step 4 for rows of up to 1024 elements, and the same with a
    block a row beyond; it leaves the second and third read to L1 and keeps its registers. It has
    three element types, RMS norm, and writes down mean and rstd for the gradient.
Memory: 3 reads, of which 2 from L1 or L2, and 1 write of 4 bytes an element, and 8 bytes a row.
Faster, or not: up to 1024 columns it should take what step 4 takes. Where step 5 is clearly faster
    the kernel has something to learn. Try --size 1024x8192, where a warp alone has a row of step 5.
"""

from __future__ import annotations

from typing import Any

from kernels.normalization import layer_norm


def run(x: Any, weight: Any, bias: Any) -> Any:
    """The layer norm of each row of x."""
    return layer_norm(x, weight, bias, 1e-5)[0]
