"""ResNet-18, 34 and 50 (He, Zhang, Ren & Sun 2016), with torchvision's names of parameters.

model = ResNet(ResNet18Config(shape=(3, 32, 32), classes=10))
logits = model(images)                                    # (N, 3, 32, 32) -> (N, 10)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework import layers
from framework.autograd import Tensor
from framework.layers import init
from models.blocks import he_init
from models.images import ImageConfig, check_choice, check_count, check_counts, check_switch

#: The largest images that begin with the small stem.
SMALL = 64


@dataclass(frozen=True)
class ResNet18Config(ImageConfig):
    """What a ResNet is made of; ValueError names a setting that cannot be.

    Args:
        blocks: of each of the four stages.
        width: channels of the first stage; each next one has twice as many.
        bottleneck: blocks of three convolutions, 1x1, 3x3, 1x1, the last four times as wide.
        stem: how it begins: large, a 7x7 convolution and a pooling that quarter the image, as for
            ImageNet; small, a 3x3 convolution that keeps it; none: small up to 64 pixels.
        zero_init: the last batch norm of each block begins as 0, so that the block begins as the
            identity (Goyal et al. 2017).
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = False
    stem: Literal["small", "large"] | None = None
    zero_init: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", check_counts("blocks", self.blocks, 4))
        check_count("width", self.width)
        check_switch("bottleneck", self.bottleneck)
        check_choice("stem", self.stem, ("small", "large", None))
        check_switch("zero_init", self.zero_init)


@dataclass(frozen=True)
class ResNet34Config(ResNet18Config):
    """See `ResNet18Config`."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)


@dataclass(frozen=True)
class ResNet50Config(ResNet18Config):
    """See `ResNet18Config`."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True


class ResNet(layers.Module):
    """Images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, config: ResNet18Config) -> None:
        super().__init__()
        self.config = config
        inputs, height, width = config.shape
        small = config.stem == "small" or (config.stem is None and max(height, width) <= SMALL)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = layers.Conv2d(inputs, config.width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = layers.BatchNorm2d(config.width)
        self.maxpool = layers.Identity() if small else layers.MaxPool2d(3, 2, padding=1)
        channels = config.width
        for i, count in enumerate(config.blocks):
            made, channels = stage(channels, config.width << i, count, 1 if i == 0 else 2, config)
            setattr(self, f"layer{i + 1}", made)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.flatten = layers.Flatten()
        self.fc = layers.Linear(channels, config.classes)
        he_init(self)
        if config.zero_init:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x), "relu")
        x = self.maxpool(x)  # (N, 64, H, W) or (N, 64, H/4, W/4)
        x = self.layer1(x)
        x = self.layer2(x)  # each of these: half the size, twice the channels
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.flatten(self.avgpool(x))  # (N, 512)
        return self.fc(x)


def stage(
    inputs: int, width: int, count: int, stride: int, config: ResNet18Config
) -> tuple[layers.Sequential, int]:
    """`count` blocks, the first with `stride`, and the channels that they give."""
    block = Bottleneck if config.bottleneck else BasicBlock
    outputs = width * block.expansion
    blocks = [block(inputs, width, stride)]
    blocks += [block(outputs, width) for _ in range(count - 1)]
    return layers.Sequential(*blocks), outputs


class BasicBlock(layers.Module):
    """x (N, inputs, H, W) -> relu(x + bn(conv(relu(bn(conv(x)))))), (N, width, H/stride,
    W/stride).
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = layers.BatchNorm2d(width)
        self.conv2 = layers.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = layers.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride)

    @property
    def last_norm(self) -> layers.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x), "relu")
        return self.bn2(self.conv2(y), "relu", shortcut)


class Bottleneck(layers.Module):
    """As `BasicBlock`, with 1x1, 3x3 and 1x1 convolutions, to 4 width channels. The 3x3 one has the
    stride (torchvision's choice; in the paper it is the first one).
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = layers.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = layers.BatchNorm2d(width)
        self.conv2 = layers.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = layers.BatchNorm2d(width)
        self.conv3 = layers.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = layers.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride)

    @property
    def last_norm(self) -> layers.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x), "relu")
        y = self.bn2(self.conv2(y), "relu")
        return self.bn3(self.conv3(y), "relu", shortcut)


def projection(inputs: int, outputs: int, stride: int) -> layers.Sequential | None:
    """The shortcut where the shape changes, None where x itself will do."""
    if inputs == outputs and stride == 1:
        return None
    return layers.Sequential(
        layers.Conv2d(inputs, outputs, 1, stride, bias=False), layers.BatchNorm2d(outputs)
    )
