"""The functions that are replaced while a profile records, and put back when none does.

Replaced whole, not asked "is somebody watching?" at each call: what is not profiled runs the very
code that it ran before this module was imported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from framework.autograd import graph
from framework.data.loader import DataLoader
from framework.layers.module import Module
from framework.optimizers.optimizer import Optimizer
from framework.profiler import spans
from framework.profiler.spans import begin, end, innermost
from kernels.registry import Kernel

lock = threading.RLock()


class Names:
    """The dotted paths of modules, as `named_modules` has them.

    A module that no known model holds becomes a root of its own, called by its class.
    """

    def __init__(self) -> None:
        # the modules are kept: the id of one that is gone would be given to another
        self._known: dict[int, tuple[Module, str]] = {}

    def of(self, module: Module) -> str:
        """The name of a module."""
        found = self._known.get(id(module))
        if found is None:
            self.add(module)
            found = self._known[id(module)]
        return found[1]

    def add(self, root: Module) -> None:
        """Name a model and all below it; what has a name keeps it."""
        with lock:
            taken = {name for _, name in self._known.values()}
            kind = type(root).__name__
            label, number = kind, 1
            while label in taken:
                number += 1
                label = f"{kind}#{number}"
            new = [(p, m) for p, m in root.named_modules() if id(m) not in self._known]
            prefix = f"{label}." if any(path in taken for path, _ in new) else ""
            for path, module in new:
                self._known[id(module)] = module, f"{prefix}{path}" if path else label

    def forget(self) -> None:
        """Let go of all modules."""
        self._known.clear()


names = Names()

#: Node number -> the layer in whose forward it was recorded.
_owners: dict[int, str] = {}


def _around_module(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Module, *args: Any, **options: Any) -> Any:
        name = names.of(self)
        span = begin("layer", name, name, type(self).__name__)
        try:
            return original(self, *args, **options)
        finally:
            end(span)

    return __call__


def _around_kernel(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Kernel, /, *args: Any, **options: Any) -> Any:
        around = innermost()
        if around is not None and around.category == "kernel" and around.name == self.name:
            return original(self, *args, **options)  # a 16-bit call that calls itself in float32
        span = begin("kernel", self.name)
        try:
            return original(self, *args, **options)
        finally:
            end(span)

    return __call__


def _around_node(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: graph.Node, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        around = innermost()
        if around is not None and around.layer is not None:
            _owners[self.sequence] = around.layer

    return __init__


def _around_visit(original: Callable[..., None]) -> Callable[..., None]:
    def _visit(node: graph.Node, pending: list[graph.Node], retain_graph: bool) -> None:
        take = _owners.get if retain_graph else _owners.pop
        span = begin("autograd", f"{node.name} backward", take(node.sequence, None), "node")
        try:
            original(node, pending, retain_graph)
        finally:
            end(span)

    return _visit


def _around_backward(original: Callable[..., None]) -> Callable[..., None]:
    def backward(*args: Any, **options: Any) -> None:
        span = begin("autograd", "backward", detail="pass")
        try:
            original(*args, **options)
        finally:
            end(span)

    return backward


def _around_step(original: Callable[..., None]) -> Callable[..., None]:
    def step(self: Optimizer, *args: Any, **options: Any) -> None:
        span = begin("step", f"{type(self).__name__}.step", detail="optimizer")
        try:
            original(self, *args, **options)
        finally:
            end(span)

    return step


def _around_make(original: Callable[..., Any]) -> Callable[..., Any]:
    def _make(self: DataLoader, *args: Any, **options: Any) -> Any:
        span = begin("data", "make batch")  # in a worker thread where there are some
        try:
            return original(self, *args, **options)
        finally:
            end(span)

    return _make


#: Owner, attribute, and what is put around it.
HOOKS: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (Module, "__call__", _around_module),
    (Kernel, "__call__", _around_kernel),
    (graph.Node, "__init__", _around_node),
    (graph, "_visit", _around_visit),
    (graph, "backward", _around_backward),
    (Optimizer, "step", _around_step),
    (DataLoader, "_make", _around_make),
)

_originals: list[Any] = []


def start(profile: Any) -> None:
    """Let `profile` record; the first one replaces the functions."""
    with lock:
        if not spans.recording:
            _originals[:] = [vars(owner)[name] for owner, name, _ in HOOKS]
            for (owner, name, around), original in zip(HOOKS, _originals, strict=True):
                setattr(owner, name, around(original))
        spans.set_recording(lambda others: (*others, profile))


def stop(profile: Any) -> None:
    """Let `profile` record no more; the last one puts the functions back."""
    with lock:
        spans.set_recording(lambda others: tuple(p for p in others if p is not profile))
        if not spans.recording:
            for (owner, name, _), original in zip(HOOKS, _originals, strict=True):
                setattr(owner, name, original)
            _originals.clear()
            _owners.clear()
            names.forget()
