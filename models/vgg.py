"""A small VGG (Simonyan & Zisserman 2015): stages of 3x3 convolutions, each stage half as large and
twice as wide, with batch norm (Ioffe & Szegedy 2015).

model = VGG(VGGConfig(shape=(3, 32, 32)))
logits = model(images)                                    # (N, 3, 32, 32) -> (N, 10)
"""

from __future__ import annotations

from dataclasses import dataclass

from framework import layers
from framework.autograd import Tensor
from models.blocks import he_init
from models.images import ImageConfig, check_count, check_counts, check_share


@dataclass(frozen=True)
class VGGConfig(ImageConfig):
    """The channels of each stage, the convolutions in each, the hidden layer's width. ValueError
    names a setting that cannot be.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    convolutions: int = 2
    hidden: int = 256
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", check_counts("channels", self.channels))
        check_count("convolutions", self.convolutions)
        check_count("hidden", self.hidden)
        check_share("dropout", self.dropout)
        if not self.channels:
            raise ValueError("channels is (), expected at least one stage")
        halvings = len(self.channels)
        if min(self.shape[1:]) >> halvings < 1:
            raise ValueError(
                f"shape is {self.shape}: {halvings} stages (channels is {self.channels}) halve it "
                f"{halvings} times, expected at least {2**halvings}x{2**halvings} pixels"
            )


class VGG(layers.Module):
    """Images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        inputs, height, width = config.shape
        stages: list[layers.Module] = []
        for channels in config.channels:
            for _ in range(config.convolutions):
                stages.append(Block(inputs, channels))
                inputs = channels
            stages.append(layers.MaxPool2d(2))
            height, width = height // 2, width // 2
        self.features = layers.Sequential(*stages)
        self.flatten = layers.Flatten()
        self.classifier = layers.Sequential(
            layers.Linear(inputs * height * width, config.hidden),
            layers.ReLU(),
            layers.Dropout(config.dropout),
            layers.Linear(config.hidden, config.classes),
        )
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.features(x))  # (N, channels[-1] * H' * W')
        return self.classifier(x)


class Block(layers.Module):
    """x (N, inputs, H, W) -> relu(bn(conv(x))) (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # Batch norm subtracts the mean, and any bias with it.
        self.conv = layers.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = layers.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x), "relu")
