"""Activation functions as modules: one class each, with PyTorch's arguments."""

from __future__ import annotations

from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.checks import one_of, positive_integer
from framework.layers.module import Module
from framework.layers.storage import new_parameter


class Sigmoid(Module):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.tanh(x)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.relu(x)


class ReLU6(Module):
    """min(max(x, 0), 6)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.relu6(x)


class LeakyReLU(Module):
    """x where positive, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """The argument."""
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """x where positive, else weight * x; the weight (num_parameters,) is learned (He et al. 2015).

    One weight for everything, or one for each channel (axis 1). It starts as `init`.
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_parameters = positive_integer("PReLU", "num_parameters", num_parameters)
        self.init = init
        self.weight = new_parameter((self.num_parameters,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to `init`."""
        init.constant_(self.weight, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.prelu(x, self.weight)

    def extra_repr(self) -> str:
        """The argument."""
        return f"num_parameters={self.num_parameters}"


class ELU(Module):
    """x where positive, else alpha * (e^x - 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.elu(x, self.alpha)

    def extra_repr(self) -> str:
        """The argument."""
        return f"alpha={self.alpha}"


class SELU(Module):
    """Scaled ELU, whose fixed point is mean 0 and variance 1 (Klambauer et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.selu(x)


class CELU(Module):
    """max(x, 0) + min(alpha * (e^(x / alpha) - 1), 0) (Barron 2017)."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if alpha == 0:
            raise ValueError("CELU: alpha=0, expected a number other than 0")
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.celu(x, self.alpha)

    def extra_repr(self) -> str:
        """The argument."""
        return f"alpha={self.alpha}"


class GELU(Module):
    """x times the normal distribution function: exact ("none"), or through tanh ("tanh")."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = one_of("GELU", "approximate", approximate, ("none", "tanh"))

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """The argument."""
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x * sigmoid(x), also called swish."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.silu(x)


class Mish(Module):
    """x * tanh(softplus(x)) (Misra 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.mish(x)


class Softplus(Module):
    """log(1 + e^(beta x)) / beta; x itself where beta * x is above `threshold`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        if beta == 0:
            raise ValueError("Softplus: beta=0, expected a number other than 0")
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"beta={self.beta}, threshold={self.threshold}"


class Softsign(Module):
    """x / (1 + |x|)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.softsign(x)


class Hardsigmoid(Module):
    """min(max(x + 3, 0), 6) / 6."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.hardsigmoid(x)


class Hardswish(Module):
    """x * hardsigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.hardswish(x)


class Hardtanh(Module):
    """x limited to [min_val, max_val]."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        super().__init__()
        if not min_val < max_val:
            raise ValueError(f"Hardtanh: min_val={min_val} is not below max_val={max_val}")
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"min_val={self.min_val}, max_val={self.max_val}"


class LogSigmoid(Module):
    """log(sigmoid(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.logsigmoid(x)


class _Along(Module):
    """A function along one axis, `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"{type(self).__name__}: dim={dim!r}, expected an axis number")
        self.dim = dim

    def extra_repr(self) -> str:
        """The argument."""
        return f"dim={self.dim}"


class GLU(_Along):
    """a * sigmoid(b), a and b the halves of x along `dim` (Dauphin et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        """Half the size of x along `dim`."""
        return F.glu(x, self.dim)


class SwiGLU(_Along):
    """silu(a) * b, a and b the halves of x along `dim` (Shazeer 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        """Half the size of x along `dim`."""
        return F.swiglu(x, self.dim)


class Softmax(_Along):
    """e^x over its sum along `dim`. Losses take logits: cross-entropy contains its own softmax."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.softmax(x, self.dim)


class LogSoftmax(_Along):
    """log(softmax(x)) along `dim`."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.log_softmax(x, self.dim)
