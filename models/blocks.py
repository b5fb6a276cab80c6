"""What convolutional families share: blocks of layers, and He's initialisation.

Modules that torchvision has too have its names of parameters, so that weights move across.
"""

from __future__ import annotations

import framework as fw
from framework import functional as F, layers
from framework.autograd import Tensor
from framework.layers import Module, init, new_parameter


class LayerNorm2d(Module):
    """Layer norm over the channels of each pixel: x (N, C, H, W), same shape out."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = new_parameter((channels,))
        self.bias = new_parameter((channels,))
        init.ones_(self.weight)
        init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (N, H, W, C): how it lies in memory
        return F.layer_norm(x, x.shape[-1], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Permute(Module):
    """Axes in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(map(str, self.order))


class StochasticDepth(Module):
    """In training a sample's branch is left out with probability `p`, else divided by 1 - p (Huang
    et al. 2016). x (N, ...), same shape out.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        ones = fw.ones((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x * F.dropout(ones, self.p)

    def extra_repr(self) -> str:
        """The argument."""
        return f"p={self.p:g}"


def he_init(model: Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / fan_out), biases 0 (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, layers.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
