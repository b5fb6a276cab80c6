"""Which pixels decide: the gradient of a class's score with respect to the image.

K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside Convolutional Networks: Visualising Image
Classification Models and Saliency Maps", 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.explain.panels import bare, caption, figure_of, show_image
from framework.explain.subject import Subject
from framework.trainer.drawing import COLOURS, INK, MUTED

#: Classes in the panel of probabilities.
LISTED = 5


def gradient(subject: Subject, label: int) -> np.ndarray:
    """The gradient (C, H, W) of the score, the logit, of a class."""
    x = subject.batch()
    x.requires_grad = True
    subject.model(x)[0, label].backward()
    subject.model.zero_grad()  # the parameters' own gradients are not asked for
    assert x.grad is not None
    return x.grad.cpu().numpy()[0]


def saliency(subject: Subject) -> Any:
    """The image, the two likeliest classes' gradients (largest of the channels), probabilities."""
    ranked = subject.ranked()
    shown = ranked[:2]
    figure = figure_of(
        10.2, 3.5, "Saliency", "how much a pixel changes the score of a class: |gradient|"
    )
    grid = figure.add_gridspec(
        1, 2 + len(shown), left=0.024, right=0.976, top=0.74, bottom=0.05, wspace=0.12,
        width_ratios=[1] * (1 + len(shown)) + [0.86],
    )  # fmt: skip
    first, *maps, last = (figure.add_subplot(cell) for cell in grid)
    show_image(first, subject.image)
    known = "" if subject.truth is None else f" of {subject.classes[subject.truth]}"
    caption(first, f"image{known}")
    for axes, label in zip(maps, shown, strict=True):
        strength = np.abs(gradient(subject, label)).max(axis=0)
        bare(axes)
        axes.imshow(strength, cmap="magma", vmin=0, interpolation="nearest")
        caption(axes, f"for {subject.classes[label]}", f"{subject.probabilities[label]:.1%}")
    height, width = subject.image.shape[1:]
    last.set_box_aspect(height / width / 0.86)  # as high as the images
    _bars(last, subject, ranked[:LISTED])
    return figure


def _bars(axes: Any, subject: Subject, labels: list[int]) -> None:
    places, values = range(len(labels)), subject.probabilities[labels]
    axes.barh(places, np.ones(len(labels)), height=0.14, color="#eef1f4")
    axes.barh(places, values, height=0.14, color=COLOURS[0])
    for place, label, value in zip(places, labels, values, strict=True):
        bold = "bold" if label == subject.truth else "normal"
        axes.text(0, place - 0.17, subject.classes[label], color=INK, fontsize=9, fontweight=bold)
        axes.text(1, place - 0.17, f"{value:.1%}", color=MUTED, fontsize=8.5, ha="right")
    axes.set_ylim(LISTED - 0.5, -0.55)
    axes.set_xlim(0, 1)
    axes.axis("off")
    caption(axes, "probabilities")
