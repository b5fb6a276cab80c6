"""Arrays in, arrays out: hand-written kernels for NumPy (CPU) and CuPy (CUDA). Knows no Tensor."""

from kernels import activations as activations
from kernels import matmul as matmul
from kernels import random as random
from kernels.registry import Kernel, all_kernels, kernel, reference_kernels

__all__ = ["Kernel", "all_kernels", "kernel", "reference_kernels"]
