"""What the commands show: tables and lines for a terminal, plain text elsewhere. Imported by the
CLI only.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from framework.backend.device import Device
from framework.data import Splits, TokenSplits
from framework.explain import Subject
from framework.generation import LogitsError
from framework.layers import Module
from framework.layers.summary import HEAD
from framework.trainer import Profiler, Trainer
from framework.trainer.run import RunConfig, example, language_scores

#: Rows of predictions in a terminal.
ROWS = 20

#: Letters of a layer's name, below which a column goes before more of the name.
SHORTEST_NAME = 24

#: What the tokens of a tokenizer are.
TOKENS = {"characters": "characters", "words": "words", "bpe": "pieces", "wordpiece": "pieces"}


@cache
def console() -> Console:
    """The screen; where it is a pipe or a file, lines are as long as they need to be."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=200)


def table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """An empty table in the house's look; `right` are the columns with numbers."""
    out = Table(box=box.SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False)
    for i, column in enumerate(columns):
        out.add_column(column, justify="right" if i in right else "left", overflow="fold")
    return out


def facts(rows: Mapping[str, str]) -> Table:
    """Names and what they are."""
    out = Table.grid(padding=(0, 2))
    out.add_column(style="dim", no_wrap=True)
    out.add_column(overflow="fold")
    for name, text in rows.items():
        out.add_row(f"  {name}", text)
    return out


def title(text: str) -> None:
    """A heading."""
    console().print(Text(text, style="bold cyan"))


# train --------------------------------------------------------------------------------------------


def show_training(
    config: RunConfig,
    splits: Splits,
    model: Module,
    trainer: Trainer,
    epochs_before: int | None = None,
    anew: bool = False,
    resumed: bool = False,
) -> None:
    """Device, data, recipe and model, before training begins. `epochs_before`: what a run that gets
    more epochs was to have; `anew`: its optimizer has lost its state.
    """
    recipe = config.recipe
    train, test = config.samples
    sizes = [f"{train:,} to train", f"{test:,} to test"]
    if splits.classes:
        sizes.append(f"{len(splits.classes)} classes")
    batches = f"batches of {recipe.batch_size}"
    if isinstance(splits, TokenSplits):
        sizes.insert(0, f"{splits.tokenizer.size:,} different {TOKENS[splits.tokenizer.kind]}")
        batches += f" windows of {recipe.window}"
    optimizer = {"adamw": "AdamW", "sgd": "SGD"}[recipe.optimizer]
    steps = [
        f"{recipe.epochs} epochs",
        batches,
        f"{optimizer}, learning rate {recipe.lr:g}",
        f"seed {config.seed}",
    ]
    if recipe.steps is not None:
        steps.insert(0, f"{recipe.steps:,} steps")
    if recipe.precision != "float32":
        steps.append(recipe.precision)
    title(f"train {config.model} on {config.dataset}")
    console().print(
        facts(
            {
                "device": device_name(config.device),
                "data": f"{escape(splits.description)}\n{' · '.join(sizes)}",
                "recipe": " · ".join(steps),
            }
        )
    )
    show_summary(model, example(config))
    if resumed and not trainer.step:
        console().print("nothing was saved yet: starting at the beginning\n")
    elif trainer.step:
        note = ""
        if epochs_before is not None:
            note = f"; the learning rate follows the schedule of {recipe.epochs} epochs now"
            note += f", not of {epochs_before}" + (f", and {optimizer} starts anew" if anew else "")
        done = f"epoch {trainer.epoch}"
        if trainer.position.batches:
            done = f"step {trainer.step}, in epoch {trainer.epoch + 1}"
        console().print(f"going on after {done}{note}\n")


def show_summary(model: Module, inputs: Any) -> None:
    """Layers with output shapes and parameters, a line each; those without parameters are left out.

    Where the screen is narrow, types and then multiply-adds are left out, and long names are cut.
    """
    summary = model.summary(inputs)
    total = "total", "", "", f"{summary.parameters:,}", f"{summary.multiply_adds:,}"
    lines = [row.cells() for row in summary.rows if row.parameters]
    longest = max((len(name) for name, *_ in lines), default=0)
    for shown in ((0, 1, 2, 3, 4), (0, 2, 3, 4), (0, 2, 3)):
        room = longest - max(0, _width(_layers(lines, total, shown, longest)) - console().width)
        if room >= min(longest, SHORTEST_NAME):
            break
    console().print(_layers(lines, total, shown, max(room, len(total[0]))))


def _layers(
    lines: list[tuple[str, ...]], total: tuple[str, ...], shown: tuple[int, ...], room: int
) -> Table:
    """The columns `shown` of the table of layers, names within `room`."""
    numbers = tuple(i for i, column in enumerate(shown) if column >= 3)
    out = table(*(HEAD[column] for column in shown), right=numbers)
    for name, *cells in lines:
        whole = shortened(name, room), *cells
        out.add_row(*(whole[column] for column in shown))
    for column, text in zip(out.columns, (total[column] for column in shown), strict=True):
        column.footer = text
    out.show_footer, out.footer_style = True, "bold"
    return out


