"""How a kernel's counterpart in PyTorch is called, on either device; torch_peers.py says which it
is.

DIRECT functions take the kernel's own arguments as tensors. PREPARED ones are given the arguments
once, do what is not to be timed (an earlier forward pass, an optimizer's state) and return the call
that is.

Importing this module imports torch; only the workers that run torch do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.cases import Case
from bench.peer import threads
from kernels.arrays import is_array, is_cuda

torch.set_num_threads(threads())
torch.set_grad_enabled(False)

Peer = Callable[..., Any]

#: kernel, or kernel-variant -> (text, function, is its result the kernel's?)
DIRECT: dict[str, tuple[str, Peer, bool]] = {}
PREPARED: dict[str, tuple[str, Peer, bool]] = {}


@dataclass
class Call:
    """A prepared peer: `step` is what is timed."""

    text: str
    step: Callable[[], Any]
    comparable: bool
    #: Where a step changes arrays instead of returning them: reads those.
    read: Callable[[], Any] | None = None
    #: The function and its tensors, where the call is no more than that: for torch.compile.
    function: Peer | None = None
    tensors: tuple[Any, ...] = ()

    def results(self) -> list[Any]:
        """The results of one call as NumPy arrays, None for what has no counterpart."""
        returned = self.step()
        if self.read is not None:
            returned = self.read()
        returned = returned if isinstance(returned, (tuple, list)) else [returned]
        return [None if r is None else _numpy(r.detach()) for r in returned]


def prepare(case: Case, args: Sequence[Any]) -> Call | None:
    """The peer of a case, None if torch has none."""
    if case.kernel in OPTIMIZERS:
        return _optimizer(case, args)
    tensors = [_tensor(a) for a in args]
    for key in (case.label, case.kernel):
        if key in DIRECT:
            text, function, comparable = DIRECT[key]
            step = partial(function, *tensors)
            return Call(text, step, comparable, function=function, tensors=tuple(tensors))
        if key in PREPARED:
            text, function, comparable = PREPARED[key]
            return Call(text, function(*tensors), comparable)
    return None


def compiled(call: Call) -> Call | None:
    """torch.compile of a call, None where it is more than a function of tensors."""
    if call.function is None:
        return None
    torch._dynamo.reset()  # each case is the first of its function: no limit of recompilations
    function = torch.compile(call.function, fullgraph=True, dynamic=False)
    step = partial(function, *call.tensors)
    return Call(f"torch.compile of {call.text}", step, call.comparable)


def _tensor(a: Any) -> Any:
    """Arrays as tensors in memory of torch's own, with the same strides, on the same device."""
    if not is_array(a):
        return a
    half = a.dtype.name == "bfloat16"
    if half:  # NumPy's and CuPy's is no type that torch or DLPack knows: the bits are the same
        a = a.view(np.int16)
    tensor = torch.from_dlpack(a) if is_cuda(a) else torch.from_numpy(a)
    return (tensor.view(torch.bfloat16) if half else tensor).clone()


def _numpy(t: Any) -> np.ndarray:
    if t.dtype == torch.bfloat16:  # all of whose values are float32's
        t = t.float()
    return t.cpu().numpy()


def direct(kernel: str, text: str, function: Peer, comparable: bool = True) -> None:
    """Register a peer that takes the kernel's arguments."""
    DIRECT[kernel] = text, function, comparable


def prepared(kernel: str, text: str, comparable: bool = True) -> Callable[[Peer], Peer]:
    """Register a peer that is given the kernel's arguments once and returns the call to time."""

    def register(function: Peer) -> Peer:
        PREPARED[kernel] = text, function, comparable
        return function

    return register


def through_autograd(
    kernel: str, text: str, forward: Peer, n_inputs: int = 1, skip: int = 0
) -> None:
    """Register a gradient whose kernel takes (dy, inputs..., `skip` unused arrays, options...).

    The graph of ``forward(inputs..., options...)`` is recorded beforehand; its backward is timed.
    """

    @prepared(kernel, f"autograd backward of {text}")
    def _(dy, *args):
        inputs = [a.requires_grad_() for a in args[:n_inputs]]
        with torch.enable_grad():
            y = forward(*inputs, *args[n_inputs + skip :])
        return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


# Optimizer steps ----------------------------------------------------------------------------------

#: (kernel, variant) -> torch.optim's class and its options.
OPTIMIZERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "adam_step": {
        "adamw": ("AdamW", {"fused": True, "weight_decay": 0.01}),
        "adamw_foreach": ("AdamW", {"foreach": True, "weight_decay": 0.01}),
        "adam": ("Adam", {"fused": True}),
        "adam_foreach": ("Adam", {"foreach": True}),
    },
    "sgd_step": {
        "nesterov": ("SGD", {"fused": True, "momentum": 0.9, "nesterov": True}),
        "nesterov_foreach": ("SGD", {"foreach": True, "momentum": 0.9, "nesterov": True}),
        "plain": ("SGD", {"fused": True}),
    },
    "rmsprop_step": {"plain": ("RMSprop", {"foreach": True})},
    "adagrad_step": {"plain": ("Adagrad", {"fused": True})},
}


def _optimizer(case: Case, args: Sequence[Any]) -> Call | None:
    """torch.optim's step over the same numbers, cut into the case's number of tensors."""
    if case.variant not in OPTIMIZERS[case.kernel] or len(case.shape) != 2:
        return None
    name, options = OPTIMIZERS[case.kernel][case.variant]
    if name == "Adagrad" and is_cuda(args[0]):  # torch has its fused step for the CPU only
        options = {"foreach": True}
    n, count = case.shape
    # tensor_split cuts as np.array_split does; each tensor has memory of its own
    parameters = [p.clone() for p in _tensor(args[0]).tensor_split(count)]
    for p, g in zip(parameters, _tensor(args[1]).tensor_split(count), strict=True):
        p.grad = g.clone()
    optimizer = getattr(torch.optim, name)(parameters, lr=1e-3, **options)
    settings = ", ".join(f"{k}={v}" for k, v in options.items())
    text = f"torch.optim.{name}({settings}), {count} tensor{'s' * (count > 1)}"
    return Call(text, optimizer.step, True, lambda: torch.cat(parameters))
