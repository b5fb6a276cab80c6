"""Scaled dot-product attention and its gradient: softmax(q k^T scale + bias) v, head by head.

    q (B, H, T, D), k (B, G, S, D), v (B, G, S, E), H a multiple of G
    -> out (B, H, T, E), lse (B, H, T)

Each G serves H / G heads in a row (grouped queries). `lse` is the log of the sum of e^score over
the keys that a query sees, all that the gradient needs to have the weights again. What a query
sees, and how much more or less of it:

    mask      broadcastable to (B, H, T, S): booleans, True where the key is seen, or numbers that
              are added to the scores, -inf where it is not
    lengths   (B,) integers: keys from lengths[b] on are not seen
    causal    query t stands at position start + t and sees keys up to its own
    window    it sees keys less than `window` positions away
    slopes    (H,): slope times the distance is taken off a score (ALiBi)

A query that sees no key has the output 0, the lse -inf, and no gradient. Keys from `lengths` on
count nothing, be they NaN. Other keys that are not seen have the weight 0, be their scores NaN; but
in a tile that holds keys which are seen their v, and for gradients all of theirs, is multiplied by
that 0, so that a NaN or infinity in it comes out (as from PyTorch; the reference selects instead).

`p`, `seed`, `offset` drop weights as kernels/random.py does: the weight of key s for row r = (b H +
h) T + t takes half-word r S8 + s of the stream, S8 being S rounded up to a multiple of 8.

The tuned versions hold a tile of scores at a time, never (T, S) of them (Dao et al. 2022,
"FlashAttention"; the running softmax is Milakov and Gimelshein's, 2018). They read q, k and v as
they lie: (B, T, 3, H, D) is as good as (B, H, T, D). `out` and gradients that are not given lie as
(B, T, H, D), which is what the projections around attention take and give.

Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Press et al. 2022 (ALiBi).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module
from kernels.attention_call import CUDA_WIDTHS, Call, check_gradient, checked, padded, placed
from kernels.lazy import Lazy
from kernels.random import counters, dropout
from kernels.registry import kernel

loops = Lazy("kernels.cpu.attention_calls")
products = Lazy("kernels.cuda.attention")
cudnn = Lazy("kernels.cuda.cudnn_attention")
wide = Lazy("kernels.cuda.attention_wide")


def draws(q: Array, k: Array) -> int:
    """How far dropout over the weights of q and k advances the offset of its stream."""
    B, H, T, _ = q.shape
    return counters(B * H * T * padded(k.shape[2]))


# Reference ----------------------------------------------------------------------------------------


def _per_head(x: Array, heads: int) -> Array:
    """k or v (B, G, S, D) repeated to (B, H, S, D)."""
    G = x.shape[1]
    return x if G == heads else array_module(x).repeat(x, heads // G, axis=1)


def _per_group(dx: Array, groups: int) -> Array:
    """Gradients (B, H, S, D) of repeated heads added up: (B, G, S, D)."""
    B, H, S, D = dx.shape
    return dx if H == groups else dx.reshape(B, groups, H // groups, S, D).sum(2)


def _scores(c: Call) -> Array:
    """(B, H, T, S), -inf where a key is not seen."""
    xp = array_module(c.q)
    T, S = c.q.shape[2], c.k.shape[2]
    s = c.q @ _per_head(c.k, c.q.shape[1]).swapaxes(-1, -2) * c.q.dtype.type(c.scale)
    ahead = xp.arange(S) - (xp.arange(T)[:, None] + c.start)  # (T, S): key minus query
    if c.slopes is not None:
        s -= c.slopes[:, None, None] * abs(ahead).astype(s.dtype)
    seen = xp.ones((1, 1, T, S), bool)
    if c.mask is not None:
        if c.mask.dtype.kind == "b":
            seen = seen & c.mask
        else:
            s += c.mask
            seen = seen & (c.mask != -np.inf)  # also where the score is NaN or inf
    if c.causal:
        seen = seen & (ahead <= 0)
    if c.window:
        seen = seen & (abs(ahead) < c.window)
    if c.lengths is not None:
        seen = seen & (xp.arange(S) < c.lengths[:, None, None, None])
    return xp.where(seen, s, s.dtype.type(-np.inf))


def _drop(weights: Array, c: Call) -> Array:
    """Dropout along rows of S8."""
    if c.p == 0:
        return weights
    xp = array_module(weights)
    S = weights.shape[-1]
    wide = xp.zeros((*weights.shape[:-1], padded(S)), weights.dtype)
    wide[..., :S] = weights
    return dropout.reference(wide, c.p, c.seed, c.offset)[..., :S]


def _weighted(weights: Array, x: Array) -> Array:
    """weights @ x, where a weight of 0 takes nothing of x, be it infinite or NaN."""
    xp = array_module(x)
    if xp.isfinite(x).all():
        return weights @ x
    terms = weights[..., None] * x[..., None, :, :]
    return xp.where(weights[..., None] == 0, 0, terms).sum(-2)


@kernel(statistics=(1,))
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    lengths: Array | None = None,
    slopes: Array | None = None,
    causal: bool = False,
    window: int | None = None,
    start: int = 0,
    scale: float | None = None,
    p: float = 0.0,
    seed: Any = 0,
    offset: int = 0,
) -> tuple[Array, Array]:
    """out (B, H, T, E) and lse (B, H, T); see the module's text. `scale` is 1 / sqrt(D) if None."""
    rest = (mask, lengths, slopes, causal, window, start, scale, p, seed, offset)
    c = checked("attention", q, k, v, *rest)
    xp = array_module(q)
    s = _scores(c)
    none = xp.zeros((*s.shape[:-1], 1), s.dtype)
    m = s.max(-1, keepdims=True) if s.shape[-1] else none
    m = xp.where(m == -np.inf, none, m)
    e = xp.exp(s - m)
    total = e.sum(-1, keepdims=True)
    weights = _drop(e / xp.where(total == 0, total.dtype.type(1), total), c)
    out = _weighted(weights, _per_head(v, q.shape[1]))
    return out, (m + xp.log(total))[..., 0]


