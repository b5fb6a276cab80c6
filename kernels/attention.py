"""Scaled dot-product attention and its gradient: softmax(q k^T scale + bias) v, head by head.

    q (B, H, T, D), k and v (B, G, S, D), H a multiple of G -> out (B, H, T, D), lse (B, H, T)

Each G serves H / G heads in a row (grouped queries). `lse` is the log of the sum of e^score over
the keys that a query sees, all that the gradient needs to have the weights again. What a query
sees, and how much more or less of it:

    mask      broadcastable to (B, H, T, S): booleans, True where the key is seen, or numbers that
              are added to the scores, -inf where it is not
    lengths   (B,) integers: keys from lengths[b] on are not seen
    causal    query t stands at position start + t and sees keys up to its own
    window    it sees keys less than `window` positions away
    slopes    (H,): slope times the distance is taken off a score (ALiBi)

A query that sees no key has the output 0, the lse -inf, and no gradient. Keys that are not seen
count nothing, be they NaN. `p`, `seed`, `offset` drop weights as kernels/random.py does: the weight
of key s for row r = (b H + h) T + t takes half-word r S8 + s of the stream, S8 being S rounded up
to a multiple of 8.

The tuned versions hold a tile of scores at a time, never (T, S) of them (Dao et al. 2022,
"FlashAttention"; the running softmax is Milakov and Gimelshein's, 2018). They read q, k and v as
they lie: (B, T, 3, H, D) is as good as (B, H, T, D). `out` and gradients that are not given lie as
(B, T, H, D), which is what the projections around attention take and give.

Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Press et al. 2022 (ALiBi).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import Array, array_module, is_array, is_floating, is_half
from kernels.lazy import Lazy
from kernels.random import checked_place, counters, dropout, dropout_constants
from kernels.registry import kernel

loops = Lazy("kernels.cpu.attention")
blas = Lazy("kernels.cpu.blas")
engine = Lazy("kernels.cpu.engine")


class Call(NamedTuple):
    """The arguments of either kernel, checked, with their defaults filled in."""

    q: Array
    k: Array
    v: Array
    mask: Array | None  # broadcast to (B, H, T, S)
    lengths: Array | None
    slopes: Array | None
    causal: bool
    window: int  # 0: none
    start: int
    scale: float
    p: float
    seed: Any
    offset: int

    def rest(self) -> tuple[Any, ...]:
        """What follows q, k, v (or lse), as the kernels take it."""
        return self._replace(window=self.window or None)[3:]  # type: ignore[arg-type]


def draws(q: Array, k: Array) -> int:
    """How far dropout over the weights of q and k advances the offset of its stream."""
    B, H, T, _ = q.shape
    return counters(B * H * T * _padded(k.shape[2]))


def _padded(S: int) -> int:
    return -(-S // 8) * 8


def _call(
    name: str,
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
) -> Call:
    """ValueError where shapes or numbers do not fit."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ValueError(
            f"{name}: q {q.shape}, k {k.shape}, v {v.shape}: expected (B, H, T, D), and (B, G, S, "
            "D) twice"
        )
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    if G == 0 or H % G:
        raise ValueError(f"{name}: {G} heads of keys and values do not divide {H} heads of queries")
    if mask is not None:
        if mask.dtype.kind != "b":
            if not is_floating(mask.dtype):
                raise TypeError(f"{name}: mask is {mask.dtype}, expected booleans or floats")
            mask = mask.astype(q.dtype, copy=False)
        try:
            mask = array_module(q).broadcast_to(mask, (B, H, T, S))
        except ValueError:
            raise ValueError(
                f"{name}: mask has shape {mask.shape}, which does not broadcast to {(B, H, T, S)}"
            ) from None
    if lengths is not None and (lengths.shape != (B,) or lengths.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: lengths are {lengths.dtype}{lengths.shape}, expected integers ({B},)"
        )
    if slopes is not None and slopes.shape != (H,):
        raise ValueError(f"{name}: slopes have shape {slopes.shape}, expected ({H},), one a head")
    if window is not None and window < 1:
        raise ValueError(f"{name}: window={window}, expected at least 1 key")
    if start < 0:
        raise ValueError(f"{name}: start={start}, expected a position of at least 0")
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p={p}, expected a probability in [0, 1]")
    scale = 1 / math.sqrt(max(D, 1)) if scale is None else float(scale)
    causal, window = bool(causal), window or 0
    return Call(q, k, v, mask, lengths, slopes, causal, window, start, scale, p, seed, offset)


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
    wide = xp.zeros((*weights.shape[:-1], _padded(S)), weights.dtype)
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
    """out (B, H, T, D) and lse (B, H, T); see the module's text. `scale` is 1 / sqrt(D) if None."""
    rest = (mask, lengths, slopes, causal, window, start, scale, p, seed, offset)
    c = _call("attention", q, k, v, *rest)
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


