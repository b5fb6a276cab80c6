"""The kernels' contract on CUDA: every sample with a CUDA version, by dtype, size and layout. For
the emulator, and for tests/kernels/test_contract_on_gpu.py on a real one.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np

from kernels import embedding
from kernels.registry import Kernel
from tests.kernels import contract

#: float64 has no CUDA versions.
DTYPES = ("float32", "float16", "bfloat16")

#: Kernels with NaN in place of an infinity or the other way round, in more elements than the
#: reference: name -> reason. See SPREADS of the contract, which is for both devices.
SPREADS = {
    "group_norm_grad": "weighs sums of planes: inf * (a - b) is inf where inf * a - inf * b is NaN",
}

CASES = [
    (kernel, sample)
    for kernel, sample in contract.CASES
    if any(device == "cuda" for device, _ in kernel._versions)
]
NAMES = [k.name if sample == "_" else f"{k.name}-{sample}" for k, sample in CASES]

#: Empty, a single element, odd and even sizes.
SMALL = [(0, 5), (1, 1), (3, 5), (7, 129), (33, 64)]

#: Where kernels change how they work: rows of more than 256, 1024 and 8192 elements, a multiple of
#: a pack or not; reductions in several parts; loops that a grid of 16 blocks takes twice.
ROWS = [(3, 512), (2, 1152), (2, 1101), (1, 8200), (1, 8201), (200, 40), (1, 20000)]
#: The same for reductions down columns and over channels, where a block has few columns, and many
#: columns would be minutes of work: several parts, more columns than a warp has lanes.
COLUMNS = [(70, 33), (600, 5)]
CHANNELS = [(70, 33)]
#: Recurrent layers of 141 units, of whose weights a part lies on chip, and of 351: step by step.
SEQUENCES = [(3, 1120), (1, 2800)]

#: One of each kind, for schedules and sanitizers.
FEW = [(3, 5), (9, 136)]


def dense(a: np.ndarray) -> Any:
    """With its axes in the order they have in memory: CuPy's asarray would turn channels-last
    images into C order.
    """
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    moved = sys.modules["cupy"].asarray(a.transpose(order).copy())
    return moved.transpose(sorted(range(a.ndim), key=order.__getitem__)) if a.ndim else moved


def unaligned(a: np.ndarray) -> Any:
    """Dense, one element beyond an allocation's start: loads of 16 bytes would be misaligned."""
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    flat = sys.modules["cupy"].empty(a.size + 1, a.dtype)[1:]
    view = flat.reshape([a.shape[axis] for axis in order])
    view = view.transpose(sorted(range(a.ndim), key=order.__getitem__)) if a.ndim else view
    view[...] = dense(a)
    return view


def strided(a: np.ndarray) -> Any:
    return dense(contract.strided(a).base)[..., ::2]


def turned(a: np.ndarray) -> Any:
    return dense(np.asfortranarray(a)) if a.ndim > 1 else dense(a[::-1].copy())[::-1]


def large(kernel: Kernel, sample: str) -> list[tuple[int, int]]:
    """The larger sizes of a case."""
    if kernel.family in ("channel_norm", "norm_relu", "pooling", "upsampling") or sample in (
        "images",
        "instance",
        "matrix",
    ):
        return CHANNELS
    if kernel.family in ("recurrent", "lstm", "gru"):
        return SEQUENCES
    if kernel.family == "attention":  # two tiles of queries, three of keys
        return [(200, 40)]
    if kernel.family == "group_norm":
        return [(2, 600), (1, 7000)]
    return COLUMNS if sample in ("columns", "channels") else ROWS


LAYOUTS = {"dense": dense, "unaligned": unaligned, "strided": strided, "turned": turned}


def takes_no_floats(kernel: Kernel, sample: str) -> bool:
    """It is run once, under the name of float32."""
    return not any(map(contract.is_float, contract.arguments(kernel, sample, (3, 5), "float32")))


def on_device(kernel: Kernel, args: list[Any], layout: str) -> list[Any]:
    """Fresh device arrays; what a kernel overwrites is dense, as in the contract."""
    names = inspect.signature(kernel.reference).parameters
    contiguous = layout in ("dense", "unaligned")
    return [
        LAYOUTS[layout if contiguous or (name not in kernel.inplace and a.ndim > 0) else "dense"](a)
        if isinstance(a, np.ndarray)
        else a
        for name, a in zip(names, args, strict=False)
    ]


def results(kernel: Kernel, args: list[Any]) -> list[np.ndarray]:
    """A call's results on the host; TypeError if one was never on the device."""
    got = contract.run(kernel, args)
    for a in got:
        if isinstance(a, np.ndarray):
            raise TypeError(f"{kernel.name} returned a NumPy array for CuPy arrays")
    return [a.get() for a in got]


def check(
    kernel: Kernel, sample: str, dtype: str, shape: tuple[int, int], layout: str = "dense"
) -> None:
    """Values and dtypes as the reference's, arguments untouched, the same bits again."""
    args = contract.arguments(kernel, sample, shape, dtype)
    what = f"{dtype}, {shape}, {layout}"
    given = on_device(kernel, args, layout)
    got = results(kernel, given)
    contract.check(kernel, args, got, what)
    names = inspect.signature(kernel.reference).parameters
    for name, before, after in zip(names, args, given, strict=False):
        if isinstance(before, np.ndarray) and name not in kernel.inplace:
            assert before.tobytes() == after.get().tobytes(), f"{what}: {name} was modified"
    again = results(kernel, on_device(kernel, args, layout))
    assert contract.bits(got) == contract.bits(again), f"{what}: other bits the second time"


def check_order(sizes: tuple[int, ...] = (1, 255, 256, 700)) -> None:
    """What sorts while a step is captured, and so in no sample of a kernel."""
    for n in sizes:
        indices = np.random.default_rng(n).integers(-2, 9, n)
        ordered, order = embedding.order_by_rank(dense(indices))
        expected = indices.argsort(kind="stable")
        np.testing.assert_array_equal(order.get(), expected)
        np.testing.assert_array_equal(ordered.get(), indices[expected])


def check_few(dtype: str) -> None:
    """Every case once or twice: for one dtype some seconds of work."""
    if dtype == "float32":
        check_order()
    for kernel, sample in CASES:
        if dtype != "float32" and takes_no_floats(kernel, sample):
            continue
        for shape in (*FEW, *large(kernel, sample)[:3]):
            check(kernel, sample, dtype, shape)
        check(kernel, sample, dtype, (3, 5), "unaligned")