@kernel(inplace=("dq", "dk", "dv", "dmask"))
def attention_grad(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    mask: Array | None = None,
    lengths: Array | None = None,
    slopes: Array | None = None,
    causal: bool = False,
    window: int | None = None,
    start: int = 0,
    scale: float | None = None,
    p: float = 0.0,
    seed: Any = 0,
    offset: int = 0,
    dq: Array | None = None,
    dk: Array | None = None,
    dv: Array | None = None,
    dmask: Array | None = None,
) -> tuple[Array, ...]:
    """dq, dk, dv, in those given or in new ones, of what `attention` took and gave; and dmask, of
    numbers that were added, if an array is given for it. With P = e^(scores - lse), g = dout v^T:

    dv = P^T dout, dq = dS k scale, dk = dS^T q scale, dS = P (g - sum of dout out over E); dmask is
    dS summed over what the mask was broadcast along.
    """
    rest = (mask, lengths, slopes, causal, window, start, scale, p, seed, offset)
    c = checked("attention_grad", q, k, v, *rest)
    check_gradient(c, dout, out, lse, mask, dmask)
    xp = array_module(q)
    H, G = q.shape[1], k.shape[1]
    scale = q.dtype.type(c.scale)
    weights = _weights(c, lse)
    g = _drop(dout @ _per_head(v, H).swapaxes(-1, -2), c)
    ds = weights * (g - (dout * out).sum(-1, keepdims=True))
    ds = xp.where(weights == 0, weights, ds)
    to_q = _weighted(ds, _per_head(k, H)) * scale
    to_k = _weighted(ds.swapaxes(-1, -2), q) * scale
    to_v = _weighted(_drop(weights, c).swapaxes(-1, -2), dout)
    made = placed(to_q, dq), placed(_per_group(to_k, G), dk), placed(_per_group(to_v, G), dv)
    return made if dmask is None else (*made, placed(_summed_to(ds, dmask.shape), dmask))


