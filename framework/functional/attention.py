"""Attention: softmax(q k^T scale + bias) v, with memory linear in the length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from framework.autograd import Tensor, is_grad_enabled, record
from framework.autograd.casting import lowered
from framework.autograd.graph import in_dtype
from framework.backend.random import default_generator
from framework.functional.check import (
    array_of,
    broadcasts_to,
    floating,
    number,
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
    """query (..., H, T, D), key (..., G, S, D), value (..., G, S, E) -> (..., H, T, E).

    There may be any number of axes before the last two, and they broadcast; H is a multiple of G:
    queries share keys in groups. `attn_mask` broadcasts to (..., H, T, S): booleans, True where a
    query sees a key, or numbers that are added to the scores, with a gradient if they ask for one.
    With `is_causal` query t sees the keys up to `start` + t, with `window` those less than so many
    positions away; keys from `lengths` (...) on are seen by none (three axes with lengths (B,) are
    (B, T, D), without heads). `slopes` (H,), times the distance, are taken off the scores
    (`alibi_slopes`). `dropout_p` drops weights, always: pass 0 in evaluation. A query that sees no
    key has the output 0. Lengths on CUDA are checked within `fw.check_indices` only.

    The result lies in memory as (B, T, H, E), so that `.transpose(1, 2).reshape(B, T, H * E)`
    copies nothing; q, k and v may be views of a packed projection.
    """
    name = "scaled_dot_product_attention"
    for what, x in (("query", query), ("key", key), ("value", value)):
        floating(name, tensor_argument(name, what, x))
    query, key, value = lowered(query, key, value)
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"{name}: query is {query.dtype.name}, key {key.dtype.name}, value "
            f"{value.dtype.name}; use .to(...)"
        )
    mask = _mask(name, attn_mask, query)
    lengths = optional_tensor(name, "lengths", lengths)
    query, key, value, mask, lengths, lead = _four_axes(name, query, key, value, mask, lengths)
    q, k, v = query.data, key.data, value.data
    options = _options(name, q, k, mask, lengths, slopes, dropout_p, scale)
    options.update(causal=is_causal, window=window, start=start)
    out, lse = kernels.attention(q, k, v, **options)
    learned = _learned(mask)
    bias = array_of(*learned) if learned else None

    def backward(dy: Array) -> tuple[Array, ...]:
        return kernels.attention_grad(dy, q, k, v, out, lse, **options, **_place(bias))

    y = record(out, [query, key, value, *learned], backward)
    return y if lead is None else y.reshape(*lead, *y.shape[2:])


def _four_axes(
    name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, tuple[int, ...] | None]:
    """All as the kernels take them, with one axis of sequences; and the axes of the result before
    the last two, None where nothing had to be done.
    """
    a, b, c = q.shape, k.shape, v.shape
    if (
        len(a) == len(b) == 4
        and a[0] == b[0]
        and a[3] == b[3]
        and b[:3] == c[:-1]
        and (a[1] > 1 or b[1] < 2)
        and (mask is None or mask.ndim < 5)
    ):
        _check_mask(name, mask, (*a[:3], b[2]), q, k)
        return q, k, v, mask, lengths, None
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise ValueError(
            f"{name}: query has shape {q.shape}, key {k.shape}, value {v.shape}: expected (..., H, "
            "T, D), two axes at least"
        )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"{name}: query has shape {q.shape}, key {k.shape}: the last axes, the width of a "
            "head, must be equal"
        )
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"{name}: key has shape {k.shape}, value {v.shape}: the axes before the last, the "
            "number of keys, must be equal"
        )
    most = max(q.ndim, k.ndim, v.ndim)
    if most == 3 and lengths is not None and lengths.ndim == 1:
        q, k, v = (x if x.ndim < 3 else x.unsqueeze(1) for x in (q, k, v))
        mask = mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask
    try:
        batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
        groups = np.broadcast_shapes(k.shape[-3:-2], v.shape[-3:-2])
    except ValueError:
        raise ValueError(
            f"{name}: query has shape {q.shape}, key {k.shape}, value {v.shape}: the axes before "
            "the last two do not broadcast"
        ) from None
    heads = groups if q.shape[-3:-2] in ((), (1,)) else q.shape[-3:-2]
    _check_mask(name, mask, (*batch, *heads, q.shape[-2], k.shape[-2]), q, k)
    count = math.prod(batch)
    if lengths is not None:
        if lengths.shape != batch:
            raise ValueError(
                f"{name}: lengths have shape {lengths.shape}, query {q.shape}, key {k.shape}: "
                f"expected {batch}, the axes before the heads"
            )
        lengths = lengths.reshape(count)

    def joined(x: Tensor, heads: tuple[int, ...]) -> Tensor:
        x = x if x.shape[:-2] == (*batch, *heads) else x.expand(*batch, *heads, *x.shape[-2:])
        return x.reshape(count, *(heads or (1,)), *x.shape[-2:])

    q, k, v = joined(q, heads), joined(k, groups), joined(v, groups)
    if mask is not None and mask.ndim > 3:
        lead = mask.shape[:-3]
        if math.prod(lead) > 1:
            mask = mask.expand(*batch, *mask.shape[-3:])
        mask = mask.reshape(math.prod(mask.shape[:-3]), *mask.shape[-3:])
    lead = (*batch, *heads)
    return q, k, v, mask, lengths, lead[:-1] if q.shape[1] == 1 and most < len(lead) + 2 else lead


def _check_mask(
    name: str, mask: Tensor | None, whole: tuple[int, ...], q: Tensor, k: Tensor
) -> None:
    if mask is not None and not broadcasts_to(mask.shape, whole):
        raise ValueError(
            f"{name}: attn_mask has shape {mask.shape}, query {q.shape}, key {k.shape}: expected "
            f"what broadcasts to {whole}"
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
    mask = _mask(name, attn_mask, qkv)
    options = _options(name, q, k, mask, lengths, slopes, dropout_p, scale)
    options.update(causal=is_causal, window=window)
    out, lse = kernels.attention(q, k, v, **options)

    learned = _learned(mask)
    bias = array_of(*learned) if learned else None

    def backward(dy: Array) -> list[Array]:
        dqkv = array_module(dy).empty((B, T, width), dy.dtype)
        dq, dk, dv = _unpacked(dqkv, H, G)
        dy = dy.reshape(B, T, H, D).swapaxes(1, 2)
        places = {"dq": dq, "dk": dk, "dv": dv, **_place(bias)}
        made = kernels.attention_grad(dy, q, k, v, out, lse, **options, **places)
        return [dqkv, *made[3:]]

    return record(out.swapaxes(1, 2).reshape(B, T, H * D), [qkv, *learned], backward)


def _unpacked(qkv: Array, heads: int, groups: int) -> tuple[Array, Array, Array]:
    """Views (B, H, T, D), (B, G, T, D) twice."""
    B, T, width = qkv.shape
    D = width // (heads + 2 * groups)
    by_head = qkv.reshape(B, T, heads + 2 * groups, D).swapaxes(1, 2)
    return by_head[:, :heads], by_head[:, heads : heads + groups], by_head[:, heads + groups :]


def _mask(name: str, mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Numbers in the dtype that is computed in; TypeError for integers."""
    if optional_tensor(name, "attn_mask", mask) is None or mask.dtype == np.bool_:
        return mask
    if not is_floating(mask.dtype):
        raise TypeError(
            f"{name}: attn_mask is {mask.dtype.name}, expected booleans (True where a key is seen) "
            "or floating-point numbers"
        )
    return mask if mask.dtype == like.dtype else mask.to(like.dtype)


