"""Arrays in, arrays out: hand-written kernels for NumPy (CPU) and CuPy (CUDA). Knows no Tensor."""

from kernels import (
    activations as activations,
    attention as attention,
    channel_norm as channel_norm,
    convolution as convolution,
    embedding as embedding,
    extremes as extremes,
    finite as finite,
    group_norm as group_norm,
    gru as gru,
    linear as linear,
    linear_cross_entropy as linear_cross_entropy,
    loss_scaling as loss_scaling,
    losses as losses,
    lstm as lstm,
    matmul as matmul,
    norm_relu as norm_relu,
    normalization as normalization,
    optimizers as optimizers,
    pooling as pooling,
    positions as positions,
    random as random,
    recurrent as recurrent,
    reductions as reductions,
    residual_norm as residual_norm,
    softmax as softmax,
    unfolding as unfolding,
    upsampling as upsampling,
)
from kernels.registry import Kernel, all_kernels, kernel, reference_kernels

__all__ = ["Kernel", "all_kernels", "kernel", "reference_kernels"]