def _summed_to(ds: Array, shape: tuple[int, ...]) -> Array:
    """ds (B, H, T, S) summed over the axes along which `shape` is broadcast."""
    whole = (1,) * (4 - len(shape)) + shape
    axes = tuple(i for i, n in enumerate(whole) if n != ds.shape[i])
    return ds.sum(axes, keepdims=True).reshape(shape)


def _weights(c: Call, lse: Array) -> Array:
    """e^(scores - lse); 0 where a key is not seen, be lse NaN, and where no key is."""
    xp = array_module(c.q)
    scores = _scores(c)
    lse = xp.where(lse == -np.inf, np.inf, lse)[..., None]
    e = xp.exp(scores - lse.astype(scores.dtype, copy=False))
    return xp.where(scores == -np.inf, scores.dtype.type(0), e)


def _split(rest: tuple[Any, ...], *named: Array | None) -> tuple[tuple[Any, ...], Any]:
    """What follows the mask, and the places of results: by position behind that, or by name."""
    options, places = rest[:9], rest[9:]
    return options, (*places, *named[len(places) :])


# CPU ----------------------------------------------------------------------------------------------


@attention.cpu
def _(q: Array, k: Array, v: Array, *rest: Any, **options: Any) -> tuple[Array, Array]:
    return loops.forward(checked("attention", q, k, v, *rest, **options))


@attention_grad.cpu
def _(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    mask: Array | None = None,
    *rest: Any,
    dq: Array | None = None,
    dk: Array | None = None,
    dv: Array | None = None,
    dmask: Array | None = None,
    **options: Any,
) -> tuple[Array, ...]:
    rest, places = _split(rest, dq, dk, dv, dmask)
    c = checked("attention_grad", q, k, v, mask, *rest, **options)
    check_gradient(c, dout, out, lse, mask, places[3])
    return loops.gradient(c, dout, out, lse, places)


# CUDA ---------------------------------------------------------------------------------------------

CUDA_KERNELS = ("attention_forward", "attention_dq", "attention_dkv", "attention_dmask")
_TYPES = tuple(f"{t}, {w}" for t in ("float", "__half", "__nv_bfloat16") for w in CUDA_WIDTHS)
CUDA_TYPES = dict.fromkeys(CUDA_KERNELS, _TYPES)


def _too_wide(c: Call) -> bool:
    """Heads that the tiles do not hold are for the reference."""
    return max(int(c.q.shape[3]), int(c.v.shape[3])) > 16 * CUDA_WIDTHS[-1]


@attention.cuda
def _(q: Array, k: Array, v: Array, *rest: Any, **options: Any) -> tuple[Array, Array]:
    c = checked("attention", q, k, v, *rest, **options)
    if _too_wide(c):
        return wide.forward(attention.reference, c)
    found = cudnn.forward(c)
    return products.forward(c) if found is None else found


@attention_grad.cuda
def _(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    mask: Array | None = None,
    *rest: Any,
    dq: Array | None = None,
    dk: Array | None = None,
    dv: Array | None = None,
    dmask: Array | None = None,
    **options: Any,
) -> tuple[Array, ...]:
    rest, places = _split(rest, dq, dk, dv, dmask)
    c = checked("attention_grad", q, k, v, mask, *rest, **options)
    check_gradient(c, dout, out, lse, mask, places[3])
    own = None if places[3] is None else places[3].shape
    if _too_wide(c):
        made = wide.gradient(attention_grad.reference, c, dout, out, lse, own)
    else:
        made = None if own is not None else cudnn.gradient(c, dout, out, lse, places[:3])
        made = products.gradient(c, dout, out, lse, own) if made is None else made
    return tuple(placed(x, y) for x, y in zip(made, places, strict=False))