def _learned(mask: Tensor | None) -> list[Tensor]:
    """The mask, where it gets a gradient."""
    return [mask] if mask is not None and mask.requires_grad and is_grad_enabled() else []


def _place(bias: Array | None) -> dict[str, Array]:
    """Memory for the gradient of a mask that gets one."""
    return {} if bias is None else {"dmask": array_module(bias).empty(bias.shape, bias.dtype)}


def _options(
    name: str,
    q: Array,
    k: Array,
    mask: Tensor | None,
    lengths: Tensor | None,
    slopes: Tensor | None,
    p: float,
    scale: float | None,
) -> dict[str, Any]:
    """The kernel's options, with a place in the random stream if there is dropout."""
    for what, x in (("lengths", lengths), ("slopes", slopes)):
        given = optional_tensor(name, what, x)
        if given is not None and given.requires_grad and is_grad_enabled():
            raise ValueError(f"{name}: {what} requires a gradient, and gets none; detach() it")
    n = array_of(lengths)
    seen = None if n is None else looked_at(n)
    if seen is not None and seen.size and not 0 <= seen.min() <= seen.max() <= k.shape[2]:
        raise ValueError(
            f"{name}: lengths are {seen.min()} to {seen.max()}, expected 0 to {k.shape[2]}, the "
            "number of keys"
        )
    options: dict[str, Any] = {"mask": array_of(mask), "lengths": n}
    options["slopes"] = None if slopes is None else in_dtype(slopes.data, q.dtype)
    options["scale"] = None if scale is None else number(name, "scale", scale)
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
