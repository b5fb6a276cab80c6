"""float32 mathematics for the bodies of compiled loops: inlined by LLVM, vectorised with the loop.

`np.exp` and its relatives inside a numba loop are one library call per element (3-6x slower than
these). All functions take and return float32; every constant is a float32 too, since one Python
literal would drag the whole loop to float64. Call them with float32 only: ``exp(np.float32(1))``.

They are branch-free (selects, no loops), so a loop over any of them becomes AVX2, AVX-512 or NEON
code. Infinities, NaN, signed zeros and subnormals behave as in NumPy; subnormal results are right
within one unit of 2^-149. Errors are in units of the last place (ulp) of the float32 result, the
largest met against float64 on a dense grid over the whole range.

The coefficients are minimax fits of our own: iteratively reweighted least squares, rounded to
float32 one coefficient at a time, with the rest fitted again. The range reductions are those of
W. J. Cody and W. Waite, "Software Manual for the Elementary Functions" (1980).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from kernels.cpu.engine import jit
from kernels.cpu.lanes import LANES, floats, select

#: Only `contract` (fused multiply-add): reassoc would cancel the compensated sums, arcp replace the
#: divisions. The instructions keep these flags where they are inlined into a loop with more.
_EXACT: dict[str, Any] = {"fastmath": {"contract"}, "forceinline": True}

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
TWO = np.float32(2)
INF = np.float32(np.inf)
NAN = np.float32(np.nan)

_LOG2E = np.float32(math.log2(math.e))
# ln 2 in two parts. The first has 16 bits, so that its product with an exponent (8 bits) is exact
# without FMA too.
_LN2_HIGH = np.float32(round(math.log(2) * 2**15) / 2**15)
_LN2_LOW = np.float32(math.log(2) - round(math.log(2) * 2**15) / 2**15)

# x + _ROUND rounds x to an integer and leaves that integer in the low bits (|x| < 2^22).
_ROUND = np.float32(1.5 * 2**23)

_SMALLEST_NORMAL = np.float32(2.0**-126)
_BITS_ONE = np.int32(0x3F800000)
_BITS_SQRT_HALF = np.int32(np.float32(math.sqrt(0.5)).view(np.int32))
_MANTISSA = np.int32(0x7FFFFF)

# (exp(r) - 1 - r) / r^2 on |r| < 0.3475; 1.4e-8 relative to expm1
_EXP = tuple(np.float32([0.49999997, 0.16666545, 0.041667446, 0.008366447, 0.0013869841]))
# (2^r - 1) / r on |r| < 0.501; 3.0e-9
_EXP2 = tuple(
    np.float32([0.6931472, 0.24022648, 0.055503596, 0.009618506, 0.0013391025, 0.00015326781])
)
# (log(1 + f) - f + f^2/2) / f^3 on sqrt(1/2) < 1 + f < sqrt(2); 6.0e-9 relative to log(1 + f)
_LOG = tuple(
    np.float32(
        [
            0.3333333,
            -0.25000837,
            0.20001285,
            -0.16622774,
            0.14199834,
            -0.13164231,
            0.12778337,
            -0.0764511,
        ]
    )
)
# erf(x) / x as a quotient of polynomials in x^2 on 0 < x < 3.92; 1.9e-8 relative to erf. Both are
# scaled by 1.85, which of 60 scales makes the rounding of the coefficients least harmful.
_ERF_ABOVE = tuple(
    np.float32([2.0914829, 0.352924, 0.0977713, 0.00697969, 0.00052803935, 3.7999034e-06])
)
_ERF_BELOW = tuple(
    np.float32([1.8535286, 0.9306125, 0.21150458, 0.027745891, 0.0021547973, 7.0604226e-05])
)

# (sin(r) - r) / r^3 in r^2 on |r| < pi/4; 4.0e-9 relative to sin(r)
_SIN = tuple(np.float32([-0.16666655, 0.008332189, -0.00019518285]))
# (cos(r) - 1 + r^2/2) / r^4 in r^2 on |r| < pi/4; 1.2e-10 relative to cos(r)
_COS = tuple(np.float32([0.041666646, -0.001388731, 2.4432327e-05]))


def _turns() -> tuple[np.ndarray, np.ndarray]:
    """2^(E - 150) modulo 2 pi for all biased exponents E, in two parts; NaN for infinities and NaN.

    The first part has 26 bits, so that its product with a mantissa is exact.
    Exact integers throughout; pi from Machin's formula, 16 atan(1/5) - 4 atan(1/239), to 400 bits.
    """

    def atan_inverse(n: int) -> int:
        total, term, k = 0, (1 << 420) // n, 1
        while term:
            total += term // k if k % 4 == 1 else -(term // k)
            term //= n * n
            k += 2
        return total

    turn = 2 * (16 * atan_inverse(5) - 4 * atan_inverse(239))
    high, low = np.full(256, np.nan), np.full(256, np.nan)
    for exponent in range(255):
        rest = (1 << (420 + exponent - 150)) % turn
        keep = max(rest.bit_length() - 26, 0)
        high[exponent] = math.ldexp(rest >> keep, keep - 420)
        low[exponent] = math.ldexp(rest - (rest >> keep << keep), -420)
    return high, low


_TURN_HIGH, _TURN_LOW = _turns()
_QUARTERS = 2 / math.pi
# pi/2 in two parts. The first has 24 bits: its product with up to 2^28 quarters is exact. The
# second has what float64 leaves of pi/2 (6.1e-17) added.
_QUARTER_HIGH = round(math.pi / 2 * 2**23) / 2**23
_QUARTER_LOW = (math.pi / 2 - _QUARTER_HIGH) + 6.123233995736766e-17
_ROUND_DOUBLE = 1.5 * 2.0**52


@intrinsic
def to_bits(context: Any, x: Any) -> Any:
    """The 32 bits of a float32 as an int32."""
    _expect("to_bits", types.float32, x)
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def _low_bits(context: Any, x: Any) -> Any:
    """The low 32 bits of a float64 as an int32."""
    _expect("_low_bits", types.float64, x)
    return types.int32(types.float64), lambda context, builder, signature, args: builder.trunc(
        builder.bitcast(args[0], ir.IntType(64)), ir.IntType(32)
    )


@intrinsic
def from_bits(context: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""
    _expect("from_bits", types.int32, bits)
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


def _expect(name: str, expected: Any, *given: Any) -> None:
    wrong = [kind for kind in given if kind != expected]
    if wrong:
        raise TypingError(
            f"vectormath.{name} was given {wrong[0]}, takes {expected}: "
            f"wrap it in np.{expected}(...)"
        )


def _call(name: str, flags: tuple[str, ...] = ()) -> Any:
    """The code generator of a call of LLVM's own `name` on float32 or lanes of them
    (https://llvm.org/docs/LangRef.html).
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        suffix = "f32" if kind == ir.FloatType() else f"v{LANES}f32"
        whole = ir.FunctionType(kind, [kind] * len(args))
        function = cgutils.get_or_insert_function(builder.module, whole, f"{name}.{suffix}")
        return builder.call(function, args, fastmath=flags)

    return generate


@intrinsic
def fast_max(context: Any, a: Any, b: Any) -> Any:
    """Larger of two numbers, for row maxima: ``m = fast_max(m, x[i])`` in a loop vectorises.

    Undefined where an operand is NaN: callers look after NaN themselves. Takes lanes as well.
    """
    if a != floats:
        _expect("fast_max", types.float32, a, b)
    return a(a, a), _call("llvm.maxnum", flags=("nnan", "nsz"))


@intrinsic
def maximum(context: Any, a: Any, b: Any) -> Any:
    """Larger of two numbers, NaN where either is NaN: `np.maximum`. Exact."""
    _expect("maximum", types.float32, a, b)
    return types.float32(types.float32, types.float32), _call("llvm.maximum", flags=("nsz",))


@intrinsic
def minimum(context: Any, a: Any, b: Any) -> Any:
    """Smaller of two numbers, NaN where either is NaN: `np.minimum`. Exact."""
    _expect("minimum", types.float32, a, b)
    return types.float32(types.float32, types.float32), _call("llvm.minimum", flags=("nsz",))


@intrinsic
def absolute(context: Any, x: Any) -> Any:
    """|x|. Exact."""
    _expect("absolute", types.float32, x)
    return types.float32(types.float32), _call("llvm.fabs")


@intrinsic
def copysign(context: Any, size: Any, sign: Any) -> Any:
    """|size| with the sign of the other, -0 included. Exact."""
    _expect("copysign", types.float32, size, sign)
    return types.float32(types.float32, types.float32), _call("llvm.copysign")


@intrinsic
def floor(context: Any, x: Any) -> Any:
    """Largest integer not above x. Exact."""
    _expect("floor", types.float32, x)
    return types.float32(types.float32), _call("llvm.floor")


@intrinsic
def sqrt(context: Any, x: Any) -> Any:
    """Square root, NaN below zero. Correctly rounded (0.5 ulp)."""
    _expect("sqrt", types.float32, x)
    return types.float32(types.float32), _call("llvm.sqrt")


@jit(**_EXACT)
def rsqrt(x):
    """1 / sqrt(x), infinite at zero: a square root and a division. 1.5 ulp."""
    return ONE / sqrt(x)


@jit(**_EXACT)
def sign(x):
    """-1, 0 or 1; NaN and the two zeros are kept. Exact."""
    return ONE if x > ZERO else (-ONE if x < ZERO else x)


@jit(**_EXACT)
def _power_of_two(n):
    """2^n for an int32 -127 < n < 128."""
    return from_bits(np.int32(np.int32(n << 23) + _BITS_ONE))


@jit(**_EXACT)
def _scale(y, rounded):
    """y * 2^n, where `rounded` is n + _ROUND.

    Two factors: n reaches from -252 to 254, and subnormal results are rounded once.
    """
    n = np.int32(np.int32(to_bits(rounded) << 9) >> 9)
    half = np.int32(n >> 1)
    return y * _power_of_two(half) * _power_of_two(np.int32(n - half))


@intrinsic
def _power(context: Any, rounded: Any) -> Any:
    """2^n for n + _ROUND, -127 < n < 128: the bits of n are moved to where the exponent is."""
    if rounded != floats:
        _expect("_power", types.float32, rounded)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        lanes = kind != ir.FloatType()
        whole = ir.VectorType(ir.IntType(32), LANES) if lanes else ir.IntType(32)
        shift, one = (ir.Constant(whole, [v] * LANES if lanes else v) for v in (23, 0x3F800000))
        moved = builder.shl(builder.bitcast(args[0], whole), shift)
        return builder.bitcast(builder.add(moved, one), kind)

    return rounded(rounded), generate


@jit(**_EXACT)
def _exp_tail(r):
    """e^r - 1 for |r| < ln(2)/2. In halves (Estrin 1960): what waits for a result limits an
    out-of-order core here, not how many multiplications there are.
    """
    s = r * r
    q = (_EXP[4] * s + (_EXP[3] * r + _EXP[2])) * s + (_EXP[1] * r + _EXP[0])
    return q * s + r


@jit(**_EXACT)
def exp(x):
    """e^x: Cody-Waite reduction to |r| < ln(2)/2, polynomial of degree 6. 1.1 ulp.

    Infinite above 88.72, 0 below -103.97; subnormal results are right within one unit of 2^-149.
    """
    # far beyond 89 and -104: the loop around may reorder a product, e^89 times 0.5 is finite, and
    # e^-104 times 2 is not 0
    z = np.float32(170) if x > np.float32(170) else x
    z = np.float32(-170) if z < np.float32(-170) else z
    rounded = z * _LOG2E + _ROUND
    n = rounded - _ROUND
    r = (z - n * _LN2_HIGH) - n * _LN2_LOW
    return _scale(_exp_tail(r) + ONE, rounded)


@jit(**_EXACT)
def exp_nonpositive(x):
    """e^x for x <= 0, where a maximum was subtracted: `exp` with 0 below e^-87. 1.1 ulp.

    No subnormal results, so one factor 2^n and no clamps: a quarter fewer instructions. Takes lanes
    as well.
    """
    rounded = x * _LOG2E + _ROUND
    n = rounded - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    return select(x < np.float32(-87), ZERO, (_exp_tail(r) + ONE) * _power(rounded))


@jit(**_EXACT)
def exp2(x):
    """2^x: the nearest integer is taken off, polynomial of degree 6 for the rest. 1.1 ulp."""
    z = np.float32(129) if x > np.float32(129) else x
    z = np.float32(-151) if z < np.float32(-151) else z
    rounded = z + _ROUND
    r = z - (rounded - _ROUND)
    q = ((((_EXP2[5] * r + _EXP2[4]) * r + _EXP2[3]) * r + _EXP2[2]) * r + _EXP2[1]) * r + _EXP2[0]
    return _scale(q * r + ONE, rounded)


@jit(**_EXACT)
def _expm1(z):
    """e^z - 1 for -18 <= z <= 89, without the care for -0."""
    rounded = z * _LOG2E + _ROUND
    n = rounded - _ROUND
    r = (z - n * _LN2_HIGH) - n * _LN2_LOW
    p = _exp_tail(r)
    # half of the power and of the result: 2^128 is no float32, but needed just below the overflow
    half_power = from_bits(np.int32(np.int32(to_bits(rounded) << 23) + np.int32(0x3F000000)))
    return TWO * (half_power * p + (half_power - HALF))


@jit(**_EXACT)
def expm1(x):
    """e^x - 1 without cancellation: 2^n p + (2^n - 1), p = e^r - 1; n = 0 near zero. 1.6 ulp."""
    z = np.float32(89) if x > np.float32(89) else x
    z = np.float32(-18) if z < np.float32(-18) else z
    return x if absolute(x) < np.float32(2.0**-26) else _expm1(z)


@jit(**_EXACT)
def _log_split(x):
    """e and f with x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for a normal x > 0."""
    offset = np.int32(to_bits(x) - _BITS_SQRT_HALF)
    e = np.int32(offset >> 23)
    return np.float32(e), from_bits(np.int32(np.int32(offset & _MANTISSA) + _BITS_SQRT_HALF)) - ONE


@jit(**_EXACT)
def _log_tail(f):
    """log(1 + f) - f for f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    q = (((_LOG[7] * f + _LOG[6]) * f + _LOG[5]) * f + _LOG[4]) * f + _LOG[3]
    q = ((q * f + _LOG[2]) * f + _LOG[1]) * f + _LOG[0]
    return f * f * (q * f - HALF)


@jit(**_EXACT)
def _log_edges(x, y):
    """y, or what a logarithm is where x is zero, negative, infinite or NaN."""
    y = y if x > ZERO else (-INF if x == ZERO else NAN)
    return INF if x == INF else y


@jit(**_EXACT)
def log(x):
    """Natural logarithm: x = 2^e (1 + f), polynomial of degree 10 in f, then e ln(2). 0.9 ulp."""
    small = x < _SMALLEST_NORMAL
    e, f = _log_split(x * np.float32(2.0**24) if small else x)
    e = e - np.float32(24) if small else e
    y = e * _LN2_HIGH + (f + (e * _LN2_LOW + _log_tail(f)))
    return _log_edges(x, y)


@jit(**_EXACT)
def log2(x):
    """Logarithm to base 2: as `log`, with log(1 + f) times log2(e). 1.8 ulp."""
    small = x < _SMALLEST_NORMAL
    e, f = _log_split(x * np.float32(2.0**24) if small else x)
    e = e - np.float32(24) if small else e
    return _log_edges(x, e + (f + _log_tail(f)) * _LOG2E)


@jit(**_EXACT)
def log1p(x):
    """log(1 + x): `log` of u = 1 + x, u's rounding error (Knuth's two-sum) added to f. 1.6 ulp.

    Accurate relative to the result near 0, where f is x itself.
    """
    u = ONE + x
    added = u - ONE
    c = (ONE - (u - added)) + (x - added)
    e, f = _log_split(u)
    shrink = _power_of_two(np.int32(-np.int32(e)))
    # above 2^30 the rounding error is below half an ulp of the result, and 2^-e may be no float32
    f = f + c * shrink if x < np.float32(2.0**30) else f
    y = e * _LN2_HIGH + (f + (e * _LN2_LOW + _log_tail(f)))
    return x if x == ZERO else _log_edges(u, y)


@jit(**_EXACT)
def sigmoid(x):
    """1 / (1 + e^-x), through e^-|x|: small results keep their relative accuracy. 2.3 ulp."""
    e = exp(-absolute(x))
    return (e if x < ZERO else ONE) / (ONE + e)


@jit(**_EXACT)
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): no overflow, no cancellation. 1.8 ulp."""
    t = exp(-absolute(x))  # 1 + t lies between 1 and 2: the exponent is 1 above sqrt(2), else 0
    upper = t > np.float32(math.sqrt(2) - 1)
    f = HALF * (t - ONE) if upper else t
    high = _LN2_HIGH if upper else ZERO
    low = _LN2_LOW if upper else ZERO
    return (ZERO if x < ZERO else x) + (high + (f + (low + _log_tail(f))))


