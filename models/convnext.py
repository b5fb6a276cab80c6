"""ConvNeXt-Tiny (Liu et al. 2022): a ResNet's stages with a Transformer's habits; with
torchvision's names of parameters.

model = ConvNeXt(ConvNeXtConfig(shape=(3, 224, 224), classes=1000))
logits = model(images)                                    # (N, 3, 224, 224) -> (N, 1000)
"""

from __future__ import annotations

from dataclasses import dataclass

from framework import layers
from framework.autograd import Tensor
from framework.layers import init, new_parameter
from models.blocks import LayerNorm2d, Permute, StochasticDepth
from models.images import ImageConfig, check_count, check_counts, check_share


@dataclass(frozen=True)
class ConvNeXtConfig(ImageConfig):
    """What a ConvNeXt is made of; ValueError names a setting that cannot be.

    Args:
        blocks: of each stage.
        channels: of each stage; from one to the next the image is halved.
        patch: pixels, along each axis, that the first layer makes one; none: 4, of images below 64
            pixels 2, below 16 pixels 1.
        stochastic_depth: probability that the last block is left out in training, that of the
            others rising from 0.
        layer_scale: by what each channel of a block is multiplied at the beginning.
    """

    blocks: tuple[int, ...] = (3, 3, 9, 3)
    channels: tuple[int, ...] = (96, 192, 384, 768)
    patch: int | None = None
    stochastic_depth: float = 0.1
    layer_scale: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", check_counts("blocks", self.blocks))
        stages = len(self.blocks)
        object.__setattr__(self, "channels", check_counts("channels", self.channels, stages))
        if not stages:
            raise ValueError("blocks is (), expected at least one stage")
        if self.patch is not None:
            check_count("patch", self.patch)
        check_share("stochastic_depth", self.stochastic_depth)
        if not isinstance(self.layer_scale, (int, float)) or not self.layer_scale > 0:
            raise ValueError(f"layer_scale is {self.layer_scale!r}, expected a number above 0")
        least = self.patch_size << (stages - 1)
        if min(self.shape[1:]) < least:
            raise ValueError(
                f"shape is {self.shape}: patches of {self.patch_size} pixels and {stages - 1} "
                f"halvings need at least {least}x{least} pixels"
            )

    @property
    def patch_size(self) -> int:
        """`patch`, or what fits the images."""
        least = min(self.shape[1:])
        return self.patch or (4 if least >= 64 else 2 if least >= 16 else 1)


class ConvNeXt(layers.Module):
    """Images (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        size, first = config.patch_size, config.channels[0]
        patches = layers.Conv2d(config.shape[0], first, size, stride=size)
        features: list[layers.Module] = [layers.Sequential(patches, LayerNorm2d(first))]
        done, inputs, last = 0, first, max(1, sum(config.blocks) - 1)
        for count, channels in zip(config.blocks, config.channels, strict=True):
            if done:
                halving = layers.Conv2d(inputs, channels, 2, stride=2)
                features.append(layers.Sequential(LayerNorm2d(inputs), halving))
            rates = [config.stochastic_depth * (done + i) / last for i in range(count)]
            blocks = (Block(channels, rate, config.layer_scale) for rate in rates)
            features.append(layers.Sequential(*blocks))
            done, inputs = done + count, channels
        self.features = layers.Sequential(*features)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = layers.Sequential(
            LayerNorm2d(inputs), layers.Flatten(), layers.Linear(inputs, config.classes)
        )
        for module in self.modules():
            if isinstance(module, (layers.Conv2d, layers.Linear)):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (N, 768, H/32, W/32)
        return self.classifier(self.avgpool(x))


class Block(layers.Module):
    """x (N, C, H, W) -> x + scale * (7x7 depthwise, layer norm, 1x1 to 4C, GELU, 1x1 to C)."""

    def __init__(self, channels: int, left_out: float, scale: float) -> None:
        super().__init__()
        self.layer_scale = new_parameter((channels, 1, 1))
        init.constant_(self.layer_scale, scale)
        self.block = layers.Sequential(
            layers.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),  # (N, H, W, C): how it lies in memory
            layers.LayerNorm(channels, eps=1e-6),
            layers.Linear(channels, 4 * channels),
            layers.GELU(),
            layers.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.stochastic_depth = StochasticDepth(left_out)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))
