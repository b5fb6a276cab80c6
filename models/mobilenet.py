"""MobileNetV2 (Sandler et al. 2018): narrow between blocks, wide and depthwise within; with
torchvision's names of parameters.

model = MobileNetV2(MobileNetV2Config(shape=(3, 32, 32)))
logits = model(images)                                    # (N, 3, 32, 32) -> (N, 10)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework import layers
from framework.autograd import Tensor
from framework.layers import init
from models.blocks import he_init
from models.images import ImageConfig, check_choice, check_share

#: Table 2 of the paper: expansion, channels, blocks, stride of the first one.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
#: The largest images that begin with the small stem.
SMALL = 64


@dataclass(frozen=True)
class MobileNetV2Config(ImageConfig):
    """What a MobileNetV2 is made of; ValueError names a setting that cannot be.

    Args:
        width: by which all numbers of channels are multiplied (to multiples of 8).
        dropout: before the last layer.
        stem: large: the first convolution and the second stage halve the image, as for ImageNet;
            small: they keep it; none: small up to 64 pixels.
    """

    width: float = 1.0
    dropout: float = 0.2
    stem: Literal["small", "large"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.width, (int, float)) or not 0 < self.width < float("inf"):
            raise ValueError(f"width is {self.width!r}, expected a number above 0")
        check_share("dropout", self.dropout)
        check_choice("stem", self.stem, ("small", "large", None))


class MobileNetV2(layers.Module):
    """Images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, config: MobileNetV2Config) -> None:
        super().__init__()
        self.config = config
        images, height, width = config.shape
        small = config.stem == "small" or (config.stem is None and max(height, width) <= SMALL)
        channels = multiple_of_8(32 * config.width)
        first = ConvNorm(images, channels, stride=1 if small else 2)
        features: list[layers.Module] = [first]
        for i, (expansion, outputs, count, stride) in enumerate(STAGES):
            outputs = multiple_of_8(outputs * config.width)
            for j in range(count):
                step = stride if j == 0 and not (small and i == 1) else 1
                features.append(InvertedResidual(channels, outputs, step, expansion))
                channels = outputs
        last = multiple_of_8(1280 * max(1.0, config.width))
        features.append(ConvNorm(channels, last, kernel=1))
        self.features = layers.Sequential(*features)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.flatten = layers.Flatten()
        self.classifier = layers.Sequential(
            layers.Dropout(config.dropout), layers.Linear(last, config.classes)
        )
        he_init(self)
        init.normal_(self.classifier[1].weight, 0.0, 0.01)
        init.zeros_(self.classifier[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (N, 1280, H', W')
        x = self.flatten(self.avgpool(x))  # (N, 1280)
        return self.classifier(x)


class InvertedResidual(layers.Module):
    """x (N, inputs, H, W) -> 1x1 to `expansion` times as many channels, 3x3 depthwise, 1x1 to
    outputs (N, outputs, H/stride, W/stride); plus x where that has the same shape.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        widening = [ConvNorm(inputs, wide, kernel=1)]
        self.conv = layers.Sequential(
            *(widening if expansion != 1 else []),
            ConvNorm(wide, wide, stride=stride, groups=wide),
            layers.Conv2d(wide, outputs, 1, bias=False),
            layers.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.adds else y


class ConvNorm(layers.Sequential):
    """A convolution that keeps the image's size but for its stride, batch norm, ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(
            layers.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            layers.BatchNorm2d(outputs),  # subtracts the mean, and any bias with it
            layers.ReLU6(),
        )


def multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, but not less than 90% of `channels`, and at least 8."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
