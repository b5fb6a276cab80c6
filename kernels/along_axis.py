"""How the softmax family runs along any axis: over rows where the axis is contiguous in memory (or
can be made so cheaply), down columns where it lies across memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import Array, array_module, as_rows, from_rows

#: Below this many elements after the axis a transposed copy is cheaper than a loop over vectors
#: that short.
_NARROW = 16


def check_mask(mask: Array, x: Array) -> None:
    if mask.dtype != np.bool_:
        raise TypeError(f"mask is {mask.dtype}: expected booleans, True where an element counts")
    if mask.shape != x.shape:
        try:
            fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"mask has shape {mask.shape}, which does not broadcast to x's {x.shape}"
            )


def _same_shape(arrays: tuple[Array, ...]) -> None:
    if len(arrays) == 2 and arrays[0].shape != arrays[1].shape:
        raise ValueError(f"dy has shape {arrays[0].shape}, y {arrays[1].shape}: expected one shape")


def mask_rows(mask: Array | None, x: Array, axis: int, none: Any) -> Any:
    """The mask as rows like x's, or `none`."""
    if mask is None:
        return none
    check_mask(mask, x)
    return as_rows(array_module(x).broadcast_to(mask, x.shape), axis)[0]


def one_per_row(
    *arrays: Array, shape: tuple[int, ...], axis: int, keepdims: bool
) -> tuple[Array, ...]:
    """Arrays that have lost `axis` (or kept it as 1), as one flat value a row."""
    xp = array_module(arrays[0])
    expected = shape[:-1]
    flat = []
    for a in arrays:
        reduced = a.squeeze(axis) if keepdims else a
        if reduced.shape != expected:
            raise ValueError(
                f"dy and y have shape {a.shape}: expected {expected} for the other axes of x"
            )
        flat.append(xp.ascontiguousarray(reduced).reshape(-1))
    return tuple(flat)


def _columns_view(x: Array, axis: int) -> tuple[int, int, int] | None:
    """(outer, n, inner) of C-contiguous x around `axis`, where looping down columns beats a
    transposed copy.
    """
    axis = axis % x.ndim
    if axis == x.ndim - 1 or not x.flags.c_contiguous:
        return None
    inner = 1
    for size in x.shape[axis + 1 :]:
        inner *= size
    if inner < _NARROW or x.size == 0:
        return None
    n = x.shape[axis]
    return x.size // (n * inner), n, inner


def run_cpu(
    rows_loop: Any,
    columns_loop: Any,
    arrays: tuple[Array, ...],
    axis: int,
    mask: Array | None = None,
    *,
    reduces: bool = False,
    keepdims: bool = False,
) -> Array:
    """Run the row loop over `arrays` and their mask, or the column loop where the axis lies across
    memory.
    """
    from kernels.cpu.softmax import COLUMN_BLOCK, NO_MASK, NO_MASK_COLUMNS

    x = arrays[0]
    _same_shape(arrays)
    masks: tuple[Array, ...] = ()
    view = _columns_view(x, axis)
    if view is not None:
        outer, n, inner = view
        if len(arrays) == 1:
            if mask is not None:
                check_mask(mask, x)
                mask = np.ascontiguousarray(np.broadcast_to(mask, x.shape)).reshape(view)
            masks = (NO_MASK_COLUMNS if mask is None else mask,)
        out = np.empty((outer, 1, inner) if reduces else view, x.dtype)
        tasks = np.arange(outer * -(-inner // COLUMN_BLOCK))
        flat = [np.ascontiguousarray(a).reshape(view) for a in arrays]
        columns_loop(tasks, *flat, *masks, out, work=x.size)
        if not reduces:
            return out.reshape(x.shape)
        axis = axis % x.ndim
        return out.reshape(x.shape[:axis] + (1,) * keepdims + x.shape[axis + 1 :])
    rows, shape = as_rows(x, axis)
    others = [as_rows(a, axis)[0] for a in arrays[1:]]
    if len(arrays) == 1:
        masks = (mask_rows(mask, x, axis, NO_MASK),)
    out = (
        np.empty(rows.shape[0] if x.size else shape[:-1], x.dtype)
        if reduces
        else np.empty_like(rows)
    )
    if reduces and not x.size:
        out[...] = -np.inf
    else:
        rows_loop(rows, *others, *masks, out)
    if not reduces:
        return from_rows(out, shape, axis)
    y = out.reshape(shape[:-1])
    return np.expand_dims(y, axis) if keepdims else y


# CUDA ---------------------------------------------------------------------------------------------

#: A null pointer as a kernel argument: "no mask".
NULL = np.uint64(0)

#: Rows up to this long belong to a warp each, 8 of them to a block; longer ones to a block.
_WARP_COLUMNS = 1024
#: Rows up to this long stay in the registers of a block of 256; longer ones are streamed by 1024
#: threads.
_BLOCK_COLUMNS = 8192


def row_grid(rows: int, columns: int) -> tuple[int, int]:
    """Blocks and threads a block for the `..._rows` kernels, which know from blockDim and columns
    how to work.
    """
    if columns <= _WARP_COLUMNS:
        return -(-rows // 8), 256
    return rows, 256 if columns <= _BLOCK_COLUMNS else 1024


def run_cuda(
    name: str,
    arrays: tuple[Array, ...],
    axis: int,
    mask: Array | None = None,
    *,
    reduces: bool = False,
    keepdims: bool = False,
) -> Array:
    """Launch ``<name>_rows``, or ``<name>_columns`` where the axis lies across memory."""
    from kernels.cuda import launch

    x = arrays[0]
    xp = array_module(x)
    _same_shape(arrays)
    kind = launch.type_name(x.dtype)
    if x.size == 0 and reduces:
        lost = list(x.shape)
        lost[axis] = 1
        empty = xp.full(tuple(lost), -np.inf, x.dtype)
        return empty if keepdims else empty.squeeze(axis)
    view = _columns_view(x, axis)
    if view is not None:
        outer, n, inner = view
        masks: tuple[Any, ...] = ()
        if len(arrays) == 1:
            masks = (NULL,)
            if mask is not None:
                check_mask(mask, x)
                masks = (xp.ascontiguousarray(xp.broadcast_to(mask, x.shape)),)
        lost = list(x.shape)
        lost[axis] = 1
        out = xp.empty(tuple(lost) if reduces else x.shape, x.dtype)
        flat = [xp.ascontiguousarray(a) for a in arrays]
        sizes = (np.int64(outer), np.int64(n), np.int64(inner))
        grid = -(-outer * inner // launch.BLOCK)
        launch.run(
            "softmax", f"{name}_columns<{kind}>", grid, launch.BLOCK, (*flat, *masks, out, *sizes)
        )
        return out if keepdims or not reduces else out.squeeze(axis)
    rows, shape = as_rows(x, axis)
    others = [as_rows(a, axis)[0] for a in arrays[1:]]
    masks = (mask_rows(mask, x, axis, NULL),) if len(arrays) == 1 else ()
    count, columns = rows.shape
    out = xp.empty(count, x.dtype) if reduces else xp.empty_like(rows)
    grid, block = row_grid(count, columns)
    sizes = (np.int64(count), np.int64(columns))
    launch.run("softmax", f"{name}_rows<{kind}>", grid, block, (rows, *others, *masks, out, *sizes))
    if not reduces:
        return from_rows(out, shape, axis)
    y = out.reshape(shape[:-1])
    return xp.expand_dims(y, axis) if keepdims else y
