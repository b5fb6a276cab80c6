"""Random draws: Philox4x32-10, a function of (seed, offset) alone; one stream for both devices.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). `seed` is
the 64-bit key, `offset` a 64-bit counter, and the generator turns each counter into four 32-bit
words. The stream is these words in order: word j is word j % 4 of counter offset + j // 4. What
element i (in C order) of a draw takes from the stream:

    uniform, bernoulli      word i
    normal                  words i and i ^ 1 (Box-Muller makes two from two)
    randint, permutation    words 2 i and 2 i + 1, the low one first
    dropout                 half-word i, the low half of a word first

Nothing is kept between calls: the same (seed, offset) draws the same numbers, on every device, for
any number of threads, bit for bit. A caller adds `counters(n)` to its offset after a draw of n
elements. A step captured into a CUDA graph is launched with the same arguments every time: for it
`seed` may be a uint64 array (2,) on the device, the seed and a number that is added to `offset`.

float32 arithmetic is written out so that no version may fuse or reorder it; float64
arrays receive the float32 draws, scaled in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, is_array
from kernels.registry import kernel

#: Names of the templates in kernels/cuda/random.cu.
CUDA_KERNELS = (
    "uniform_fill",
    "normal_fill",
    "bernoulli_fill",
    "randint_fill",
    "key_fill",
    "dropout_apply",
)

#: What those that do not fill floating-point arrays are instantiated for.
CUDA_TYPES = {"randint_fill": ("long long",), "key_fill": ("unsigned long long",)}

_MASK = 0xFFFFFFFF
_ROUNDS = 10


def counters(n: int) -> int:
    """How far a draw of `n` elements advances the offset, whatever the draw: 64 bits an element."""
    return -(-n // 2)


def philox(counter: Any, key: tuple[int, int]) -> Any:
    """Philox4x32-10: four words of counter and two of key to four words.

    All words are below 2^32; those of the counter and of the result are uint64 arrays.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    xp = array_module(c0)
    low, shift = xp.uint64(_MASK), xp.uint64(32)
    for _ in range(_ROUNDS):
        p = c0 * xp.uint64(0xD2511F53)
        q = c2 * xp.uint64(0xCD9E8D57)
        c0, c1 = (q >> shift) ^ c1 ^ xp.uint64(k0), q & low
        c2, c3 = (p >> shift) ^ c3 ^ xp.uint64(k1), p & low
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _words(xp: Any, n: int, seed: Any, offset: int) -> Array:
    """The first `n` words of the stream, uint32."""
    seed, offset = checked_place(seed, offset)
    c = xp.arange(-(-n // 4), dtype=np.uint64) + xp.uint64(offset)  # wraps at 2^64
    zero = xp.zeros_like(c)
    counter = (c & xp.uint64(_MASK), c >> xp.uint64(32), zero, zero)
    words = philox(counter, (seed & _MASK, seed >> 32))
    return xp.stack(words, axis=1).astype(np.uint32).reshape(-1)[:n]


def _long_words(xp: Any, n: int, seed: Any, offset: int) -> tuple[Array, Array]:
    """Low and high words of the first `n` 64-bit numbers of the stream, as uint64."""
    words = _words(xp, 2 * n, seed, offset).astype(np.uint64)
    return words[0::2], words[1::2]


def checked_place(seed: Any, offset: int) -> tuple[int, int]:
    if is_array(seed):  # a CUDA array is waited for: the kernels in random.cu read it themselves
        seed, offset = int(seed[0]), (int(seed[1]) + offset) % 2**64
    for name, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} is {value}, expected an integer in [0, 2**64)")
    return int(seed), int(offset)


def _is_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, expected a probability in [0, 1]")


# Draws --------------------------------------------------------------------------------------------


@kernel(inplace=("out",))
def uniform(out: Array, seed: Any, offset: int, low: float = 0.0, high: float = 1.0) -> Array:
    """Fill `out` with draws from [low, high) and return it.

    They are low + (high - low) u, u a multiple of 2^-24. `high` itself never comes out in float32
    and float64; rounding a 16-bit result may reach it.
    """
    span, low, below = _interval(out, low, high)
    words = _words(array_module(out), out.size, seed, offset)
    u = (words >> 8).astype(type(span)) * type(span)(2.0**-24)
    xp = array_module(out)
    out[...] = xp.minimum(u * span + low, below).reshape(out.shape)
    return out


def _interval(out: Array, low: float, high: float) -> tuple[Any, Any, Any]:
    """high - low, low and the largest number below high, in `out`'s precision (16-bit: float32)."""
    if not (low <= high and math.isfinite(high - low)):
        raise ValueError(f"[low, high) is [{low}, {high}), expected finite low <= high")
    kind = np.float64 if out.dtype == np.float64 else np.float32
    return kind(high - low), kind(low), np.nextafter(kind(high), kind(low))


@kernel(inplace=("out",))
def normal(out: Array, seed: Any, offset: int, mean: float = 0.0, std: float = 1.0) -> Array:
    """Fill `out` with normal draws, at most 6.8 `std` from the `mean`, and return it.

    Box and Muller (1958): sqrt(-2 ln u) cos(t) and sqrt(-2 ln u) sin(t). Logarithm and sine are
    polynomials in float32 (errors below 3e-7), so that every device gets the same bits.
    """
    _is_scale(std)
    xp = array_module(out)
    words = _words(xp, out.size + out.size % 2, seed, offset)
    radius = _radius(xp, words[0::2])
    cosine, sine = _circle(xp, words[1::2])
    z = xp.stack((radius * cosine, radius * sine), axis=1).reshape(-1)[: out.size]
    kind = np.float64 if out.dtype == np.float64 else np.float32
    out[...] = (z.astype(kind) * kind(std) + kind(mean)).reshape(out.shape)
    return out


def _is_scale(std: float) -> None:
    if not std >= 0:
        raise ValueError(f"std is {std}, expected a number >= 0")


# (ln(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2), sqrt(2)] - 1; (sin t - t) / t^3 and (cos t - 1) /
# t^2 on |t| < pi / 4. Chebyshev fits. The same numbers stand in kernels/cpu/random.py and
# kernels/cuda/random.cu.
_LOG = (
    0.33333328,
    -0.250003,
    0.20001468,
    -0.16642247,
    0.14202175,
    -0.12972239,
    0.12712307,
    -0.08101559,
)
_SIN = (-0.16666664, 0.008332749, -0.0001958795)
_COS = (-0.5, 0.04166665, -0.001388759, 2.4463838e-05)
_BITS_SQRT_HALF = 0x3F3504F3


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    f4 = np.float32
    y = x * f4(coefficients[-1]) + f4(coefficients[-2])
    for c in coefficients[-3::-1]:
        y = y * x + f4(c)
    return y


def _radius(xp: Any, word: Array) -> Array:
    """sqrt(-2 ln u), u = (word + 1/2) / 2^32 in (0, 1], in float32."""
    f4 = np.float32
    u = word.astype(f4) * f4(2.0**-32) + f4(2.0**-33)
    split = u.view(np.int32) - np.int32(_BITS_SQRT_HALF)  # u = 2^e (1 + f)
    e = (split >> 23).astype(f4)
    f = ((split & np.int32(0x7FFFFF)) + np.int32(_BITS_SQRT_HALF)).view(f4) - f4(1)
    log = e * f4(math.log(2)) + (f + (f * f) * (f * _polynomial(_LOG, f) - f4(0.5)))
    return xp.sqrt(log * f4(-2))


def _circle(xp: Any, word: Array) -> tuple[Array, Array]:
    """Cosine and sine of an angle: the word's top two bits are the quadrant, the rest an angle
    below pi / 4."""
    f4 = np.float32
    quadrant = word >> 30
    t = (word & np.uint32(0x3FFFFFFF)).astype(np.int32) - np.int32(2**29)
    t = t.astype(f4) * f4(math.pi / 2 * 2.0**-30)
    s = t * t
    sine = t + t * (s * _polynomial(_SIN, s))
    cosine = s * _polynomial(_COS, s) + f4(1)
    turned = (quadrant & 1) != 0
    x = xp.where(turned, sine, cosine)
    y = xp.where(turned, cosine, sine)
    return xp.where(((quadrant + 1) & 2) != 0, -x, x), xp.where((quadrant & 2) != 0, -y, y)


@kernel(inplace=("out",))
def bernoulli(out: Array, seed: Any, offset: int, p: float = 0.5) -> Array:
    """Fill `out` (any dtype) with 1 with probability `p`, to 2^-32, else 0. Returns `out`."""
    _is_probability(p)
    words = _words(array_module(out), out.size, seed, offset)
    out[...] = (words.astype(np.uint64) < np.uint64(_threshold(p, 32))).reshape(out.shape)
    return out


def _threshold(p: float, bits: int) -> int:
    """How many of the 2^bits values of a word stand for an event of probability p."""
    return round(p * 2**bits)


@kernel(inplace=("out",))
def randint(out: Array, seed: Any, offset: int, low: int, high: int) -> Array:
    """Fill `out` with integers low <= k < high. Returns `out`.

    low + (w (high - low) >> 64), w a 64-bit word: each integer is as likely as any other to (high -
    low) / 2^64.
    """
    span = _span(low, high)
    w_low, w_high = _long_words(array_module(out), out.size, seed, offset)
    # the top 64 bits of w * span, exact because span <= 2^32
    k = (w_high * span + (w_low * span >> np.uint64(32))) >> np.uint64(32)
    out[...] = (k.astype(np.int64) + np.int64(low)).reshape(out.shape)
    return out


def _span(low: int, high: int) -> np.uint64:
    if not 0 < high - low <= 2**32:
        raise ValueError(f"[low, high) is [{low}, {high}), expected 1 to 2**32 integers")
    return np.uint64(high - low)


@kernel(inplace=("out",))
def permutation(out: Array, seed: Any, offset: int) -> Array:
    """Fill `out` (n,) with a random order of 0 ... n - 1. Returns `out`.

    The order that sorts n random 64-bit keys, equal keys by index: every order is equally likely to
    n^2 / 2^65.
    """
    _is_vector(out)
    low, high = _long_words(array_module(out), out.size, seed, offset)
    out[...] = (high << np.uint64(32) | low).argsort(kind="stable")
    return out


def _is_vector(out: Array) -> None:
    if out.ndim != 1:
        raise ValueError(f"out has shape {out.shape}, expected one dimension")


# Dropout ------------------------------------------------------------------------------------------


@kernel
def dropout(x: Array, p: float, seed: Any, offset: int) -> Array:
    """x / (1 - p) with probability 1 - p, else 0 (Srivastava et al. 2014), in C order.

    `p` is rounded to a multiple of 2^-16, and the scale goes by the rounded p, so the mean of x is
    kept exactly. What is dropped is 0 even where x is infinite or NaN.
    """
    drop, scale = dropout_constants(p)
    xp = array_module(x)
    words = _words(xp, -(-x.size // 2), seed, offset)
    halves = words.view(np.uint16)[: x.size].reshape(x.shape)
    return xp.where(halves.astype(np.int32) >= drop, x * x.dtype.type(scale), x.dtype.type(0))


@kernel
def dropout_grad(dy: Array, p: float, seed: Any, offset: int) -> Array:
    """The gradient of `dropout`: dy under the same mask, drawn again instead of saved."""
    return dropout.reference(dy, p, seed, offset)


def dropout_constants(p: float) -> tuple[np.int32, float]:
    """How many of the 65536 half-words drop, and what the rest is multiplied by."""
    _is_probability(p)
    drop = _threshold(p, 16)
    return np.int32(drop), 65536 / (65536 - drop) if drop < 65536 else 0.0


# CPU ----------------------------------------------------------------------------------------------


def _fill(loop: str, out: Array, seed: Any, offset: int, *scalars: Any) -> Array:
    from kernels.cpu import random as loops

    flat = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)
    loops.run(getattr(loops, loop), flat, *checked_place(seed, offset), *scalars)
    if not out.flags.c_contiguous:
        out[...] = flat.reshape(out.shape)
    return out


@uniform.cpu
def _(out: Array, seed: Any, offset: int, low: float = 0.0, high: float = 1.0) -> Array:
    return _fill("uniform", out, seed, offset, *_interval(out, low, high))


@normal.cpu
def _(out: Array, seed: Any, offset: int, mean: float = 0.0, std: float = 1.0) -> Array:
    _is_scale(std)
    return _fill("normal", out, seed, offset, np.float32(mean), np.float32(std))


@bernoulli.cpu
def _(out: Array, seed: Any, offset: int, p: float = 0.5) -> Array:
    _is_probability(p)
    return _fill("bernoulli", out, seed, offset, np.uint64(_threshold(p, 32)))


@randint.cpu(dtypes=("int64",))
def _(out: Array, seed: Any, offset: int, low: int, high: int) -> Array:
    return _fill("randint", out, seed, offset, _span(low, high), np.int64(low))


@permutation.cpu(dtypes=("int64",))
def _(out: Array, seed: Any, offset: int) -> Array:
    _is_vector(out)
    keys = _fill("keys", np.empty(out.size, np.uint64), seed, offset)
    order = keys.argsort()  # vectorised, four times as fast as a stable sort
    ordered = keys[order]
    out[...] = keys.argsort(kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
    return out


def _dropout_cpu(x: Array, p: float, seed: Any, offset: int) -> Array:
    from kernels.cpu import random as loops

    drop, scale = dropout_constants(p)
    out = np.empty(x.shape, x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1)
    seed, offset = checked_place(seed, offset)
    loops.run(loops.dropout, out.reshape(-1), seed, offset, flat, drop, np.float32(scale))
    return out


dropout.cpu(_dropout_cpu)
dropout_grad.cpu(_dropout_cpu)


# CUDA ---------------------------------------------------------------------------------------------


def _launch(template: str, out: Array, seed: Any, offset: int, *args: Any) -> Array:
    from kernels.cuda import launch

    kind = {"int64": "long long", "uint64": "unsigned long long"}.get(out.dtype.name)
    contiguous = out.flags.c_contiguous
    dense = out if contiguous else array_module(out).empty(out.shape, out.dtype)
    place: Any = np.uint64(0)  # a null pointer
    if is_array(seed):
        place, seed = seed, 0
    seed, offset = checked_place(seed, offset)
    launch.run(
        "random",
        f"{template}<{kind or launch.type_name(out.dtype)}>",
        launch.grid_stride(out.size, out) if out.size else 0,
        launch.BLOCK,
        (dense, *args, np.int64(out.size), np.uint64(seed), np.uint64(offset), place),
    )
    if not contiguous:
        out[...] = dense
    return out


@uniform.cuda
def _(out: Array, seed: Any, offset: int, low: float = 0.0, high: float = 1.0) -> Array:
    return _launch("uniform_fill", out, seed, offset, *_interval(out, low, high))


@normal.cuda
def _(out: Array, seed: Any, offset: int, mean: float = 0.0, std: float = 1.0) -> Array:
    _is_scale(std)
    return _launch("normal_fill", out, seed, offset, np.float32(mean), np.float32(std))


@bernoulli.cuda
def _(out: Array, seed: Any, offset: int, p: float = 0.5) -> Array:
    _is_probability(p)
    return _launch("bernoulli_fill", out, seed, offset, np.uint64(_threshold(p, 32)))


@randint.cuda(dtypes=("int64",))
def _(out: Array, seed: Any, offset: int, low: int, high: int) -> Array:
    return _launch("randint_fill", out, seed, offset, _span(low, high), np.int64(low))


@permutation.cuda(dtypes=("int64",))
def _(out: Array, seed: Any, offset: int) -> Array:
    from kernels.cuda import launch

    _is_vector(out)
    if launch.is_capturing():
        raise RuntimeError("permutation: the current stream is capturing, and CuPy's sort waits")
    keys = array_module(out).empty(out.size, np.uint64)
    out[...] = _launch("key_fill", keys, seed, offset).argsort()  # CuPy's sort is stable
    return out


def _dropout_cuda(x: Array, p: float, seed: Any, offset: int) -> Array:
    xp = array_module(x)
    drop, scale = dropout_constants(p)
    x = xp.ascontiguousarray(x)
    return _launch("dropout_apply", xp.empty_like(x), seed, offset, x, drop, np.float32(scale))


dropout.cuda(_dropout_cuda)
dropout_grad.cuda(_dropout_cuda)


# Samples ------------------------------------------------------------------------------------------


@uniform.sample
def _(draw, shape):
    return np.zeros(shape), 7, 3, -1.0, 2.0


@normal.sample
def _(draw, shape):
    return np.zeros(shape), 7, 3, 0.5, 2.0


@bernoulli.sample
def _(draw, shape):
    return np.zeros(shape), 7, 3, 0.3


@randint.sample
def _(draw, shape):
    return np.zeros(shape, np.int64), 7, 3, -5, 1000


@permutation.sample
def _(draw, shape):
    return np.zeros(math.prod(shape), np.int64), 7, 3


@dropout.sample
def _(draw, shape):
    return draw.normal(shape), 0.3, 7, 3


@dropout_grad.sample
def _(draw, shape):
    return draw.normal(shape), 0.3, 7, 3
