"""The first layer's filters: the small patterns that a convolutional network looks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from framework import layers
from framework.explain.panels import bare, figure_of
from framework.explain.subject import Subject

#: Filters in the picture.
MOST = 64


def filters(subject: Subject) -> Any:
    """Each filter of the first Conv2d; None where there is none."""
    found = ((n, m) for n, m in subject.model.named_modules() if isinstance(m, layers.Conv2d))
    name, layer = next(found, ("", None))
    if layer is None:
        return None
    weight = layer.weight.detach().cpu().numpy()[:MOST]  # (filters, C, KH, KW)
    count, channels, height, width = weight.shape
    columns = _columns(count)
    rows = -(-count // columns)
    colours = channels == 3
    meaning = "grey is 0; colours as in the image" if colours else "red counts for, blue against"
    if channels not in (1, 3):
        meaning += f"; mean of {channels} channels"
    side = 0.62 if count > 16 else 0.95
    figure = figure_of(
        max(columns * side, 4.4) + 0.5,
        rows * side + 1.0,
        f"Filters of {name}",
        f"{layer.out_channels} of {height}x{width}"
        + (f", the first {count}" if layer.out_channels > count else "")
        + f"; {meaning}",
    )
    total_width, total_height = figure.get_size_inches()
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.25 / total_width,
        right=(0.25 + columns * side) / total_width,
        top=1 - 0.8 / total_height,
        bottom=0.2 / total_height,
        wspace=0.12,
        hspace=0.12,
    )
    # One scale for all filters of grey images: strong and weak ones can be told apart.
    limit = np.abs(weight.mean(1)).max() or 1.0
    for cell, pattern in zip(grid, weight, strict=False):
        axes = figure.add_subplot(cell)
        bare(axes)
        if colours:
            own = np.abs(pattern).max() or 1.0
            axes.imshow((0.5 + pattern / (2 * own)).transpose(1, 2, 0), interpolation="nearest")
        else:
            axes.imshow(
                pattern.mean(0), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
    return figure


def _columns(count: int) -> int:
    """A single row of few, else about twice as many columns as rows."""
    return count if count <= 8 else min(16, math.ceil(math.sqrt(2 * count) / 4) * 4)
