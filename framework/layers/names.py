"""Names of a module's attributes: which are taken, and what may take the place of what."""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from framework.autograd import Tensor

#: What Module.__init__ sets.
OWN = ("training", "_kinds", "_transient", "_hooks", "_pre_hooks")


def owner_of(name: str, kind: type, base: type) -> str | None:
    """The class that an attribute `name` of a `kind` of module (Module is `base`) would hide
    something of; None where the name is free.

    A subclass's plain defaults (``head = None``) may be hidden, its methods and properties may not.
    """
    if hasattr(base, name) or name in OWN:
        return base.__name__
    here = getattr(kind, name, None)
    return kind.__name__ if isinstance(here, (FunctionType, MethodType, property)) else None


def check_replacement(kind: str, name: str, value: Any) -> None:
    """TypeError unless `value` may replace what is registered as `kind` under `name`."""
    allowed = {"parameter": "a Parameter", "buffer": "a Tensor", "module": "a Module"}[kind]
    if value is not None and not (kind == "buffer" and isinstance(value, Tensor)):
        raise TypeError(
            f"{name!r} is a {kind}: assign {allowed} or None, not a {type(value).__name__}"
        )
