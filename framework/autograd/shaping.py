"""Differentiable changes of shape: views where the array library gives views, and gradients laid
back.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from framework.autograd.graph import Partial, as_array, in_dtype, is_grad_enabled, record
from kernels.arrays import Array, array_module, is_array, is_cuda, is_floating, to_numpy
from kernels.checking import may_look

if TYPE_CHECKING:
    from framework.autograd.tensor import Tensor


class Shaping:
    """The shape methods of a Tensor."""

    __slots__ = ()

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; -1 is worked out. A view where possible."""
        return reshape(self, *shape)

    view = reshape

    def flatten(self, start: int = 0, end: int = -1) -> Tensor:
        """Join the axes `start` to `end` into one."""
        return flatten(self, start, end)

    def transpose(self, *axes: Any) -> Tensor:
        """Two axes: swap them (as PyTorch). All axes: reorder. None: reverse."""
        return transpose(self, *axes)

    def permute(self, *axes: Any) -> Tensor:
        """Reorder all axes."""
        return permute(self, *axes)

    @property
    def T(self) -> Tensor:
        """Axes reversed."""
        return transpose(self)

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> Tensor:
        """Without axes of size 1 (or just `axis`)."""
        return squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Tensor:
        """With a new axis of size 1 at `axis`."""
        return unsqueeze(self, axis)

    def expand(self, *shape: Any) -> Tensor:
        """Broadcast to `shape`, without copying; -1 keeps a size."""
        return expand(self, *shape)

    def contiguous(self) -> Tensor:
        """The same values, C-contiguous in memory."""
        x = _tensor(self)
        if x.data.flags.c_contiguous:
            return x
        return record(array_module(x.data).ascontiguousarray(x.data), [x], lambda dy: [dy])

    def split(self, size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
        """Pieces of `size` along `axis` (the last may be smaller), or of the sizes in a list."""
        return split(self, size, axis)

    def chunk(self, chunks: int, axis: int = 0) -> list[Tensor]:
        """At most `chunks` equal pieces along `axis`."""
        x = _tensor(self)
        if chunks < 1:
            raise ValueError(f"chunk: chunks={chunks}, expected at least 1")
        return split(x, max(1, -(-x.shape[_axis(axis, x.ndim)] // chunks)), axis)

    def clone(self) -> Tensor:
        """A differentiable copy."""
        x = _tensor(self)
        return record(x.data.copy(), [x], lambda dy: [dy])

    def __getitem__(self, index: Any) -> Tensor:
        return getitem(self, index)


def _tensor(x: Any) -> Tensor:
    return cast("Tensor", x)


def _numbers(values: tuple[Any, ...]) -> tuple[int, ...]:
    """(2, 3) and ((2, 3),) are the same."""
    if len(values) == 1 and isinstance(values[0], (tuple, list)):
        values = tuple(values[0])
    return tuple(map(operator.index, values))


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} does not exist in a tensor of {ndim} axes")
    return axis % ndim


def reshape(x: Any, *shape: Any) -> Tensor:
    """The same elements in `shape`."""
    wanted, before = _numbers(shape), x.data.shape
    try:
        out = x.data.reshape(wanted)
    except ValueError:
        raise ValueError(f"cannot reshape {before} ({x.data.size} elements) to {wanted}") from None
    return record(out, [x], lambda dy: [dy.reshape(before)])


def flatten(x: Any, start: int = 0, end: int = -1) -> Tensor:
    """Join the axes `start` to `end` into one; a 0-d tensor becomes (1,)."""
    if x.ndim == 0:
        return reshape(x, 1)
    first, last = _axis(start, x.ndim), _axis(end, x.ndim)
    if first > last:
        raise ValueError(f"flatten: start={start} comes after end={end}")
    joined = int(np.prod(x.shape[first : last + 1]))
    return reshape(x, *x.shape[:first], joined, *x.shape[last + 1 :])


def permute(x: Any, *axes: Any) -> Tensor:
    """Reorder all axes."""
    order = _numbers(axes)
    if sorted(_axis(a, x.ndim) for a in order) != list(range(x.ndim)):
        raise ValueError(f"permute: axes {order} are not an order of the {x.ndim} axes")
    inverse = tuple(int(i) for i in np.argsort([a % x.ndim for a in order]))
    return record(x.data.transpose(order), [x], lambda dy: [dy.transpose(inverse)])


def transpose(x: Any, *axes: Any) -> Tensor:
    """Swap two axes, reorder all, or reverse."""
    order = _numbers(axes)
    if not order:
        return permute(x, *range(x.ndim - 1, -1, -1)) if x.ndim else x
    if len(order) == 2 and x.ndim != 2:
        a, b = _axis(order[0], x.ndim), _axis(order[1], x.ndim)
        swapped = list(range(x.ndim))
        swapped[a], swapped[b] = b, a
        return permute(x, *swapped)
    if len(order) == 2 and sorted(_axis(a, 2) for a in order) == [0, 1]:
        return permute(x, 1, 0)
    return permute(x, *order)


def squeeze(x: Any, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Without axes of size 1."""
    if axis is None:
        return reshape(x, *(n for n in x.shape if n != 1))
    axes = {_axis(a, x.ndim) for a in ((axis,) if isinstance(axis, int) else axis)}
    return reshape(x, *(n for i, n in enumerate(x.shape) if i not in axes or n != 1))


def unsqueeze(x: Any, axis: int) -> Tensor:
    """With a new axis of size 1."""
    at = _axis(axis, x.ndim + 1)
    return reshape(x, *x.shape[:at], 1, *x.shape[at:])


def expand(x: Any, *shape: Any) -> Tensor:
    """Broadcast to `shape`."""
    from framework.autograd.graph import unbroadcast

    wanted, before = _numbers(shape), x.data.shape
    lead = len(wanted) - len(before)
    sizes = tuple(before[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(wanted))
    try:
        out = array_module(x.data).broadcast_to(x.data, sizes)
    except ValueError:
        raise ValueError(f"cannot expand {before} to {wanted}") from None
    return record(out, [x], lambda dy: [unbroadcast(dy, before)])


def getitem(x: Any, index: Any) -> Tensor:
    """x[index]: integers, slices, None, ..., booleans, integer arrays or tensors, and mixtures of
    them.
    """
    index = tuple(map(_index, index)) if isinstance(index, tuple) else _index(index)
    shape = x.data.shape
    if is_cuda(x.data) and may_look(x.data):  # CuPy wraps around
        _element(np.broadcast_to(np.int8(0), shape), _on_host(index))
    out = as_array(_element(x.data, index))
    if x.requires_grad and is_grad_enabled():  # whoever made an index array may change it later
        index = tuple(map(_kept, index)) if isinstance(index, tuple) else _kept(index)
    return record(out, [x], lambda dy: [Partial(shape, index, dy)])


def _element(array: Array, index: Any) -> Array:
    try:
        return array[index]
    except IndexError as error:
        raise IndexError(f"index {index!r} into shape {array.shape}: {error}") from None


def _on_host(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_on_host, index))
    return to_numpy(index) if is_array(index) else index


def _kept(index: Any) -> Any:
    return index.copy() if is_array(index) else index


def _index(index: Any) -> Any:
    if hasattr(index, "requires_grad"):
        index = index.data
    if isinstance(index, list):
        index = np.asarray(index) if index else np.empty(0, np.int64)
    if hasattr(index, "dtype") and index.dtype.kind not in "iub":
        raise IndexError(f"an index has dtype {index.dtype.name}; expected integers or booleans")
    return index


def _same_module(name: str, tensors: Sequence[Any]) -> list[Array]:
    tensors = list(tensors)
    if not tensors:
        raise ValueError(f"{name} needs at least one tensor")
    for x in tensors:
        if not isinstance(x, Shaping):
            raise TypeError(f"{name}: expected tensors, got a {type(x).__name__}")
    devices = {x.device for x in tensors}
    if len(devices) > 1:
        raise ValueError(f"{name}: tensors are on {', '.join(sorted(map(str, devices)))}")
    # as in arithmetic, integers take the dtype of the floats: NumPy would make float64 of both
    floats = [x.dtype for x in tensors if is_floating(x.dtype)]
    if not floats or len(floats) == len(tensors):
        return [x.data for x in tensors]
    widest = max(floats, key=lambda dtype: dtype.itemsize)
    return [x.data if is_floating(x.dtype) else x.data.astype(widest) for x in tensors]


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join along an existing axis; all other sizes agree."""
    tensors = list(tensors)
    arrays = _same_module("concatenate", tensors)
    at = _axis(axis, arrays[0].ndim)
    try:
        out = array_module(arrays[0]).concatenate(arrays, axis=at)
    except ValueError:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(
            f"concatenate along axis {axis}: shapes {shapes} differ elsewhere"
        ) from None
    ends = np.cumsum([a.shape[at] for a in arrays])
    lead = (slice(None),) * at
    dtypes = [a.dtype for a in arrays]

    def backward(dy: Array) -> list[Array]:
        cuts = zip([0, *ends[:-1]], ends, dtypes, strict=True)
        return [in_dtype(dy[(*lead, slice(int(a), int(b)))], dtype) for a, b, dtype in cuts]

    return record(out, tensors, backward)


def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """`concatenate` under PyTorch's name."""
    return concatenate(tensors, dim)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis."""
    tensors = list(tensors)
    arrays = _same_module("stack", tensors)
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"stack: shapes differ: {', '.join(str(a.shape) for a in arrays)}")
    at = _axis(axis, arrays[0].ndim + 1)
    lead = (slice(None),) * at
    dtypes = [a.dtype for a in arrays]
    return record(
        array_module(arrays[0]).stack(arrays, axis=at),
        tensors,
        # with "...", a 0-dimensional gradient is an array too
        lambda dy: [in_dtype(dy[(*lead, i, ...)], dtype) for i, dtype in enumerate(dtypes)],
    )


def split(x: Any, size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Pieces along `axis`: of one size (the last may be smaller) or of given sizes."""
    at = _axis(axis, x.ndim)
    n = x.shape[at]
    if isinstance(size, (int, np.integer)):
        if size < 1:
            raise ValueError(f"split: size={size}, expected at least 1")
        sizes = [min(int(size), n - start) for start in range(0, n, int(size))]
    else:
        try:
            sizes = [operator.index(s) for s in size]
        except TypeError:
            message = f"split: size={size!r}, expected an integer or a list of integers"
            raise TypeError(message) from None
        if sum(sizes) != n or min(sizes, default=0) < 0:
            raise ValueError(f"split: sizes {sizes} do not add up to {n}, the size of axis {axis}")
    starts = np.cumsum([0, *sizes])
    lead = (slice(None),) * at
    return [
        getitem(x, (*lead, slice(int(a), int(b)))) for a, b in zip(starts, starts[1:], strict=False)
    ]


#: Our (and PyTorch's) names of what stands around a padded array -> NumPy's and CuPy's.
_PAD_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


def pad(
    x: Any, widths: Sequence[tuple[int, int]] | int, value: float = 0.0, mode: str = "constant"
) -> Tensor:
    """Add elements around: (before, after) per axis, or one number for all sides.

    `mode`: "constant" adds `value`; "reflect" mirrors at the outermost element, which is not
    repeated, "replicate" repeats it, "circular" goes on at the other end.
    """
    pairs = [(widths, widths)] * x.ndim if isinstance(widths, int) else [tuple(w) for w in widths]
    if len(pairs) != x.ndim or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise ValueError(
            f"pad: widths={widths!r}: expected (before, after) >= 0 for each of {x.ndim} axes"
        )
    if mode not in _PAD_MODES:
        raise ValueError(f"pad: mode={mode!r}, expected one of {', '.join(_PAD_MODES)}")
    _check_widths(pairs, x.shape, mode)
    # in the order that the axes have in memory: channels-last images stay channels-last
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.data.strides[axis]))
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    options = {"constant_values": value} if mode == "constant" else {}
    out = array_module(x.data).pad(
        x.data.transpose(order), [pairs[axis] for axis in order], _PAD_MODES[mode], **options
    )
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pairs, x.shape, strict=True))

    def backward(dy: Array) -> list[Array]:
        if mode != "constant":
            for axis, (before, after) in enumerate(pairs):
                dy = _folded(dy, axis, before, after, mode)
            return [dy]
        return [dy[inside]]

    return record(out.transpose(inverse), [x], backward)


