"""Where in a model an error arose: a note at the error, made on its way out. Costs nothing until
then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.autograd import Tensor
from framework.backend.out_of_memory import OutOfMemoryError

if TYPE_CHECKING:
    from framework.layers.module import Module


def note_place(error: Exception, module: Module, args: tuple[Any, ...]) -> None:
    """Note at `error`, which is leaving `module`, which module raised it and what it was given.

    Every module on the way calls this: the innermost says what it was given, and each one above
    replaces the note by one with the path as seen from there. NumPy's and CuPy's errors for memory
    that ran out are replaced by an OutOfMemoryError, which is raised.
    """
    if isinstance(error, MemoryError) and not isinstance(error, OutOfMemoryError):
        explained = OutOfMemoryError.of(error)
        note_place(explained, module, args)
        raise explained from error
    place = error.__dict__.get("_place")
    if place is None:
        given = ", ".join(str(a.shape) for a in args if isinstance(a, Tensor))
        place = error.__dict__["_place"] = [module, f" given {given}" if given else "", None]
    culprit, given, before = place
    path = next((path for path, m in module.named_modules() if m is culprit), None)
    if isinstance(error, OutOfMemoryError):
        error.held |= held_by(module)
    if path is None:  # a module that is no submodule of this one: its own note stands
        return
    name = type(culprit).__name__
    here = f"{path} ({name}){given}" if path else f"{name}{given}"
    if isinstance(error, OutOfMemoryError):  # which says it in its first line
        error.where = f"the layer {here}"
        return
    if before is not None:
        error.__notes__.remove(before)
    place[2] = f"in {here}"
    error.add_note(place[2])


def held_by(module: Module) -> dict[str, int]:
    """Bytes of a module's weights (and buffers) and of its gradients."""
    parameters = list(module.parameters())
    return {
        "weights": sum(x.data.nbytes for x in [*parameters, *module.buffers()]),
        "gradients": sum(p.grad.data.nbytes for p in parameters if p.grad is not None),
    }


def name_leaves(error: OutOfMemoryError, module: Module) -> None:
    """Say in `error`, which left a backward pass, in which layer of `module` that was."""
    for path, layer in module.named_modules():
        if any(p is leaf for _, p in layer._own("parameter") for leaf in error.leaves):
            name = type(layer).__name__
            error.where += f" {error.relation} the layer " + (f"{path} ({name})" if path else name)
            break
    error.leaves = []
