"""What the attention of a transformer looks at: between the tokens of a text, and over an image.

A layer of attention says it by ``attention_weights(*args)``, which takes what its `forward` takes
and gives weights (B, heads, T, S), of which each row sums to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.autograd import Tensor
from framework.explain.panels import bare, caption, figure_of, show_image
from framework.explain.subject import Subject, TextSubject
from framework.generation import inference
from framework.layers import Module
from framework.trainer.drawing import GRID, INK

#: Inches that a token needs for its label, and the widest that panels may be.
TOKEN, WIDEST = 0.085, 24.0
#: Inches of a character of the line of explanation.
LETTER = 0.066
#: Characters of a label.
LONGEST = 10
#: Panels in a row of a picture of an image, and the colour of what is in it.
COLUMNS, OUTLINE = 7, "#7dd3fc"


@dataclass
class Map:
    """The weights (B, heads, T, S) of a layer of attention, called `name`."""

    name: str
    weights: np.ndarray


def has_attention(model: Module) -> bool:
    """Is there a layer that says what it looks at?"""
    return any(hasattr(module, "attention_weights") for module in model.modules())


def attention_maps(model: Module, *inputs: Tensor) -> list[Map]:
    """What each layer of attention looks at when `model`, set to evaluation, reads `inputs`; in
    the order in which they are called.
    """
    found: list[Map] = []
    removers = []
    for name, module in model.named_modules():
        if hasattr(module, "attention_weights"):

            def note(layer: Any, args: Any, name: str = name) -> None:
                found.append(Map(name, layer.attention_weights(*args).numpy()))

            removers.append(module.register_forward_pre_hook(note))
    try:
        with inference(model):
            model(*inputs)
    finally:
        for remove in removers:
            remove()
    return found


# Between tokens -----------------------------------------------------------------------------------


def between_tokens(subject: TextSubject) -> Any:
    """A panel for each layer and head, in which each token's row says how much it looks at which;
    None for a model without attention.
    """
    count = len(subject.tokens)
    maps = attention_maps(subject.model, subject.batch(count))
    if not maps:
        return None
    heads = maps[0].weights.shape[1]
    fits = int(WIDEST / heads / TOKEN)
    if fits < count:
        count = fits
        maps = attention_maps(subject.model, subject.batch(count))
    labels = [_label(token) for token in subject.tokens[:count]]
    side, gap, above = max(count * TOKEN, 1.2), 0.12, 0.3
    margin = 0.3 + 0.062 * max(map(len, labels))
    note = "how much each token (row) looks at which (column), the darker the more"
    if count < subject.total:
        note += f"; the first {count} of {subject.total:,}"
    figure = figure_of(
        max(margin + heads * (side + gap) + 0.15, 0.4 + LETTER * len(note)),
        0.72 + len(maps) * (side + above) + margin,
        "Attention",
        note,
    )
    width, height = figure.get_size_inches()
    for row, found in enumerate(maps):
        for head in range(heads):
            bottom = height - 0.72 - (row + 1) * (side + above)
            left = margin + head * (side + gap)
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            _draw(axes, found.weights[0, head])
            caption(axes, f"layer {row + 1}, head {head + 1}")
            if head == 0:
                axes.set_yticks(range(count), labels, va="center", parse_math=False)
            if row == len(maps) - 1:
                turned = 90 if any(len(label) > 1 for label in labels) else 0
                axes.set_xticks(range(count), labels, rotation=turned, parse_math=False)
            axes.tick_params(length=0, pad=2, labelsize=5.5, labelcolor=INK)
    return figure


def _draw(axes: Any, weights: np.ndarray) -> None:
    from matplotlib.colors import PowerNorm

    bare(axes)
    ahead = np.triu(np.ones(weights.shape, bool), 1)
    if not weights[ahead].any():  # causal
        weights = np.ma.masked_array(weights, ahead)
    axes.set_facecolor(GRID)
    norm = PowerNorm(0.5, 0, 1)  # small weights show
    axes.imshow(weights, cmap="Blues", norm=norm, interpolation="nearest")


def _label(token: str) -> str:
    """A token as it can be read: spaces and ends of lines by signs, squares for what the font of
    the pictures lacks.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    index_of = get_font(findfont(FontProperties())).get_char_index
    shown = token.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")
    shown = "".join(c if c.isprintable() and index_of(ord(c)) else "\u25a1" for c in shown)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "\u2026"


# Over an image ------------------------------------------------------------------------------------


def over_image(subject: Subject) -> Any:
    """Where each layer's attention is, the mean of its heads, and the attention rollout (S. Abnar,
    W. Zuidema, "Quantifying Attention Flow in Transformers", 2020): through all layers, of which
    each hands on half of what it had. Of the class token, or of the mean of all places where there
    is none. None for a model that has no attention between patches.
    """
    maps = attention_maps(subject.model, subject.batch())
    places = {found.weights.shape[-2:] for found in maps}
    T, S = places.pop() if len(places) == 1 else (0, 1)
    size = _grid(T, *subject.image.shape[1:]) if T == S else None
    if size is None:
        return None
    classes = T - size[0] * size[1]  # the class token, before the patches, or none
    rollout, looked = np.eye(T), []
    for found in maps:
        mean = found.weights[0].mean(axis=0)
        rollout = (mean + np.eye(T)) / 2 @ rollout
        looked.append(mean)
    names = [f"layer {i + 1}" for i in range(len(maps))] + ["rollout"]
    of = "the class token looks at" if classes else "all patches look at, on average"
    columns, side = min(COLUMNS, len(names) + 1), 1.55
    rows = -(-(len(names) + 1) // columns)
    high = side * subject.image.shape[1] / subject.image.shape[2] + 0.3
    heads = maps[0].weights.shape[1]
    note = f"what {of}, mean of {heads} heads; black is nothing, pale yellow a panel's largest"
    figure = figure_of(
        max(0.4 + columns * (side + 0.12), 0.4 + LETTER * len(note)),
        0.75 + rows * high + 0.15,
        "Attention",
        note,
    )
    width, height = figure.get_size_inches()
    for i, name in enumerate(["image", *names]):
        row, column = divmod(i, columns)
        left, bottom = 0.25 + column * (side + 0.12), height - 0.75 - (row + 1) * high
        axes = figure.add_axes((left / width, bottom / height, side / width, (high - 0.3) / height))
        if i == 0:
            show_image(axes, subject.image)
            caption(axes, name)
            continue
        weights = rollout if name == "rollout" else looked[i - 1]
        shares = (weights[0] if classes else weights.mean(axis=0))[classes:].reshape(size)
        caption(axes, name, f"up to {shares.max():.0%}")
        _draw_over(axes, shares, subject.image)
    return figure


def _draw_over(axes: Any, shares: np.ndarray, image: np.ndarray) -> None:
    """The map covers the image, whose brightness would pass for attention; its outline is there."""
    grey = image.mean(0)
    height, width = grey.shape
    bare(axes)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # as images are shown
    axes.imshow(shares, cmap="inferno", vmin=0, extent=extent, interpolation="nearest")
    if min(height, width) > 1 and grey.min() < grey.max():
        half = (grey.min() + grey.max()) / 2
        axes.contour(grey, levels=[half], colors=OUTLINE, linewidths=0.8)


def _grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of square patches that make so many tokens, a class token perhaps too."""
    for patch in range(1, min(height, width) + 1):
        if height % patch == 0 and width % patch == 0:
            size = height // patch, width // patch
            if size[0] * size[1] in (tokens, tokens - 1):
                return size
    return None