# Samples ------------------------------------------------------------------------------------------
# shape (rows, columns): about that many queries, in heads of no more than `widest` columns


def _heads(
    draw: Any, shape: tuple[int, int], groups: int = 2, widest: int = 40, more: int = 0
) -> tuple[Array, Array, Array]:
    """q of 2 sequences and 2 heads, k and v of `groups` heads and a few keys more than queries;
    values have `more` columns than keys.
    """
    T, D = -(-shape[0] // 2), min(shape[1], widest)
    q = draw.normal(2, 2, T, D)
    k, v = (draw.normal(2, groups, T + T // 3, D + n) for n in (0, more))
    return q, k, v


@attention.sample
def _(draw, shape):
    return _heads(draw, shape, widest=72)


@attention.sample
def wide_values(draw, shape):
    return *_heads(draw, shape, groups=1, more=29), None, None, None, True


@attention.sample
def causal(draw, shape):
    q, k, v = _heads(draw, shape, groups=1)
    return q, k, v, None, None, None, True, None, k.shape[2] - q.shape[2]


@attention.sample
def windowed(draw, shape):
    return *_heads(draw, shape), None, np.array([1, 25]), np.array([0.5, 0.125]), False, 9, 3, 0.2


@attention.sample
def masked(draw, shape):
    q, k, v = _heads(draw, shape)
    return q, k, v, draw.mask(2, 1, q.shape[2], k.shape[2])


@attention.sample
def biased(draw, shape):
    q, k, v = _heads(draw, shape)
    bias = draw.normal(2, q.shape[2], k.shape[2])
    return q, k, v, np.where(bias > 1, -np.inf, bias)


@attention.sample
def dropped(draw, shape):
    return *_heads(draw, shape), None, None, None, True, None, 0, None, 0.3, 7, 3


def _gradient(sample: str) -> None:
    def make(draw: Any, shape: tuple[int, int]) -> tuple[Any, ...]:
        q, k, v, *rest = attention.samples[sample](draw, shape)
        with np.errstate(all="ignore"):
            out, lse = attention.reference(q, k, v, *rest)
        return draw.normal(out.shape), q, k, v, out, lse, *rest

    make.__name__ = sample
    attention_grad.sample(make)


for _sample in ("_", "wide_values", "causal", "windowed", "masked", "biased", "dropped"):
    _gradient(_sample)


def _learned(draw: Any, shape: tuple[int, int], mask: tuple[int, ...], *rest: Any) -> Any:
    """With a place for the gradient of a mask of that shape: 0 stands for queries, -1 for keys."""
    q, k, v = _heads(draw, shape, groups=1)
    sizes = {0: q.shape[2], -1: k.shape[2]}
    given = draw.normal(*(sizes.get(n, n) for n in mask))
    with np.errstate(all="ignore"):
        out, lse = attention.reference(q, k, v, given, *rest)
    rest += (None, None, False, None, 0, None, 0.0, 0, 0)[len(rest) :]
    places = None, None, None, np.zeros_like(given)
    return draw.normal(q.shape), q, k, v, out, lse, given, *rest, *places


@attention_grad.sample
def learned(draw, shape):
    return _learned(draw, shape, (2, 0, -1), None, None, True)


@attention_grad.sample
def learned_keys(draw, shape):
    options = np.array([9, 25]), None, False, 9, 3, 0.2, 0.3, 7, 3
    return _learned(draw, shape, (2, 1, 1, -1), *options)


# For pictures -------------------------------------------------------------------------------------


def attention_weights(q: Array, k: Array, lse: Array, *rest: Any, **options: Any) -> Array:
    """The weights (B, H, T, S) themselves, without dropout; `lse` and the rest as for
    `attention`.
    """
    return _weights(checked("attention_weights", q, k, k, *rest, **options), lse)
