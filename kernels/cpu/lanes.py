"""Sixteen float32, or int32, in one register: for loops over short rows, where LLVM's own
vectorisation spends more on checks before and remainders after the loop than in it.

    @jit(forceinline=True)
    def add(a, b, out, i, count):              # `count` elements from index i, at most LANES
        store(out, i, count, load(a, i, count) + load(b, i, count))

    for i in range(0, whole(n), LANES):
        add(a, b, out, i, LANES)               # count is a constant: plain loads and stores
    add(a, b, out, whole(n), n - whole(n))     # the rest: masked ones, nothing beyond is touched

Arrays are 1-D, contiguous, float32; or int32, for places (`load_ints`). Indices are not checked.
Lanes past `count` are 0 when loaded, or what is given as `fill`. A number and lanes together in
arithmetic means the number in each lane. CPUs with narrower registers use several for one value:
LLVM splits them.

Arithmetic may fuse a multiplication with an addition (`contract`) and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from kernels.cpu.engine import jit

LANES = 16

_F32, _I32, _BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)
_FLOATS, _INTS, _BITS = (ir.VectorType(kind, LANES) for kind in (_F32, _I32, _BIT))
_FUSE = ("contract",)


class LanesType(types.Type):
    """numba's type of 16 float32, or of as many int32 or booleans."""

    def __init__(self, kind: str) -> None:
        super().__init__(name=f"Lanes({kind})")
        self.kind = kind


@register_default(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, _KINDS[kind.kind])


_KINDS = {"f": _FLOATS, "i": _INTS, "b": _BITS}
floats, ints, booleans = LanesType("f"), LanesType("i"), LanesType("b")


def _expect(name: str, *pairs: tuple[Any, Any]) -> None:
    for given, expected in pairs:
        if given != expected:
            raise TypingError(f"lanes.{name} was given {given}, takes {expected}")


def _splat(builder: Any, x: Any, kind: Any = _FLOATS) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, None))


def _llvm(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """LLVM's own function `name` (https://llvm.org/docs/LangRef.html)."""
    kind = ir.FunctionType(result, arguments)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}")


# Memory -------------------------------------------------------------------------------------------


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    lanes = _INTS if kind.dtype == types.int32 else _FLOATS
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(lanes))


def _within(builder: Any, count: Any) -> Any:
    """Which lanes are below `count`; LLVM drops the mask where count is the constant LANES."""
    numbers = ir.Constant(_INTS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, _I32), _INTS))


def _check_array(name: str, array: Any, dtype: Any = types.float32) -> None:
    if not (
        isinstance(array, types.Array)
        and array.dtype == dtype
        and array.ndim == 1
        and array.layout == "C"
    ):
        raise TypingError(f"lanes.{name} takes a contiguous 1-D {dtype} array, got {array}")


@intrinsic
def _load(context: Any, array: Any, index: Any, count: Any, fill: Any) -> Any:
    _check_array("load", array)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, index, count, fill = args
        address = _address(context, builder, signature.args[0], data, index)
        load = _llvm(builder, "masked.load.v16f32.p0", _FLOATS, address.type, _I32, _BITS, _FLOATS)
        mask = _within(builder, count)
        return builder.call(load, [address, ir.Constant(_I32, 4), mask, _splat(builder, fill)])

    return floats(array, types.intp, types.intp, types.float32), generate


