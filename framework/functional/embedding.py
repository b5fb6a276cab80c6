"""Rows of a table by their numbers."""

from __future__ import annotations

from typing import Any

from framework.autograd import Tensor, record
from framework.autograd.graph import Partial
from framework.functional.check import tensor_argument
from kernels import embedding as kernels, reductions
from kernels.arrays import Array


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """weight[indices]: indices (*) integers, weight (V, D) -> (*, D).

    Row `padding_idx` gets no gradient. On the CPU, and within `fw.check_indices`, an index outside
    [0, V) raises IndexError; on CUDA its row is NaN.
    """
    tensor_argument("embedding", "indices", indices)
    tensor_argument("embedding", "weight", weight)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices are {indices.dtype.name}, expected integers")
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight has shape {weight.shape}, expected (rows, columns)")
    rows = weight.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise ValueError(f"embedding: padding_idx={padding_idx} is outside the {rows} rows")
        padding_idx %= rows
    i = indices.data
    y = kernels.embedding(weight.data, i)
    return record(y, [weight], lambda dy: [kernels.embedding_grad(dy, i, rows, padding_idx)])


def embedding_at_positions(
    indices: Tensor, weight: Tensor, positions: Tensor, start: int = 0
) -> Tensor:
    """weight[indices] + positions, what a transformer begins with, in one pass: indices (*, T),
    weight (V, D), positions (L, D), of which rows `start` to start + T are taken -> (*, T, D).
    """
    name = "embedding_at_positions"
    for what, x in (("indices", indices), ("weight", weight), ("positions", positions)):
        tensor_argument(name, what, x)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{name}: indices are {indices.dtype.name}, expected integers")
    if weight.ndim != 2 or positions.ndim != 2 or positions.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}: weight {weight.shape}, positions {positions.shape}: expected (V, D), (L, D)"
        )
    if weight.dtype != positions.dtype:
        raise TypeError(
            f"{name}: weight is {weight.dtype.name}, positions {positions.dtype.name}; use .to(...)"
        )
    stop = start + (indices.shape[-1] if indices.ndim else 0)
    if indices.ndim == 0 or start < 0 or stop > positions.shape[0]:
        raise ValueError(
            f"{name}: positions {start} to {stop - 1} of indices {indices.shape} do not fit the "
            f"{positions.shape[0]} rows of positions"
        )
    i, whole, rows = indices.data, positions.shape, weight.shape[0]
    y = kernels.embedding_at_positions(weight.data, i, positions.data[start:stop])

    def backward(dy: Array) -> list[Any]:
        dp = reductions.sum(dy.reshape(-1, (stop - start) * whole[1]), 0)
        here = Partial(whole, slice(start, stop), dp.reshape(stop - start, whole[1]))
        return [kernels.embedding_grad(dy, i, rows), here]

    return record(y, [weight, positions], backward)


def one_hot(indices: Tensor, num_classes: int) -> Tensor:
    """int64 (*, num_classes): 1 at each index, 0 elsewhere."""
    tensor_argument("one_hot", "indices", indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"one_hot: indices are {indices.dtype.name}, expected integers")
    if num_classes < 1:
        raise ValueError(f"one_hot: num_classes={num_classes}, expected at least 1")
    classes = indices.device.module.arange(num_classes)
    if indices.size and not 0 <= int(indices.data.min()) <= int(indices.data.max()) < num_classes:
        raise IndexError(
            f"one_hot: indices from {int(indices.data.min())} to {int(indices.data.max())}, "
            f"expected 0 to {num_classes - 1}"
        )
    return Tensor((indices.data[..., None] == classes).astype("int64"))