def _width(out: Table) -> int:
    """What `out` takes where there is room."""
    return Measurement.get(console(), console().options.update(max_width=10**4), out).maximum


def shortened(name: str, room: int) -> str:
    """`name` within `room` letters: its middle goes."""
    if len(name) <= room:
        return name
    tail = room // 2
    return f"{name[: room - 1 - tail]}…{name[len(name) - tail :]}"


def device_name(name: str) -> str:
    """A device and what it is."""
    device = Device(name)
    if device.kind == "cpu":
        from kernels.registry import has_numba

        if not has_numba():
            return "cpu (numba is not installed: the slow reference kernels run)"
        from kernels.cpu.engine import threads

        count = threads()
        return f"cpu ({count} thread{'s' * (count != 1)})"
    properties = device.module.cuda.runtime.getDeviceProperties(device.index)
    memory = properties["totalGlobalMem"] / 2**30
    return f"{device} ({properties['name'].decode()}, {memory:.0f} GiB)"


def show_profile(profiler: Profiler) -> None:
    """The tables of a profile, the longest rows of each."""
    if profiler.profile is None or not profiler.recorded:
        print(
            f"nothing was profiled: the run has {profiler.seen} steps, the first "
            f"{profiler.warmup} are warm-up",
            file=sys.stderr,
        )
        return
    title(f"profile of {profiler.recorded} steps, after {profiler.warmup} of warm-up")
    for part in profiler.profile.tables(limit=ROWS):
        console().print(part)


def show_files(folder: Path) -> None:
    """What the run folder holds now."""
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    console().print(f"\n[dim]wrote[/] {escape(str(folder))}", soft_wrap=True)
    console().print(f"[dim]      {escape(', '.join(names))}[/]")


# evaluate, predict --------------------------------------------------------------------------------


