"""Linear, Bilinear, Identity, Flatten."""

from __future__ import annotations

import math
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.checks import positive_integer
from framework.layers.module import Module
from framework.layers.storage import new_parameter


class Linear(Module):
    """y = x W^T + b. x (*, in_features) -> (*, out_features); weight (out, in), bias (out,).

    Both start as U(-k, k), k = 1 / sqrt(in_features), as in PyTorch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = positive_integer("Linear", "in_features", in_features)
        self.out_features = positive_integer("Linear", "out_features", out_features)
        self.weight = new_parameter((self.out_features, self.in_features), device, dtype)
        if bias:
            self.bias = new_parameter((self.out_features,), device, dtype)
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # = U(-1/sqrt(in), 1/sqrt(in))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """x (*, in_features) -> (*, out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """in_features for every output element."""
        return int(output.size * self.in_features)


class Bilinear(Module):
    """y_k = x1^T W_k x2 + b_k. x1 (*, in1), x2 (*, in2) -> (*, out); weight (out, in1, in2), bias
    (out,).

    Both start as U(-k, k), k = 1 / sqrt(in1_features), as in PyTorch.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in1_features = positive_integer("Bilinear", "in1_features", in1_features)
        self.in2_features = positive_integer("Bilinear", "in2_features", in2_features)
        self.out_features = positive_integer("Bilinear", "out_features", out_features)
        shape = (self.out_features, self.in1_features, self.in2_features)
        self.weight = new_parameter(shape, device, dtype)
        if bias:
            self.bias = new_parameter((self.out_features,), device, dtype)
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        bound = 1 / math.sqrt(self.in1_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """x1 (*, in1_features), x2 (*, in2_features) -> (*, out_features)."""
        return F.bilinear(x1, x2, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """x1 W for every row of W, then its product with x2."""
        return int(output.size * (self.in1_features + 1) * self.in2_features)


class Identity(Module):
    """The input, unchanged. Arguments are accepted and ignored, so that it can stand in for any
    layer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


class Flatten(Module):
    """Join the axes `start_dim` to `end_dim`; by default everything but the batch axis."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        """x (N, *) -> (N, product of *)."""
        return F.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
