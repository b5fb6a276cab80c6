"""The families by name: configuration, builder, what data they are for, and how to train them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from framework.layers import Module
from models.gpt import GPT, GPTConfig
from models.mlp import MLP, MLPConfig
from models.nplm import NPLM, NPLMConfig
from models.vit import ViT, ViTConfig


@dataclass(frozen=True)
class Entry:
    """A family of models.

    Args:
        config: a dataclass with ``for_data(shape, classes, task, **settings)``, and `of_data`, the
            names of the fields that the data set decides.
        build: makes a model from one.
        description: one line.
        tasks: what kinds of data it is for: classification, regression, language.
        recipe: settings of the `Recipe` with which `train` begins where they differ from its
            defaults; the user's come on top.
        carries: of language: its ``forward(ids, fresh)`` carries a state over streams
            (``sampling=stream``).
    """

    config: type[Any]
    build: Callable[[Any], Module]
    description: str
    tasks: tuple[str, ...] = ("classification", "regression")
    recipe: Mapping[str, Any] = field(default_factory=dict)
    carries: bool = False


ZOO: dict[str, Entry] = {
    "gpt": Entry(
        GPTConfig,
        GPT,
        "transformer for text: the layout of GPT-2, or Llama's by its settings",
        tasks=("language",),
        recipe={
            "batch_size": 12,
            "steps": 2000,
            "epochs": 8,
            "lr": 1e-3,
            "final_lr": 0.1,
            "beta2": 0.99,
            "weight_decay": 0.1,
            "decay": "matrices",
            "clip_norm": 1.0,
        },
    ),
    "mlp": Entry(
        MLPConfig, MLP, "multilayer perceptron: any depth, activation, norm, dropout, residual"
    ),
    "nplm": Entry(
        NPLMConfig,
        NPLM,
        "neural language model over the last few tokens (Bengio et al. 2003)",
        tasks=("language",),
        recipe={"lr": 2e-3, "batch_size": 32, "epochs": 5, "clip_norm": 1.0},
        carries=True,
    ),
    "vit": Entry(
        ViTConfig,
        ViT,
        "transformer for images: patches as a sequence (Dosovitskiy et al. 2021)",
        recipe={"weight_decay": 0.05, "decay": "matrices", "clip_norm": 1.0},
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