@jit(**_EXACT)
def tanh(x):
    """Hyperbolic tangent: t / (t + 2) with t = e^2|x| - 1, and the sign of x. 2.5 ulp.

    A quotient of two polynomials is no faster, and less exact near 1 (4.5 ulp).
    """
    z = absolute(x)
    z = np.float32(10) if z > np.float32(10) else z
    t = _expm1(z + z)
    return copysign(t / (t + TWO), x)


@jit(**_EXACT)
def erf(x):
    """Error function: a quotient of polynomials, cut at -1 and 1. 6.4 ulp, where it is nearly 1;
    4e-7 at most, and not quite monotone.

    By way of an exponential it was as exact as 3.0 ulp, and took twice as long.
    """
    z = minimum(maximum(x, np.float32(-3.92)), np.float32(3.92))
    t = z * z
    a = ((_ERF_ABOVE[5] * t + _ERF_ABOVE[4]) * t + _ERF_ABOVE[3]) * t + _ERF_ABOVE[2]
    b = ((_ERF_BELOW[5] * t + _ERF_BELOW[4]) * t + _ERF_BELOW[3]) * t + _ERF_BELOW[2]
    a = (a * t + _ERF_ABOVE[1]) * t + _ERF_ABOVE[0]
    b = (b * t + _ERF_BELOW[1]) * t + _ERF_BELOW[0]
    return minimum(maximum(z * a / b, -ONE), ONE)