@intrinsic
def load_ints(context: Any, array: Any, index: Any, count: Any) -> Any:
    """The int32 lanes array[index : index + count]; 0 in those beyond."""
    _check_array("load_ints", array, types.int32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, index, count = args
        address = _address(context, builder, signature.args[0], data, index)
        load = _llvm(builder, "masked.load.v16i32.p0", _INTS, address.type, _I32, _BITS, _INTS)
        mask, zero = _within(builder, count), ir.Constant(_INTS, None)
        return builder.call(load, [address, ir.Constant(_I32, 4), mask, zero])

    return ints(array, types.intp, types.intp), generate


@intrinsic
def store(context: Any, array: Any, index: Any, count: Any, value: Any) -> Any:
    """array[index : index + count] = the first `count` lanes of value."""
    kind = ints if value == ints else floats
    _check_array("store", array, types.int32 if kind == ints else types.float32)
    _expect("store", (value, kind))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, index, count, value = args
        address = _address(context, builder, signature.args[0], data, index)
        kinds = (_KINDS[kind.kind], address.type, _I32, _BITS)
        name = f"masked.store.v16{kind.kind}32.p0"
        store = _llvm(builder, name, ir.VoidType(), *kinds)
        builder.call(store, [value, address, ir.Constant(_I32, 4), _within(builder, count)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, kind), generate


@intrinsic
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Begin to fetch the cache line of array[index] into L1; it may lie past the end."""
    _check_array("prefetch", array)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], *args)
        fetch = _llvm(builder, "prefetch.p0", ir.VoidType(), address.type, _I32, _I32, _I32)
        read, keep, data = (ir.Constant(_I32, v) for v in (0, 3, 1))
        builder.call(fetch, [address, read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def spread(context: Any, array: Any, index: Any) -> Any:
    """array[index] in every lane."""
    _check_array("spread", array)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _splat(builder, builder.load(builder.gep(data, [args[1]]), align=4))

    return floats(array, types.intp), generate


def _memory(element: Any) -> Any:
    """An intrinsic: what begins at an address (int64) as a contiguous 1-D array without an end.

    Strided arrays come as an address and strides, so that a loop is compiled once for all layouts.
    """
    whole = types.Array(element, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(whole)(context, builder)
        data = builder.inttoptr(args[0], array.data.type)
        size = context.get_constant(types.intp, 1 << 48)
        step = context.get_constant(types.intp, element.bitwidth // 8)
        populate_array(array, data, (size,), (step,), step, meminfo=None)
        return array._getvalue()

    @intrinsic
    def memory(context: Any, address: Any) -> Any:
        _expect("memory", (address, types.int64))
        return whole(types.int64), generate

    return memory


floats_at, bytes_at, longs_at = (_memory(t) for t in (types.float32, types.uint8, types.int64))

#: Each round of `turn` exchanges blocks of so many lanes between lines as far apart.
_DISTANCES = (1, 2, 4, 8)


def _exchange(builder: Any, lines: list[Any], distance: int) -> list[Any]:
    lanes, out = range(LANES), list(lines)
    first = [k if not k & distance else LANES + k - distance for k in lanes]
    second = [k + distance if not k & distance else LANES + k for k in lanes]
    for i in (i for i in lanes if not i & distance):
        for j, order in ((i, first), (i + distance, second)):
            mask = ir.Constant(_INTS, order)
            out[j] = builder.shuffle_vector(lines[i], lines[i + distance], mask)
    return out


@intrinsic
def turn(
    context: Any, x: Any, i: Any, step: Any, rows: Any, y: Any, j: Any, y_step: Any, lines: Any
) -> Any:
    """y[j + a y_step + b] = x[i + b step + a] for 16 a and b: a tile transposed in registers.

    Of x only the first `rows` lines are read, the others hold 0; of y the first `lines` are
    written.
    """
    _check_array("turn", x)
    _check_array("turn", y)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, i, step, rows, y, j, y_step, limit = args
        kinds, four = signature.args, ir.Constant(_I32, 4)

        def line(kind: Any, array: Any, start: Any, step: Any, k: int, count: Any) -> Any:
            number = ir.Constant(start.type, k)
            place = builder.add(start, builder.mul(step, number))
            there = _splat(builder, builder.icmp_signed("<", number, count), _BITS)
            return _address(context, builder, kind, array, place), there

        values = []
        for k in range(LANES):
            address, there = line(kinds[0], x, i, step, k, rows)
            to = (_FLOATS, address.type, _I32, _BITS, _FLOATS)
            load = _llvm(builder, "masked.load.v16f32.p0", *to)
            zeros = ir.Constant(_FLOATS, [0.0] * LANES)
            values.append(builder.call(load, [address, four, there, zeros]))
        for distance in _DISTANCES:
            values = _exchange(builder, values, distance)
        for k, value in enumerate(values):
            address, there = line(kinds[4], y, j, y_step, k, limit)
            to = (ir.VoidType(), _FLOATS, address.type, _I32, _BITS)
            store = _llvm(builder, "masked.store.v16f32.p0", *to)
            builder.call(store, [value, address, four, there])
        return context.get_dummy_value()

    one = types.intp
    return types.void(x, one, one, one, y, one, one, one), generate


ZERO = np.float32(0)


@jit(forceinline=True)
def load(array, index, count, fill=ZERO):
    """The lanes array[index : index + count]; `fill` in those beyond."""
    return _load(array, index, count, fill)


@jit(forceinline=True)
def whole(n):
    """The largest multiple of LANES up to n."""
    return n // LANES * LANES


@intrinsic
def each(context: Any, x: Any) -> Any:
    """A float32, or an int32, in every lane."""
    kind = ints if x == types.int32 else floats
    _expect("each", (x, types.int32 if kind == ints else types.float32))
    return kind(x), lambda context, builder, signature, args: _splat(
        builder, args[0], _KINDS[kind.kind]
    )


@intrinsic
def load_each(context: Any, array: Any, index: Any) -> Any:
    """array[index] in every lane, without Python's look at negative indices: with it the addresses
    of a register tile take twice as long as its arithmetic.
    """
    _check_array("load_each", array)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _splat(builder, builder.load(builder.gep(data, [args[1]])))

    return floats(array, types.intp), generate


# Arithmetic ---------------------------------------------------------------------------------------


def _mixed(a: Any, b: Any) -> bool:
    """Lanes and lanes, or lanes and a number in either order?"""
    return {a, b} in ({floats}, {floats, types.float32})


def _as_floats(builder: Any, kind: Any, value: Any) -> Any:
    return value if kind == floats else _splat(builder, value)


def _binary(function: Any, instruction: str) -> None:
    """lanes and lanes, or lanes and a float32 in either order."""

    @intrinsic
    def apply(context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, b = (_as_floats(builder, k, v) for k, v in zip(signature.args, args, strict=True))
            return getattr(builder, instruction)(a, b, flags=_FUSE)

        return floats(a, b), generate

    @overload(function, inline="always")
    def _(a, b):  # numba compares this signature with the one below: no annotations
        return (lambda a, b: apply(a, b)) if _mixed(a, b) else None


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _binary(_function, _instruction)
    _binary(getattr(operator, f"i{_function.__name__}"), _instruction)


@intrinsic
def _negative(context: Any, x: Any) -> Any:
    return floats(x), lambda context, builder, signature, args: builder.fneg(args[0])


@overload(operator.neg, inline="always")
def _(x):
    return (lambda x: _negative(x)) if x == floats else None


def _comparison(function: Any, sign: str) -> None:
    @intrinsic
    def apply(context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, b = (_as_floats(builder, k, v) for k, v in zip(signature.args, args, strict=True))
            return builder.fcmp_ordered(sign, a, b)

        return booleans(a, b), generate

    @overload(function, inline="always")
    def _(a, b):
        return (lambda a, b: apply(a, b)) if _mixed(a, b) else None


_comparison(operator.lt, "<")
_comparison(operator.gt, ">")
_comparison(operator.eq, "==")


@intrinsic
def same(context: Any, a: Any, b: Any) -> Any:
    """Which of the int32 lanes are equal?"""
    _expect("same", (a, ints), (b, ints))
    return booleans(a, b), lambda context, builder, signature, args: builder.icmp_signed(
        "==", *args
    )


@intrinsic
def select(context: Any, condition: Any, a: Any, b: Any) -> Any:
    """Lane by lane a where the condition holds, else b; numbers too, without a branch."""
    if condition == types.boolean:
        _expect("select", (a, types.float32), (b, types.float32))
        kind = types.float32
    else:
        _expect("select", (condition, booleans))
        kind = ints if a == ints else floats

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        condition, a, b = args
        if kind == floats:
            a, b = (
                _as_floats(builder, k, v) for k, v in zip(signature.args[1:], (a, b), strict=True)
            )
        return builder.select(condition, a, b)

    return kind(condition, a, b), generate


def _reduction(name: str, flags: tuple[str, ...], *start: float) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        reduce = _llvm(builder, f"{name}.v16f32", _F32, *(_F32 for _ in start), _FLOATS)
        return builder.call(reduce, [*(ir.Constant(_F32, v) for v in start), *args], fastmath=flags)

    return generate


@intrinsic
def total(context: Any, x: Any) -> Any:
    """Sum of the lanes, pair by pair."""
    _expect("total", (x, floats))
    return types.float32(floats), _reduction("vector.reduce.fadd", ("reassoc",), -0.0)


@intrinsic
def peak(context: Any, x: Any) -> Any:
    """Largest of the lanes; undefined if one is NaN."""
    _expect("peak", (x, floats))
    return types.float32(floats), _reduction("vector.reduce.fmax", ("nnan", "nsz"))


@intrinsic
def totals(context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The `total` of each of four, together: 8 shuffles and 5 additions where one by one takes 16
    of either.
    """
    _expect("totals", (a, floats), (b, floats), (c, floats), (d, floats))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def folded(x: Any, y: Any, first: Any, second: Any) -> Any:
            """x's and y's lanes chosen by `first`, plus those chosen by `second`."""
            order = ir.VectorType(_I32, LANES)
            halves = [builder.shuffle_vector(x, y, ir.Constant(order, o)) for o in (first, second)]
            return builder.fadd(*halves)

        # within each quarter of four lanes, where a shuffle takes one cycle ...
        quarters = range(0, LANES, 4)
        low = [q + i for q in quarters for i in (0, LANES, 1, LANES + 1)]
        high = [q + i for q in quarters for i in (2, LANES + 2, 3, LANES + 3)]
        a, b, c, d = args
        ab, cd = folded(a, b, low, high), folded(c, d, low, high)
        low = [q + i for q in quarters for i in (0, 1, LANES, LANES + 1)]
        high = [q + i for q in quarters for i in (2, 3, LANES + 2, LANES + 3)]
        x = folded(ab, cd, low, high)  # (a, b, c, d) four times
        # ... and then the quarters
        for step in (8, 4):
            straight = list(range(LANES))
            x = folded(x, x, straight, [(i + step) % LANES for i in straight])
        lanes = [builder.extract_element(x, _I32(i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return types.UniTuple(types.float32, 4)(floats, floats, floats, floats), generate
