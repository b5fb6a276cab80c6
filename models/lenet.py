"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998): two convolutions with pooling, three linear
layers; with ReLU and maxima in place of tanh and averages unless asked for.

model = LeNet(LeNetConfig(shape=(1, 28, 28)))
logits = model(images)                                    # (N, 1, 28, 28) -> (N, 10)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework import layers
from framework.autograd import Tensor
from models.images import ImageConfig, check_choice, check_counts, check_share


@dataclass(frozen=True)
class LeNetConfig(ImageConfig):
    """The channels of both convolutions, the widths of both hidden layers, and what is between
    them. ValueError names a setting that cannot be.
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    channels: tuple[int, ...] = (6, 16)
    hidden: tuple[int, ...] = (120, 84)
    activation: Literal["relu", "tanh"] = "relu"
    pooling: Literal["max", "avg"] = "max"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", check_counts("channels", self.channels, 2))
        object.__setattr__(self, "hidden", check_counts("hidden", self.hidden, 2))
        check_choice("activation", self.activation, ("relu", "tanh"))
        check_choice("pooling", self.pooling, ("max", "avg"))
        check_share("dropout", self.dropout)
        if min(self.shape[1:]) < 4:
            height, width = self.shape[1:]
            raise ValueError(f"shape is {self.shape}: LeNet halves images of {height}x{width} "
                             "pixels twice, expected at least 4x4")  # fmt: skip


class LeNet(layers.Module):
    """Images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, config: LeNetConfig) -> None:
        super().__init__()
        self.config = config
        (channels, height, width), (a, b) = config.shape, config.channels
        # The second convolution has no border in the paper; images too small for that get one.
        small = min(height, width) < 12
        self.conv1 = layers.Conv2d(channels, a, 5, padding=2)
        self.conv2 = layers.Conv2d(a, b, 5, padding=2 if small else 0)
        lost = 0 if small else 4
        self.activation = {"relu": layers.ReLU, "tanh": layers.Tanh}[config.activation]()
        self.pool = {"max": layers.MaxPool2d, "avg": layers.AvgPool2d}[config.pooling](2)
        features = b * ((height // 2 - lost) // 2) * ((width // 2 - lost) // 2)
        self.dropout = layers.Dropout(config.dropout) if config.dropout else layers.Identity()
        self.fc1 = layers.Linear(features, config.hidden[0])
        self.fc2 = layers.Linear(*config.hidden)
        self.fc3 = layers.Linear(config.hidden[1], config.classes)

    def forward(self, x: Tensor) -> Tensor:
        # The largest of activations is the activation of the largest: a quarter of the work. The
        # average is not.
        first, then = self.activation, self.pool
        if isinstance(then, layers.MaxPool2d):
            first, then = then, first
        x = then(first(self.conv1(x)))  # (N, 6, H/2, W/2)
        x = then(first(self.conv2(x)))  # (N, 16, (H/2 - 4)/2, (W/2 - 4)/2)
        x = x.flatten(1)
        x = self.activation(self.fc1(x))  # (N, 120)
        x = self.activation(self.fc2(self.dropout(x)))  # (N, 84)
        return self.fc3(x)
