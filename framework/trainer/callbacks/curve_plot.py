"""Loss and metrics over the epochs as a picture."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.interop.atomic import FileError
from framework.trainer.callbacks.callback import Callback
from framework.trainer.drawing import (
    COLOURS,
    GRID,
    INK,
    INSTALL,
    MUTED,
    has_matplotlib,
    save_figure,
)

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

log = logging.getLogger("framework")


class CurvePlot(Callback):
    """Draws `path` (PNG, SVG or PDF by its ending) at the end of a run, also of one that was broken
    off.

    A panel for the loss and one for each metric; a line for the training and one for each
    validation. Without matplotlib it logs one line that says how to install it, unless it is
    `quiet`; where `path` cannot be written it logs that.
    """

    writes = True

    def __init__(self, path: str | Path, quiet: bool = False) -> None:
        self.path, self.quiet = Path(path), quiet

    def on_fit_end(self, trainer: Trainer) -> None:
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.history:
            return
        if not has_matplotlib():
            if not self.quiet:
                log.warning("no %s: matplotlib is not installed (%s)", self.path.name, INSTALL)
            return
        try:
            draw_curves(trainer.history, self.path, [metric.name for metric in trainer.metrics])
        except FileError as error:  # a picture is no reason to lose what comes after training
            log.warning("%s", error)


def draw_curves(history: list[dict[str, Any]], path: str | Path, metrics: list[str]) -> None:
    """Write the picture; `metrics` names the panels beside the loss, those without curves are left
    out.

    Raises:
        FileError: `path` cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    panels = ["loss"] + [m for m in metrics if isinstance(history[0].get(m), float)]
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        _draw_panel(axes, history, panel)
    save_figure(figure, Path(path))


def _label_in_decimals(axis: Any, decades: float) -> None:
    """0.5 instead of 5 x 10^-1. Over few decades 2 and 5 have labels too: powers of ten alone would
    be one or two.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_panel(axes: Any, history: list[dict[str, Any]], panel: str) -> None:
    keys = [panel] + [key for key in history[0] if key.endswith(f"_{panel}")]
    epochs = [record["epoch"] for record in history]
    values: list[float] = []
    for key, colour in zip(keys, COLOURS, strict=False):  # training, then the validations
        curve = [record.get(key, float("nan")) for record in history]
        name = "training" if key == panel else key.removesuffix(f"_{panel}").replace("_", " ")
        last = f"{curve[-1]:.4f}"
        marker = "o" if len(epochs) == 1 else ""
        axes.plot(
            epochs, curve, color=colour, linewidth=2, marker=marker, label=f"{name}  {last}",
            solid_capstyle="round",
        )  # fmt: skip
        values += [value for value in curve if math.isfinite(value)]
    positive = [value for value in values if value > 0]
    if panel == "loss" and values and positive == values and max(values) > 20 * min(values):
        axes.set_yscale("log")
        _label_in_decimals(axes.yaxis, decades=math.log10(max(values) / min(values)))
    axes.set_title(panel, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel("epoch", color=MUTED)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    place = "upper right" if panel == "loss" else "lower right"
    legend = axes.legend(loc=place, labelcolor=INK, prop={"size": 9})
    # The grid does not run through the words; a curve shows through.
    legend.get_frame().set(facecolor="white", alpha=0.85, linewidth=0)
