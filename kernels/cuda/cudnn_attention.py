"""Attention through cuDNN (see cudnn.py), for 16-bit heads of up to 128 columns, a multiple of 8.

Causal masks, windows, lengths, grouped heads and masks go there; dropout, whose draws must be ours,
ALiBi, gradients of masks and single queries do not. What there is no engine for returns None, and
goes through our own attention.cu.

The gradient is asked for as deterministic. On Hopper cuDNN then keeps all scores in 16 bits (from
9.25 on CUDNN_FRONTEND_ATTN_DP_WORKSPACE_LIMIT=0 makes it add up in order instead): where that takes
more than WORKSPACE bytes, our own kernel runs, whose memory is linear in the length.

What cuDNN leaves in rows of queries that see no key, and of keys beyond the lengths, is not
documented: such queries are known before, and their results are set afterwards.

Source: the cuDNN frontend's Python interface, version 1.24 and later (graph.sdpa and
graph.sdpa_backward).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import Array, array_module, is_half
from kernels.attention_call import Call
from kernels.cuda import plans
from kernels.cuda.cudnn import TYPES, Graph, built, usable

#: Bytes beside inputs and results, at most: 1.3 times what GPT-2 at batch 16 takes.
WORKSPACE = 512 << 20

#: Bytes that a mask of keys alone may take when it is spelled out for every query.
SPREAD = 64 << 20

#: For queries without keys: e^(score - this) is 0.
UNSEEN = np.float32(1e30)


class Layout(NamedTuple):
    """A tensor's sizes, and its strides in elements."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]


class Problem(NamedTuple):
    """What a graph is built for. `made`: the layouts of the results but the statistics."""

    backward: bool
    device: int
    dtype: str
    q: Layout
    k: Layout
    v: Layout
    bias: Layout | None
    lengths: bool
    at_end: bool  # the last query stands at the last key, instead of the first at the first
    left: int | None
    right: int | None
    scale: float
    made: tuple[Layout, ...]
    out: Layout | None = None
    dout: Layout | None = None


# Building -----------------------------------------------------------------------------------------


def _operation(graph: Any, problem: Problem) -> list[Any]:
    """Adds what is computed; the operands, results last."""
    import cudnn

    kind = getattr(cudnn.data_type, TYPES[problem.dtype])
    inputs: list[Any] = []

    def described(name: str, layout: Layout, dtype: Any = kind) -> Any:
        dims, strides = map(list, layout)
        inputs.append(graph.tensor(name=name, dim=dims, stride=strides, data_type=dtype))
        return inputs[-1]

    (B, H, T), float32 = problem.q.dims[:3], cudnn.data_type.FLOAT
    of_rows = Layout((B, H, T, 1), (H * T, T, 1, 1))
    options: dict[str, Any] = {n: described(n, getattr(problem, n)) for n in ("q", "k", "v")}
    if problem.backward:
        assert problem.out is not None and problem.dout is not None
        options["o"] = described("o", problem.out)
        options["dO"] = described("dO", problem.dout)
        options["stats"] = described("stats", of_rows, float32)
    if problem.bias is not None:
        options["bias"] = described("bias", problem.bias)
    if problem.lengths:
        each = Layout((B, 1, 1, 1), (1, 1, 1, 1))
        options["use_padding_mask"] = True
        for name in ("seq_len_q", "seq_len_kv"):
            options[name] = described(name, each, cudnn.data_type.INT32)
    corner = cudnn.diagonal_alignment
    options["diagonal_alignment"] = corner.BOTTOM_RIGHT if problem.at_end else corner.TOP_LEFT
    bounds = (
        ("diagonal_band_left_bound", problem.left),
        ("diagonal_band_right_bound", problem.right),
    )
    options |= {name: bound for name, bound in bounds if bound is not None}
    options["attn_scale"] = problem.scale
    made = [(layout, kind) for layout in problem.made]
    if problem.backward:
        results = graph.sdpa_backward(**options, use_deterministic_algorithm=True)
    else:
        results = graph.sdpa(**options, generate_stats=True)
        made.append((of_rows, float32))
    for tensor, (layout, dtype) in zip(results, made, strict=True):
        dims, strides = map(list, layout)
        tensor.set_output(True).set_dim(dims).set_stride(strides).set_data_type(dtype)
    return [*inputs, *results]


@cache
def graph_for(problem: Problem) -> Graph | None:
    """The graph of a problem; None where there is no engine, or its workspace is too large."""
    graph = built(problem, _operation, [])
    return None if graph is None or graph.workspace > WORKSPACE else graph


# What goes there ----------------------------------------------------------------------------------


def _problem(c: Call) -> tuple[Problem, list[Array]] | None:
    """The forward problem of a call and its operands; None for what cuDNN does not do."""
    (B, _, T, D), (S, E) = c.q.shape, c.v.shape[2:]
    if not is_half(c.q.dtype) or c.p > 0 or c.slopes is not None or not usable():
        return None
    # a single query is a step of generation: keys grow with each, and a graph is built for a size
    if D % 8 or E % 8 or max(D, E) > 128 or 0 in (*c.out_shape, S, D) or T == 1:
        return None
    banded = c.causal or c.window > 0
    at_end = banded and c.start > 0
    if at_end and (c.start != S - T or c.lengths is not None or c.mask is not None):
        return None
    bias = None
    if c.mask is not None:
        bias = None if c.window else _bias(c)
        if bias is None:
            return None
    xp = array_module(c.q)
    operands = [_readable(x) for x in (c.q, c.k, c.v)]
    layouts = [_layout(x) for x in operands]
    if bias is not None:
        operands.append(bias)
    if c.lengths is not None:
        lengths = xp.minimum(c.lengths, S).astype(np.int32)
        operands += [xp.full(B, T, np.int32), lengths]
    right = 0 if c.causal else c.window - 1 if c.window else None
    problem = Problem(
        False, plans.current_device(), c.q.dtype.name, *layouts,
        None if bias is None else _layout(bias), c.lengths is not None, at_end, c.window or None,
        right, c.scale, (_by_position(c.out_shape),),
    )  # fmt: skip
    return problem, operands


