"""ViT: an image as a sequence of patches (Dosovitskiy et al. 2021).

model = ViT(ViTConfig.tiny(outputs=1000))
logits = model(images)                                    # (B, 3, 224, 224) -> (B, 1000)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from framework import functional as F, layers
from framework.autograd import Tensor
from models.transformer import BlockConfig, Blocks, check_choice, check_integers, start_weights


@dataclass(frozen=True)
class ViTConfig:
    """What the model is made of; ValueError names a setting that cannot be.

    `patch` is the width and height of a patch in pixels; it divides those of an image.
    """

    channels: int = 1
    height: int = 8
    width: int = 8
    outputs: int = 10
    patch: int = 2
    depth: int = 4
    heads: int = 4
    embedding: int = 64
    hidden: int | None = None
    dropout: float = 0.1
    task: str = "classification"

    of_data: ClassVar[tuple[str, ...]] = ("channels", "height", "width", "outputs", "task")

    def __post_init__(self) -> None:
        check_integers(self, "channels", "height", "width", "outputs", "patch", "depth")
        check_integers(self, "embedding")
        check_choice("task", self.task, ("classification", "regression"))
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"patch is {self.patch}, which does not divide images of {self.height} x "
                f"{self.width} pixels"
            )
        self.blocks()

    def blocks(self) -> BlockConfig:
        """The configuration of the blocks."""
        return BlockConfig(
            self.embedding, self.heads, None, self.hidden, eps=1e-6, dropout=self.dropout
        )

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> ViTConfig:
        """The configuration for images of `shape` (C, H, W): the smallest patches from 2 pixels on
        of which there are at most 64.
        """
        if len(shape) != 3:
            raise ValueError(f"ViT is for images (C, H, W), this data has the shape {shape}")
        channels, height, width = shape
        fits = math.gcd(height, width)
        patches = [p for p in range(2, fits + 1) if fits % p == 0]
        few = [p for p in patches if height * width <= 64 * p * p]
        fitted = {"channels": channels, "height": height, "width": width, "task": task}
        fitted |= {"outputs": classes or 1, "patch": (few or [fits])[0]}
        return cls(**(fitted | overrides))

    @classmethod
    def tiny(cls, **settings: Any) -> ViTConfig:
        """ViT-Ti/16 (Touvron et al. 2021): 5.7 million parameters, images of 3 x 224 x 224."""
        return cls._of_16(192, 3, settings)

    @classmethod
    def small(cls, **settings: Any) -> ViTConfig:
        """ViT-S/16 (Touvron et al. 2021): 22 million parameters, images of 3 x 224 x 224."""
        return cls._of_16(384, 6, settings)

    @classmethod
    def _of_16(cls, embedding: int, heads: int, settings: dict[str, Any]) -> ViTConfig:
        fixed = {"channels": 3, "height": 224, "width": 224, "outputs": 1000, "patch": 16}
        sizes = {"depth": 12, "heads": heads, "embedding": embedding}
        return cls(**(fixed | sizes | settings))


class ViT(layers.Module):
    """Images (B, C, H, W) -> logits or values (B, outputs)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config, E, patch = config, config.embedding, config.patch
        count = (config.height // patch) * (config.width // patch)
        self.patches = layers.Conv2d(config.channels, E, patch, stride=patch)
        self.first = layers.new_parameter((1, 1, E))  # what the head reads in the end
        self.places = layers.new_parameter((1, 1 + count, E))
        layers.init.normal_(self.first, std=0.02)
        layers.init.normal_(self.places, std=0.02)
        self.dropout = config.blocks().new_dropout()
        self.head = layers.Linear(E, config.outputs)
        start_weights(self)
        self.blocks = Blocks(config.blocks(), config.depth)
        for m in self.blocks.modules():  # Glorot's, as theirs: 0.02 is small for narrow blocks
            if isinstance(m, layers.Linear):
                layers.init.xavier_uniform_(m.weight)

    def forward(self, images: Tensor) -> Tensor:
        c = self.config
        if images.shape[1:] != (c.channels, c.height, c.width):
            raise ValueError(
                f"ViT: images have shape {images.shape}, expected (B, {c.channels}, {c.height}, "
                f"{c.width})"
            )
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, P, E)
        first = self.first.expand(len(x), 1, c.embedding)
        x = F.concatenate([first, x], axis=1) + self.places  # (B, 1 + P, E)
        return self.head(self.blocks(self.dropout(x))[:, 0])  # (B, outputs)
