"""Differentiable arithmetic: + - * / ** @, elementary functions, where, clip, maximum, einsum.

Forward is the array library's own ufunc; the derivative stands beside it. Operands broadcast as in
NumPy, and a gradient is summed back over what was broadcast.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from framework.autograd import changes
from framework.autograd.casting import forget_copies, lowered_arrays, state, widened
from framework.autograd.graph import (
    Gradients,
    as_array,
    in_dtype,
    is_grad_enabled,
    record,
    unbroadcast,
)
from framework.backend.device import device_of
from kernels import special
from kernels.arrays import Array, array_module, is_array, is_floating, is_half
from kernels.matmul import matmul as gemm

if TYPE_CHECKING:
    from framework.autograd.tensor import Tensor

#: From the incoming gradient to the gradient of one operand, before it is summed back to the
#: operand's shape.
Rule = Callable[[Array], Array]


class Arithmetic:
    """The operators and elementary functions of a Tensor."""

    __slots__ = ()

    def __add__(self, other: Any) -> Tensor:
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self)

    def __iadd__(self, other: Any) -> Tensor:
        return _in_place(operator.iadd, self, other)

    def __isub__(self, other: Any) -> Tensor:
        return _in_place(operator.isub, self, other)

    def __imul__(self, other: Any) -> Tensor:
        return _in_place(operator.imul, self, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return _in_place(operator.itruediv, self, other)

    def __neg__(self) -> Tensor:
        x = _tensor(self)
        return record(-x.data, [x], lambda dy: [-dy])

    def __abs__(self) -> Tensor:
        return absolute(self)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return _compare(operator.eq, self, other) if _comparable(other) else NotImplemented

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return _compare(operator.ne, self, other) if _comparable(other) else NotImplemented

    def __lt__(self, other: Any) -> Tensor:
        return _compare(operator.lt, self, other)

    def __le__(self, other: Any) -> Tensor:
        return _compare(operator.le, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _compare(operator.gt, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _compare(operator.ge, self, other)

    def __invert__(self) -> Tensor:
        x = _tensor(self)
        return record(~x.data, [], lambda dy: [])

    def __and__(self, other: Any) -> Tensor:
        return _compare(operator.and_, self, other)

    def __or__(self, other: Any) -> Tensor:
        return _compare(operator.or_, self, other)

    def exp(self) -> Tensor:
        """e^x."""
        return exp(self)

    def log(self) -> Tensor:
        """Natural logarithm."""
        return log(self)

    def sqrt(self) -> Tensor:
        """Square root."""
        return sqrt(self)

    def abs(self) -> Tensor:
        """Absolute value; the derivative at 0 is 0."""
        return absolute(self)

    def sin(self) -> Tensor:
        """Sine."""
        return sin(self)

    def cos(self) -> Tensor:
        """Cosine."""
        return cos(self)

    def erf(self) -> Tensor:
        """Error function."""
        return erf(self)

    def pow(self, exponent: Any) -> Tensor:
        """x^exponent."""
        return power(self, exponent)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """Limit the elements to [low, high]."""
        return clip(self, low, high)

    def maximum(self, other: Any) -> Tensor:
        """The larger of two, element by element."""
        return maximum(self, other)

    def minimum(self, other: Any) -> Tensor:
        """The smaller of two, element by element."""
        return minimum(self, other)


# Operands -----------------------------------------------------------------------------------------


def _tensor(x: Any) -> Tensor:
    return cast("Tensor", x)


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Arithmetic)


def _comparable(x: Any) -> bool:
    """``x == None`` and ``x == "a"`` are False, as for any other object."""
    return _is_tensor(x) or is_array(x) or isinstance(x, (np.generic, int, float, list, tuple))


def operands(*values: Any) -> tuple[list[Any], list[Tensor]]:
    """Arrays (or bare Python numbers) of `values`, and the Tensors among them in order.

    Lists and arrays join the device of the tensors; tensors on different devices are an error.
    Where floating-point tensors meet integers, booleans or NumPy numbers, their dtype stays: the
    others are converted (NumPy's own rules would give float64).
    """
    tensors = [_tensor(v) for v in values if _is_tensor(v)]
    if not tensors:
        raise TypeError(f"expected a tensor among the operands, got {_kinds(values)}")
    home = tensors[0]
    arrays = [_operand(v, home) for v in values]
    floats = [a.dtype for a in arrays if hasattr(a, "dtype") and is_floating(a.dtype)]
    if floats and len(floats) < len(arrays):
        widest = max(floats, key=lambda dtype: dtype.itemsize)
        arrays = [_like(a, widest) for a in arrays]
    return arrays, tensors


def _kinds(values: Sequence[Any]) -> str:
    return ", ".join(type(v).__name__ for v in values)


def _operand(v: Any, home: Tensor) -> Any:
    """One operand as an array on home's device, or as a Python number."""
    if _is_tensor(v):
        if v is not home and v.device != home.device:
            raise ValueError(
                f"operands are on {home.device} and {v.device}: "
                f"move one with .to({str(home.device)!r})"
            )
        return v.data
    if isinstance(v, np.generic) or (is_array(v) and v.ndim == 0):
        v = v.item()  # a weak number, as a Python one: np.sqrt(2) must not turn float32 to float64
    if isinstance(v, (bool, int, float)):
        return v
    if is_array(v) and device_of(v) == home.device:
        return v
    if isinstance(v, (np.ndarray, list, tuple)):
        array = np.asarray(v)
        if array.dtype.kind not in "biuf" and not is_floating(array.dtype):
            raise TypeError(f"cannot compute with a {type(v).__name__} of dtype {array.dtype}")
        if isinstance(v, (list, tuple)) and array.dtype == np.float64:
            array = in_dtype(array, np.dtype(np.float32))
        return array_module(home.data).asarray(array)
    raise TypeError(f"cannot compute with a {type(v).__name__}")


def _like(a: Any, dtype: np.dtype[Any]) -> Any:
    """An integer or boolean array in the floating-point dtype that it meets."""
    return a.astype(dtype) if hasattr(a, "dtype") and not is_floating(a.dtype) else a


def _in_float32(*values: Any) -> list[Any]:
    """Integers as float32, for an operation whose result is not an integer."""
    if any(hasattr(v, "dtype") and is_floating(v.dtype) for v in values):
        return list(values)
    return [_like(v, np.dtype(np.float32)) for v in values]


def _apply(function: Callable[[Any, Any], Any], x: Any, y: Any) -> Array:
    half = None
    if isinstance(x, float) or isinstance(y, float):
        x, y = _in_float32(x, y)
        kind = (y if isinstance(x, float) else x).dtype
        half = kind if is_half(kind) else None
    try:
        with np.errstate(all="ignore"):  # IEEE: 1/0 is inf, 0/0 is NaN, silently
            out = as_array(function(x, y))
            # to NumPy a Python number times bfloat16 is float32; a number changes no dtype
            return out if half is None or out.dtype == bool else out.astype(half, copy=False)
    except OverflowError as error:
        raise _out_of_bounds(error, x, y) from None
    except ValueError as error:
        shapes = [getattr(v, "shape", ()) for v in (x, y)]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            message = f"shapes {shapes[0]} and {shapes[1]} do not broadcast together"
            raise ValueError(message) from None
        raise ValueError(str(error)) from None  # integers to negative powers


def _out_of_bounds(error: OverflowError, *values: Any) -> OverflowError:
    """What to say of a Python integer that an integer tensor's dtype cannot hold."""
    numbers = [v for v in values if isinstance(v, int)]
    dtypes = [v.dtype for v in values if hasattr(v, "dtype")]
    if len(numbers) != 1 or len(dtypes) != 1:
        return OverflowError(str(error))
    cure = "; use .to('int64') on the tensor first" if abs(numbers[0]) < 2**63 else ""
    return OverflowError(
        f"the number {numbers[0]} does not fit into the tensor's dtype {dtypes[0].name}{cure}"
    )


def _pair(a: Any, b: Any, out: Array, da: Rule, db: Rule) -> Tensor:
    """Record `out`, computed from `a` and `b` (one of them may be a number or array), with a rule
    for each.
    """
    inputs = [(_tensor(v), rule) for v, rule in ((a, da), (b, db)) if _is_tensor(v)]
    wanted = [(rule, x.shape, x.dtype) if x.requires_grad else None for x, rule in inputs]

    def backward(dy: Array) -> Gradients:
        with np.errstate(all="ignore"):
            return [None if w is None else _fitted(w[0](dy), w[1], w[2]) for w in wanted]

    backward.__qualname__ = da.__qualname__
    return record(out, [x for x, _ in inputs], backward)


def _fitted(dy: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    dy = unbroadcast(as_array(dy), shape)
    return dy if dy.dtype == dtype else dy.astype(dtype)


def _single(x: Any, out: Array, rule: Rule) -> Tensor:
    """Record ``out = f(x)``."""

    def backward(dy: Array) -> Gradients:
        with np.errstate(all="ignore"):
            return [as_array(rule(dy))]

    backward.__qualname__ = rule.__qualname__
    return record(out, [x], backward)


#: In-place operators as they are written.
_SIGNS = {operator.iadd: "+=", operator.isub: "-=", operator.imul: "*=", operator.itruediv: "/="}


def _in_place(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Tensor:
    """``a += b`` in a's own memory: for what is not being differentiated, as a step by hand."""
    target = _tensor(a)
    if is_grad_enabled() and (target.requires_grad or (_is_tensor(b) and b.requires_grad)):
        raise RuntimeError(
            "in-place arithmetic on a tensor that requires a gradient: write a = a + b, or put the "
            "update under no_grad()"
        )
    (x, y), _ = operands(a, b)
    if np.broadcast_shapes(x.shape, getattr(y, "shape", ())) != x.shape:
        raise ValueError(f"in-place: shape {y.shape} does not fit into {x.shape}")
    if state.copies:
        forget_copies()
    try:
        with np.errstate(all="ignore"):
            function(x, y)
    except OverflowError as error:
        raise _out_of_bounds(error, x, y) from None
    changes.note(x, f"the in-place operator {_SIGNS[function]}")
    return target


# Two operands -------------------------------------------------------------------------------------


def add(a: Any, b: Any) -> Tensor:
    """a + b."""
    (x, y), _ = operands(a, b)
    return _pair(a, b, _apply(operator.add, x, y), lambda dy: dy, lambda dy: dy)


def subtract(a: Any, b: Any) -> Tensor:
    """a - b."""
    (x, y), _ = operands(a, b)
    return _pair(a, b, _apply(operator.sub, x, y), lambda dy: dy, lambda dy: -dy)


def multiply(a: Any, b: Any) -> Tensor:
    """a * b."""
    (x, y), _ = operands(a, b)
    return _pair(a, b, _apply(operator.mul, x, y), lambda dy: dy * y, lambda dy: dy * x)


def divide(a: Any, b: Any) -> Tensor:
    """a / b; division by 0 gives inf or NaN. Integers give float32."""
    x, y = _in_float32(*operands(a, b)[0])
    xp = array_module(x if is_array(x) else y)
    return _pair(
        a,
        b,
        _apply(xp.true_divide, x, y),
        lambda dy: dy / y,
        lambda dy: -dy * xp.true_divide(x, y) / y,
    )


def power(a: Any, b: Any) -> Tensor:
    """a ** b. The derivative by b needs log a: at a = 0 it is 0, for a < 0 it is NaN."""
    if state.dtype is not None:
        a, b = (widened(v) if _is_tensor(v) else v for v in (a, b))
    (x, y), _ = operands(a, b)
    xp = array_module(x if is_array(x) else y)
    out = _apply(xp.power, x, y)

    def da(dy: Array) -> Array:
        if isinstance(y, (int, float)):
            return dy * (y * xp.power(x, y - 1)) if y != 0 else xp.zeros_like(dy)
        return dy * xp.where(y == 0, 0, y * xp.power(x, y - 1))

    def db(dy: Array) -> Array:
        return dy * xp.where((x == 0) & (y >= 0), 0, out * xp.log(x))

    return _pair(a, b, out, da, db)


def maximum(a: Any, b: Any) -> Tensor:
    """The larger; NaN wins. Equal elements share the gradient half and half."""
    return _extreme("maximum", operator.gt, a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller; NaN wins. Equal elements share the gradient half and half."""
    return _extreme("minimum", operator.lt, a, b)


def _extreme(name: str, wins: Callable[[Any, Any], Any], a: Any, b: Any) -> Tensor:
    (x, y), _ = operands(a, b)
    xp = array_module(x if is_array(x) else y)

    def share(dy: Array, mine: Any, other: Any) -> Array:
        return xp.where(wins(mine, other), dy, xp.where(mine == other, dy * 0.5, 0))

    out = _apply(getattr(xp, name), x, y)
    return _pair(a, b, out, lambda dy: share(dy, x, y), lambda dy: share(dy, y, x))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """`a` where `condition` holds, else `b`; the other gets gradient 0, whatever it holds."""
    if _is_tensor(a) or _is_tensor(b):
        (x, y), tensors = operands(a, b)
        home = tensors[0]
    elif _is_tensor(condition):
        home = _tensor(condition)
        x, y = (_operand(v, home) for v in (a, b))
    else:
        raise TypeError(f"where: expected a tensor, got {_kinds((condition, a, b))}")
    xp = array_module(home.data)
    c = xp.asarray(condition.data if _is_tensor(condition) else condition)
    if c.dtype != bool:
        raise TypeError(f"where: condition has dtype {c.dtype}, expected bool")
    try:
        out = xp.where(c, x, y)
        kinds = [v.dtype for v in (x, y) if hasattr(v, "dtype")]
        if out.dtype == np.float64 and not kinds:
            out = out.astype(np.float32)  # two Python numbers
        elif len(kinds) == 1 and is_half(kinds[0]):
            out = in_dtype(out, kinds[0])  # a number changes no dtype
    except ValueError:
        shapes = ", ".join(str(getattr(v, "shape", ())) for v in (c, x, y))
        raise ValueError(f"where: shapes {shapes} do not broadcast together") from None
    return _pair(a, b, out, lambda dy: xp.where(c, dy, 0), lambda dy: xp.where(c, 0, dy))


def _compare(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Tensor:
    (x, y), _ = operands(a, b)
    return record(_apply(function, x, y), [], lambda dy: [])


def matmul(a: Any, b: Any) -> Tensor:
    """Matrix product as in NumPy: vectors, matrices, and stacks of matrices whose leading axes
    broadcast. In 16 bits under `framework.autocast`.
    """
    (x, y), _ = operands(a, b)
    if state.dtype is not None:
        x, y = lowered_arrays((a, b), (x, y))
    if not is_array(x) or not is_array(y) or x.ndim == 0 or y.ndim == 0:
        raise ValueError("matmul needs vectors or matrices on both sides, not numbers")
    if x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(
            f"matmul: {x.shape} @ {y.shape}: {x.shape[-1]} columns meet "
            f"{y.shape[-2 if y.ndim > 1 else 0]} rows"
        )
    if x.dtype != y.dtype:
        raise TypeError(f"matmul: dtypes {x.dtype.name} and {y.dtype.name} differ; use .to(...)")
    p, q = (x[None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
    out = _product(p, q)
    full, p_shape, q_shape = out.shape, p.shape, q.shape
    x_shape, y_shape = x.shape, y.shape
    if y.ndim == 1:
        out = out[..., 0]
    if x.ndim == 1:
        out = out[..., 0] if y.ndim == 1 else out[..., 0, :]

    def da(dy: Array) -> Array:
        return unbroadcast(_product(dy.reshape(full), q, tb=True), p_shape).reshape(x_shape)

    def db(dy: Array) -> Array:
        dy = dy.reshape(full)
        # one matrix for the whole stack: one product of tall ones
        if len(q_shape) == 2 and p.ndim > 2:
            dy, rows = _tall(dy), _tall(p)
            return gemm(rows, dy, True).reshape(y_shape)
        return unbroadcast(_product(p, dy, ta=True), q_shape).reshape(y_shape)

    return _pair(a, b, as_array(out), da, db)


def _product(p: Array, q: Array, ta: bool = False, tb: bool = False) -> Array:
    """Matrices, or stacks of them with broadcast leading axes, through the GEMM kernel."""
    if p.ndim == 2 and q.ndim == 2:
        return gemm(p, q, ta, tb)
    xp = array_module(p)
    if q.ndim == 2 and not ta:  # one matrix for the whole stack: one tall product
        tall = gemm(_tall(p), q, False, tb)
        return tall.reshape(*p.shape[:-1], tall.shape[-1])
    lead = np.broadcast_shapes(p.shape[:-2], q.shape[:-2])
    p = xp.broadcast_to(p, (*lead, *p.shape[-2:])).reshape(-1, *p.shape[-2:])
    q = xp.broadcast_to(q, (*lead, *q.shape[-2:])).reshape(-1, *q.shape[-2:])
    out = gemm(p, q, ta, tb)
    return out.reshape(*lead, *out.shape[-2:])


def _tall(stack: Array) -> Array:
    """The matrices of a stack one below the other."""
    return stack.reshape(math.prod(stack.shape[:-1]), stack.shape[-1])


# One operand --------------------------------------------------------------------------------------


def _ufunc(name: str, x: Any) -> tuple[Any, Array]:
    """The array library, and ufunc `name` of x's array (floats of integers)."""
    xp = array_module(x.data)
    with np.errstate(all="ignore"):
        a = x.data if is_floating(x.data.dtype) else x.data.astype("float32")
        return xp, as_array(getattr(xp, name)(a))


def exp(x: Any) -> Tensor:
    """e^x."""
    if state.dtype is not None:
        x = widened(x)
    _, y = _ufunc("exp", x)
    return _single(x, y, lambda dy: dy * y)


def log(x: Any) -> Tensor:
    """Natural logarithm; log 0 is -inf, of a negative number NaN."""
    if state.dtype is not None:
        x = widened(x)
    _, y = _ufunc("log", x)
    a = x.data
    return _single(x, y, lambda dy: dy / a)


def sqrt(x: Any) -> Tensor:
    """Square root; the derivative at 0 is inf."""
    _, y = _ufunc("sqrt", x)
    return _single(x, y, lambda dy: dy / (2 * y))


def absolute(x: Any) -> Tensor:
    """|x|; the derivative at 0 is 0."""
    xp, a = array_module(x.data), x.data
    return _single(x, as_array(abs(a)), lambda dy: dy * xp.sign(a))


def sin(x: Any) -> Tensor:
    """Sine."""
    xp, y = _ufunc("sin", x)
    a = x.data
    return _single(x, y, lambda dy: dy * xp.cos(a))


def cos(x: Any) -> Tensor:
    """Cosine."""
    xp, y = _ufunc("cos", x)
    a = x.data
    return _single(x, y, lambda dy: -dy * xp.sin(a))


def erf(x: Any) -> Tensor:
    """Error function: 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x."""
    (a,) = _in_float32(x.data)
    return _single(x, special.erf(a), lambda dy: special.erf_grad(dy, a))


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """Limit to [low, high]; no gradient outside. NaN stays NaN."""
    if low is None and high is None:
        raise ValueError("clip needs low, high or both")
    if low is not None and high is not None and low > high:
        raise ValueError(f"clip: low={low} is above high={high}")
    xp, a = array_module(x.data), x.data
    inside = xp.ones(a.shape, bool)
    if low is not None:
        inside &= a >= low
    if high is not None:
        inside &= a <= high
    y = as_array(xp.clip(a, low, high))
    y = in_dtype(y, a.dtype) if is_half(a.dtype) else y
    return _single(x, y, lambda dy: xp.where(inside, dy, 0))


def einsum(subscripts: str, *tensors: Any) -> Tensor:
    """Sums of products by index letters, as NumPy's: ``einsum("bij,bjk->bik", x, y)``; "..." is
    supported.

    A letter repeated within one operand (a diagonal) is not: take the diagonal first. 16-bit
    operands are multiplied in float32 (NumPy's einsum has no bfloat16, CuPy's no batches of it);
    the result has 16 bits where all of them have.
    """
    arrays, inputs = operands(*tensors)
    if len(inputs) != len(tensors):
        raise TypeError("einsum: every operand must be a tensor")
    dtypes = [x.dtype for x in inputs]
    half = dtypes[0] if len(set(dtypes)) == 1 and is_half(dtypes[0]) else None
    arrays = [a.astype("float32") if is_half(a.dtype) else a for a in arrays]
    terms, result = _letters(subscripts, arrays)
    xp = array_module(arrays[0])
    try:
        out = as_array(xp.einsum(f"{','.join(terms)}->{result}", *arrays, optimize=len(arrays) > 1))
    except ValueError as error:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(f"einsum {subscripts!r} of shapes {shapes}: {error}") from None

    wanted = [x.requires_grad for x in inputs]
    own_shapes = [a.shape for a in arrays]
    # an operand is needed for the gradients of the others
    saved = [a if any(wanted[:i] + wanted[i + 1 :]) else None for i, a in enumerate(arrays)]

    def gradient(i: int, dy: Array) -> Array:
        dy = dy if half is None else dy.astype("float32")
        others = [*terms[:i], *terms[i + 1 :], result]
        values = [*saved[:i], *saved[i + 1 :], dy]
        known = "".join(c for c in terms[i] if any(c in other for other in others))
        d = xp.einsum(f"{','.join(others)}->{known}", *values, optimize=len(values) > 1)
        d = as_array(d)
        # a letter of size 1 here that is longer elsewhere was broadcast
        own = dict(zip(terms[i], own_shapes[i], strict=True))
        d = unbroadcast(d, tuple(min(n, own[c]) for c, n in zip(known, d.shape, strict=True)))
        # letters summed over in this operand alone, or of size 1 in all others: every position
        # gets the same gradient
        sizes = dict(zip(known, d.shape, strict=True))
        shape = tuple(sizes.get(c, 1) for c in terms[i])
        return xp.array(xp.broadcast_to(d.reshape(shape), own_shapes[i]))

    def backward(dy: Array) -> Gradients:
        return [
            in_dtype(gradient(i, dy), dtypes[i]) if want else None for i, want in enumerate(wanted)
        ]

    return record(out if half is None else in_dtype(out, half), inputs, backward)


def _letters(subscripts: str, arrays: Sequence[Array]) -> tuple[list[str], str]:
    """Explicit index letters of every operand and of the result, with "..." spelled out."""
    text = subscripts.replace(" ", "")
    left, arrow, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(arrays):
        raise ValueError(f"einsum {subscripts!r} names {len(terms)} operands, got {len(arrays)}")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in text]
    widths = [
        a.ndim - len(t.replace("...", "")) if "..." in t else 0
        for t, a in zip(terms, arrays, strict=True)
    ]
    widest = max(widths, default=0)
    dots = "".join(free[:widest])
    terms = [
        t.replace("...", dots[widest - w :] if w > 0 else "")
        for t, w in zip(terms, widths, strict=True)
    ]
    for term, a in zip(terms, arrays, strict=True):
        if len(term) != a.ndim:
            raise ValueError(
                f"einsum {subscripts!r}: {term!r} has {len(term)} letters for shape {a.shape}"
            )
        if len(set(term)) != len(term):
            raise ValueError(
                f"einsum {subscripts!r}: {term!r} repeats a letter; take the diagonal first"
            )
    if not arrow:
        joined = "".join(terms)
        result = dots + "".join(sorted(c for c in set(joined) - set(dots) if joined.count(c) == 1))
    return terms, result.replace("...", dots)