def _check_widths(pairs: list[Any], shape: tuple[int, ...], mode: str) -> None:
    """Mirrored or repeated once at most, as in PyTorch."""
    for axis, (widths, n) in enumerate(zip(pairs, shape, strict=True)):
        most = {"reflect": n - 1, "circular": n, "replicate": max(widths) if n else 0}
        if max(widths) > most.get(mode, max(widths)):
            raise ValueError(
                f"pad: widths {widths} for the {n} elements of axis {axis}: "
                f"mode={mode!r} adds at most {max(0, most[mode])}"
            )


def _folded(dy: Array, axis: int, before: int, after: int, mode: str) -> Array:
    """`dy` without what was added along `axis`: that goes to the elements that it is a copy of."""
    if not before and not after:
        return dy
    n = dy.shape[axis] - before - after
    last = dy.swapaxes(axis, -1)
    left, inner, right = last[..., :before], last[..., before : before + n], last[..., before + n :]
    dx = inner.swapaxes(axis, -1).copy(order="K").swapaxes(axis, -1)
    if mode == "reflect":
        dx[..., 1 : before + 1] += left[..., ::-1]
        dx[..., n - 1 - after : n - 1] += right[..., ::-1]
    elif mode == "replicate":
        dx[..., 0] += left.sum(-1)
        dx[..., -1] += right.sum(-1)
    else:
        dx[..., n - before :] += left
        dx[..., :after] += right
    return dx.swapaxes(axis, -1)
