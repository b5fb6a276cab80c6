"""Triton's side of some kernels on CUDA, written as one writes them in Triton: a program a row.

For everything else Triton's side is torch.compile, whose kernels Triton compiles. Importing this
module imports torch and triton.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from bench.cases import Case
from bench.torch_calls import Call


@triton.jit
def _softmax(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * columns
    places = tl.arange(0, BLOCK)
    inside = places < columns
    v = tl.load(x + row + places, inside, -float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row + places, e / tl.sum(e, 0), inside)


@triton.jit
def _layer_norm(x, weight, bias, y, mean_, rstd_, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * columns
    places = tl.arange(0, BLOCK)
    inside = places < columns
    v = tl.load(x + row + places, inside, 0.0).to(tl.float32)
    mean = tl.sum(v, 0) / columns
    centred = tl.where(inside, v - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 0) / columns + eps)
    w = tl.load(weight + places, inside, 0.0).to(tl.float32)
    b = tl.load(bias + places, inside, 0.0).to(tl.float32)
    tl.store(y + row + places, centred * rstd * w + b, inside)
    tl.store(mean_ + tl.program_id(0), mean)
    tl.store(rstd_ + tl.program_id(0), rstd)


@triton.jit
def _gelu(x, y, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    v = tl.load(x + places, inside, 0.0).to(tl.float32)
    tl.store(y + places, 0.5 * v * (1 + tl.erf(v * 0.7071067811865476)), inside)


def softmax(x: Any, axis: int = -1) -> Any:
    """Over the last axis of x; a row lies in registers."""
    y = torch.empty_like(x)
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    block = triton.next_power_of_2(columns)
    _softmax[(rows,)](x, y, columns, BLOCK=block, num_warps=_warps(block))
    return y


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """With mean and rstd of each row, which the gradient needs."""
    y = torch.empty_like(x)
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    mean, rstd = (torch.empty(rows, device=x.device) for _ in range(2))
    block = triton.next_power_of_2(columns)
    args = x, weight, bias, y, mean, rstd, columns, eps
    _layer_norm[(rows,)](*args, BLOCK=block, num_warps=_warps(block))
    return y, mean, rstd


def gelu(x: Any) -> Any:
    """The exact one."""
    y = torch.empty_like(x)
    _gelu[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), BLOCK=1024)
    return y


def _warps(block: int) -> int:
    """A warp for every 512 elements of a row, from 1 to 16."""
    return min(max(block // 512, 1), 16)


#: By the label of the case: variants have other arguments.
KERNELS: dict[str, Callable[..., Any]] = {
    "softmax": softmax,
    "layer_norm": layer_norm,
    "gelu": gelu,
}


def in_triton(call: Call, case: Case) -> Call | None:
    """The kernel above that stands for the torch peer of a case; None where there is none."""
    function = KERNELS.get(case.label)
    if function is None:
        return None
    tensors = call.tensors
    return Call(f"{case.label} in Triton", lambda: function(*tensors), True)
