"""The attention of the stand-in for cuDNN: what graph.sdpa and graph.sdpa_backward say of their
arguments, in float64. What the library does not promise it gets wrong on purpose: rows of queries
that see no key, and gradients that padding leaves unwritten.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.attention import attention, attention_grad

#: What queries without keys are given.
GARBAGE = 777.0


class Attention:
    """One call: its tensors and options, checked as the frontend checks them."""

    def __init__(self, **options: Any) -> None:
        self.tensors = {n: options.pop(n) for n in ("q", "k", "v")}
        for name in ("o", "dO", "stats", "bias", "seq_len_q", "seq_len_kv"):
            if name in options:
                self.tensors[name] = options.pop(name)
        self.scale = options.pop("attn_scale")
        assert type(self.scale) is float
        self.padding = options.pop("use_padding_mask", False)
        self.at_end = options.pop("diagonal_alignment") == "BOTTOM_RIGHT"
        self.left = options.pop("diagonal_band_left_bound", None)
        self.right = options.pop("diagonal_band_right_bound", None)
        assert not options, f"unknown options {options}"
        self.B, self.H, self.T, self.D = self.tensors["q"].dim
        self.S, self.E = self.tensors["v"].dim[2:]

    def check(self) -> None:
        """RuntimeError for what the frontend declines."""
        bias = "bias" in self.tensors
        for name in ("q", "k", "v", "o", "dO", "bias"):
            if name in self.tensors:
                t = self.tensors[name]
                assert t.stride[3] == 1, name
                assert all(s % 8 == 0 for s in t.stride[:3]), name
        for name in ("seq_len_q", "seq_len_kv"):
            assert (name in self.tensors) == self.padding
            if self.padding:
                assert self.tensors[name].dim == [self.B, 1, 1, 1]
                assert self.tensors[name].kind.name == "INT32"
        if bias:
            *lead, T, S = self.tensors["bias"].dim
            assert (T, S) == (self.T, self.S)
            assert lead[0] in (1, self.B) and lead[1] in (1, self.H)
        assert self.D % 8 == self.E % 8 == 0
        if self.left is not None and not self.padding and self.T > self.S:
            raise RuntimeError("sliding window with more queries than keys")
        if self.at_end and (bias or self.T > self.S):
            raise RuntimeError("bottom right with a bias")

    def seen(self, of: Any) -> np.ndarray:
        """(B, H, T, S): what bounds and lengths leave."""
        row = np.arange(self.T)[:, None] + (self.S - self.T if self.at_end else 0)
        column = np.arange(self.S)
        seen = np.ones((self.B, 1, self.T, self.S), bool)
        if self.left is not None:
            seen &= column > row - self.left
        if self.right is not None:
            seen &= column <= row + self.right
        if self.padding:
            assert (of(self.tensors["seq_len_q"]) == self.T).all()
            seen &= column < of(self.tensors["seq_len_kv"])
        return seen

    def _arguments(self, of: Any) -> tuple[Any, ...]:
        bias = of(self.tensors["bias"]) if "bias" in self.tensors else 0.0
        mask = np.where(self.seen(of), bias, -np.inf)
        return (*(of(self.tensors[n]) for n in ("q", "k", "v")), mask)

    def forward(self, of: Any) -> tuple[np.ndarray, np.ndarray]:
        """O and Stats."""
        *qkv, mask = self._arguments(of)
        with np.errstate(all="ignore"):
            out, lse = attention.reference(*qkv, mask, scale=self.scale)
        none = np.isneginf(lse)
        out[none], lse[none] = GARBAGE, -GARBAGE
        return out, lse[..., None]

    def backward(self, of: Any) -> tuple[np.ndarray, ...]:
        """dQ, dK, dV; what is not written is masked."""
        *qkv, mask = self._arguments(of)
        dout, out, lse = (of(self.tensors[n]) for n in ("dO", "o", "stats"))
        assert np.isfinite(lse).all()
        with np.errstate(all="ignore"):
            made = attention_grad.reference(dout, *qkv, out, lse[..., 0], mask, scale=self.scale)
        if not self.padding:
            return made
        lengths = of(self.tensors["seq_len_kv"]).reshape(-1, 1, 1, 1)
        beyond = np.arange(self.S)[:, None] >= lengths  # (B, 1, S, 1)
        left = lengths == 0, beyond, beyond
        return tuple(
            np.ma.array(x, mask=np.broadcast_to(m, x.shape))
            for x, m in zip(made, left, strict=True)
        )
