"""The same network in torch, for the bench: pre-norm blocks on scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, H, T, D)
            for part in self.qkv(x).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias)
        self.down = nn.Linear(4 * width, width, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.feed_forward = FeedForward(width, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Blocks(nn.Module):
    def __init__(self, depth: int, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.each = nn.ModuleList([Block(width, heads, bias) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.each:
            x = block(x)
        return self.norm(x)


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, vocabulary); the head is the table of tokens."""

    def __init__(
        self, vocabulary: int, window: int, depth: int, heads: int, width: int, bias: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(window, width)
        self.blocks = Blocks(depth, width, heads, bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.places(places)  # (B, T, C)
        return F.linear(self.blocks(x), self.tokens.weight)  # (B, T, V)

    def loss(self, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = self(ids)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), target.view(-1))
