"""Where in a model an error arose: a note at the error, made on its way out. Costs nothing until
then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.autograd import Tensor

if TYPE_CHECKING:
    from framework.layers.module import Module


def note_place(error: Exception, module: Module, args: tuple[Any, ...]) -> None:
    """Note at `error`, which is leaving `module`, which module raised it and what it was given.

    Every module on the way calls this: the innermost says what it was given, and each one above
    replaces the note by one with the path as seen from there.
    """
    place = error.__dict__.get("_place")
    if place is None:
        given = ", ".join(str(a.shape) for a in args if isinstance(a, Tensor))
        place = error.__dict__["_place"] = [module, f" given {given}" if given else "", None]
    culprit, given, before = place
    path = next((path for path, m in module.named_modules() if m is culprit), None)
    if path is None:  # a module that is no submodule of this one: its own note stands
        return
    if before is not None:
        error.__notes__.remove(before)
    name = type(culprit).__name__
    place[2] = f"in {path} ({name}){given}" if path else f"in {name}{given}"
    error.add_note(place[2])
