"""BatchNorm, LayerNorm, RMSNorm, GroupNorm, InstanceNorm, LocalResponseNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework import functional as F
from framework.autograd import Tensor
from framework.layers import init
from framework.layers.checks import in_range, positive_integer, positive_integers
from framework.layers.module import Module
from framework.layers.storage import new_buffer, new_parameter


class _BatchNorm(Module):
    #: The shapes after (N, C) that are taken.
    _shapes: tuple[tuple[str, ...], ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_features = positive_integer(name, "num_features", num_features)
        self.eps = in_range(name, "eps", eps)
        self.momentum = None if momentum is None else in_range(name, "momentum", momentum, 0, 1)
        self.affine, self.track_running_stats = affine, track_running_stats
        shape = (self.num_features,)
        for key in ("weight", "bias"):
            self.register_parameter(key, new_parameter(shape, device, dtype) if affine else None)
        for key in ("running_mean", "running_var"):
            self.register_buffer(
                key, new_buffer(shape, device, dtype) if track_running_stats else None
            )
        count = new_buffer((), device, "int64") if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and forget the running statistics."""
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            init.zeros_(self.num_batches_tracked)

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Shape of x. With `residual` and with `activation` "relu" what follows is done at once."""
        if x.ndim - 2 not in map(len, self._shapes) or x.shape[1] != self.num_features:
            expected = (", ".join(("N", str(self.num_features), *more)) for more in self._shapes)
            raise ValueError(
                f"{type(self).__name__}: input has shape {x.shape}, expected "
                f"{' or '.join(f'({shape})' for shape in expected)}"
            )
        batch = self.training or not self.track_running_stats
        y = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            batch,
            self._momentum() if self.training and self.track_running_stats else 0.0,
            self.eps,
            activation,
            residual,
        )
        if (
            self.training and self.track_running_stats
        ):  # after: a batch that is refused does not count
            self.num_batches_tracked.data += 1
        return y

    def _momentum(self) -> float:
        if self.momentum is not None:
            return self.momentum
        return 1 / (1 + int(self.num_batches_tracked))  # waits for the device

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """In evaluation: one for each element, by scale and shift."""
        return int(output.size)


class BatchNorm1d(_BatchNorm):
    """Normalise each channel over the batch (Ioffe & Szegedy 2015). x (N, C) or (N, C, L), same
    shape out.

    In training by the batch's statistics, which also move `running_mean` and `running_var` by
    `momentum` (None: their cumulative average); in evaluation by the running statistics, or by the
    batch's without `track_running_stats`. A single value per channel in training is a ValueError.
    """

    _shapes = ((), ("L",))


class BatchNorm2d(_BatchNorm):
    """Normalise each channel over the batch and its pixels. x (N, C, H, W), same shape out; see
    `BatchNorm1d`.
    """

    _shapes = (("H", "W"),)


class BatchNorm3d(_BatchNorm):
    """Normalise each channel over the batch and its voxels. x (N, C, D, H, W), same shape out; see
    `BatchNorm1d`.
    """

    _shapes = (("D", "H", "W"),)


class LayerNorm(Module):
    """Normalise over the last axes, which have `normalized_shape` (Ba, Kiros & Hinton 2016)."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = positive_integers("LayerNorm", "normalized_shape", normalized_shape)
        self.eps = in_range("LayerNorm", "eps", eps)
        self.elementwise_affine = elementwise_affine
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            parameter = new_parameter(self.normalized_shape, device, dtype) if wanted else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        _reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Two for each element: the variance, and scale and shift."""
        return int(2 * output.size)


class RMSNorm(Module):
    """Divide by the root mean square over the last axes (Zhang & Sennrich 2019).

    `eps` None is the machine epsilon of the input's dtype, as in PyTorch.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = positive_integers("RMSNorm", "normalized_shape", normalized_shape)
        self.eps = None if eps is None else in_range("RMSNorm", "eps", eps)
        self.elementwise_affine = elementwise_affine
        parameter = (
            new_parameter(self.normalized_shape, device, dtype) if elementwise_affine else None
        )
        self.register_parameter("weight", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        _reset(self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        eps = _EPSILON.get(x.dtype.name, 0.0) if self.eps is None else self.eps
        return F.rms_norm(x, self.normalized_shape, self.weight, eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Two for each element: the mean square, and the scale."""
        return int(2 * output.size)


#: The distance from 1 to the next number.
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class GroupNorm(Module):
    """Normalise each sample over `num_groups` groups of channels (Wu & He 2018). x (N, C, *), same
    shape out.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_groups = positive_integer("GroupNorm", "num_groups", num_groups)
        self.num_channels = positive_integer("GroupNorm", "num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"GroupNorm: num_channels={num_channels} is not a multiple of "
                f"num_groups={num_groups}"
            )
        self.eps = in_range("GroupNorm", "eps", eps)
        self.affine = affine
        for name in ("weight", "bias"):
            parameter = new_parameter((self.num_channels,), device, dtype) if affine else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        _reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"GroupNorm: input has shape {x.shape}, expected (N, {self.num_channels}, ...)"
            )
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Two for each element: the variance, and scale and shift."""
        return int(2 * output.size)


class _InstanceNorm(Module):
    _axes: tuple[str, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_features = positive_integer(name, "num_features", num_features)
        self.eps = in_range(name, "eps", eps)
        self.affine = affine
        for parameter in ("weight", "bias"):
            values = new_parameter((self.num_features,), device, dtype) if affine else None
            self.register_parameter(parameter, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        _reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        if x.ndim != 2 + len(self._axes) or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input has shape {x.shape}, expected (N, "
                f"{self.num_features}, {', '.join(self._axes)})"
            )
        return F.instance_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Two for each element: the variance, and scale and shift."""
        return int(2 * output.size)


class InstanceNorm1d(_InstanceNorm):
    """Normalise each channel of each sample over its positions (Ulyanov et al. 2016). x (N, C, L),
    same shape out.

    Always by the sample's own statistics: there are no running ones.
    """

    _axes = ("L",)


class InstanceNorm2d(_InstanceNorm):
    """Normalise each channel of each image over its pixels (Ulyanov et al. 2016). x (N, C, H, W),
    same shape out.

    Always by the image's own statistics: there are no running ones.
    """

    _axes = ("H", "W")


class InstanceNorm3d(_InstanceNorm):
    """Normalise each channel of each sample over its voxels. x (N, C, D, H, W), same shape out.

    Always by the sample's own statistics: there are no running ones.
    """

    _axes = ("D", "H", "W")


class LocalResponseNorm(Module):
    """x / (k + alpha m)^beta, m the mean of x^2 over the `size` channels around each one
    (Krizhevsky et al. 2012). x (N, C, *), same shape out.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = positive_integer("LocalResponseNorm", "size", size)
        self.alpha, self.beta, self.k = alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


def _reset(weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None:
        init.ones_(weight)
    if bias is not None:
        init.zeros_(bias)