@kernel(inplace=("dq", "dk", "dv"))
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
) -> tuple[Array, Array, Array]:
    """dq, dk, dv, in those given or in new ones, of what `attention` took and gave. With
    P = e^(scores - lse) and g = dout v^T:

    dv = P^T dout, dq = dS k scale, dk = dS^T q scale, dS = P (g - sum of dout out over D).
    """
    rest = (mask, lengths, slopes, causal, window, start, scale, p, seed, offset)
    c = _call("attention_grad", q, k, v, *rest)
    _check_results(dout, c, out, lse)
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
    return _placed(to_q, dq), _placed(_per_group(to_k, G), dk), _placed(_per_group(to_v, G), dv)


def _weights(c: Call, lse: Array) -> Array:
    """e^(scores - lse); 0 where a key is not seen, be lse NaN, and where no key is."""
    xp = array_module(c.q)
    scores = _scores(c)
    lse = xp.where(lse == -np.inf, np.inf, lse)[..., None]
    e = xp.exp(scores - lse.astype(scores.dtype, copy=False))
    return xp.where(scores == -np.inf, scores.dtype.type(0), e)


def _placed(gradient: Array, place: Array | None) -> Array:
    if place is None:
        return gradient
    place[...] = gradient
    return place


def _check_results(dout: Array, c: Call, out: Array, lse: Array) -> None:
    if dout.shape != c.q.shape or out.shape != c.q.shape or lse.shape != c.q.shape[:3]:
        raise ValueError(
            f"attention_grad: dout {dout.shape}, out {out.shape}, lse {lse.shape}: expected twice "
            f"{c.q.shape}, the shape of q, and {c.q.shape[:3]}"
        )


# CPU ----------------------------------------------------------------------------------------------


def _readable(x: Array, D: int) -> Array:
    """`x` as the loops can read it: rows of D floats that lie together, else a copy with zeros at
    the ends of rows.
    """
    strides = x.strides
    if x.shape[3] == D and strides[3] == 4 and not any(s & 3 for s in strides):
        return x
    copy = np.zeros((x.shape[0], x.shape[2], x.shape[1], D), np.float32).swapaxes(1, 2)
    copy[..., : x.shape[3]] = x
    return copy


def _writable(shape: tuple[int, ...], D: int, place: Array | None = None) -> Array:
    """`place` if the loops can write to it, else a new array that lies as (B, T, H, D)."""
    if place is not None and place.dtype == np.float32 and _readable(place, D) is place:
        return place
    B, H, T, _ = shape
    return np.empty((B, T, H, D), np.float32).swapaxes(1, 2)


def _numbers(
    c: Call, out: Array, lse: Array, *more: Array
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Any, tuple[Any, ...]]:
    """What the loops are told: addresses, sizes, steps, the scale, and the place in the stream."""
    B, H, T, D = out.shape
    G, S = c.k.shape[1:3]
    kind, mask, mask_steps = 0, 0, (0, 0, 0, 0)
    if c.mask is not None:
        kind = 1 if c.mask.dtype.kind == "b" else 2
        mask, mask_steps = blas.address(c.mask), c.mask.strides
    addresses = (
        *map(blas.address, (c.q, c.k, c.v, out, lse)),
        mask,
        0 if c.lengths is None else blas.address(c.lengths),
        0 if c.slopes is None else blas.address(c.slopes),
        *map(blas.address, more),
    )
    drop, kept = dropout_constants(c.p)
    thin = int(drop) if c.p > 0 else -1
    sizes = (B, H, T, S, D, G, int(c.causal), c.window, c.start, kind, thin, _padded(S))
    steps = (
        *(step >> 2 for x in (c.q, c.k, c.v, out) for step in x.strides[:3]),
        *mask_steps,
        *(step >> 2 for x in more for step in x.strides[:3]),
    )
    seed, offset = checked_place(c.seed, c.offset)
    place = np.uint64(seed), np.uint64(offset), np.float32(kept)
    return addresses, sizes, steps, np.float32(c.scale), place


