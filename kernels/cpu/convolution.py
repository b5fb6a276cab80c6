"""Which loops compute a convolution on the CPU, and with what tables.

3x3 with stride 1: Winograd's algorithm (winograd_plans.py). Few output channels: planes.py.
Depthwise: depthwise.py. Images that stay in a core's L2: read where they lie (direct.py).
Everything else: products of gathered rows (gather.py).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kernels.channels import channel_axis_second, empty_last
from kernels.convolution_shapes import Geometry
from kernels.cpu import depthwise, direct, gather, planes, winograd_plans as winograd
from kernels.cpu.engine import workers
from kernels.cpu.lanes import LANES
from kernels.cpu.layout import channels_last
from kernels.cpu.tiles import P, R, padded_to

#: Channels from which on Winograd's transforms, of 16 channels at a time, pay.
ENOUGH_CHANNELS = 16

#: Partial sums of a depthwise gradient, on any number of threads.
DEPTHWISE_SLOTS = 16

#: Elements of a row that are gathered and multiplied at a time: a tile's rows stay in L1 or nearly.
CHUNK = 1024

#: The same where a chunk is a task of its own: the gradient of the weights.
CHUNK_OF_GRADIENT = 384

#: An image up to so many floats, with its borders, is read where it lies: it stays in L2 ...
IMAGE = 150_000
#: The same for the partial sums of a gradient.
GRADIENT = 40_000
#: ... from so many places on: fewer are gathered from several images.
ENOUGH_PLACES = 48


def suits_winograd(g: Geometry) -> bool:
    return (
        g.kernel == (3, 3)
        and g.stride == (1, 1)
        and g.dilation == (1, 1)
        and g.groups == 1
        and min(g.channels, g.out_channels) >= ENOUGH_CHANNELS
    )


#: Fewer channels than this, on one side, are computed in planes, if an image's planes and results
#: (in floats) stay in L2.
FEW_CHANNELS = 8
PLANES = 100_000


def suits_planes(g: Geometry) -> bool:
    """Are there few channels in or out? Asked of the forward pass and both gradients alike."""
    places = math.prod(n + sum(pad) for n, pad in zip(g.size, g.padding, strict=True))
    return (
        len(g.kernel) == 2
        and g.stride == (1, 1)
        and g.groups == 1
        and min(g.channels, g.out_channels) <= FEW_CHANNELS
        and max(g.channels, g.out_channels) * places <= PLANES
    )


def suits_depthwise(g: Geometry) -> bool:
    return g.groups == g.channels == g.out_channels and len(g.kernel) <= 2


# Tables of where to read --------------------------------------------------------------------------


class Pass(NamedTuple):
    """One pass of gather.py: see there. All tables are int64."""

    places: np.ndarray
    steps: np.ndarray
    out_steps: np.ndarray
    out_starts: np.ndarray
    runs: np.ndarray
    chunks: np.ndarray
    run_chunk: np.ndarray
    taps: np.ndarray
    #: Where each tap is among them, -1 for none.
    tap_places: np.ndarray
    #: Columns of a gathered row, all chunks, and of the longest chunk (in taps).
    widest: int
    #: For direct.py, where an image is read as it lies.
    direct: Direct | None = None


class Direct(NamedTuple):
    reads: direct.Reads
    #: Where the places of whole tiles read and where they are put.
    at: np.ndarray
    to: np.ndarray


class _Axis(NamedTuple):
    places: int
    step: int
    out_step: int
    out_start: int
    #: (offset, tap), ascending
    reads: tuple[tuple[int, int], ...]


_NO_AXIS = _Axis(1, 1, 1, 0, ((0, 0),))


def _forward_axis(g: Geometry, axis: int) -> _Axis:
    reads = tuple((t * g.dilation[axis] - g.padding[axis][0], t) for t in range(g.kernel[axis]))
    return _Axis(g.output[axis], g.stride[axis], 1, 0, reads)


def _backward_axes(g: Geometry, axis: int) -> list[_Axis]:
    """The places of x by their remainder: those that the same taps meet."""
    stride, before, dilation = g.stride[axis], g.padding[axis][0], g.dilation[axis]
    axes = []
    for start in range(min(stride, g.size[axis])):
        reads = []
        for tap in range(g.kernel[axis]):
            offset, rest = divmod(start + before - tap * dilation, stride)
            if rest == 0:
                reads.append((offset, tap))
        places = -(-(g.size[axis] - start) // stride)
        axes.append(_Axis(places, 1, stride, start, tuple(sorted(reads))))
    return axes


def _tables(g: Geometry, axes: tuple[_Axis, ...], limit: int, split: bool) -> Pass:
    """`split`: runs may be cut for chunks of at most `limit` elements."""
    missing = 3 - len(axes)
    kernel = (1,) * missing + g.kernel
    axes = (_NO_AXIS,) * missing + axes
    C = g.channels // g.groups
    longest = 1 if g.groups > 1 else (max(1, limit // max(1, C)) if split else 1 << 30)
    runs: list[list[int]] = []
    taps: list[int] = []
    for (d, td), (h, th) in product(axes[0].reads, axes[1].reads):
        start = len(runs)
        for w, tw in axes[2].reads:
            side_by_side = len(runs) > start and runs[-1][2] + runs[-1][3] == w
            if side_by_side and runs[-1][3] < longest:
                runs[-1][3] += 1
            else:
                runs.append([d, h, w, 1, len(taps)])
            taps.append((td * kernel[1] + th) * kernel[2] + tw)
    chunks: list[list[int]] = []
    run_chunk = []
    for i, run in enumerate(runs):
        if chunks and (chunks[-1][3] + run[3]) * C <= limit:
            chunks[-1][1] = i + 1
            chunks[-1][3] += run[3]
        else:
            row = chunks[-1][4] + padded_to(chunks[-1][3] * C, R) if chunks else 0
            chunks.append([i, i + 1, run[4], run[3], row])
        run_chunk.append(len(chunks) - 1)
    tap_places = np.full(math.prod(kernel), -1)
    tap_places[taps] = range(len(taps))
    return Pass(
        *(_ints([getattr(a, name) for a in axes]) for name in _Axis._fields[:4]),
        _ints(runs).reshape(-1, 5),
        _ints(chunks).reshape(-1, 5),
        _ints(run_chunk),
        _ints(taps),
        _ints(tap_places),
        max((c[3] for c in chunks), default=0),
    )


def _ints(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def _sizes(size: tuple[int, ...]) -> np.ndarray:
    return _ints((1,) * (3 - len(size)) + size)


@lru_cache(1024)
def _forward_pass(g: Geometry) -> Pass:
    axes = tuple(_forward_axis(g, i) for i in range(len(g.size)))
    tables = _tables(g, axes, CHUNK, False)
    return tables._replace(direct=_direct(g, tables, g.size, g.output))


@lru_cache(1024)
def _backward_passes(g: Geometry) -> list[Pass]:
    turned = g._replace(channels=g.out_channels, out_channels=g.channels)
    axes = (_backward_axes(g, i) for i in range(len(g.size)))
    passes = [_tables(turned, each, CHUNK, False) for each in product(*axes)]
    return [each._replace(direct=_direct(turned, each, g.output, g.size)) for each in passes]


def _direct(
    g: Geometry, tables: Pass, size: tuple[int, ...], out_size: tuple[int, ...]
) -> Direct | None:
    """None where gathered rows are faster."""
    places = tuple(map(int, tables.places))
    if g.groups > 1 or math.prod(places) < ENOUGH_PLACES or not tables.taps.size:
        return None
    offsets = [(d, h, w + i) for d, h, w, taps, _ in tables.runs.tolist() for i in range(taps)]
    sizes, steps = tuple(_sizes(size).tolist()), tuple(map(int, tables.steps))
    reads = direct.reads(sizes, g.channels, places, steps, offsets, False)
    if max(reads.bordered, math.prod(size) * g.channels) > IMAGE:
        return None
    _, H, W = _sizes(out_size)
    grid = np.indices(places).reshape(3, -1).T * tables.out_steps + tables.out_starts
    to = (grid @ _ints([H * W, W, 1])) * g.out_channels
    return Direct(reads, direct.in_tiles(reads.starts), direct.in_tiles(to))


@lru_cache(1024)
def _direct_gradient(g: Geometry) -> Direct | None:
    """`to` is of the taps, one by one. None where gathered rows are faster."""
    K = g.channels * math.prod(g.kernel)
    enough = g.batch >= direct.SLOTS and math.prod(g.output) >= ENOUGH_PLACES
    if g.groups > 1 or not enough or K * g.out_channels > GRADIENT:
        return None
    axes = [_NO_AXIS] * (3 - len(g.size)) + [_forward_axis(g, i) for i in range(len(g.size))]
    offsets = [tuple(o for o, _ in each) for each in product(*(a.reads for a in axes))]
    sizes, places = tuple(_sizes(g.size).tolist()), tuple(a.places for a in axes)
    reads = direct.reads(sizes, g.channels, places, tuple(a.step for a in axes), offsets, True)
    if max(reads.bordered, math.prod(g.size) * g.channels) > IMAGE:
        return None
    return Direct(reads, reads.starts, direct.in_tiles(reads.taps))


@lru_cache(1024)
def _gradient_pass(g: Geometry) -> Pass:
    axes = tuple(_forward_axis(g, i) for i in range(len(g.size)))
    return _tables(g, axes, CHUNK_OF_GRADIENT, True)


# The three kernels --------------------------------------------------------------------------------


def convolution(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, g: Geometry, relu: bool, exact: bool
) -> np.ndarray:
    """y (N, OC, *output), channels-last."""
    y = empty_last(x, g.y_shape)
    x, w = channels_last(x), np.ascontiguousarray(w)
    if y.size == 0:
        return channel_axis_second(y)
    if suits_winograd(g) and not exact:
        before = g.padding[0][0], g.padding[1][0]
        winograd.convolve(x, w, False, before, y, bias, relu)
    elif suits_depthwise(g):
        _depthwise(x, _by_tap(w), bias, g, relu, y)
    elif suits_planes(g) and g.out_channels <= FEW_CHANNELS:
        planes.convolve(x, w, (g.padding[0][0], g.padding[1][0]), g.dilation, y, bias, relu)
    else:
        taps = math.prod(g.kernel)
        C = g.channels // g.groups
        strides = g.out_channels // g.groups * C * taps, C * taps, taps
        _products(
            x, g.size, w, strides, C, g.out_channels // g.groups, g, _forward_pass(g), bias, relu,
            y, g.output,
        )  # fmt: skip
    return channel_axis_second(y)


def input_grad(dy: np.ndarray, w: np.ndarray, g: Geometry, exact: bool) -> np.ndarray:
    """dx (N, C, *size), channels-last."""
    dx = empty_last(dy, g.x_shape)
    dy, w = channels_last(dy), np.ascontiguousarray(w)
    if dx.size == 0:
        return channel_axis_second(dx)
    if suits_winograd(g) and not exact:
        before = 2 - g.padding[0][0], 2 - g.padding[1][0]
        winograd.convolve(dy, w, True, before, dx, None, False)
        return channel_axis_second(dx)
    before = [
        d * (k - 1) - pad[0] for d, k, pad in zip(g.dilation, g.kernel, g.padding, strict=True)
    ]
    if suits_depthwise(g) and set(g.stride) == {1} and min(before) >= 0:
        turned = g._replace(size=g.output, output=g.size, padding=tuple((n, n) for n in before))
        _depthwise(dy, _by_tap(w.reshape(g.channels, -1)[:, ::-1]), None, turned, False, dx)
        return channel_axis_second(dx)
    if suits_depthwise(g):
        team, (size, options) = workers(), _two_axes(g)
        depthwise.input_grad(
            team, len(team), dy.reshape(-1), *_plane(g.output), g.channels, _by_tap(w), *options,
            dx.reshape(-1), g.batch, *size, work=dx.size * math.prod(g.kernel),
        )  # fmt: skip
        return channel_axis_second(dx)
    if suits_planes(g) and g.channels <= FEW_CHANNELS and min(before) >= 0:
        turned = np.ascontiguousarray(w[:, :, ::-1, ::-1].swapaxes(0, 1))
        planes.convolve(dy, turned, tuple(before), g.dilation, dx, None, False)
        return channel_axis_second(dx)
    passes = _backward_passes(g)
    if not all(p.taps.size for p in passes):
        gather.clear_all(workers(), len(workers()), dx.reshape(-1), work=dx.size)
    taps, OC = math.prod(g.kernel), g.out_channels // g.groups
    C = g.channels // g.groups
    for each in passes:
        if each.taps.size:
            _products(
                dy, g.output, w, (OC * C * taps, taps, C * taps), OC, C, g, each, None, False, dx,
                g.size,
            )  # fmt: skip
    return channel_axis_second(dx)


def _products(
    x: np.ndarray,
    size: tuple[int, ...],
    w: np.ndarray,
    strides: tuple[int, int, int],
    n_in: int,
    n_out: int,
    g: Geometry,
    tables: Pass,
    bias: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    out_size: tuple[int, ...],
) -> None:
    team = workers()
    panels, K = -(-n_out // P), tables.taps.size * n_in
    u = np.empty(g.groups * panels * K * P, np.float32)
    b = np.zeros(g.groups * n_out + P, np.float32)
    if bias is not None:
        b[: bias.size] = bias
    rows = g.batch * int(tables.places.prod())
    work = rows * K * n_out * g.groups
    turned = np.empty(len(team) * LANES * LANES, np.float32)
    gather.pack(
        team, len(team), w.reshape(-1), g.groups, n_out, n_in, *strides, math.prod(g.kernel),
        tables.tap_places, K, u, turned, work=w.size,
    )  # fmt: skip
    if tables.direct is not None:
        reads, at, to = tables.direct
        room = padded_to(reads.bordered, LANES)
        direct.products(
            team, len(team), x.reshape(-1), g.batch, _sizes(size), n_in, reads.before,
            reads.inside, at, to, reads.taps, -(-16 // g.batch), u, n_out, b,
            np.float32(0 if relu else -np.inf), y.reshape(-1), math.prod(out_size) * n_out,
            np.empty(len(team) * room, np.float32), room, work=work,
        )  # fmt: skip
        return
    tasks = -(-rows // gather.BLOCK) * g.groups
    parts = min(panels, max(1, 24 // tasks))
    room = gather.BLOCK * (tables.widest * n_in + -(-panels // parts) * P)
    gather.products(
        team, len(team), x.reshape(-1), _sizes(size), g.groups * n_in, n_in, u, g.groups, n_out,
        parts, tables.runs, tables.chunks, tables.places, tables.steps, g.batch, b,
        np.float32(0 if relu else -np.inf), y.reshape(-1), _sizes(out_size), g.groups * n_out,
        tables.out_steps, tables.out_starts, np.empty(len(team) * room, np.float32), room,
        work=work,
    )  # fmt: skip


def weight_grad(
    dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray | None, exact: bool
) -> np.ndarray:
    """dw (OC, C / groups, *kernel)."""
    own = out is not None and out.flags.c_contiguous and out.dtype == np.float32
    dw = out if own else np.empty(g.weight_shape, np.float32)
    dy, x = channels_last(dy), channels_last(x)
    if dy.size == 0 or x.size == 0:
        dw[...] = 0
    elif suits_winograd(g) and not exact:
        winograd.weight_grad(dy, x, (g.padding[0][0], g.padding[1][0]), dw)
    elif suits_depthwise(g):
        _depthwise_weight_grad(dy, x, g, dw)
    elif g.out_channels > FEW_CHANNELS and (tables := _direct_gradient(g)) is not None:
        _direct_weight_grad(dy, x, g, tables, dw)
    elif suits_planes(g):
        planes.weight_grad(dy, x, (g.padding[0][0], g.padding[1][0]), g.dilation, dw)
    else:
        _weight_products(dy, x, g, dw)
    if out is None or own:
        return dw
    out[...] = dw
    return out


def _direct_weight_grad(
    dy: np.ndarray, x: np.ndarray, g: Geometry, tables: Direct, dw: np.ndarray
) -> None:
    reads, places, taps = tables
    team, OC = workers(), padded_to(g.out_channels, P)
    room = padded_to(reads.bordered, LANES) + direct.PLACES * OC
    u = np.empty(direct.SLOTS * taps.size * OC, np.float32)
    direct.weight_products(
        team, len(team), x.reshape(-1), g.batch, _sizes(g.size), g.channels, reads.before,
        reads.inside, taps, places, reads.taps, dy.reshape(-1), g.out_channels, direct.SLOTS, u,
        dw.reshape(-1), np.empty(len(team) * room, np.float32), room, work=dy.size * taps.size,
    )  # fmt: skip


def _weight_products(dy: np.ndarray, x: np.ndarray, g: Geometry, dw: np.ndarray) -> None:
    tables, team = _gradient_pass(g), workers()
    C, OC = g.channels // g.groups, g.out_channels // g.groups
    chunks = tables.chunks
    K = int(chunks[-1, 4]) + padded_to(int(chunks[-1, 3]) * C, R)
    rows = g.batch * int(tables.places.prod())
    # At least 12 tasks: of the output channels where there are many, of the places otherwise.
    parts = min(max(1, OC // (4 * P)), -(-12 // (g.groups * len(chunks))))
    slots = min(-(-rows // gather.BLOCK), -(-12 // (g.groups * len(chunks) * parts)))
    u = np.empty(slots * g.groups * K * padded_to(OC, P), np.float32)
    room = gather.BLOCK * (padded_to(tables.widest * C, R) + padded_to(OC, P))
    work = rows * K * OC * g.groups
    gather.weight_products(
        team, len(team), x.reshape(-1), _sizes(g.size), g.channels, C, dy.reshape(-1),
        g.out_channels, g.groups, OC, tables.runs, chunks, tables.places, tables.steps, g.batch,
        slots, parts, u, K, np.empty(len(team) * room + R, np.float32), room, work=work,
    )  # fmt: skip
    gather.unpack(
        team, len(team), u, slots, g.groups, OC, C, K, tables.runs, chunks, tables.run_chunk,
        tables.taps, math.prod(g.kernel), dw.reshape(-1),
        np.empty(len(team) * LANES * LANES, np.float32), work=work,
    )  # fmt: skip


# Depthwise ----------------------------------------------------------------------------------------


def _plane(size: tuple[int, ...]) -> tuple[int, ...]:
    """One spatial axis as two."""
    return (1,) * (2 - len(size)) + size


def _two_axes(g: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The size, and kernel, stride, padding before and dilation, for two axes."""
    before = (0,) * (2 - len(g.size)) + tuple(pad[0] for pad in g.padding)
    return _plane(g.size), (*_plane(g.kernel), *_plane(g.stride), *before, *_plane(g.dilation))


