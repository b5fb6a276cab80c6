"""A step is run once more, and everything in it looked at: which layer and which kernel made the
first number that is not finite.

Module, kernel and node calls are replaced while it runs, and put back: steps that are well cost
nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.autograd import Tensor, graph
from framework.data.prefetch import batches_on
from framework.layers import Module
from kernels.arrays import Array, array_module, is_array, is_floating
from kernels.checking import check_indices
from kernels.registry import Kernel

if TYPE_CHECKING:
    from framework.trainer.trainer import Loader, Trainer

log = logging.getLogger("framework")


def all_finite(x: Array) -> bool:
    """Are all elements finite? The sum says so at once where it is finite itself."""
    xp = array_module(x)
    with np.errstate(all="ignore"):  # inf - inf, and finite elements whose sum overflows
        return bool(xp.isfinite(x.sum())) or bool(xp.isfinite(x).all())


def first_suspect(trainer: Trainer) -> str:
    """What the first thing is that is not finite: a weight, the batch, the output of a layer, or a
    gradient; with the kernel that made it. Gradients are those of the step run again.

    Raises:
        IndexError, ValueError: a label, an id or a length is out of range, which nobody had looked
            at on CUDA.
    """
    for name, parameter in trainer.model.named_parameters():
        if not all_finite(parameter.data):
            return f"the weight {name} is not finite itself"
    for batch in trainer.window:
        for x in batch:
            if is_floating(x.dtype) and not all_finite(x.data):
                return "the batch itself has values that are not finite"
    watch = Watch(trainer.model)
    with watch.looking():
        trainer.compute_gradients(trainer.window, lambda *_: None)
    return watch.text()


def explain_evaluation(trainer: Trainer, loader: Loader, place: Any, losses: list[Tensor]) -> None:
    """The losses of `loader`, of which one is not finite, came from CUDA. `place`: where it began.

    Raises:
        IndexError, ValueError: a label, an id or a length is out of range.
    """
    if place is not None:
        loader.load_state_dict(place)  # type: ignore[attr-defined]
    watch = Watch(trainer.model)
    if not isinstance(loader, Iterator):
        with trainer.evaluating(), watch.looking():
            for batch in batches_on(loader, trainer.device):
                with trainer.precision.computing():
                    trainer._forward(batch)
    for i, loss in enumerate(losses):
        if not all_finite(loss.data):
            log.warning("evaluate: the loss of batch %d is %s", i, float(loss))
            return


class Watch:
    """The first output that is not finite though the inputs were."""

    def __init__(self, model: Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.layers: list[Module] = []  # that this thread is in, or whose gradient it computes
        self.owners: dict[int, Module] = {}  # of nodes
        self.layer: Module | None = None
        self.failed: Module | None = None
        self.kernel = self.operation = ""
        self.thread = threading.get_ident()
        self.backward = False

    def text(self) -> str:
        """What has been found, in words."""
        made = f"made by the kernel {self.kernel}" if self.kernel else ""
        if self.operation:
            at = f" of {self._shown(self.layer)}" if self.layer is not None else ""
            made = f", {made}" if made else ""
            return (
                "every layer's output is finite, so the loss function or a gradient made it: the "
                f"first one in the backward pass of {self.operation}{at}{made}"
            )
        if self.layer is not None:
            made = f", {made}" if made else ""
            return f"the first layer with such an output is {self._shown(self.layer)}{made}"
        return "every layer's output is finite, so the loss function or its gradient made it" + (
            f": {made}" if made else ""
        )

    def where(self) -> str:
        """In which layer an error was raised, in words."""
        return "" if self.failed is None else f", in the layer {self._shown(self.failed)}"

    def _shown(self, module: Any) -> str:
        inner = any(True for _ in module.children())  # whose repr has many lines
        shown = type(module).__name__ if inner else repr(module)
        return f"{self.names.get(id(module)) or 'the model'} ({shown})"

    def _suspect(self, inputs: Any, outputs: Any) -> bool:
        """Is this the first of its kind?"""
        if self.layer is not None or self.kernel or self.operation:
            return False
        return not _finite(outputs) and _finite(inputs)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """`watching`, and labels, ids and lengths are checked on CUDA too; their errors say in
        which layer.
        """
        with self.watching(), check_indices(), np.errstate(all="ignore"):
            try:
                yield
            except (IndexError, ValueError) as error:
                raise type(error)(f"{error}{self.where()}") from None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block every call is looked at."""
        around: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
            (Module, "__call__", self._around_module),
            (Kernel, "__call__", self._around_kernel),
            (graph.Node, "__init__", self._around_node),
        )
        originals = [vars(owner)[name] for owner, name, _ in around]
        for (owner, name, wrap), original in zip(around, originals, strict=True):
            setattr(owner, name, wrap(original))
        try:
            yield
        finally:
            for (owner, name, _), original in zip(around, originals, strict=True):
                setattr(owner, name, original)

    def _around_module(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(module: Module, *args: Any, **options: Any) -> Any:
            self.layers.append(module)
            try:
                output = original(module, *args, **options)
            except Exception:
                self.failed = self.failed or module  # the innermost
                raise
            finally:
                self.layers.pop()
            if self._suspect((args, options), output):
                self.layer = module
            return output

        return __call__

    def _around_kernel(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(kernel: Kernel, /, *args: Any, **options: Any) -> Any:
            if threading.get_ident() != self.thread:  # a loader's
                return original(kernel, *args, **options)
            fine = _finite((args, options))  # before: some write into their arguments
            result = original(kernel, *args, **options)
            if fine and self._suspect((), result):
                self.kernel, self.layer = kernel.name, self.layers[-1] if self.layers else None
            return result

        return __call__

    def _around_node(self, original: Callable[..., None]) -> Callable[..., None]:
        def __init__(node: graph.Node, edges: Any, backward: graph.Backward) -> None:
            owner = self.layers[-1] if self.layers else None
            name = backward.__qualname__.partition(".<locals>")[0]

            def looked_at(dy: Array) -> graph.Gradients:
                known = bool(self.kernel or self.operation) or self.layer is not None
                gradients = backward(dy)
                bad = _finite(dy) and not _finite(list(gradients))
                if bad and not known:
                    self.operation, self.layer = name, owner
                return gradients

            original(node, edges, looked_at)

        return __init__


def _finite(value: Any) -> bool:
    """Are all floating-point arrays in it finite?"""
    if isinstance(value, graph.Partial):
        return _finite(value.dy)
    if isinstance(value, (tuple, list)):
        return all(map(_finite, value))
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    value = value.data if isinstance(value, Tensor) else value
    return not is_array(value) or not is_floating(value.dtype) or all_finite(value)
