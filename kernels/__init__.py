"""Arrays in, arrays out: hand-written kernels for NumPy (CPU) and CuPy (CUDA). Knows no Tensor."""

from kernels import activations as activations
from kernels import channel_norm as channel_norm
from kernels import embedding as embedding
from kernels import extremes as extremes
from kernels import group_norm as group_norm
from kernels import losses as losses
from kernels import matmul as matmul
from kernels import normalization as normalization
from kernels import optimizers as optimizers
from kernels import random as random
from kernels import reductions as reductions
from kernels import softmax as softmax
from kernels.registry import Kernel, all_kernels, kernel, reference_kernels

__all__ = ["Kernel", "all_kernels", "kernel", "reference_kernels"]
