"""An encoder-decoder: reads one sequence, writes another (Vaswani et al. 2017; norms before the
parts, as Xiong et al. 2020 advise).

model = Seq2Seq(Seq2SeqConfig(source=100, target=100))
logits = model(ids, previous)                             # (B, S), (B, T) -> (B, T, target)
written = model.write(ids, begin=1, end=2)                # the most likely tokens, one by one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework import functional as F, layers
from framework.autograd import Tensor
from framework.backend.device import to_device
from framework.generation import inference
from framework.layers import KVCache
from models.transformer import (
    Activation,
    BlockConfig,
    Blocks,
    CrossAttention,
    FeedForward,
    SelfAttention,
    add_norm,
    check_integers,
    new_caches,
    start_weights,
)

#: Keys and values of what was read, of each block.
Memory = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Seq2SeqConfig:
    """What the model is made of; ValueError names a setting that cannot be.

    `source` and `target` are the sizes of the vocabularies, `block` the most tokens of either side.
    """

    source: int = 100
    target: int = 100
    block: int = 64
    depth: int = 2
    heads: int = 4
    width: int = 128
    hidden: int | None = None
    activation: Activation = "gelu_tanh"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_integers(self, "source", "target", "block", "depth")
        self.blocks(causal=False)

    def blocks(self, causal: bool) -> BlockConfig:
        """The configuration of the encoder's blocks, or of the decoder's, which are causal."""
        return BlockConfig(
            self.width, self.heads, None, self.hidden, self.activation, dropout=self.dropout,
            causal=causal,
        )  # fmt: skip


class DecoderBlock(layers.Module):
    """Self-attention, attention to what was read, feed-forward; each added to what goes in."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (config.new_norm() for _ in range(3))
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        part: Tensor | None,
        kv: tuple[Tensor, Tensor],
        lengths: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor]:
        """The sum (B, T, C) and the last part, before and after."""
        x, h = add_norm(self.norm1, x, part)
        x, h = add_norm(self.norm2, x, self.attention(h, cache))
        x, h = add_norm(self.norm3, x, self.cross(h, kv, lengths))
        return x, self.feed_forward(h)


class Decoder(layers.Module):
    """x (B, T, C) -> (B, T, C) through `depth` blocks and a norm."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.each = layers.ModuleList([DecoderBlock(config) for _ in range(depth)])
        self.norm = config.new_norm()
        start_weights(self, depth)

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        lengths: Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
    ) -> Tensor:
        part = None
        for i, (block, kv) in enumerate(zip(self.each, memory, strict=True)):
            x, part = block(x, part, kv, lengths, None if caches is None else caches[i])
        return add_norm(self.norm, x, part)[1]


class Seq2Seq(layers.Module):
    """Source ids (B, S) and the target's so far (B, T) -> logits (B, T, target) of the next."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.source = layers.Embedding(config.source, config.width)
        self.target = layers.Embedding(config.target, config.width)
        self.source_places = layers.Embedding(config.block, config.width)
        self.target_places = layers.Embedding(config.block, config.width)
        self.head = layers.Linear(config.width, config.target)
        start_weights(self)
        self.encoder = Blocks(config.blocks(causal=False), config.depth)
        self.decoder = Decoder(config.blocks(causal=True), config.depth)

    def forward(self, ids: Tensor, previous: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`previous` is the target, a mark of its beginning before it; sources end at `lengths`
        (B,), padding follows.
        """
        return self.decode(previous, self.encode(ids, lengths), lengths)

    def encode(self, ids: Tensor, lengths: Tensor | None = None) -> Memory:
        """What the decoder looks at, of source ids (B, S): keys and values for each block."""
        self._check("ids", ids, 0)
        x = F.embedding_at_positions(ids, self.source.weight, self.source_places.weight)
        x = self.encoder(x, lengths=lengths)  # (B, S, C)
        return [block.cross.keys_and_values(x) for block in self.decoder.each]

    def decode(
        self,
        previous: Tensor,
        memory: Memory,
        lengths: Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """Logits (B, T, target); with `caches` `previous` goes on behind what those hold."""
        start = caches[0].length if caches else 0
        self._check("previous", previous, start)
        x = F.embedding_at_positions(previous, self.target.weight, self.target_places.weight, start)
        return self.head(self.decoder(x, memory, lengths, caches))

    def _check(self, name: str, ids: Tensor, start: int) -> None:
        block = self.config.block
        if ids.ndim != 2 or start + ids.shape[1] > block:
            raise ValueError(
                f"Seq2Seq: {name} have shape {ids.shape}, expected (B, n) with at most "
                f"block={block} tokens in all"
            )

    def write(
        self, ids: Tensor, begin: int, end: int, lengths: Tensor | None = None
    ) -> list[list[int]]:
        """The most likely next token again and again, for each row of ids (B, S), until `end` or
        until there are ``config.block``.
        """
        rows: list[list[int]] = [[] for _ in range(len(ids))]
        ended = np.zeros(len(ids), bool)
        with inference(self):
            memory = self.encode(ids, lengths)
            caches = new_caches(self.decoder, len(ids), self.config.block)
            last = np.full(len(ids), begin, np.int64)
            for _ in range(self.config.block):
                previous = Tensor(to_device(last[:, None], ids.device))  # (B, 1)
                logits = self.decode(previous, memory, lengths, caches)
                last = logits[:, -1].numpy().argmax(-1)  # waits for the device
                ended |= last == end
                if ended.all():
                    break
                for row, token, over in zip(rows, last.tolist(), ended, strict=True):
                    if not over:
                        row.append(token)
        return rows
