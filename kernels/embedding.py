"""Embedding: rows of a table by index, and the sum of gradients per row in a fixed order."""

from __future__ import annotations

import math

import numpy as np

from kernels.arrays import Array, array_module, is_cuda
from kernels.checking import looked_at
from kernels.lazy import Lazy
from kernels.registry import kernel

loops = Lazy("kernels.cpu.embedding")

CUDA_KERNELS = ("embedding_gather", "embedding_sum", "embedding_order")

#: What those that do not take rows are instantiated for.
CUDA_TYPES = {"embedding_order": ("long long",)}


#: The instantiation that captures use.
ORDER = "embedding_order<long long>"


def _check_indices(name: str, indices: Array, rows: int) -> None:
    """Integer dtype, and the range (on CUDA within `check_indices`)."""
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{name}: indices are {indices.dtype}, expected an integer dtype")
    seen = looked_at(indices)
    if seen is None or seen.size == 0:
        return
    bad = (seen < 0) | (seen >= rows)
    if bad.any():
        _raise_outside(name, seen, int(bad.argmax()), rows)


def _raise_outside(name: str, indices: Array, position: int, rows: int) -> None:
    where = tuple(int(i) for i in np.unravel_index(position, indices.shape))
    raise IndexError(
        f"{name}: indices[{', '.join(map(str, where))}] is {indices[where]}, "
        f"expected 0 <= index < {rows}, the rows of the table"
    )


def _check_table(name: str, weight: Array) -> None:
    if weight.ndim != 2:
        raise ValueError(f"{name}: weight has shape {weight.shape}, expected (V, D)")


def _check_gradient(dy: Array, indices: Array) -> None:
    if dy.shape[:-1] != indices.shape or dy.ndim < 1:
        raise ValueError(
            f"embedding_grad: dy has shape {dy.shape}, indices have shape {indices.shape}: "
            "expected dy.shape == (*indices.shape, D)"
        )


@kernel
def embedding(weight: Array, indices: Array) -> Array:
    """weight[indices]: rows of weight (V, D) for integers of any shape -> (*indices.shape, D).

    An index outside 0 <= i < V raises IndexError on the CPU, and within `check_indices`. On CUDA,
    where a check would wait for the device, its row is NaN.
    """
    _check_table("embedding", weight)
    _check_indices("embedding", indices, weight.shape[0])
    if not is_cuda(weight):
        return weight[indices]
    xp = array_module(weight)
    outside = (indices < 0) | (indices >= weight.shape[0])
    return xp.where(outside[..., None], xp.nan, weight[xp.where(outside, 0, indices)]).astype(
        weight.dtype
    )


@embedding.cpu(dtypes=("float16", "bfloat16", "float64"))
def _(weight: Array, indices: Array) -> Array:
    # a copy of rows needs no arithmetic: widening the whole table first would cost V * D
    return embedding.reference(weight, indices)


@embedding.cpu
def _(weight: Array, indices: Array) -> Array:
    _check_table("embedding", weight)
    weight = np.ascontiguousarray(weight)
    flat = _flat_indices("embedding", indices, weight.shape[0])
    out = np.empty((flat.size, weight.shape[1]), weight.dtype)
    loops.gather(flat, weight, out, work=out.size)
    return out.reshape(*indices.shape, weight.shape[1])


def _flat_indices(name: str, indices: Array, rows: int) -> Array:
    """Indices as a flat int64 array, checked."""
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{name}: indices are {indices.dtype}, expected an integer dtype")
    flat = np.ascontiguousarray(indices, np.int64).reshape(-1)
    position = loops.first_outside(flat, rows)
    if position >= 0:
        _raise_outside(name, indices, position, rows)
    return flat


@embedding.cuda
def _on_cuda(weight: Array, indices: Array, positions: Array | None = None) -> Array:
    """With a row of `positions` added, if there are any."""
    import cupy

    from kernels.cuda import launch

    _check_table("embedding", weight)
    name = "embedding" if positions is None else "embedding_at_positions"
    _check_indices(name, indices, weight.shape[0])
    weight = cupy.ascontiguousarray(weight)
    flat = cupy.ascontiguousarray(indices, np.int64).reshape(-1)
    V, D = weight.shape
    out = cupy.empty((*indices.shape, D), weight.dtype)
    if out.size:
        length = 1 if positions is None else positions.shape[0]
        positions = np.uintp(0) if positions is None else cupy.ascontiguousarray(positions)
        sizes = map(np.int64, (flat.size, V, D, length))
        args = (weight, flat, positions, out, *sizes)
        name = f"embedding_gather<{launch.type_name(weight.dtype)}>"
        launch.run("embedding", name, launch.grid_stride(out.size, out), launch.BLOCK, args)
    return out


@embedding.sample
def _(draw, shape):
    return draw.normal(7, shape[1]), draw.integers(7, shape[0])


@embedding.sample
def matrix(draw, shape):
    return draw.normal(50, shape[1]), draw.integers(50, shape[0], 3)


@kernel
def embedding_at_positions(weight: Array, indices: Array, positions: Array) -> Array:
    """weight[indices] + positions: indices (*, T), positions (T, D) -> (*, T, D)."""
    _check_positions(weight, indices, positions)
    return embedding.reference(weight, indices) + positions


