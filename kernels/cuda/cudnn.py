"""Convolutions through NVIDIA's cuDNN, where the package nvidia-cudnn-frontend and the library are
installed; and what cudnn_attention.py shares with them.

A graph is built once for each problem (a fraction of a second) and kept: later calls only hand over
addresses. Engines that add up in changing order are left out, and, unless TF32 is allowed, those
that round float32 to it. What cuDNN has no engine for returns None, and goes through our own
convolution.py.

Source: the cuDNN frontend's Python interface, version 1.24 and later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from kernels.arrays import Array, array_module
from kernels.channels import channel_axis_second, dense_last, empty_last
from kernels.convolution_shapes import Geometry
from kernels.cuda import plans
from kernels.precision import tf32_is_allowed

log = logging.getLogger("framework")

#: dtype -> the name in cudnn.data_type.
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}


_used = True


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Within this block our own kernels run: to compare the two."""
    global _used
    previous, _used = _used, False
    try:
        yield
    finally:
        _used = previous


def usable() -> bool:
    """Is cuDNN there for the current device? Where its frontend is installed but does not start,
    the reason is logged once.
    """
    return _used and _found() and _handle(plans.current_device()) is not None


@cache
def _found() -> bool:
    try:
        import cudnn  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _handle(device: int) -> int | None:
    """The library's handle on `device`, which is the current one."""
    import cudnn

    try:
        handle: int = cudnn.create_handle()
    except RuntimeError as error:
        log.warning(
            "convolutions and attention on CUDA do not go through cuDNN: %s; install "
            "nvidia-cudnn-cu13 (cu12)",
            error,
        )
        return None
    return handle


class Problem(NamedTuple):
    """What a graph is built for. `written`: the dtype of the result."""

    operation: Literal["convolution", "input_grad", "weight_grad"]
    device: int
    dtype: str
    written: str
    geometry: Geometry
    bias: bool
    relu: bool
    tf32: bool


class Graph:
    """A built graph: its operands in the order of `run`, results last."""

    def __init__(self, graph: Any, operands: list[Any], device: int) -> None:
        self._graph = graph
        self._operands = operands
        self._device = device
        #: Bytes that a run needs besides.
        self.workspace: int = graph.get_workspace_size()

    def run(self, *arrays: Array) -> None:
        """On the current stream; the workspace comes from CuPy's pool."""
        import cudnn
        import cupy

        handle = _handle(self._device)
        cudnn.set_stream(handle, cupy.cuda.get_current_stream().ptr)
        room = cupy.empty(max(1, self.workspace), np.uint8)
        pointers = {t: a.data.ptr for t, a in zip(self._operands, arrays, strict=True)}
        self._graph.execute(pointers, room.data.ptr, handle=handle)


# Building -----------------------------------------------------------------------------------------


