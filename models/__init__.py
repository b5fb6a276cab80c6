"""The zoo: one readable file per family, found by name.

from models import MLP, MLPConfig, build
model = build("mlp", inputs=784, hidden=(512, 256))
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from framework.layers import Module
from models.mlp import MLP, MLPConfig

__all__ = ["MLP", "ZOO", "Entry", "MLPConfig", "build", "configure", "entry"]


@dataclass(frozen=True)
class Entry:
    """A family: its configuration (a dataclass), what builds a model from one, a line of
    description.
    """

    config: type[Any]
    build: Callable[[Any], Module]
    description: str


ZOO: dict[str, Entry] = {
    "mlp": Entry(
        MLPConfig, MLP, "multilayer perceptron: any depth, activation, norm, dropout, residual"
    ),
}


def entry(name: str) -> Entry:
    """The family called `name`; ValueError lists what there is."""
    if name not in ZOO:
        raise ValueError(
            f"unknown model {name!r}{hint(name, ZOO)}; there are: {', '.join(sorted(ZOO))}"
        )
    return ZOO[name]


def configure(name: str, **overrides: Any) -> Any:
    """The configuration of a family, its defaults changed by `overrides`; ValueError names a wrong
    one.
    """
    kind = entry(name).config
    known = [field.name for field in fields(kind)]
    for option in overrides:
        if option not in known:
            raise ValueError(
                f"{name} has no {option!r}{hint(option, known)}; it has: {', '.join(known)}"
            )
    return kind(**overrides)


def build(name: str, **overrides: Any) -> Module:
    """A new model of a family, with the defaults of its configuration changed by `overrides`.

    >>> build("mlp", inputs=4, hidden=(8,), outputs=3).head.out_features
    3
    """
    return entry(name).build(configure(name, **overrides))


def hint(name: str, known: Any) -> str:
    """The words " (did you mean x?)" where a name is close to a known one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
