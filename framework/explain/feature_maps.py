"""What the layers of a convolutional network see: the maps that they make of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.autograd import Tensor, no_grad
from framework.explain.panels import bare, figure_of
from framework.explain.subject import Subject
from framework.layers import Module
from framework.trainer.drawing import INK, MUTED

#: Maps of a layer.
MOST = 8


@dataclass
class Maps:
    """The output (C, H, W) of a layer."""

    name: str
    values: np.ndarray


def maps_of(subject: Subject) -> list[Maps]:
    """For each size that the image takes on its way through the model, the last layer's output of
    that size, in their order.
    """
    H, W = subject.image.shape[1:]
    calls: list[tuple[str, np.ndarray]] = []
    names = {id(module): name for name, module in subject.model.named_modules()}
    latest = ""  # layer with parameters
    since: list[str] = []  # what came after it: the maps of `conv2, pool, activation`

    def note(module: Module, args: Any, output: Any) -> None:
        nonlocal latest
        name = names[id(module)]
        if any(True for _ in module.parameters()):
            latest = name
            since.clear()
        elif latest and not name.startswith(latest):
            since.append(name)
            name = ", ".join([latest, *since])
        if not isinstance(output, Tensor) or output.ndim != 4:
            return
        values = output.detach().cpu().numpy()[0]
        height, width = values.shape[1:]
        # A picture of the image has its proportions; channels may stand last inside of a block.
        if 1 < height <= H and abs(height * W - width * H) <= max(H, W):
            calls.append((name, values))

    removers = [module.register_forward_hook(note) for module in subject.model.modules()]
    try:
        with no_grad():
            subject.model(subject.batch())
    finally:
        for remove in removers:
            remove()
    last: dict[tuple[int, ...], Maps] = {}
    for name, values in calls:
        last[values.shape[1:]] = Maps(name, values)
    return list(last.values())


def feature_maps(subject: Subject) -> Any:
    """A row for each of `maps_of`, with the maps that vary most; None where there are none."""
    found = maps_of(subject)
    if not found:
        return None
    columns = min(MOST, max(len(maps.values) for maps in found))
    side, left = 1.02, 2.0
    figure = figure_of(
        left + columns * side + 0.35,
        len(found) * side + 1.25,
        "Feature maps",
        f"what layers make of the image; the {columns} channels that vary most, scaled one by one",
    )
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        len(found),
        columns,
        left=left / width,
        right=1 - 0.25 / width,
        top=1 - 0.85 / height,
        bottom=0.25 / height,
        wspace=0.07,
        hspace=0.07,
    )
    for row, maps in enumerate(found):
        order = np.argsort(-maps.values.std(axis=(1, 2)), kind="stable")[:columns]
        channels, *size = maps.values.shape
        for column, channel in enumerate(sorted(order)):
            axes = figure.add_subplot(grid[row, column])
            bare(axes)
            axes.imshow(maps.values[channel], cmap="viridis", interpolation="nearest")
            if column == 0:
                middle = {"transform": axes.transAxes, "ha": "right"}
                axes.text(-0.12, 0.55, maps.name, color=INK, fontsize=9.5, va="bottom", **middle)
                shape = f"{channels} of {'x'.join(map(str, size))}"
                axes.text(-0.12, 0.45, shape, color=MUTED, fontsize=8.5, va="top", **middle)
    return figure
