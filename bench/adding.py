"""The adding problem (Hochreiter and Schmidhuber 1997): what a recurrent network can remember.

A sequence has a number from 0 to 1 at every step; two steps are marked, one in each half, and the
sum of their numbers is asked for at the end. Who always answers 1 has a mean squared error of 1/6,
the variance of the sum.

`python -m bench adding` trains an LSTM, a GRU and a plain tanh network on it, and measures how much
of the gradient of the loss arrives at each step: in the plain network it vanishes on its way back
(Hochreiter 1991; Bengio, Simard and Frasconi 1994).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import framework as fw
from framework.autograd import Tensor
from framework.functional import mse_loss
from framework.optimizers import Adam, clip_grad_norm_
from models import build

NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "tanh RNN"}

#: The mean squared error of the answer 1.
CHANCE = 1 / 6


@dataclass(frozen=True)
class Setting:
    """How the networks are trained. Training ends when the last 50 steps' mean error is below
    `enough`, or after `steps`.
    """

    length: int = 100
    hidden: int = 64
    batch: int = 50
    lr: float = 4e-3
    steps: int = 3000
    enough: float = 0.003
    seed: int = 0


@dataclass
class Outcome:
    """Of one network: errors in training, the error on sequences it has not seen, and the norm of
    the loss's gradient with respect to each step's input, before training and after.
    """

    cell: str
    errors: list[float]
    test_error: float
    gradients: dict[str, list[float]]
    seconds: float


def sequences(rows: int, length: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """x (rows, length, 2), numbers and marks; the sums (rows, 1)."""
    x = np.zeros((rows, length, 2), np.float32)
    x[:, :, 0] = draw.random((rows, length), np.float32)
    each, half = np.arange(rows), length // 2
    marked = draw.integers(0, half, rows), draw.integers(half, length, rows)
    for places in marked:
        x[each, places, 1] = 1
    sums = sum(x[each, places, 0] for places in marked)
    return fw.tensor(x), fw.tensor(sums[:, None])


def gradient_norms(model: Any, x: Tensor, y: Tensor) -> list[float]:
    """At each step t, the root over all rows of |d loss / d x_t|^2."""
    x = fw.tensor(x.numpy(), requires_grad=True)
    mse_loss(model(x), y).backward()
    model.zero_grad()
    assert x.grad is not None
    return np.sqrt((x.grad.numpy().astype(np.float64) ** 2).sum((0, 2))).tolist()


def train(cell: str, setting: Setting) -> Outcome:
    """Train one network."""
    fw.manual_seed(setting.seed)
    draw = np.random.default_rng(setting.seed)
    model = build(
        "rnnclassifier",
        features=2,
        outputs=1,
        cell=cell,
        hidden=setting.hidden,
        bidirectional=False,
    )
    optimizer = Adam(model.parameters(), lr=setting.lr)
    test = sequences(1000, setting.length, np.random.default_rng(setting.seed + 1))
    few = test[0][:100], test[1][:100]
    gradients = {"before": gradient_norms(model, *few)}
    errors: list[float] = []
    begun = time.perf_counter()
    while len(errors) < setting.steps:
        x, y = sequences(setting.batch, setting.length, draw)
        loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        errors.append(loss.item())
        if len(errors) >= 50 and np.mean(errors[-50:]) < setting.enough:
            break
    seconds = time.perf_counter() - begun
    gradients["after"] = gradient_norms(model, *few)
    with fw.no_grad():
        error = mse_loss(model(test[0]), test[1]).item()
    return Outcome(cell, errors, error, gradients, seconds)


def table(setting: Setting, outcomes: Sequence[Outcome]) -> Table:
    """A row for each network."""
    grid = Table(
        title=f"adding problem, {setting.length} steps, {setting.hidden} units; answering 1: 0.167",
        title_justify="left",
        caption="gradient: its norm at the first step's input over that at the last's",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("", "steps", "seconds", "error on new sequences", "gradient", "untrained"):
        grid.add_column(column, justify="right" if column else "left")
    for o in outcomes:
        shares = [o.gradients[when][0] / o.gradients[when][-1] for when in ("after", "before")]
        cells = [f"{o.seconds:.1f}", f"{o.test_error:.4f}", *(f"{share:.1e}" for share in shares)]
        grid.add_row(NAMES[o.cell], str(len(o.errors)), *cells)
    return grid


def as_dict(setting: Setting, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Every figure, for JSON; of the errors in training the mean of each 50 steps."""
    rows = []
    for outcome in outcomes:
        means = [float(np.mean(part)) for part in _parts(outcome.errors)]
        rows.append(asdict(outcome) | {"errors": means, "steps": len(outcome.errors)})
    return {"kind": "adding", "setting": asdict(setting), "networks": rows}


def _parts(errors: list[float], size: int = 50) -> list[list[float]]:
    return [errors[i : i + size] for i in range(0, len(errors), size)]


def draw(setting: Setting, outcomes: Sequence[Outcome], path: Path) -> None:
    """A PNG: errors along training, and gradients by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for outcome, colour in zip(outcomes, ("#0b66c3", "#2f8f4e", "#c2570c"), strict=False):
        name = f"{NAMES[outcome.cell]}, error on new sequences {outcome.test_error:.2g}"
        means = [np.mean(part) for part in _parts(outcome.errors)]
        left.plot(50 * (1 + np.arange(len(means))), means, color=colour, label=name)
        for when, style in (("before", "--"), ("after", "-")):
            norms = np.maximum(outcome.gradients[when], 1e-30)
            label = NAMES[outcome.cell] if when == "after" else None
            right.plot(np.arange(1, len(norms) + 1), norms, style, color=colour, label=label)
    left.axhline(CHANCE, color="#5b6470", linewidth=1, linestyle=":")
    left.text(
        0.99, CHANCE * 0.95, "always answering 1: 1/6", fontsize=8, color="#5b6470", va="top",
        ha="right", transform=left.get_yaxis_transform(),
    )  # fmt: skip
    left.axhline(0.01, color="#5b6470", linewidth=1, linestyle=":")
    left.set(xlabel="training steps", ylabel="mean squared error", yscale="log")
    left.set_title(f"Adding problem, {setting.length} steps", fontsize=9, loc="left")
    right.set(xlabel="step of the sequence", ylabel="gradient norm", yscale="log")
    right.set_title(
        "Gradient of the loss at each step's input (dashed: untrained)", fontsize=9, loc="left"
    )
    for axes in (left, right):
        axes.grid(color="#e8eaed")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")