def _check_positions(weight: Array, indices: Array, positions: Array) -> None:
    _check_table("embedding_at_positions", weight)
    if indices.ndim == 0 or positions.shape != (indices.shape[-1], weight.shape[1]):
        raise ValueError(
            f"embedding_at_positions: indices {indices.shape}, positions {positions.shape}, weight "
            f"{weight.shape}: expected (*, T), (T, D), (V, D)"
        )


@embedding_at_positions.cpu
def _(weight: Array, indices: Array, positions: Array) -> Array:
    from kernels.cpu.engine import numbers

    _check_positions(weight, indices, positions)
    weight, positions = np.ascontiguousarray(weight), np.ascontiguousarray(positions)
    flat = _flat_indices("embedding_at_positions", indices, weight.shape[0])
    out = np.empty((flat.size, weight.shape[1]), weight.dtype)
    loops.gather_and_add(numbers(flat.size), flat, weight, positions, out, work=out.size)
    return out.reshape(*indices.shape, weight.shape[1])


@embedding_at_positions.cuda
def _(weight: Array, indices: Array, positions: Array) -> Array:
    _check_positions(weight, indices, positions)
    return _on_cuda(weight, indices, positions)


@embedding_at_positions.sample
def _(draw, shape):
    indices = draw.integers(50, 3, shape[0])
    return draw.normal(50, shape[1]), indices, draw.normal(shape)


@kernel
def embedding_grad(dy: Array, indices: Array, rows: int, padding_idx: int | None = None) -> Array:
    """dweight (rows, D): row k is the sum of dy (*, D) over the positions where indices is k.

    The sums run in the order of the positions, so the result has the same bits every time. Row
    `padding_idx` is 0.
    """
    _check_gradient(dy, indices)
    _check_indices("embedding_grad", indices, rows)
    xp = array_module(dy)
    D = dy.shape[-1]
    flat, dy = indices.reshape(-1), dy.reshape(indices.size, D)
    keep = (flat >= 0) & (flat < rows)
    if padding_idx is not None:
        keep &= flat != padding_idx % rows
    # float64, so that the order in which CuPy's add.at adds cannot be seen in a float32 result
    out = xp.zeros((rows, D), np.float64)
    xp.add.at(out, flat[keep], dy[keep].astype(np.float64))
    return out.astype(dy.dtype)


@embedding_grad.cpu
def _(dy: Array, indices: Array, rows: int, padding_idx: int | None = None) -> Array:
    from kernels.cpu.engine import numbers, threads

    _check_gradient(dy, indices)
    flat = _flat_indices("embedding_grad", indices, rows)
    D = dy.shape[-1]
    out = np.zeros((rows, D), np.float32)
    # one stripe a thread, in whole cache lines
    width = max(16, -(-D // threads() // 16) * 16)
    skip = -1 if padding_idx is None else padding_idx % rows
    rows_of_dy = np.ascontiguousarray(dy).reshape(flat.size, D)
    loops.scatter_add(numbers(-(-D // width)), width, rows_of_dy, flat, skip, out, work=dy.size)
    return out


@embedding_grad.cuda
def _(dy: Array, indices: Array, rows: int, padding_idx: int | None = None) -> Array:
    import cupy

    from kernels.cuda import launch

    _check_gradient(dy, indices)
    _check_indices("embedding_grad", indices, rows)
    D = dy.shape[-1]
    out = cupy.empty((rows, D), dy.dtype)
    if out.size == 0:
        return out
    flat = cupy.ascontiguousarray(indices, np.int64).reshape(-1)
    ordered, order = _stable_order(flat)
    skip = -1 if padding_idx is None else padding_idx % rows
    args = (
        cupy.ascontiguousarray(dy),
        ordered,
        order,
        out,
        np.int64(flat.size),
        np.int64(rows),
        np.int64(D),
        np.int64(skip),
    )
    stripes = math.ceil(D / 32)
    name = f"embedding_sum<{launch.type_name(dy.dtype)}>"
    launch.run("embedding", name, rows * stripes, launch.BLOCK, args)
    return out


def _stable_order(flat: Array) -> tuple[Array, Array]:
    """CUDA indices (n,) in ascending order, equal ones as they came, and where they came from."""
    import cupy

    from kernels.cuda import compiler, launch

    if launch.is_capturing():
        return order_by_rank(flat)
    if cupy.cuda.get_current_stream().ptr:
        # not the default stream: a capture may come, in which nothing should be compiled or loaded
        compiler.function("embedding", ORDER)
    order = cupy.argsort(flat, kind="stable")
    return flat[order], order


def order_by_rank(flat: Array) -> tuple[Array, Array]:
    """The same without a sort, in a kernel that a CUDA graph may hold."""
    import cupy

    from kernels.cuda import launch

    ordered, order = cupy.empty_like(flat), cupy.empty_like(flat)
    grid = -(-flat.size // launch.BLOCK)
    args = (flat, ordered, order, np.int64(flat.size))
    launch.run("embedding", ORDER, grid, launch.BLOCK, args)
    return ordered, order


@embedding_grad.sample
def _(draw, shape):
    return draw.normal(shape), draw.integers(7, shape[0]), 7


@embedding_grad.sample
def padded(draw, shape):
    return draw.normal(shape[0], 3, shape[1]), draw.integers(5, shape[0], 3), 5, 2
