"""What GPT, BERT, ViT and the encoder-decoder are made of: attention, feed-forward, and blocks of
both.

A block whose norms stand before its parts leaves its last sum open: what a part gives is added by
the norm that follows, in one pass (``F.add_layer_norm``). So such blocks hand on two tensors, the
sum so far and the last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from framework import functional as F, layers
from framework.autograd import Tensor
from framework.autograd.checkpoint import checkpoint
from framework.layers import KVCache, RotaryPositions

Activation = Literal["gelu", "gelu_tanh", "relu", "swiglu"]
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "swiglu")


@dataclass(frozen=True)
class BlockConfig:
    """What a block is made of. ValueError names a setting that cannot be.

    Args:
        groups: heads of keys and values, which queries share; None: as many as `heads`.
        hidden: the width between the two layers of the feed-forward part; None: 4 `width`.
        post: norms after the sums (Vaswani et al. 2017), not before the parts.
        checkpoint: in training a block keeps nothing but what goes in, and is computed again in the
            backward pass.
    """

    width: int
    heads: int
    groups: int | None = None
    hidden: int | None = None
    activation: Activation = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    bias: bool = True
    dropout: float = 0.0
    causal: bool = False
    post: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_integers(self, "width", "heads", "groups", "hidden")
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide width={self.width}")
        if self.heads % (self.groups or self.heads):
            raise ValueError(f"groups is {self.groups}, which does not divide heads={self.heads}")
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("norm", self.norm, ("layer", "rms"))
        for name in ("bias", "causal", "post", "checkpoint"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is {self.dropout!r}, expected a probability from 0 to below 1"
            )
        if not isinstance(self.eps, (int, float)) or not 0 <= self.eps < 1:
            raise ValueError(f"eps is {self.eps!r}, expected a small number of at least 0")

    def new_norm(self) -> layers.LayerNorm | layers.RMSNorm:
        """A norm of this kind."""
        if self.norm == "rms":
            return layers.RMSNorm(self.width, eps=self.eps)
        return layers.LayerNorm(self.width, eps=self.eps, bias=self.bias)

    def new_dropout(self) -> layers.Module:
        """In training drops what a part gives."""
        return layers.Dropout(self.dropout) if self.dropout else layers.Identity()


def check_integers(config: Any, *names: str) -> None:
    """ValueError unless these fields are positive integers, or None where that is the default."""
    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        value = getattr(config, name)
        if value is None and defaults[name] is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """ValueError unless `value` is among `known`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")


class SelfAttention(layers.Module):
    """x (B, T, C) -> (B, T, C). One projection `qkv` makes queries, keys and values, in this order
    side by side; `positions` turn queries and keys.
    """

    def __init__(self, config: BlockConfig, positions: RotaryPositions | None = None) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.groups or config.heads
        self.causal, self.p = config.causal, config.dropout
        self.head_width = config.width // config.heads
        packed = (self.heads + 2 * self.groups) * self.head_width
        self.qkv = layers.Linear(config.width, packed, config.bias)
        self.out = layers.Linear(config.width, config.width, config.bias)
        self.dropout = config.new_dropout()
        self.positions = positions

    def forward(
        self, x: Tensor, cache: KVCache | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """With a `cache` x goes on behind what that holds; keys from `lengths` (B,) on are padding,
        and not seen.
        """
        qkv, p = self.qkv(x), self.p if self.training else 0.0  # (B, T, (H + 2 G) D)
        if cache is None and self.positions is None:
            y = F.packed_attention(
                qkv, self.heads, self.groups, None, p, self.causal, lengths=lengths
            )
            return self.dropout(self.out(y))
        start = 0 if cache is None else cache.length
        q, k, v = self.split(qkv, start)
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, None, p, self.causal, lengths=lengths, start=start
        )
        return self.dropout(self.out(y.transpose(1, 2).reshape(*x.shape)))  # (B, T, C)

    def split(self, qkv: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, G, T, D), turned by their positions."""
        H, G = self.heads, self.groups
        x = qkv.reshape(*qkv.shape[:2], H + 2 * G, self.head_width)  # (B, T, H + 2 G, D)
        x = x.transpose(1, 2)  # (B, H + 2 G, T, D)
        v = x[:, H + G :]
        qk = x[:, : H + G]
        if self.positions is not None:
            qk = self.positions(qk, start)
        return qk[:, :H], qk[:, H:], v

    def attention_weights(
        self, x: Tensor, cache: KVCache | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """What it looks at without a cache, (B, H, T, T), for pictures: each row sums to 1."""
        q, k, _ = self.split(self.qkv(x))
        T, H, G = x.shape[1], self.heads, self.groups
        q = q.reshape(len(x), G, H // G, T, self.head_width)  # (B, G, H / G, T, D)
        weights = _weights(q, k.unsqueeze(2), lengths, self.causal)
        return weights.reshape(len(x), H, T, T)


def _weights(q: Tensor, k: Tensor, lengths: Tensor | None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) of q (B, ..., T, D) and k (B, ..., S, D) that broadcast, over keys
    before `lengths` (B,) and, if it is `causal`, not behind the query.
    """
    scores, xp = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, q.device.module
    keys = xp.arange(k.shape[-2])
    seen = keys <= xp.arange(q.shape[-2])[:, None] if causal else keys >= 0  # (T, S) or (S,)
    if lengths is not None:
        seen = seen & (keys < lengths.data.reshape(-1, *[1] * (scores.ndim - 1)))
    unseen = xp.where(seen, 0.0, -np.inf).astype(scores.dtype)
    return F.softmax(scores + Tensor(unseen), -1)


