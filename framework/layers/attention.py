"""MultiheadAttention."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework import functional as F
from framework.autograd import Tensor
from framework.functional.check import optional_tensor, tensor_argument
from framework.layers import init
from framework.layers.checks import in_range, positive_integer
from framework.layers.linear import Linear
from framework.layers.module import Module
from framework.layers.storage import new_parameter
from kernels.arrays import array_module, is_floating
from kernels.attention import attention, attention_weights


class MultiheadAttention(Module):
    """Attention of `num_heads` heads side by side, between projections (Vaswani et al. 2017).

    Parameters, their start and the arguments are PyTorch's. `in_proj_weight` (3 E, E) makes
    queries, keys and values; with another `kdim` or `vdim` there are `q_proj_weight`,
    `k_proj_weight` and `v_proj_weight`. `out_proj` is a Linear. With `add_bias_kv` a learned key
    and value, `bias_k` and `bias_v`, stand behind those given, with `add_zero_attn` one of zeros;
    every query sees them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        E = self.embed_dim = positive_integer("MultiheadAttention", "embed_dim", embed_dim)
        self.num_heads = positive_integer("MultiheadAttention", "num_heads", num_heads)
        if E % self.num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim={embed_dim} is not a multiple of "
                f"num_heads={num_heads}"
            )
        self.dropout = in_range("MultiheadAttention", "dropout", dropout, 0, 1)
        self.kdim = E if kdim is None else positive_integer("MultiheadAttention", "kdim", kdim)
        self.vdim = E if vdim is None else positive_integer("MultiheadAttention", "vdim", vdim)
        self.batch_first = batch_first
        self.packed = self.kdim == E == self.vdim
        shapes = {
            "in_proj_weight": (3 * E, E) if self.packed else None,
            "q_proj_weight": None if self.packed else (E, E),
            "k_proj_weight": None if self.packed else (E, self.kdim),
            "v_proj_weight": None if self.packed else (E, self.vdim),
            "in_proj_bias": (3 * E,) if bias else None,
            "bias_k": (1, 1, E) if add_bias_kv else None,
            "bias_v": (1, 1, E) if add_bias_kv else None,
        }
        self.add_zero_attn = bool(add_zero_attn)
        #: Keys behind those given.
        self.more = int(bool(add_bias_kv)) + int(self.add_zero_attn)
        for name, shape in shapes.items():
            parameter = None if shape is None else new_parameter(shape, device, dtype)
            self.register_parameter(name, parameter)
        self.out_proj = Linear(E, E, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights (Glorot's), biases 0."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if (weight := getattr(self, name)) is not None:
                init.xavier_uniform_(weight)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        if self.bias_k is not None:
            init.xavier_normal_(self.bias_k)
            init.xavier_normal_(self.bias_v)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query (T, B, E), key (S, B, kdim), value (S, B, vdim) -> (T, B, E) and the weights.

        With ``batch_first`` (B, T, E) and so on; without a batch (T, E). As in PyTorch a boolean
        mask is True where a key is NOT seen (or its numbers are added): `key_padding_mask` (B, S),
        `attn_mask` (T, S) or (B num_heads, T, S). `is_causal` alone hides later keys, without a
        mask. Keys that the layer adds stand behind S, in the weights too.

        The weights, for pictures, are (B, T, S), or (B, num_heads, T, S) if not averaged; no
        gradient flows through them. They take T x S memory: pass ``need_weights=False``, which
        gives None, where they are of no use.
        """
        self._check(query, key, value)
        key_padding_mask = self._checked_mask("key_padding_mask", key_padding_mask)
        attn_mask = self._checked_mask("attn_mask", attn_mask)
        batched, same = query.ndim == 3, query is key is value
        if batched and not self.batch_first:
            query = query.transpose(0, 1)
            key, value = (query, query) if same else (x.transpose(0, 1) for x in (key, value))
        elif not batched:
            query = query.unsqueeze(0)
            key, value = (query, query) if same else (x.unsqueeze(0) for x in (key, value))
        if is_causal and self.more:  # what is added is seen by all
            attn_mask, is_causal = self._causal(query, key, attn_mask), False
        mask = self._mask(query, key, key_padding_mask, attn_mask)
        p = self.dropout if self.training else 0.0
        weights = None
        if self.packed and same and not need_weights and not self.more:
            qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            y = F.packed_attention(qkv, self.num_heads, None, mask, p, is_causal)
        else:
            q, k, v = self._projected(query, key, value)
            if self.more:
                k, v, mask = self._with_more(k, v, mask)
            y = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal)
            if need_weights:
                weights = self._weights(q, k, v, mask, is_causal, average_attn_weights)
            y = y.transpose(1, 2).reshape(*query.shape)  # (B, T, E)
        y = self.out_proj(y)
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        for name, x in (("query", query), ("key", key), ("value", value)):
            tensor_argument("MultiheadAttention", name, x)
        wanted = self.embed_dim, self.kdim, self.vdim
        given = query.shape, key.shape, value.shape
        if (
            query.ndim not in (2, 3)
            or not query.ndim == key.ndim == value.ndim
            or tuple(s[-1] for s in given) != wanted
            or given[1][:-1] != given[2][:-1]
        ):
            raise ValueError(
                f"MultiheadAttention: query {given[0]}, key {given[1]}, value {given[2]}: expected "
                f"2 or 3 axes, the last of {wanted[0]}, {wanted[1]} and {wanted[2]}, key and value "
                "equally long"
            )
        batch = 0 if self.batch_first else 1
        if query.ndim == 3 and query.shape[batch] != key.shape[batch]:
            raise ValueError(
                f"MultiheadAttention: query {given[0]}, key {given[1]}: axis {batch}, the batch, "
                "must be equal"
            )

    def _checked_mask(self, name: str, mask: Tensor | None) -> Tensor | None:
        given = optional_tensor("MultiheadAttention", name, mask)
        if given is not None and given.dtype != np.bool_ and not is_floating(given.dtype):
            raise TypeError(
                f"MultiheadAttention: {name} is {given.dtype.name}, expected booleans (True where "
                "a key is not seen) or floating-point numbers"
            )
        return given

    def _causal(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """`mask`, and later keys hidden."""
        xp = array_module(query.data)
        later = xp.arange(key.shape[1]) > xp.arange(query.shape[1])[:, None]  # (T, S)
        if mask is None:
            return Tensor(later)
        if mask.dtype == np.bool_:
            return Tensor(mask.data | later)
        return mask + _added(Tensor(later), query)

    def _with_more(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, H, S, D) with those of the layer behind them, and the mask wider."""
        xp, (B, H, _, D) = array_module(k.data), k.shape
        more: list[tuple[Tensor, Tensor]] = []
        if self.bias_k is not None:
            both = (
                x.reshape(1, H, 1, D).expand(B, H, 1, D).to(k.dtype)
                for x in (self.bias_k, self.bias_v)
            )
            more.append(tuple(both))  # type: ignore[arg-type]
        if self.add_zero_attn:
            zeros = Tensor(xp.zeros((B, H, 1, D), k.dtype))
            more.append((zeros, zeros))
        k = F.concatenate([k, *(pair[0] for pair in more)], 2)
        v = F.concatenate([v, *(pair[1] for pair in more)], 2)
        if mask is not None:  # True, or nothing added
            fill = mask.dtype == np.bool_
            seen = xp.full((*mask.shape[:-1], self.more), int(fill), mask.dtype)
            mask = F.concatenate([mask, Tensor(seen)], -1)
        return k, v, mask

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values (B, num_heads, length, head)."""
        E, H, inputs = self.embed_dim, self.num_heads, (query, key, value)
        if self.packed and query is key is value:
            whole = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            parts = whole.split(E, -1)
        else:
            weights = (
                self.in_proj_weight.split(E)
                if self.packed
                else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            )
            biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(E)
            parts = [F.linear(*three) for three in zip(inputs, weights, biases, strict=True)]
        return [x.reshape(*x.shape[:2], H, E // H).transpose(1, 2) for x in parts]

    def _mask(
        self, query: Tensor, key: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """Both masks as one in the sense of `scaled_dot_product_attention`."""
        B, T, S = *query.shape[:2], key.shape[1]
        if padding is not None:
            if padding.shape not in ((B, S), (S,)):
                raise ValueError(
                    f"MultiheadAttention: key_padding_mask has shape {padding.shape}, expected "
                    f"({B}, {S})"
                )
            padding = padding.reshape(-1, 1, 1, S)
        if mask is not None:
            if mask.shape == (B * self.num_heads, T, S):
                mask = mask.reshape(B, self.num_heads, T, S)
            elif mask.shape != (T, S):
                raise ValueError(
                    f"MultiheadAttention: attn_mask has shape {mask.shape}, expected ({T}, {S}) or "
                    f"({B * self.num_heads}, {T}, {S})"
                )
        if padding is None or mask is None:
            given = padding if mask is None else mask
            return None if given is None else _seen(given)
        if padding.dtype.kind == mask.dtype.kind == "b":
            return Tensor(~(padding.data | mask.data))
        return _added(padding, query) + _added(mask, query)

    def _weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, average: bool
    ) -> Tensor:
        m = None if mask is None else mask.data
        _, lse = attention(q.data, k.data, v.data, m, causal=causal)
        weights = attention_weights(q.data, k.data, lse, m, causal=causal)
        return Tensor(weights.mean(1) if average else weights)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"batch_first={self.batch_first}"
        )

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """The inputs' projections and two products of T x S x E; `out_proj` counts itself."""
        query, key = inputs[:2]
        E, rows = self.embed_dim, query.size // self.embed_dim
        keys, lengths = key.size // self.kdim, key.shape[-2 if self.batch_first else 0]
        return int(rows * E * E + keys * E * (self.kdim + self.vdim) + 2 * rows * lengths * E)


def _seen(mask: Tensor) -> Tensor:
    """True where a key is seen, of a mask that is True where it is not; numbers stay."""
    return Tensor(~mask.data) if mask.dtype.kind == "b" else mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers that are added."""
    if mask.dtype.kind != "b":
        return mask
    xp = array_module(mask.data)
    return Tensor(xp.where(mask.data, -xp.inf, 0.0).astype(like.dtype))
