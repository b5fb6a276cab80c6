"""How a kernel's counterpart in PyTorch is called; torch_peers.py says which it is.

DIRECT functions take the kernel's own arguments as tensors. PREPARED ones are given the arguments
once, do what is not to be timed (an earlier forward pass, an optimizer's state) and return the call
that is.

Importing this module imports torch; only the worker of the torch side does.
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

    def results(self) -> list[Any]:
        """The results of one call as NumPy arrays, None for what has no counterpart."""
        returned = self.step()
        if self.read is not None:
            returned = self.read()
        returned = returned if isinstance(returned, (tuple, list)) else [returned]
        return [None if r is None else r.detach().numpy() for r in returned]


def prepare(case: Case, args: Sequence[Any]) -> Call | None:
    """The peer of a case, None if torch has none."""
    if case.kernel in OPTIMIZERS:
        return _optimizer(case, args)
    tensors = [_tensor(a) for a in args]
    for key in (case.label, case.kernel):
        if key in DIRECT:
            text, function, comparable = DIRECT[key]
            return Call(text, partial(function, *tensors), comparable)
        if key in PREPARED:
            text, function, comparable = PREPARED[key]
            return Call(text, function(*tensors), comparable)
    return None


def _tensor(a: Any) -> Any:
    """Arrays as tensors in memory of torch's own, with the same strides."""
    return torch.from_numpy(a).clone() if isinstance(a, np.ndarray) else a


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
    n, count = case.shape
    parameters = [torch.from_numpy(p.copy()) for p in np.array_split(args[0], count)]
    for p, g in zip(parameters, np.array_split(args[1], count), strict=True):
        p.grad = torch.from_numpy(g.copy())
    optimizer = getattr(torch.optim, name)(parameters, lr=1e-3, **options)
    settings = ", ".join(f"{k}={v}" for k, v in options.items())
    text = f"torch.optim.{name}({settings}), {count} tensor{'s' * (count > 1)}"
    return Call(text, optimizer.step, True, lambda: torch.cat(parameters))