@jit(**_EXACT)
def _quadrant(x):
    """Split |x| into quarter turns and a rest r, |r| <= pi/4, right to 2^-50 before it is rounded.

    x is a mantissa of 24 bits times 2^E, and 2^E modulo a turn comes from a table; for large x this
    is the idea of M. Payne and R. Hanek, "Radian Reduction for Trigonometric Functions" (1983).
    """
    bits = to_bits(x)
    mantissa = np.float64(np.int32((bits & _MANTISSA) | np.int32(0x800000)))
    exponent = (bits >> 23) & 255
    y = mantissa * _TURN_HIGH[exponent]
    rest = mantissa * _TURN_LOW[exponent]
    rounded = (y + rest) * _QUARTERS + _ROUND_DOUBLE
    n = rounded - _ROUND_DOUBLE
    r = (y - n * _QUARTER_HIGH) + (rest - n * _QUARTER_LOW)
    return _low_bits(rounded), np.float32(r)


@jit(**_EXACT)
def _sin_or_cos(quarters, r):
    """sin(r + quarters pi/2)."""
    s = r * r
    odd = ((_SIN[2] * s + _SIN[1]) * s + _SIN[0]) * s * r + r
    even = ((_COS[2] * s + _COS[1]) * s + _COS[0]) * s * s - HALF * s + ONE
    y = even if np.int32(quarters & 1) != 0 else odd
    return -y if np.int32(quarters & 2) != 0 else y


@jit(**_EXACT)
def sin(x):
    """Sine of x radians: quarter turns taken off in float64, polynomials for the rest. 1.6 ulp."""
    quarters, r = _quadrant(x)
    y = _sin_or_cos(quarters, r)
    y = -y if x < ZERO else y
    return x if absolute(x) < np.float32(2.0**-12) else y


@jit(**_EXACT)
def cos(x):
    """Cosine of x radians: as `sin`, a quarter turn further. 1.6 ulp."""
    quarters, r = _quadrant(x)
    return _sin_or_cos(np.int32(quarters + 1), r)