def _described(graph: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor (N, C, *size), channels-last in memory; one spatial axis becomes two."""
    import cudnn

    dims, strides = _layout(shape)
    kind = getattr(cudnn.data_type, TYPES[dtype])
    return graph.tensor(name=name, dim=dims, stride=strides, data_type=kind)


def _layout(shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Sizes, and strides in elements, of (N, C, *size) channels-last."""
    size = (1, *shape[2:]) if len(shape) == 3 else shape[2:]
    inner = [shape[1] * math.prod(size[i + 1 :]) for i in range(len(size))]
    return [*shape[:2], *size], [shape[1] * math.prod(size), 1, *inner]


def _written(graph: Any, tensor: Any, shape: tuple[int, ...], dtype: str) -> Any:
    import cudnn

    dims, strides = _layout(shape)
    tensor.set_output(True).set_dim(dims).set_stride(strides)
    tensor.set_data_type(getattr(cudnn.data_type, TYPES[dtype]))
    return tensor


def _options(g: Geometry) -> dict[str, Any]:
    """stride, dilation and padding as cuDNN takes them, on two axes at least."""
    lead = [1] * (len(g.size) == 1)
    before, after = (list(side) for side in zip(*g.padding, strict=True))
    zero = [0] * len(lead)
    return {
        "pre_padding": [*zero, *before],
        "post_padding": [*zero, *after],
        "stride": [*lead, *g.stride],
        "dilation": [*lead, *g.dilation],
    }


def _operation(graph: Any, problem: Problem) -> list[Any]:
    """Adds what is computed; the operands, the result last."""
    g, dtype = problem.geometry, problem.dtype
    options = _options(g)
    if problem.operation == "input_grad":
        dy = _described(graph, "dy", g.y_shape, dtype)
        weight = _described(graph, "weight", g.weight_shape, dtype)
        dx = graph.conv_dgrad(loss=dy, filter=weight, **options)
        return [dy, weight, _written(graph, dx, g.x_shape, problem.written)]
    if problem.operation == "weight_grad":
        x, dy = (_described(graph, n, s, dtype) for n, s in (("x", g.x_shape), ("dy", g.y_shape)))
        dw = graph.conv_wgrad(image=x, loss=dy, **options)
        return [x, dy, _written(graph, dw, g.weight_shape, problem.written)]
    x = _described(graph, "x", g.x_shape, dtype)
    weight = _described(graph, "weight", g.weight_shape, dtype)
    operands = [x, weight]
    y = graph.conv_fprop(image=x, weight=weight, **options)
    if problem.bias:
        shape = (1, g.out_channels, *(1 for _ in g.size))
        operands.append(_described(graph, "bias", shape, dtype))
        y = graph.bias(input=y, bias=operands[-1])
    if problem.relu:
        y = graph.relu(input=y)
    return [*operands, _written(graph, y, g.y_shape, problem.written)]


@cache
def graph_for(problem: Problem) -> Graph | None:
    """The graph of a problem; None, said in the log at level INFO, where there is no engine."""
    import cudnn

    notes = cudnn.numerical_note
    left_out = [notes.NONDETERMINISTIC]
    if problem.dtype == "float32" and not problem.tf32:
        left_out.append(notes.TENSOR_CORE)
    return built(problem, _operation, left_out)


def built(problem: Any, operation: Callable[..., list[Any]], left_out: list[Any]) -> Graph | None:
    """What operation(graph, problem) adds to a graph and returns as its operands, built without
    engines that have a note `left_out`; None where there is no other.
    """
    import cudnn

    graph = cudnn.pygraph(
        io_data_type=getattr(cudnn.data_type, TYPES[problem.dtype]),
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle(problem.device),
    )
    operands = operation(graph, problem)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        if left_out:
            graph.deselect_numeric_notes(left_out)
        graph.check_support()
        graph.build_plans()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
        log.info("cuDNN has no engine for %s: %s", problem, error)
        return None
    return Graph(graph, operands, problem.device)


def _graph(operation: Any, x: Array, g: Geometry, written: Any, **fused: bool) -> Graph | None:
    fused = {"bias": False, "relu": False} | fused
    names = x.dtype.name, np.dtype(written).name
    tf32 = x.dtype == np.float32 and tf32_is_allowed()
    return graph_for(Problem(operation, plans.current_device(), *names, g, tf32=tf32, **fused))


# The three ----------------------------------------------------------------------------------------


def convolution(
    x: Array, weight: Array, bias: Array | None, g: Geometry, relu: bool
) -> Array | None:
    """As convolution.convolution; None where there is no engine, or nothing to do."""
    if 0 in x.shape:
        return None
    graph = _graph("convolution", x, g, x.dtype, bias=bias is not None, relu=relu)
    if graph is None:
        return None
    y = empty_last(x, g.y_shape)
    xp = array_module(x)
    graph.run(
        dense_last(x),
        dense_last(weight),
        *([] if bias is None else [xp.ascontiguousarray(bias)]),
        y,
    )
    return channel_axis_second(y)


def input_grad(dy: Array, weight: Array, g: Geometry) -> Array | None:
    """As convolution.input_grad; None where there is no engine, or nothing to do."""
    graph = None if 0 in dy.shape else _graph("input_grad", dy, g, dy.dtype)
    if graph is None:
        return None
    dx = empty_last(dy, g.x_shape)
    graph.run(dense_last(dy), dense_last(weight), dx)
    return channel_axis_second(dx)


def weight_grad(dy: Array, x: Array, g: Geometry, out: Array | None) -> Array | None:
    """As convolution.weight_grad; None where there is no engine, or nothing to do. Sums of 16-bit
    products stay float32 where `out` is, if cuDNN can write them so.
    """
    if 0 in x.shape:
        return None
    wanted = x.dtype if out is None else out.dtype
    for dtype in dict.fromkeys((wanted, x.dtype)):
        graph = _graph("weight_grad", x, g, dtype)
        if graph is None:
            continue
        dw = empty_last(x, g.weight_shape, dtype)
        graph.run(dense_last(x), dense_last(dy), dw)
        if out is None:
            return array_module(x).ascontiguousarray(channel_axis_second(dw))
        out[...] = channel_axis_second(dw).astype(out.dtype, copy=False)
        return out
    return None