class CrossAttention(layers.Module):
    """x (B, T, C) looks at memory (B, S, C) -> (B, T, C)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads, self.p = config.heads, config.dropout
        self.q = layers.Linear(config.width, config.width, config.bias)
        self.kv = layers.Linear(config.width, 2 * config.width, config.bias)
        self.out = layers.Linear(config.width, config.width, config.bias)
        self.dropout = config.new_dropout()

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, S, D) twice, computed once for all steps."""
        k, v = self.kv(memory).split(memory.shape[-1], -1)  # (B, S, C) twice
        return self._by_head(k), self._by_head(v)

    def forward(
        self, x: Tensor, kv: tuple[Tensor, Tensor], lengths: Tensor | None = None
    ) -> Tensor:
        """`kv` of the memory, whose rows end at `lengths` (B,)."""
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(
            self._by_head(self.q(x)), *kv, dropout_p=p, lengths=lengths
        )
        return self.dropout(self.out(y.transpose(1, 2).reshape(*x.shape)))  # (B, T, C)

    def attention_weights(
        self, x: Tensor, kv: tuple[Tensor, Tensor], lengths: Tensor | None = None
    ) -> Tensor:
        """What it looks at, (B, H, T, S), for pictures: each row sums to 1."""
        return _weights(self._by_head(self.q(x)), kv[0], lengths)

    def _by_head(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        return x.reshape(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, H, T, D)


class FeedForward(layers.Module):
    """x (B, T, C) -> (B, T, C): two linear layers, an activation between them."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.activation = config.activation
        hidden = config.hidden or 4 * config.width
        both = 2 * hidden if config.activation == "swiglu" else hidden  # gate, then what it gates
        self.up = layers.Linear(config.width, both, config.bias)
        self.down = layers.Linear(hidden, config.width, config.bias)
        self.dropout = config.new_dropout()

    def forward(self, x: Tensor) -> Tensor:
        up, down, kind = self.up, self.down, self.activation
        if kind == "gelu_tanh" and up.bias is not None:
            return self.dropout(F.feed_forward(x, up.weight, up.bias, down.weight, down.bias))
        h = up(x)  # (B, T, hidden)
        return self.dropout(down(F.swiglu(h) if kind == "swiglu" else activated(h, kind)))


def activated(x: Tensor, kind: Activation) -> Tensor:
    """The activation of this name, all but swiglu, which joins two inputs."""
    return F.relu(x) if kind == "relu" else F.gelu(x, "tanh" if kind == "gelu_tanh" else "none")


def add_norm(
    norm: layers.LayerNorm | layers.RMSNorm, x: Tensor, part: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x + part, and its norm, in one pass; x and its norm where there is no part yet."""
    if part is None:
        return x, norm(x)
    shape = norm.normalized_shape
    if isinstance(norm, layers.RMSNorm):
        assert norm.eps is not None
        return F.add_rms_norm(x, part, shape, norm.weight, norm.eps)
    return F.add_layer_norm(x, part, shape, norm.weight, norm.bias, norm.eps)


class Block(layers.Module):
    """Self-attention, then feed-forward, each added to what goes in."""

    def __init__(self, config: BlockConfig, positions: RotaryPositions | None = None) -> None:
        super().__init__()
        self.post = config.post
        self.norm1 = config.new_norm()
        self.attention = SelfAttention(config, positions)
        self.norm2 = config.new_norm()
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, part: Tensor | None, cache: KVCache | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The sum (B, T, C) and the last part, (B, T, C) or None, before and after."""
        if self.post:
            _, x = add_norm(self.norm1, x, self.attention(x, cache, lengths))
            return add_norm(self.norm2, x, self.feed_forward(x))[1], None
        x, h = add_norm(self.norm1, x, part)
        x, h = add_norm(self.norm2, x, self.attention(h, cache, lengths))
        return x, self.feed_forward(h)


class Blocks(layers.Module):
    """`depth` blocks, x (B, T, C) -> (B, T, C), and a norm at the end unless they are `post`."""

    def __init__(
        self, config: BlockConfig, depth: int, positions: RotaryPositions | None = None
    ) -> None:
        super().__init__()
        self.each = layers.ModuleList([Block(config, positions) for _ in range(depth)])
        self.norm = None if config.post else config.new_norm()
        self.checkpoint = config.checkpoint
        start_weights(self, depth)

    def forward(
        self,
        x: Tensor,
        caches: Sequence[KVCache] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        part = None
        for i, block in enumerate(self.each):
            if self.checkpoint and self.training and caches is None:
                x, part = checkpoint(block, x, part, None, lengths)
            else:
                x, part = block(x, part, None if caches is None else caches[i], lengths)
        return x if self.norm is None else add_norm(self.norm, x, part)[1]


def start_weights(module: layers.Module, depth: int = 0) -> None:
    """Draw the weights of GPT-2 (Radford et al. 2019): N(0, 0.02), biases 0, and of the last layer
    of each of the 2 `depth` parts that are added up N(0, 0.02 / sqrt(2 depth)).
    """
    for path, m in module.named_modules():
        if isinstance(m, (layers.Linear, layers.Embedding)):
            last = depth and path.rpartition(".")[2] in ("out", "down")
            layers.init.normal_(m.weight, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)
        if isinstance(m, layers.Linear) and m.bias is not None:
            layers.init.zeros_(m.bias)


def new_caches(blocks: Any, batch: int, capacity: int) -> list[KVCache]:
    """A cache for each block, with room for `capacity` positions."""
    caches = []
    for block in blocks.each:
        a = block.attention
        place = a.out.weight
        caches.append(KVCache(batch, a.groups, capacity, a.head_width, place.device, place.dtype))
    return caches
