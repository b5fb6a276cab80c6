"""Arrays in, arrays out: hand-written kernels for NumPy (CPU) and CuPy (CUDA). Knows no Tensor."""

from kernels import (
    activations as activations,
    attention as attention,
    channel_norm as channel_norm,
    embedding as embedding,
    extremes as extremes,
    group_norm as group_norm,
    linear as linear,
    linear_cross_entropy as linear_cross_entropy,
    loss_scaling as loss_scaling,
    losses as losses,
    matmul as matmul,
    normalization as normalization,
    optimizers as optimizers,
    positions as positions,
    random as random,
    reductions as reductions,
    residual_norm as residual_norm,
    softmax as softmax,
)
from kernels.registry import Kernel, all_kernels, kernel, reference_kernels

__all__ = ["Kernel", "all_kernels", "kernel", "reference_kernels"]