def _prepared(c: Call) -> tuple[Call, int]:
    """With arrays that the loops can read, and the padded D: whole registers."""
    D = -(-c.q.shape[3] // 16) * 16
    q, k, v = (_readable(x, D) for x in (c.q, c.k, c.v))
    mask = c.mask
    if mask is not None and mask.dtype.kind != "b":
        if any(s & 3 for s in mask.strides):
            mask = mask.copy()
    lengths = None if c.lengths is None else np.ascontiguousarray(c.lengths, np.int64)
    slopes = None if c.slopes is None else np.ascontiguousarray(c.slopes, np.float32)
    return c._replace(q=q, k=k, v=v, mask=mask, lengths=lengths, slopes=slopes), D


@attention.cpu
def _(q: Array, k: Array, v: Array, *rest: Any, **options: Any) -> tuple[Array, Array]:
    c, D = _prepared(_call("attention", q, k, v, *rest, **options))
    B, H, T, narrow = q.shape
    out, lse = _writable(q.shape, D), np.empty((B, H, T), np.float32)
    addresses, sizes, steps, scale, place = _numbers(c, out, lse)
    tasks = engine.numbers(B * H * -(-T // loops.ROWS))
    work = B * H * T * k.shape[2]
    loops.forward(tasks, addresses, sizes, steps, scale, *place, work=work)
    return (out if D == narrow else out[..., :narrow]), lse


@attention_grad.cpu
def _(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    *rest: Any,
    dq: Array | None = None,
    dk: Array | None = None,
    dv: Array | None = None,
    **options: Any,
) -> tuple[Array, Array, Array]:
    given = _call("attention_grad", q, k, v, *rest, **options)
    _check_results(dout, given, out, lse)
    c, D = _prepared(given)
    out, dout = _readable(out, D), _readable(dout, D)
    lse = np.ascontiguousarray(lse, np.float32)
    places = dq, dk, dv
    made = [_writable(x.shape, D, y) for x, y in zip((q, k, v), places, strict=True)]
    addresses, sizes, steps, scale, place = _numbers(c, out, lse, dout, *made)
    tasks = engine.numbers(k.shape[0] * k.shape[1])
    work = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    loops.backward(tasks, addresses, sizes, steps, scale, *place, work=work)
    narrow = q.shape[3]
    pairs = zip(made, places, strict=True)
    dq, dk, dv = (x if x is y else _placed(x[..., :narrow], y) for x, y in pairs)
    return dq, dk, dv


# CUDA ---------------------------------------------------------------------------------------------

CUDA_KERNELS = ("attention_forward", "attention_dq", "attention_dkv")

#: Columns a thread has, every 16th: heads of up to 64 and 128 columns.
_WIDTHS = (4, 8)
_TYPES = tuple(f"{t}, {w}" for t in ("float", "__half", "__nv_bfloat16") for w in _WIDTHS)
CUDA_TYPES = dict.fromkeys(CUDA_KERNELS, _TYPES)

#: Rows of a tile, and floats from one column of it to the next in shared memory.
_TILE, _ROW = 64, 65


def _by_position(x: Array) -> Array:
    """(B, H, T, D) as contiguous (B, T, H, D), copied if it does not lie so."""
    return array_module(x).ascontiguousarray(x.swapaxes(1, 2))


def _corner(x: Array) -> Array:
    """The first element as an array of one: a pointer for what reads by strides."""
    return x[tuple(slice(1) for _ in x.shape)]


def _steps(*arrays: Array) -> list[np.int64]:
    return [np.int64(step // x.itemsize) for x in arrays for step in x.strides[:3]]


class _Launch:
    """What the three kernels are launched with."""

    def __init__(self, c: Call) -> None:
        from kernels.cuda import launch

        self.xp, self.run = array_module(c.q), launch.run
        D = c.q.shape[3]
        self.inputs = [self._readable(x) for x in (c.q, c.k, c.v)]
        self.width = next(w for w in _WIDTHS if 16 * w >= D)
        self.kind = f"<{launch.type_name(c.q.dtype)}, {self.width}>"
        self.steps = _steps(*self.inputs)
        self.pattern = self._pattern(c)

    def _readable(self, x: Array) -> Array:
        whole = x.strides[3] == x.itemsize and not any(step % x.itemsize for step in x.strides)
        return x if whole or x.size == 0 else self.xp.ascontiguousarray(x)

    def _pattern(self, c: Call) -> list[Any]:
        null: Any = np.uintp(0)
        boolean = c.mask is not None and c.mask.dtype.kind == "b"
        corner = null if c.mask is None else _corner(c.mask)
        mask_steps = (0, 0, 0, 0)
        if c.mask is not None:
            mask_steps = tuple(step // c.mask.itemsize for step in c.mask.strides)
        lengths = null if c.lengths is None else self.xp.ascontiguousarray(c.lengths, np.int64)
        slopes = null if c.slopes is None else self.xp.ascontiguousarray(c.slopes, np.float32)
        H, T, D = c.q.shape[1:]
        G, S = c.k.shape[1:3]
        sizes = (*mask_steps, H, G, T, S, D, c.start, c.window)
        drop, kept = dropout_constants(c.p)
        place, seed = null, c.seed
        if is_array(seed):
            place, seed = seed, 0
        seed, offset = checked_place(seed, c.offset)
        return [
            *((corner, null) if boolean else (null, corner)),
            lengths,
            slopes,
            *map(np.int64, sizes),
            np.int32(c.causal),
            np.float32(c.scale),
            np.int32(drop if c.p > 0 else -1),
            np.float32(kept),
            np.uint64(seed),
            np.uint64(offset),
            place,
        ]

    def __call__(self, name: str, grid: int, tiles: int, weights: int, *args: Any) -> None:
        """Launch `name` with shared memory for so many tiles of inputs and of weights."""
        shared = 4 * _ROW * (tiles * 16 * self.width + weights * _TILE)
        given = (*args, *self.steps, *self.pattern)
        self.run("attention", f"{name}{self.kind}", grid, 256, given, shared)


def _too_wide(c: Call) -> bool:
    """Heads that the tiles do not hold are for the reference."""
    return int(c.q.shape[3]) > 16 * _WIDTHS[-1]


@attention.cuda
def _(q: Array, k: Array, v: Array, *rest: Any, **options: Any) -> tuple[Array, Array]:
    c = _call("attention", q, k, v, *rest, **options)
    if _too_wide(c):
        return _in_float32(attention, q, k, v, *c.rest())
    xp = array_module(q)
    B, H, T, D = q.shape
    if q.size == 0 or k.size == 0:
        return xp.zeros(q.shape, q.dtype), xp.full((B, H, T), -np.inf, np.float32)
    start = _Launch(c)
    out, lse = xp.empty((B, T, H, D), q.dtype), xp.empty((B, H, T), np.float32)
    corners = map(_corner, start.inputs)
    start("attention_forward", B * H * -(-T // _TILE), 2, 1, *corners, out, lse)
    return out.swapaxes(1, 2), lse


@attention_grad.cuda
def _(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    *rest: Any,
    dq: Array | None = None,
    dk: Array | None = None,
    dv: Array | None = None,
    **options: Any,
) -> tuple[Array, Array, Array]:
    c = _call("attention_grad", q, k, v, *rest, **options)
    _check_results(dout, c, out, lse)
    xp = array_module(q)
    if _too_wide(c):
        made = _in_float32(attention_grad, dout, q, k, v, out, lse, *c.rest())
    elif q.size == 0 or k.size == 0:
        made = tuple(xp.zeros(x.shape, x.dtype) for x in (q, k, v))
    else:
        start = _Launch(c)
        (B, H, T, D), (_, G, S, _) = q.shape, k.shape
        lse = xp.ascontiguousarray(lse).astype(np.float32, copy=False)
        delta = xp.empty((B, H, T), np.float32)
        to_q, to_k, to_v = (xp.empty((B, n, m, D), q.dtype) for n, m in ((T, H), (S, G), (S, G)))
        dense, corners = _by_position(dout), [_corner(x) for x in start.inputs]
        given = (dense, *corners, _by_position(out), lse, delta, to_q)
        start("attention_dq", B * H * -(-T // _TILE), 4, 2, *given)
        given = (dense, *corners, lse, delta, to_k, to_v)
        start("attention_dkv", B * G * -(-S // _TILE), 4, 2, *given)
        made = tuple(x.swapaxes(1, 2) for x in (to_q, to_k, to_v))
    a, b, d = (_placed(x, y) for x, y in zip(made, (dq, dk, dv), strict=True))
    return a, b, d


def _in_float32(function: Any, *args: Any) -> Any:
    """The reference of `function`, in float32 for 16-bit arrays; lse stays so."""
    kind = args[0].dtype
    wide = [x.astype(np.float32) if is_array(x) and is_half(x.dtype) else x for x in args]
    results = function.reference(*wide)
    return tuple(
        r if i in function.statistics else r.astype(kind, copy=False) for i, r in enumerate(results)
    )


# Samples ------------------------------------------------------------------------------------------
# shape (rows, columns): about that many queries, in heads of no more than `widest` columns


def _heads(
    draw: Any, shape: tuple[int, int], groups: int = 2, widest: int = 40
) -> tuple[Array, Array, Array]:
    """q of 2 sequences and 2 heads, k and v of `groups` heads and a few keys more than queries."""
    T, D = -(-shape[0] // 2), min(shape[1], widest)
    q = draw.normal(2, 2, T, D)
    k, v = (draw.normal(2, groups, T + T // 3, D) for _ in range(2))
    return q, k, v


@attention.sample
def _(draw, shape):
    return _heads(draw, shape, widest=72)


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
        return draw.normal(q.shape), q, k, v, out, lse, *rest

    make.__name__ = sample
    attention_grad.sample(make)


for _sample in ("_", "causal", "windowed", "masked", "biased", "dropped"):
    _gradient(_sample)


# For pictures -------------------------------------------------------------------------------------


def attention_weights(q: Array, k: Array, lse: Array, *rest: Any, **options: Any) -> Array:
    """The weights (B, H, T, S) themselves, without dropout; `lse` and the rest as for
    `attention`.
    """
    return _weights(_call("attention_weights", q, k, k, *rest, **options), lse)
