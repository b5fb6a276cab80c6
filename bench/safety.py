"""`python -m bench safety`: what checkpoints and health checks cost a training step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import framework as fw
from bench.measure import Spread
from bench.training_tasks import TASKS, Task
from framework import functional as F, optimizers
from framework.trainer import (
    Callback,
    Health,
    Interrupts,
    ModelCheckpoint,
    TerminateOnNaN,
    Trainer,
)
from framework.trainer.callbacks.model_checkpoint import REST
from framework.trainer.language import token_loss

#: Of bench/training_tasks: cheap steps over large weights, of many kernels, and long ones.
NAMES = ("mlp", "lenet", "gpt")
DEFAULT_SECONDS = 10.0  # between checkpoints of the train command
STEPS = 160  # of a round
TURN = 4  # steps after which the callbacks come or go
LOOKS = 100  # Health looks at one step in so many


@dataclass
class Result:
    """Seconds of a step in each round (medians), without and with; seconds more that Health's look
    takes; seconds that a checkpoint took, and those that the callback then leaves between two.
    """

    name: str
    task: Task
    without: list[float]
    guarded: list[float]
    look: float
    save: float
    interval: float

    @property
    def overhead(self) -> Spread:
        """Of a step, as a share, over the rounds."""
        pairs = zip(self.guarded, self.without, strict=True)
        return Spread.of(self._share(a, b) for a, b in pairs)

    @property
    def undisturbed(self) -> float:
        """The same of the 20th percentiles of both: what other programs take falls out."""
        return self._share(Spread.of(self.guarded).p20, Spread.of(self.without).p20)

    def _share(self, guarded: float, without: float) -> float:
        return (guarded + self.look / LOOKS) / without - 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.name,
            "title": self.task.title,
            "batch": self.task.batch,
            "optimizer": self.task.optimizer_name,
            "steps_of_a_round": STEPS,
            "without_seconds": self.without,
            "guarded_seconds": self.guarded,
            "look_seconds": self.look,
            "steps_to_a_look": LOOKS,
            "overhead": self.overhead.as_dict(),
            "overhead_undisturbed": self.undisturbed,
            "save_seconds": self.save,
            "save_interval_seconds": self.interval,
            "saving": self.save / self.interval,
        }


def _trainer(task: Task, *callbacks: Callback) -> Trainer:
    fw.manual_seed(0)
    model = task.our_model()
    loss = token_loss if task.unit == "tokens" else F.cross_entropy
    return Trainer(model, loss, task.optimizer(optimizers, model), callbacks=callbacks)


def _batches(task: Task) -> list[Any]:
    arrays = [np.split(a, task.batches) for a in task.data()]
    return [tuple(fw.tensor(a, device="cpu") for a in batch) for batch in zip(*arrays, strict=True)]


def run(name: str, seconds: float, after_round: Callable[[], object] = lambda: None) -> Result:
    """Rounds of `STEPS` steps, `seconds` in all (or three).

    It is one trainer whose callbacks come and go from step to step: two would differ by 10% by
    where their weights happen to lie, and turns of a tenth of a second by what else goes on.
    """
    task = TASKS[name]
    batches = _batches(task)
    with tempfile.TemporaryDirectory() as folder:
        kept = ModelCheckpoint(Path(folder), every_seconds=1e6)
        guards = [TerminateOnNaN(), Health(every=LOOKS), kept, Interrupts()]
        trainer = _trainer(task, *guards)
        trainer.position.attach(batches)
        trainer._call("on_fit_start")
        trainer._call("on_epoch_start")
        trainer._reset()
        trainer.model.train()
        looks: list[float] = []
        _round(trainer, batches, guards, [])  # compiles, and fills the caches
        rounds = []
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(rounds) < 3:
            rounds.append(_round(trainer, batches, guards, looks))
            after_round()
        costs = []
        for _ in range(5):
            kept._take(trainer)
            kept._write()
            costs.append(kept.cost)
        trainer.callbacks = guards
        trainer._call("on_fit_end")
    without, guarded = map(list, zip(*rounds, strict=True))
    look, save = median(looks), median(costs)
    return Result(name, task, without, guarded, look, save, max(DEFAULT_SECONDS, REST * save))


def _round(
    trainer: Trainer, batches: list[Any], guards: list[Callback], looks: list[float]
) -> tuple[float, float]:
    """Seconds of a step, without and with. What a look took beside its step goes to `looks`."""
    sides: tuple[list[float], list[float]] = [], []
    looking, none = [], list[Callback]()
    for step in range(STEPS):
        at = step % len(batches)
        # every batch in turn, which either side meets as often
        guarded = (step // TURN + step // len(batches)) % 2
        callbacks = guards if guarded else none
        first, trainer.callbacks = trainer.callbacks is not callbacks, callbacks
        start = time.perf_counter()
        trainer._train_step([batches[at]])
        took = time.perf_counter() - start
        if guarded and trainer.step % LOOKS == 0:
            looking.append(took)
        elif not first:  # then the trainer asks new callbacks where they act
            sides[guarded].append(took)
    without, with_guards = map(median, sides)
    looks += [took - with_guards for took in looking]
    return without, with_guards


def as_dict(results: list[Result]) -> dict[str, Any]:
    """For JSON."""
    return {"kind": "safety", "tasks": [result.as_dict() for result in results]}


def table(results: list[Result]) -> Table:
    """A row for each network."""
    out = Table(
        title="A training step on its own, and guarded; float32",
        title_justify="left",
        caption=(
            f"guarded: NaN checks, signals, and Health at one step in {LOOKS}, which is in the "
            f"overhead; median (p20-p80) of rounds of {STEPS} steps, half of them guarded. "
            "saving: a checkpoint, and the time between two that follows"
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("", "plain, ms", "guarded, ms", "overhead", "of the 20th percentiles", "saving"):
        out.add_column(name, justify="right" if name else "left")
    for result in results:
        over = result.overhead
        out.add_row(
            f"{result.task.title}, batch {result.task.batch}, {result.task.optimizer_name}",
            *(_step(times) for times in (result.without, result.guarded)),
            f"{over.median:.2%} ({over.p20:.2%} to {over.p80:.2%})",
            f"{result.undisturbed:.2%}",
            f"{result.save * 1e3:.0f} ms in {result.interval:.0f} s: "
            f"{result.save / result.interval:.2%}",
        )
    return out


def _step(times: list[float]) -> str:
    each = Spread.of(t * 1e3 for t in times)
    return f"{each.median:.3f} ({each.p20:.3f}-{each.p80:.3f})"