def print_score(splits: Splits, scores: dict[str, Any], folder: Path) -> None:
    """The last line of train and evaluate. Where the loss is no number, that is an error: exit code
    1.
    """
    if not np.isfinite(scores["loss"]):
        print(
            f"error: the loss on the test data is {scores['loss']}: {folder} has learnt nothing to "
            "rely on (its weights are kept); train it with a lower learning rate, or look at the "
            "data",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    if isinstance(splits, TokenSplits):
        meant = language_scores(scores["loss"], splits.characters_per_token[1])
        shown = [f"loss {scores['loss']:.4f}", *(f"{n} {value:.4f}" for n, value in meant.items())]
        print("test", *shown, flush=True)
        return
    name = "r2" if splits.task == "regression" else "accuracy"
    print(f"test {name} {scores[name]:.4f}", flush=True)


def show_evaluation(config: RunConfig, scores: Mapping[str, Any], samples: int) -> None:
    """Overall scores, then precision, recall and F1 of each class and the confusion matrix."""
    what = "tokens" if config.task == "language" else "samples"
    title(f"{config.model} on {config.dataset}: {samples:,} test {what}")
    console().print(facts({"device": device_name(config.device), "loss": f"{scores['loss']:.4f}"}))
    counts = scores.get("confusion")
    if counts is None or config.classes is None:
        return
    hit, found, there = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    names = config.classes
    out = table("class", "precision", "recall", "f1", "samples", right=(1, 2, 3, 4))
    for i, name in enumerate(names):
        precision, recall = hit[i] / max(found[i], 1), hit[i] / max(there[i], 1)
        f1 = 2 * hit[i] / max(found[i] + there[i], 1)
        cells = f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", f"{there[i]:,}"
        out.add_row(escape(name), *cells)
    console().print(out)
    if len(names) <= 10:
        console().print("[dim]  what each class (row) was taken for (column)[/]")
        console().print(_confusion(counts, names))


def _confusion(counts: np.ndarray[Any, Any], names: tuple[str, ...]) -> Table:
    """Counts, the right ones on the diagonal; the columns of long names have their numbers."""
    short = max(map(len, names)) <= max(3, len(str(counts.max())))
    numbered = list(names) if short else [f"{i} {name}" for i, name in enumerate(names)]
    heads = list(names) if short else [str(i) for i in range(len(names))]
    out = table("", *heads, right=tuple(range(1, len(names) + 1)))
    for i, name in enumerate(numbered):
        row = [_cell(count, i == j) for j, count in enumerate(counts[i].tolist())]
        out.add_row(f"[dim]{escape(name)}[/]", *row)
    return out


def _cell(count: int, right: bool) -> str:
    if right:
        return f"[green]{count}[/]"
    return f"[bold red]{count}[/]" if count else "[dim]·[/]"


def show_predictions(config: RunConfig, values: np.ndarray[Any, Any]) -> None:
    """A table in a terminal; elsewhere tab-separated lines, the first with the columns' names, then
    one for each sample: number, class, probability and next class, or number and values.
    """
    rows = [_prediction(config, value) for value in values]
    if config.task == "classification":
        heads = ["class", "probability", "next"]
    else:
        heads = ["value"] if len(rows[0]) == 1 else [f"value {i}" for i in range(len(rows[0]))]
    if not console().is_terminal:
        print("sample", *heads, sep="\t")
        for i, cells in enumerate(rows):
            print(i, *cells, sep="\t")
        return
    numbers = (2,) if config.task == "classification" else range(1, len(heads) + 1)
    out = table("sample", *heads, right=(0, *numbers))
    for i, cells in enumerate(rows[:ROWS]):
        out.add_row(str(i), *map(escape, cells))
    console().print(out)
    if len(rows) > ROWS:
        console().print(f"[dim]  ... {len(rows) - ROWS:,} more; --out FILE.npy writes all[/]")


def _prediction(config: RunConfig, value: np.ndarray[Any, Any]) -> list[str]:
    if config.task != "classification":
        return [f"{v:.6g}" for v in value]
    names = config.classes or tuple(map(str, range(len(value))))
    first, second = np.argsort(-value, kind="stable")[:2]
    return [names[first], f"{value[first]:.4f}", f"{names[second]} {value[second]:.4f}"]


# explain ------------------------------------------------------------------------------------------

#: Classes in the table of an explained image.
LIKELIEST = 5


def show_explanation(subject: Subject, files: list[Path]) -> None:
    """The likeliest classes of the image and their probabilities, then the pictures' files."""
    out = table("class", "probability", "", right=(1,))
    for label in subject.ranked()[:LIKELIEST]:
        note = "what it is" if label == subject.truth else ""
        cells = escape(subject.classes[label]), f"{subject.probabilities[label]:.4f}"
        out.add_row(*cells, f"[green]{note}[/]")
    console().print(out)
    show_files_written(files)


def show_files_written(files: list[Path]) -> None:
    """A line for each."""
    for file in files:
        console().print(f"[dim]wrote[/] {escape(str(file))}", soft_wrap=True)


# generate -----------------------------------------------------------------------------------------


def show_sample(epoch: int, text: str) -> None:
    """What a language model writes after an epoch, up to its last whole word, above the progress
    bar.
    """
    heading = f"[dim]after epoch {epoch} it writes[/]"
    words = re.sub(r"(?<=\S)\s+\S*$", "", text.strip("\n"))
    console().print(heading, Text(f"{printable(words)} …"), "", sep="\n", soft_wrap=True)


def write_text(prompt: str, pieces: Iterator[str]) -> None:
    """The prompt, bold in a terminal, and the text as it comes."""
    try:
        console().print(Text(printable(prompt), style="bold"), end="", soft_wrap=True)
        sys.stdout.flush()
        for piece in pieces:
            print(printable(piece), end="", flush=True)
        print(flush=True)
    except (KeyboardInterrupt, LogitsError):
        print(flush=True)
        raise
    except BrokenPipeError:  # | head has seen enough; Python's own flush at the end would fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """`text` without what would command a terminal; elsewhere as it is."""
    if not console().is_terminal:
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in text
    )


# models -------------------------------------------------------------------------------------------


def show_models(zoo: Mapping[str, Any], recipe: type[Any], datasets: Mapping[str, str]) -> None:
    """The families with their settings, the recipe's settings, and the data sets."""
    title("models")
    for name, entry in sorted(zoo.items()):
        console().print(facts({name: entry.description}))
        if entry.recipe:
            own = " · ".join(f"{name} {_shown(value)}" for name, value in entry.recipe.items())
            console().print(f"[dim]  recipe: {escape(own)}[/]")
        console().print(_settings(entry.config, entry.config.of_data))
    title("recipe")
    console().print(_settings(recipe))
    title("data sets")
    console().print(facts(datasets))
    console().print("\n[dim]python -m framework train MODEL --dataset NAME --set SETTING=VALUE[/]")


def _settings(kind: type[Any], without: tuple[str, ...] = ()) -> Table:
    """The fields of a dataclass; `without` those that the data set decides."""
    out = table("setting", "type", "default")
    for field in fields(kind):
        if field.name in without:
            continue
        default = "" if field.default is MISSING else _shown(field.default)
        choices = field.metadata.get("choices")  # of what is checked against a list, or a table
        kind = ", ".join(choices) if choices else _type(str(field.type))
        out.add_row(field.name, escape(kind), default)
    return out


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _type(text: str) -> str:
    """`Literal["batch", "layer"] | None` as `batch, layer or none`."""
    words = {"tuple[int, ...]": "integers", "int": "integer", "float": "number", "str": "name"}
    optional = text.endswith(" | None")
    text = text.removesuffix(" | None")
    if text.startswith("Literal["):
        text = text[8:-1].replace('"', "").replace("'", "")
    text = {"bool": "true or false"}.get(text, words.get(text, text))
    return f"{text} or none" if optional else text
