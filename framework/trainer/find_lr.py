"""The learning rate to start with: L. N. Smith, "Cyclical Learning Rates for Training Neural
Networks", 2017, section 3.3 (the range test), with the smoothing of S. Gugger's lr_finder.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.data.prefetch import batches_on
from framework.interop.atomic import write_bytes
from framework.trainer.arguments import check_loader
from framework.trainer.drawing import GRID, INK, INSTALL, MUTED
from framework.trainer.mean import Mean
from framework.trainer.trial import trial

if TYPE_CHECKING:
    from framework.trainer.trainer import Loader, Trainer

SMOOTHING = 0.9
#: A smoothed loss so many times the least one ends the test.
DIVERGED = 4.0


@dataclass(frozen=True)
class LRCurve:
    """Learning rates, the losses of the steps taken with them, and those smoothed."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float:
        """Where the smoothed loss falls steepest along log(lr), before its minimum.

        Raises:
            ValueError: it falls nowhere.
        """
        end = int(np.argmin(self.smoothed)) + 1
        if end < 3:
            raise ValueError(
                "the loss falls nowhere between these learning rates: begin with a lower one"
            )
        slopes = np.gradient(np.array(self.smoothed[:end]), np.log(self.lrs[:end]))
        return self.lrs[int(np.argmin(slopes))]

    def __repr__(self) -> str:
        try:
            suggestion = f"suggestion={self.suggestion:.3g}"
        except ValueError:
            suggestion = "no suggestion"
        low, high = self.lrs[0], self.lrs[-1]
        return f"LRCurve({suggestion}, {len(self.lrs)} steps, lr {low:.3g} to {high:.3g})"

    def plot(self, path: str | Path) -> None:
        """The curve with the suggestion, as a PNG.

        Raises:
            ImportError: matplotlib is not installed.
            FileError: `path` cannot be written.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError(f"the plot needs matplotlib: {INSTALL}")
        import io

        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.8), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses, color=GRID, linewidth=1)
        axes.plot(self.lrs, self.smoothed, color="#2563eb", linewidth=2)
        axes.axvline(self.suggestion, color="#ea580c", linewidth=1)
        axes.set_title(f"suggested: {self.suggestion:.2g}", loc="left", color=INK, fontsize=12)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate", color=MUTED)
        axes.set_ylabel("loss", color=MUTED)
        axes.set_ylim(0.95 * min(self.smoothed), 1.05 * max(self.smoothed))
        content = io.BytesIO()
        figure.savefig(content, dpi=160, format="png")
        write_bytes(path, content.getvalue())


def find_lr(
    trainer: Trainer,
    loader: Loader,
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
    plot: str | Path | None = None,
) -> LRCurve:
    """Train `steps` steps while the learning rate grows from `start` to `end`, and look at the
    loss; model, optimizer, generator and loader are as they were afterwards.

    The rate is the first parameter group's, others keep their proportion to it; a schedule is left
    out. It ends early where the loss has become 4 times its least, or NaN.

        curve = find_lr(trainer, loader, plot="lr.png")
        optimizer = AdamW(model.parameters(), lr=curve.suggestion)
    """
    check_loader("loader", loader)
    if not 0 < start < end < math.inf:
        raise ValueError(f"start is {start!r}, end {end!r}; expected 0 < start < end")
    if not isinstance(steps, int) or steps < 3:
        raise ValueError(f"steps is {steps!r}, expected an integer of at least 3")
    base = trainer.optimizer.param_groups[0]["initial_lr"]
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    with trial(trainer, loader), np.errstate(all="ignore"):
        trainer.model.train()
        windows = _windows(trainer, loader)
        for step, window in enumerate(islice(windows, steps)):
            lr = start * (end / start) ** (step / (steps - 1))
            observed = Mean()

            def observe(_: Any, target: Any, loss: Any, observed: Mean = observed) -> None:
                observed.update(loss.detach(), len(target))

            whole = trainer.compute_gradients(window, observe)
            loss = observed.compute()
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smooth = mean / (1 - SMOOTHING ** (len(smoothed) + 1))
            if not math.isfinite(loss) or (smoothed and smooth > DIVERGED * abs(min(smoothed))):
                break
            lrs.append(lr)
            losses.append(loss)
            smoothed.append(smooth)
            if whole:
                trainer.optimizer.scale_lr(lr / base)
                trainer.optimizer.step()
            trainer.precision.update()
    if len(lrs) < 3:
        raise ValueError(f"the loss is not finite or grows from the start, at lr {start:g}")
    curve = LRCurve(lrs, losses, smoothed)
    if plot is not None:
        curve.plot(plot)
    return curve


def _windows(trainer: Trainer, loader: Loader) -> Any:
    """Windows of batches without an end."""
    while True:
        batches = iter(batches_on(loader, trainer.device))
        empty = True
        while window := list(islice(batches, trainer.accumulate)):
            empty = False
            yield window
        if empty:
            raise ValueError("the loader has no batches")
