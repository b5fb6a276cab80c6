"""Pictures of what a trained model does with one image, or one text: ``python -m framework explain
RUN IMAGE``.

A file for each picture, with a function of a `Subject`, or of a `TextSubject`, that gives a
matplotlib figure, or None where the model has nothing to show; a line in `PICTURES`, or in
`TEXT_PICTURES`, for each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.explain.attention import between_tokens, has_attention, over_image
from framework.explain.feature_maps import feature_maps
from framework.explain.filters import filters
from framework.explain.saliency import saliency
from framework.explain.subject import Subject, TextSubject, read_files, read_image
from framework.trainer.drawing import save_figure
from framework.trainer.folders import make_folder

__all__ = [
    "PICTURES",
    "TEXT_PICTURES",
    "Subject",
    "TextSubject",
    "explain",
    "has_attention",
    "read_files",
    "read_image",
]

#: Name of the file -> the picture.
PICTURES: dict[str, Callable[[Subject], Any]] = {
    "saliency": saliency,
    "filters": filters,
    "feature-maps": feature_maps,
    "attention": over_image,
}

#: The same for texts.
TEXT_PICTURES: dict[str, Callable[[TextSubject], Any]] = {"attention": between_tokens}


def explain(subject: Subject | TextSubject, folder: Path) -> list[Path]:
    """Draw all pictures that there are for the subject's model into `folder`; returns the files."""
    make_folder(folder)
    written = []
    pictures: dict[str, Callable[[Any], Any]]
    pictures = TEXT_PICTURES if isinstance(subject, TextSubject) else PICTURES
    for name, picture in pictures.items():
        figure = picture(subject)
        if figure is not None:
            written.append(folder / f"{name}.png")
            save_figure(figure, written[-1])
    return written