def _bias(c: Call) -> Array | None:
    """The mask as numbers in rows of whole 16 bytes, in its own sizes but for queries and keys, for
    all of which cuDNN wants one; None where that would take more than SPREAD bytes.
    """
    assert c.mask is not None
    xp, mask, S = array_module(c.q), c.mask, c.mask.shape[3]
    mask = mask[: 1 if mask.strides[0] == 0 else None, : 1 if mask.strides[1] == 0 else None]
    if 0 in mask.strides[2:] and mask.size * c.q.itemsize > SPREAD:
        return None
    if mask.dtype.kind != "b" and _is_readable(mask):
        return mask
    rows = xp.zeros((*mask.shape[:3], -(-S // 8) * 8), c.q.dtype)[..., :S]
    if mask.dtype.kind == "b":
        mask = xp.where(mask, np.float32(0), np.float32(-np.inf))
    rows[...] = mask.astype(c.q.dtype, copy=False)
    return rows


def _is_readable(x: Array) -> bool:
    """Rows that lie together, everything on 16 bytes, nothing broadcast."""
    steps = [s for n, s in zip(x.shape[:3], x.strides, strict=False) if n > 1]
    return (
        x.strides[3] == x.itemsize
        and all(s > 0 and s % 16 == 0 for s in steps)
        and x.data.ptr % 16 == 0
    )


def _readable(x: Array) -> Array:
    """`x`, or a copy (B, H, T, D) that lies as (B, T, H, D)."""
    if _is_readable(x):
        return x
    return array_module(x).ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


def _layout(x: Array) -> Layout:
    return Layout(x.shape, tuple(step // x.itemsize for step in x.strides))


def _by_position(shape: tuple[int, int, int, int]) -> Layout:
    """(B, H, T, D) that lies as (B, T, H, D)."""
    _, H, T, D = shape
    return Layout(shape, (T * H * D, D, H * D, 1))


def _blank(x: Array, layout: Layout, zeros: bool) -> Array:
    """An array of a layout as of `_by_position`."""
    B, H, T, D = layout.dims
    xp = array_module(x)
    return (xp.zeros if zeros else xp.empty)((B, T, H, D), x.dtype).swapaxes(1, 2)


def _sees(c: Call, bias: Array | None) -> Array | None:
    """Which queries see a key, broadcastable to (B, H, T); None if all do."""
    if c.lengths is None and bias is None:
        return None  # with a window cuDNN takes no more queries than keys
    xp = array_module(c.q)
    (T, S) = c.q.shape[2], c.k.shape[2]
    position = xp.arange(T) + c.start
    first = xp.maximum(position - (c.window - 1), 0) if c.window else xp.zeros(T, np.int64)
    if bias is not None:
        seen = bias != -np.inf
        first = xp.where(seen.any(-1), seen.argmax(-1), S)
    end = xp.minimum(position + 1, S) if c.causal else xp.full(T, S)
    if c.lengths is not None:
        end = xp.minimum(end, c.lengths[:, None, None])
    return first < end


# The two ------------------------------------------------------------------------------------------


def forward(c: Call) -> tuple[Array, Array] | None:
    """As attention.forward; None where our own kernel has to do it."""
    found = _problem(c)
    graph = None if found is None else graph_for(found[0])
    if found is None or graph is None:
        return None
    problem, operands = found
    xp = array_module(c.q)
    out = _blank(c.q, problem.made[0], zeros=False)
    lse = xp.empty(c.out_shape[:3], np.float32)
    graph.run(*operands, out, lse)
    sees = _sees(c, operands[3] if problem.bias is not None else None)
    if sees is not None:
        out = xp.where(sees[..., None].swapaxes(1, 2), out.swapaxes(1, 2), out.dtype.type(0))
        out = out.swapaxes(1, 2)
        lse = xp.where(sees, lse, np.float32(-np.inf))
    return out, lse


def gradient(
    c: Call, dout: Array, out: Array, lse: Array, places: tuple[Array | None, ...]
) -> tuple[Array, ...] | None:
    """dq, dk, dv, in `places` if cuDNN can write there; None where our own kernel has to do it."""
    found = _problem(c)
    if found is None:
        return None
    problem, operands = found
    xp, some = array_module(c.q), c.lengths is not None
    made = []
    for x, place in zip((c.q, c.k, c.v), places, strict=True):
        fits = place is not None and place.dtype == x.dtype and _is_readable(place)
        made.append(place if fits else _blank(x, _by_position(x.shape), zeros=some))
        if fits and some:
            made[-1][...] = 0
    out, dout = _readable(out), _readable(dout)
    layouts = tuple(map(_layout, made))
    graph = graph_for(
        problem._replace(backward=True, made=layouts, out=_layout(out), dout=_layout(dout))
    )
    if graph is None:
        return None
    lse = xp.ascontiguousarray(xp.where(lse == -np.inf, UNSEEN, lse).astype(np.float32, copy=False))
    graph.run(*operands[:3], out, dout, lse, *operands[3:], *made)
    return tuple(made)
