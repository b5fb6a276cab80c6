"""What a recurrent model keeps from one window of a stream to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework.autograd import Tensor
from framework.autograd.arithmetic import where
from framework.backend.device import to_device
from framework.layers.module import Module
from kernels.arrays import Array


class Carry(Module):
    """A model's state from window to window: truncated back-propagation through time (Williams &
    Peng 1990). In the model:

        def forward(self, ids, fresh=None):
            state = self.start(len(ids))
            if fresh is not None:
                state = self.carry(state, fresh)
            logits, state = self.step(ids, state)
            if fresh is not None:
                self.carry.keep(state)
            return logits

    A state is a Tensor, or tuples, lists and dicts of states, always with the same shapes. `fresh`
    (N,), true where streams begin (all at once, see `Windows`), selects the new state. What is kept
    has no gradient. Training and evaluation carry apart, so that a validation between two windows
    leaves the training as it was; a Trainer's checkpoints hold what training carries.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[bool, list[Array]] = {}  # by self.training

    def forward(self, start: Any, fresh: Tensor) -> Any:
        """`start` where `fresh`, else what was kept."""
        leaves = _leaves(start)
        kept = self._kept.get(self.training)
        if kept is None or [x.shape for x in kept] != [x.shape for x in leaves]:
            kept = self._kept[self.training] = [x.data.copy() for x in leaves]
        for i, (array, leaf) in enumerate(zip(kept, leaves, strict=True)):
            kept[i] = to_device(array, leaf.device)
        first = fresh[:1]  # (1,): fits any shape of a state, wherever its batch axis is
        states = iter([where(first, x, Tensor(k)) for x, k in zip(leaves, kept, strict=True)])
        return _like(start, lambda: next(states))

    def keep(self, state: Any) -> None:
        """Carry `state` to the next window: into the same arrays, as a captured step needs it."""
        for array, leaf in zip(self._kept[self.training], _leaves(state), strict=True):
            array[...] = leaf.data

    def kept(self) -> list[Array]:
        """What training carries, for a checkpoint."""
        return self._kept.get(True, [])

    def restore(self, arrays: list[Array]) -> None:
        """Take over what `kept` gave."""
        self._kept = {True: list(arrays)} if arrays else {}


def carries(model: Module) -> list[Carry]:
    """All `Carry` of a model."""
    return [module for module in model.modules() if isinstance(module, Carry)]


def _leaves(state: Any) -> list[Tensor]:
    """The Tensors of a state, in their order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, (tuple, list, dict)):
        items = state.values() if isinstance(state, dict) else state
        return [leaf for item in items for leaf in _leaves(item)]
    if state is not None:
        raise TypeError(f"a state holds a {type(state).__name__}, expected Tensors")
    return []


def _like(state: Any, leaf: Callable[[], Tensor]) -> Any:
    """`state` with other Tensors."""
    if isinstance(state, Tensor):
        return leaf()
    if isinstance(state, dict):
        return {name: _like(item, leaf) for name, item in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)([_like(item, leaf) for item in state])
    return state
