"""Loops of kernels/random.py over flat arrays. Philox's words are drawn 1,024 at a time into the L1
cache.

No fast-math anywhere: the draws are to be the same bits as the reference's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cpu.engine import jit, loop
from kernels.cpu.philox import LOW, SHIFT, philox
from kernels.cpu.vectormath import from_bits, to_bits

#: 32-bit words drawn at a time.
WORDS = 1024
_COUNTERS = WORDS // 4

_ZERO = np.uint64(0)

_2_24, _2_32, _2_33 = np.float32(2.0**-24), np.float32(2.0**-32), np.float32(2.0**-33)
_BITS_SQRT_HALF, _MANTISSA = np.int32(0x3F3504F3), np.int32(0x7FFFFF)
_LN2 = np.float32(math.log(2))
_ANGLE = np.float32(math.pi / 2 * 2.0**-30)
_LOG = tuple(
    np.float32(
        [
            0.33333328,
            -0.250003,
            0.20001468,
            -0.16642247,
            0.14202175,
            -0.12972239,
            0.12712307,
            -0.08101559,
        ]
    )
)
_SIN = tuple(np.float32([-0.16666664, 0.008332749, -0.0001958795]))
_COS = tuple(np.float32([-0.5, 0.04166665, -0.001388759, 2.4463838e-05]))
_ONE, _HALF = np.float32(1), np.float32(0.5)


@jit
def _draw(words, seed, offset, chunk):
    """The 1,024 words of the stream from word 1024 * chunk on."""
    start = offset + np.uint64(chunk) * np.uint64(_COUNTERS)
    k0 = seed & LOW
    k1 = seed >> SHIFT
    for i in range(_COUNTERS):
        c = start + np.uint64(i)
        w0, w1, w2, w3 = philox(c, c >> SHIFT, _ZERO, _ZERO, k0, k1)
        words[4 * i] = np.uint32(w0)
        words[4 * i + 1] = np.uint32(w1)
        words[4 * i + 2] = np.uint32(w2)
        words[4 * i + 3] = np.uint32(w3)


def run(fill: Any, out: np.ndarray, seed: int, offset: int, *args: Any) -> None:
    """Run a loop below over the chunks of `out`: what a chunk holds depends only on its number."""
    chunks = np.arange(-(-out.size // fill.elements), dtype=np.int64)
    fill(chunks, out, np.uint64(seed), np.uint64(offset), *args, work=out.size)


def _chunked(elements: int) -> Any:
    """A loop over chunk numbers, `elements` array elements a chunk."""

    def decorate(function: Any) -> Any:
        fill = loop("chunks", allocates=True, fastmath=False)(function)
        fill.elements = elements
        return fill

    return decorate


@_chunked(WORDS)
def uniform(chunks, out, seed, offset, span, low, below):
    words = np.empty(WORDS, np.uint32)
    for chunk in chunks:
        _draw(words, seed, offset, chunk)
        piece = out[chunk * WORDS : (chunk + 1) * WORDS]
        for i in range(piece.shape[0]):
            u = np.float32(np.int32(words[i] >> np.uint32(8))) * _2_24
            v = u * span + low
            piece[i] = v if v < below else below


@_chunked(WORDS)
def normal(chunks, out, seed, offset, mean, std):
    words = np.empty(WORDS, np.uint32)
    z = np.empty(WORDS, np.float32)
    for chunk in chunks:
        _draw(words, seed, offset, chunk)
        for i in range(WORDS // 2):
            radius = _radius(words[2 * i])
            cosine, sine = _circle(words[2 * i + 1])
            z[2 * i] = radius * cosine
            z[2 * i + 1] = radius * sine
        piece = out[chunk * WORDS : (chunk + 1) * WORDS]
        for i in range(piece.shape[0]):
            piece[i] = z[i] * std + mean


@jit(fastmath=False, forceinline=True)
def _radius(word):
    u = np.float32(word) * _2_32 + _2_33
    split = np.int32(to_bits(u) - _BITS_SQRT_HALF)
    e = np.float32(np.int32(split >> 23))
    f = from_bits(np.int32(np.int32(split & _MANTISSA) + _BITS_SQRT_HALF)) - _ONE
    q = ((_LOG[7] * f + _LOG[6]) * f + _LOG[5]) * f + _LOG[4]
    q = (((q * f + _LOG[3]) * f + _LOG[2]) * f + _LOG[1]) * f + _LOG[0]
    log = e * _LN2 + (f + (f * f) * (f * q - _HALF))
    return np.sqrt(log * np.float32(-2))


@jit(fastmath=False, forceinline=True)
def _circle(word):
    quadrant = np.int32(word >> np.uint32(30))
    t = np.float32(np.int32(np.int32(word & np.uint32(0x3FFFFFFF)) - np.int32(2**29))) * _ANGLE
    s = t * t
    sine = t + t * (s * ((_SIN[2] * s + _SIN[1]) * s + _SIN[0]))
    cosine = s * (((_COS[3] * s + _COS[2]) * s + _COS[1]) * s + _COS[0]) + _ONE
    turned = (quadrant & 1) != 0
    x = sine if turned else cosine
    y = cosine if turned else sine
    return -x if ((quadrant + 1) & 2) != 0 else x, -y if (quadrant & 2) != 0 else y


@_chunked(WORDS)
def bernoulli(chunks, out, seed, offset, threshold):
    words = np.empty(WORDS, np.uint32)
    for chunk in chunks:
        _draw(words, seed, offset, chunk)
        piece = out[chunk * WORDS : (chunk + 1) * WORDS]
        for i in range(piece.shape[0]):
            piece[i] = _ONE if np.uint64(words[i]) < threshold else np.float32(0)


@_chunked(WORDS // 2)
def keys(chunks, out, seed, offset):
    words = np.empty(WORDS, np.uint32)
    longs = words.view(np.uint64)
    for chunk in chunks:
        _draw(words, seed, offset, chunk)
        piece = out[chunk * (WORDS // 2) : (chunk + 1) * (WORDS // 2)]
        for i in range(piece.shape[0]):
            piece[i] = longs[i]


@_chunked(WORDS // 2)
def randint(chunks, out, seed, offset, span, low):
    words = np.empty(WORDS, np.uint32)
    for chunk in chunks:
        _draw(words, seed, offset, chunk)
        piece = out[chunk * (WORDS // 2) : (chunk + 1) * (WORDS // 2)]
        for i in range(piece.shape[0]):
            carried = (np.uint64(words[2 * i]) * span) >> SHIFT
            k = (np.uint64(words[2 * i + 1]) * span + carried) >> SHIFT
            piece[i] = np.int64(k) + low


@_chunked(2 * WORDS)
def dropout(chunks, out, seed, offset, x, drop, scale):
    words = np.empty(WORDS, np.uint32)
    halves = words.view(np.uint16)
    for chunk in chunks:
        _draw(words, seed, offset, chunk)
        x_piece = x[chunk * 2 * WORDS : (chunk + 1) * 2 * WORDS]
        piece = out[chunk * 2 * WORDS : (chunk + 1) * 2 * WORDS]
        for i in range(piece.shape[0]):
            piece[i] = x_piece[i] * scale if np.int32(halves[i]) >= drop else np.float32(0)
