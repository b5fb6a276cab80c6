"""python -m bench ladder"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer


def ladder(
    operation: Annotated[
        str, typer.Argument(help="softmax, layer_norm or transpose.", show_default=False)
    ],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    size: Annotated[
        str | None,
        typer.Option(help="Rows and columns.", show_default="4096x1024, on cuda 16384x1024"),
    ] = None,
    show: Annotated[
        int | None, typer.Option(help="Print the source of this step instead.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write every figure to this file.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each step; all cores by default.", min=1)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time on each step.", min=0.001)] = 0.5,
    turns: Annotated[int, typer.Option(help="Turns the time is cut into.", min=3)] = 15,
) -> None:
    """A kernel from naive to production, in steps that each run. Under half a minute."""
    from bench.ladder.steps import DEVICES, OPERATIONS, SIZES, steps

    if operation not in OPERATIONS:
        _fail(f"unknown operation {operation!r}: there are {', '.join(OPERATIONS)}")
    if device not in DEVICES:
        _fail(f"unknown device {device!r} in --device: there are {', '.join(DEVICES)}")
    rungs = steps(operation, device)
    if show is not None:
        if not 1 <= show <= len(rungs):
            _fail(f"--show {show}: {operation} on {device} has steps 1 to {len(rungs)}")
        _show(rungs[show - 1])
        return
    shape = SIZES[device] if size is None else _parsed(size)
    if device == "cuda":
        from framework.backend import cuda

        if reason := cuda.why_not():
            _fail(f"--device cuda: {reason}")
    if json is not None:
        _check_writable(json)
    _climb(rungs, shape, json, threads, seconds, turns)


def _climb(
    rungs: list[Any],
    shape: tuple[int, int],
    json: Path | None,
    threads: int | None,
    seconds: float,
    turns: int,
) -> None:
    from rich.console import Console

    from bench import machine
    from bench.ladder.run import climb, legend, table
    from bench.peer import PeerError

    facts = machine.describe(threads, rungs[0].device)
    screen = Console(stderr=True)
    try:
        with screen.status(f"{len(rungs)} steps of {rungs[0].operation}"):
            result = climb(rungs, shape, seconds, turns, threads)
    except PeerError as error:
        _fail(str(error))
    # A file or a pipe has no width.
    width = None if sys.stdout.isatty() else max(shutil.get_terminal_size().columns, 100)
    console = Console(width=width)
    console.print(machine.headline(facts))
    console.print(table(result))
    console.print(legend(result), style="dim", highlight=False)
    console.print(
        f"python -m bench ladder {rungs[0].operation} --show N prints the source of a step"
    )
    if result.turns is not None and result.turns.disturbed:
        typer.echo("disturbed by other processes: look at the fastest, or run again", err=True)
    if json is not None:
        machine.write(json, facts | {"kind": "ladder", "result": result.as_dict()})
    if result.problems:
        _fail(f"{len(result.problems)} of {len(rungs)} steps were not timed", code=1)


def _show(step: Any) -> None:
    """The source, in colours where it goes to a terminal."""
    if not sys.stdout.isatty():
        typer.echo(step.source, nl=False)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    language = "python" if step.path.suffix == ".py" else "cuda"
    Console().print(Syntax(step.source, language, background_color="default", word_wrap=True))


def _parsed(size: str) -> tuple[int, int]:
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        _fail(f"--size {size}: expected rows and columns like 4096x1024")
    return int(parts[0]), int(parts[1])


def _check_writable(json: Path) -> None:
    """Find out before measuring, not after."""
    existed = json.exists()
    try:
        json.open("a").close()
    except OSError as error:
        _fail(f"--json {json}: cannot be written ({error.strerror})")
    if not existed:
        json.unlink()


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
