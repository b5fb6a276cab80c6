"""`python -m bench safety`: what checkpoints and health checks cost a training step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import framework as fw
from bench.measure import Spread
from framework import functional as F
from framework.optimizers import Adam
from framework.trainer import (
    Callback,
    Health,
    Interrupts,
    ModelCheckpoint,
    TerminateOnNaN,
    Trainer,
)
from framework.trainer.callbacks.model_checkpoint import REST
from models import build

WIDTHS, BATCH = (784, 512, 256, 10), 128
DEFAULT_SECONDS = 10.0  # between checkpoints of the train command
STEPS = 100  # of a turn: one look of Health in each


@dataclass
class Result:
    """Seconds of each turn, without and with; seconds that a checkpoint took, and those that the
    callback then leaves between two.
    """

    without: list[float]
    guarded: list[float]
    save: float
    interval: float

    @property
    def overhead(self) -> Spread:
        """Of a step, as a share, over the turns."""
        pairs = zip(self.guarded, self.without, strict=True)
        return Spread.of(a / b - 1 for a, b in pairs)

    @property
    def undisturbed(self) -> float:
        """The same of the 20th percentiles of both: what other programs take falls out."""
        return Spread.of(self.guarded).p20 / Spread.of(self.without).p20 - 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": "safety",
            "model": "mlp",
            "widths": list(WIDTHS),
            "batch": BATCH,
            "steps_of_a_turn": STEPS,
            "without_seconds": self.without,
            "guarded_seconds": self.guarded,
            "overhead": self.overhead.as_dict(),
            "overhead_undisturbed": self.undisturbed,
            "save_seconds": self.save,
            "save_interval_seconds": self.interval,
            "saving": self.save / self.interval,
        }


def _trainer(*callbacks: Callback) -> Trainer:
    fw.manual_seed(0)
    widths = {"inputs": WIDTHS[0], "hidden": WIDTHS[1:-1], "outputs": WIDTHS[-1]}
    model = build("mlp", norm=None, dropout=0.0, **widths)
    return Trainer(model, F.cross_entropy, Adam(model.parameters(), lr=1e-4), callbacks=callbacks)


def run(seconds: float, after_turn: Callable[[], object] = lambda: None) -> Result:
    """Turns of `STEPS` steps of either trainer, one after the other, `seconds` in all."""
    draw = np.random.default_rng(0)
    batches = []
    for _ in range(16):
        x = draw.standard_normal((BATCH, WIDTHS[0])).astype(np.float32)
        y = draw.integers(0, WIDTHS[-1], BATCH)
        batches.append((fw.tensor(x, device="cpu"), fw.tensor(y, device="cpu")))
    with tempfile.TemporaryDirectory() as folder:
        kept = ModelCheckpoint(Path(folder), every_seconds=1e6)
        sides = _trainer(), _trainer(TerminateOnNaN(), Health(every=STEPS), kept, Interrupts())
        for trainer in sides:
            trainer.position.attach(batches)
            trainer._call("on_fit_start")
            trainer._call("on_epoch_start")
            trainer._reset()
            trainer.model.train()
            _turn(trainer, batches)  # compiles, and fills the caches
        times: tuple[list[float], list[float]] = [], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for trainer, own in zip(sides, times, strict=True):
                own.append(_turn(trainer, batches))
            after_turn()
        costs = []
        for _ in range(5):
            kept._take(sides[1])
            kept._write()
            costs.append(kept.cost)
        for trainer in sides:
            trainer._call("on_fit_end")
    save = sorted(costs)[len(costs) // 2]
    return Result(times[0], times[1], save, max(DEFAULT_SECONDS, REST * save))


def _turn(trainer: Trainer, batches: list[Any]) -> float:
    start = time.perf_counter()
    for step in range(STEPS):
        trainer._train_step([batches[step % len(batches)]])
    return time.perf_counter() - start


def table(result: Result) -> Table:
    """A row for each side."""
    out = Table(
        title=f"mlp {'-'.join(map(str, WIDTHS))}, batch {BATCH}, Adam, float32",
        title_justify="left",
        caption=(
            f"guarded: NaN checks, Health at one step in {STEPS}, signals; median (p20-p80). A "
            f"checkpoint takes {result.save * 1e3:.0f} ms, one in {result.interval:.0f} s: "
            f"{result.save / result.interval:.2%}"
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("", "ms a step", "overhead", "of the 20th percentiles"):
        out.add_column(name, justify="right" if name else "left")
    for name, times in (("plain", result.without), ("guarded", result.guarded)):
        per_step = Spread.of(t / STEPS * 1e3 for t in times)
        more = ("", "")
        if name == "guarded":
            over = result.overhead
            shown = f"{over.median:.2%} ({over.p20:.2%} to {over.p80:.2%})"
            more = shown, f"{result.undisturbed:.2%}"
        cell = f"{per_step.median:.3f} ({per_step.p20:.3f}-{per_step.p80:.3f})"
        out.add_row(name, cell, *more)
    return out
