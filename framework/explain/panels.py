"""Panels that several pictures have."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.trainer.drawing import GRID, INK, MUTED


def figure_of(width: float, height: float, title: str, note: str) -> Any:
    """An empty white figure of so many inches, with a title and a line of explanation below it."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(width, height), facecolor="white")
    inch = 1 / height
    left = 0.25 / width
    figure.text(left, 1 - 0.22 * inch, title, va="top", color=INK, fontsize=12, fontweight="bold")
    figure.text(left, 1 - 0.48 * inch, note, va="top", color=MUTED, fontsize=9)
    return figure


def bare(axes: Any) -> None:
    """No ticks, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)


def show_image(axes: Any, image: np.ndarray) -> None:
    """An image (C, H, W) from 0 to 1: in colours if it has three, else the mean of its channels."""
    bare(axes)
    if len(image) == 3:
        axes.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
    else:
        axes.imshow(image.mean(0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def caption(axes: Any, text: str, note: str = "") -> None:
    """A line above a panel, and a quieter one behind it."""
    axes.set_title(text, loc="left", color=INK, fontsize=9.5, pad=5)
    if note:
        axes.set_title(note, loc="right", color=MUTED, fontsize=8.5, pad=5)