def _by_tap(w: np.ndarray) -> np.ndarray:
    """(C, 1, *kernel) as flat (taps, C)."""
    return np.ascontiguousarray(w.reshape(w.shape[0], -1).T).reshape(-1)


def _depthwise(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, g: Geometry, relu: bool, y: np.ndarray
) -> None:
    b = np.zeros(g.channels, np.float32) if bias is None else np.ascontiguousarray(bias)
    team, floor = workers(), np.float32(0 if relu else -np.inf)
    (H, W), options = _two_axes(g)
    depthwise.forward(
        team, len(team), x.reshape(-1), g.batch, H, W, g.channels, w, *options, b, floor,
        y.reshape(-1), *_plane(g.output), work=y.size * math.prod(g.kernel),
    )  # fmt: skip


def _depthwise_weight_grad(dy: np.ndarray, x: np.ndarray, g: Geometry, dw: np.ndarray) -> None:
    team, (size, options) = workers(), _two_axes(g)
    output, taps = _plane(g.output), math.prod(g.kernel)
    slots = min(DEPTHWISE_SLOTS, g.batch * output[0])
    u = np.empty((slots, taps, g.channels), np.float32)
    depthwise.weight_grad(
        team, len(team), dy.reshape(-1), g.batch, *output, g.channels, x.reshape(-1), *size,
        *options, slots, u.reshape(-1), work=dy.size * taps,
    )  # fmt: skip
    dw[...] = u.sum(0).T.reshape(dw.shape)
