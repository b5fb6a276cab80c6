"""Attention: softmax(q k^T scale + bias) v, with memory linear in the length."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.autograd import Tensor, is_grad_enabled, record
from framework.autograd.casting import lowered
from framework.autograd.graph import in_dtype
from framework.backend.random import default_generator
from framework.functional.check import (
    array_of,
    floating,
    optional_tensor,
    probability,
    tensor_argument,
)
from kernels import attention as kernels
from kernels.arrays import Array, array_module, is_floating
from kernels.checking import looked_at


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    lengths: Tensor | None = None,
    window: int | None = None,
    slopes: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """query (B, H, T, D), key and value (B, G, S, D) -> (B, H, T, D); or all without the heads.

    `attn_mask` broadcasts to (B, H, T, S): booleans, True where a query sees a key, or numbers that
    are added to the scores. With `is_causal` query t sees the keys up to `start` + t, with `window`
    those less than so many positions away; keys from `lengths` (B,) on are seen by none. `slopes`
    (H,), times the distance, are taken off the scores (`alibi_slopes`). H is a multiple of G:
    queries share keys in groups. `dropout_p` drops weights, always: pass 0 in evaluation. A query
    that sees no key has the output 0. Lengths on CUDA are checked within `fw.check_indices` only.

    The result lies in memory as (B, T, H, D), so that `.transpose(1, 2).reshape(B, T, H * D)`
    copies nothing; q, k and v may be views of a packed projection.
    """
    name = "scaled_dot_product_attention"
    for what, x in (("query", query), ("key", key), ("value", value)):
        floating(name, tensor_argument(name, what, x))
    if query.ndim == 3 and key.ndim == 3 and value.ndim == 3:
        heads = (x.unsqueeze(1) for x in (query, key, value))
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unsqueeze(1)
        y = scaled_dot_product_attention(
            *heads, attn_mask, dropout_p, is_causal, scale,
            lengths=lengths, window=window, slopes=slopes, start=start,
        )  # fmt: skip
        return y.squeeze(1)
    query, key, value = lowered(query, key, value)
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"{name}: query is {query.dtype.name}, key {key.dtype.name}, value "
            f"{value.dtype.name}; use .to(...)"
        )
    q, k, v = query.data, key.data, value.data
    options = _options(name, q, k, attn_mask, lengths, slopes, dropout_p)
    options.update(causal=is_causal, window=window, start=start, scale=scale)
    out, lse = kernels.attention(q, k, v, **options)
    return record(
        out,
        [query, key, value],
        lambda dy: kernels.attention_grad(dy, q, k, v, out, lse, **options),
    )


def packed_attention(
    qkv: Tensor,
    num_heads: int,
    num_groups: int | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    lengths: Tensor | None = None,
    window: int | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Self-attention of one projection: (B, T, (H + 2 G) D), the queries of H = `num_heads` heads,
    then the keys and the values of G = `num_groups` (H if None) -> (B, T, H D).

    Nothing is copied, and the gradient is one array as well. The rest as in
    `scaled_dot_product_attention`.
    """
    name = "packed_attention"
    floating(name, tensor_argument(name, "qkv", qkv))
    H, G = num_heads, num_heads if num_groups is None else num_groups
    if H < 1 or G < 1 or qkv.ndim != 3 or qkv.shape[-1] % (H + 2 * G) or H % G:
        raise ValueError(
            f"packed_attention: qkv has shape {qkv.shape}, expected (B, T, ({H} + 2 * {G}) * D), "
            "the number of heads a multiple of the number of groups"
        )
    (qkv,) = lowered(qkv)
    B, T, width = qkv.shape
    D = width // (H + 2 * G)
    q, k, v = _unpacked(qkv.data, H, G)
    options = _options(name, q, k, attn_mask, lengths, slopes, dropout_p)
    options.update(causal=is_causal, window=window, scale=scale)
    out, lse = kernels.attention(q, k, v, **options)

    def backward(dy: Array) -> list[Array]:
        dqkv = array_module(dy).empty((B, T, width), dy.dtype)
        dq, dk, dv = _unpacked(dqkv, H, G)
        dy = dy.reshape(B, T, H, D).swapaxes(1, 2)
        kernels.attention_grad(dy, q, k, v, out, lse, **options, dq=dq, dk=dk, dv=dv)
        return [dqkv]

    return record(out.swapaxes(1, 2).reshape(B, T, H * D), [qkv], backward)


def _unpacked(qkv: Array, heads: int, groups: int) -> tuple[Array, Array, Array]:
    """Views (B, H, T, D), (B, G, T, D) twice."""
    B, T, width = qkv.shape
    D = width // (heads + 2 * groups)
    by_head = qkv.reshape(B, T, heads + 2 * groups, D).swapaxes(1, 2)
    return by_head[:, :heads], by_head[:, heads : heads + groups], by_head[:, heads + groups :]


def _options(
    name: str,
    q: Array,
    k: Array,
    mask: Tensor | None,
    lengths: Tensor | None,
    slopes: Tensor | None,
    p: float,
) -> dict[str, Any]:
    """The kernel's options, with a place in the random stream if there is dropout."""
    for what, x in (("attn_mask", mask), ("lengths", lengths), ("slopes", slopes)):
        given = optional_tensor(name, what, x)
        if given is not None and given.requires_grad and is_grad_enabled():
            raise ValueError(f"{name}: {what} requires a gradient, and gets none; detach() it")
    m = array_of(mask)
    if m is not None and m.dtype != np.bool_:
        if not is_floating(m.dtype):
            raise TypeError(
                f"{name}: attn_mask is {m.dtype.name}, expected booleans (True where a key is "
                "seen) or floating-point numbers"
            )
        m = in_dtype(m, q.dtype)
    n = array_of(lengths)
    seen = None if n is None else looked_at(n)
    if seen is not None and seen.size and not 0 <= seen.min() <= seen.max() <= k.shape[2]:
        raise ValueError(
            f"{name}: lengths are {seen.min()} to {seen.max()}, expected 0 to {k.shape[2]}, the "
            "number of keys"
        )
    options: dict[str, Any] = {"mask": m, "lengths": n}
    options["slopes"] = None if slopes is None else in_dtype(slopes.data, q.dtype)
    probability(name, p)
    if p > 0:
        seed, offset = default_generator.advance(kernels.draws(q, k))
        options.update(p=p, seed=seed, offset=offset)
    return options


def alibi_slopes(num_heads: int) -> Tensor:
    """(H,): the slopes of Press et al. 2022, "Train short, test long", for any number of heads.

    2^(-8 i / n), i = 1 ... n, for the largest power of two n up to H; the rest are every second one
    of those for 2 n.
    """
    n = 1 << (num_heads.bit_length() - 1) if num_heads > 0 else 0
    if n == 0:
        raise ValueError(f"alibi_slopes: num_heads={num_heads}, expected at least 1")
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)]
    slopes += [2 ** (-4 * i / n) for i in range(1, 2 * (num_heads - n), 2)]
    return Tensor(np.array(slopes, np.float32))
