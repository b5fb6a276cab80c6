"""GPT: a language model of causal blocks (Radford et al. 2019), and with other settings the Llama
kind (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, grouped queries.

model = GPT(GPTConfig(vocabulary=65, block=64, depth=4, heads=4, width=128))
logits = model(ids)                                       # (B, T) -> (B, T, 65)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from framework import functional as F, layers
from framework.autograd import Tensor
from framework.layers import KVCache
from models.transformer import (
    Activation,
    BlockConfig,
    Blocks,
    check_choice,
    check_integers,
    new_caches,
    start_weights,
)

#: The sizes of GPT-2: depth, heads, width.
GPT2 = {"124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280), "XL": (48, 25, 1600)}


@dataclass(frozen=True)
class GPTConfig:
    """What the model is made of; ValueError names a setting that cannot be.

    Args:
        block: the most tokens that it reads from their start.
        groups: heads of keys and values, which queries share; None: as many as `heads`.
        hidden: the width within the feed-forward part; None: 4 `width`.
        rotary_base: of rotary positions, 10000 in Su et al. 2021.
        tied: the head is the table of tokens again.
    """

    vocabulary: int = 65
    block: int = 64
    depth: int = 4
    heads: int = 4
    width: int = 128
    groups: int | None = None
    hidden: int | None = None
    dropout: float = 0.0
    bias: bool = False
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10000.0
    activation: Activation = "gelu_tanh"
    tied: bool = True

    of_data: ClassVar[tuple[str, ...]] = ("vocabulary", "block")

    def __post_init__(self) -> None:
        check_integers(self, "vocabulary", "block", "depth")
        check_choice("positions", self.positions, ("learned", "rotary"))
        self.blocks()
        if not isinstance(self.tied, bool):
            raise ValueError(f"tied is {self.tied!r}, expected True or False")
        if not isinstance(self.rotary_base, (int, float)) or self.rotary_base <= 0:
            raise ValueError(f"rotary_base is {self.rotary_base!r}, expected above 0")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"heads is {self.heads}: rotary positions need heads of an even width, width="
                f"{self.width} makes {self.width // self.heads}"
            )

    def blocks(self) -> BlockConfig:
        """The configuration of the blocks."""
        return BlockConfig(
            self.width, self.heads, self.groups, self.hidden, self.activation, self.norm,
            self.eps, self.bias, self.dropout, causal=True,
        )  # fmt: skip

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **overrides: Any
    ) -> GPTConfig:
        """The configuration for windows of `shape` (T,) and a vocabulary of `classes` tokens."""
        return cls(vocabulary=classes or 1, block=shape[0], **overrides)

    @classmethod
    def gpt2(cls, size: str = "124M", **overrides: Any) -> GPTConfig:
        """One of GPT-2's sizes: 124M, 355M, 774M, XL (1.5 billion parameters)."""
        check_choice("size", size, tuple(GPT2))
        depth, heads, width = GPT2[size]
        fixed = {"depth": depth, "heads": heads, "width": width, "bias": True}
        return cls(**({"vocabulary": 50257, "block": 1024} | fixed | overrides))

    @classmethod
    def llama(cls, **settings: Any) -> GPTConfig:
        """RMS norm, rotary positions, SwiGLU, no biases, a head of its own; `hidden` is 8/3 `width`
        rounded up to a multiple of 8 unless given.
        """
        width = settings.get("width", cls.width)
        kind = {"norm": "rms", "positions": "rotary", "activation": "swiglu"}
        plain = {"bias": False, "tied": False, "hidden": -(-width // 3) * 8}
        return cls(**(kind | plain | settings))


class GPT(layers.Module):
    """Token ids (B, T), T up to ``config.block`` -> logits (B, T, vocabulary) of the next ones."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.block = config, config.block
        self.tokens = layers.Embedding(config.vocabulary, config.width)
        self.places, rotary = None, None
        if config.positions == "learned":
            self.places = layers.Embedding(config.block, config.width)
        else:
            width = config.width // config.heads
            rotary = layers.RotaryPositions(config.block, width, config.rotary_base)
        self.dropout = config.blocks().new_dropout()
        self.head = None
        if not config.tied:
            self.head = layers.Linear(config.width, config.vocabulary, bias=False)
        start_weights(self)
        self.blocks = Blocks(config.blocks(), config.depth, rotary)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.features(ids), self._output_weight())  # (B, T, V)

    def loss(self, ids: Tensor, target: Tensor) -> Tensor:
        """The mean cross-entropy of `target` (B, T), without the logits in memory."""
        return F.linear_cross_entropy(self.features(ids), self._output_weight(), target)

    def features(self, ids: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """What the head reads, (B, T, C); with `caches` ids go on behind what those hold."""
        start = caches[0].length if caches else 0
        if ids.ndim != 2 or start + ids.shape[1] > self.block:
            after = f" after {start}" if start else ""
            raise ValueError(
                f"GPT: ids have shape {ids.shape}{after}, expected (B, T) with at most "
                f"block={self.block} tokens in all"
            )
        if self.places is None:
            x = self.tokens(ids)  # (B, T, C)
        else:
            x = F.embedding_at_positions(ids, self.tokens.weight, self.places.weight, start)
        return self.blocks(self.dropout(x), caches)

    def _output_weight(self) -> Tensor:
        return self.tokens.weight if self.head is None else self.head.weight  # (V, C)

    def start(self, batch: int) -> list[KVCache]:
        """Empty caches of keys and values."""
        return new_caches(self.blocks, batch, self.block)

    def step(self, ids: Tensor, caches: list[KVCache]) -> tuple[Tensor, list[KVCache]]:
        """Logits (B, 1, vocabulary) of the last place alone; `caches` grow in place."""
        last = self.features(ids, caches)[:, -1:]  # (B, 1, C)
        return F.linear(last, self._output_weight()), caches
