"""The command line of the benchmarks: python -m bench, from the root of the repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.ladder.command import ladder
from bench.sizes import Device

app = typer.Typer(
    help="Time kernels and training against their references and peers, correctness first.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

DeviceName = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda; cuda where there is a GPU.")
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of each side; all cores by default.", min=1)
]
Json = Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")]


@app.callback(invoke_without_command=True)
def _main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def kernels(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Kernels or families (softmax, losses); all if none are named."),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(help="Sizes like 768x128 4096x1024, in place of each kernel's own."),
    ] = None,
    device: DeviceName = None,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 on cuda.")] = "float32",
    against: Annotated[
        str,
        typer.Option(
            help="Sides to compare with: reference (on cuda also cupy), torch, torch.compile, "
            "on cuda triton and own (our kernels without cuDNN), or none."
        ),
    ] = "reference,torch",
    json: Json = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="Time on each side of a case.", min=0.001)] = 0.3,
    turns: Annotated[int, typer.Option(help="Turns the time is cut into.", min=3)] = 15,
    passes: Annotated[
        int,
        typer.Option(
            help="Times all is done, in new processes, a part of the turns each.", min=1, max=5
        ),
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small arrays and few turns: a look, not a result.")
    ] = False,
) -> None:
    """Time every kernel, forward and gradient. About 8 minutes for all, after they are compiled."""
    from bench import cases, kernel_bench, kernel_table, machine
    from bench.kernel_bench import KernelBench

    with _clear_errors():
        shapes = [cases.parse_size(s) for text in sizes or () for s in text.split()]
        where = _device(device)
        _check_dtype(dtype, where)
        chosen = cases.find(names or (), shapes, quick, where, dtype)
        _check_writable(json)
        sides = _sides(against, kernel_bench.SIDES, where)
        if quick:
            seconds, turns, passes = min(seconds, 0.03), min(turns, 5), 1
        facts = machine.describe(threads, where)
        with (
            _progress(passes * len(chosen)) as progress,
            KernelBench(sides, seconds, turns, threads, where) as bench,
        ):
            rows = bench.run_all(chosen, passes, lambda case: progress(str(case)))
        _show(machine.headline(facts), kernel_table.table(rows, bench.copy_bandwidth, sides))
        _warn_of_company(sum(row.turns is not None and row.turns.disturbed for row in rows))
        if json is not None:
            facts |= {"kind": "kernels", "copy_bandwidth": bench.copy_bandwidth}
            facts["rows"] = [row.as_dict(bench.copy_bandwidth) for row in rows]
            machine.write(json, facts)
        failed = [row for row in rows if row.turns is None]
        if failed:
            names_ = ", ".join(str(row.case) for row in failed)
            _fail(f"{len(failed)} of {len(rows)} cases were not timed: {names_}", code=1)


@app.command()
def training(
    model: Annotated[
        str,
        typer.Option(help="What to train, one or several: mlp, lenet, resnet18, charlstm, gpt."),
    ] = "mlp",
    device: DeviceName = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="torch, torch.channels_last, torch.compile; on cuda also captured, torch.graph; "
            "none. Without it: torch on the CPU, all on cuda."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the model, like batch=64.")
    ] = None,
    json: Json = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="Time on each side.", min=0.01)] = 15.0,
    turns: Annotated[int, typer.Option(help="Turns the time is cut into.", min=3)] = 60,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few seconds: a look, not a result.")
    ] = False,
) -> None:
    """Time whole training steps: input, forward, backward, optimizer. A minute for each model."""
    from bench import machine, training as bench

    with _clear_errors():
        tasks = _tasks(model, settings or ())
        _check_writable(json)
        where = _device(device)
        usual = "torch" if where == "cpu" else ",".join(bench.SIDES[where])
        sides = _sides(usual if against is None else against, bench.SIDES, where)
        if quick:
            seconds, turns = min(seconds, 2.0), min(turns, 20)
        facts = machine.describe(threads, where)
        results = []
        with _progress(turns * len(tasks)) as progress:
            for name, task in tasks.items():
                done = lambda name=name: progress(name)  # noqa: E731
                results.append(bench.run(name, task, sides, seconds, turns, done, threads, where))
        _show(machine.headline(facts), *map(bench.table, results))
        for result in results:
            for reason in result.missing.values():
                typer.echo(f"{result.name}: {reason}", err=True)
        _warn_of_company(sum(result.turns.disturbed for result in results))
        if json is not None:
            facts |= {"kind": "training", "results": [result.as_dict() for result in results]}
            machine.write(json, facts)
        apart = [f"{r.name} by {r.loss_difference:.2g}" for r in results if not r.agrees]
        if apart:
            _fail(
                "the sides do not train alike: losses differ, relative to the first, in "
                + ", ".join(apart),
                code=1,
            )


@app.command()
def adding(
    length: Annotated[int, typer.Option(help="Steps of a sequence.", min=2)] = 100,
    steps: Annotated[int, typer.Option(help="Training steps at most.", min=1)] = 3000,
    png: Annotated[
        Path | None, typer.Option(help="Draw errors and gradients to this file.")
    ] = None,
    json: Json = None,
) -> None:
    """What LSTM, GRU and a plain network remember over many steps, and why. A minute."""
    import framework as fw
    from bench import adding as bench, machine

    with _clear_errors():
        _check_writable(json)
        _check_writable(png, "--png")
        fw.set_default_device("cpu")
        setting = bench.Setting(length=length, steps=steps)
        outcomes = []
        threads = fw.get_num_threads()
        fw.set_num_threads(1)  # steps this small are not worth waking a second one
        with _progress(len(bench.NAMES)) as progress:
            for cell in bench.NAMES:
                outcomes.append(bench.train(cell, setting))
                progress(cell)
        fw.set_num_threads(threads)
        facts = machine.describe(1, "cpu")
        _show(machine.headline(facts), bench.table(setting, outcomes))
        if png is not None:
            bench.draw(setting, outcomes, png)
        if json is not None:
            machine.write(json, facts | bench.as_dict(setting, outcomes))


@app.command()
def gpu(
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; bench/results/<GPU>-<date>.json by default."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="The end, whatever is done.", min=0.1)] = 8.0,
    only: Annotated[
        str, typer.Option(help="Parts of it: tests, sanitizer, kernels, training.")
    ] = "tests,sanitizer,kernels,training",
) -> None:
    """All that a machine with a GPU can tell: tests, sanitizer, kernels, training. 8 minutes."""
    from bench import gpu as bench, machine, summary
    from bench.budget import Budget
    from framework.backend.device import require_cuda

    with _clear_errors():
        parts = list(dict.fromkeys(part.strip() for part in only.split(",") if part.strip()))
        for part in parts or [""]:
            if part not in bench.PARTS:
                _fail(f"unknown part {part!r} in --only: there are {', '.join(bench.PARTS)}")
        budget = Budget(minutes * 60)
        require_cuda()
        facts = machine.describe(None, "cuda")
        path = out or machine.result_path(facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_writable(path, "--out")
        typer.echo(machine.headline(facts))
        run = bench.Run(path, budget, typer.echo, facts)
        run.all(parts)
        typer.echo("\n" + "\n".join(summary.of_gpu(run.record)))
        typer.echo(f"\n{budget.spent:.0f} s; every figure is in {path}")
        if run.failures:
            _fail("; ".join(run.failures), code=1)


@app.command()
def soak(
    kills: Annotated[int, typer.Option(help="SIGKILLs in all.", min=1)] = 200,
    family: Annotated[
        list[str] | None, typer.Option(help="A family; all, in turn, if none is named.")
    ] = None,
    forks: Annotated[
        bool, typer.Option("--forks", help="Forks of one process in place of new interpreters.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the moments.")] = 0,
    json: Json = None,
) -> None:
    """Kill training runs at random moments, resume them, compare with runs that were let alone."""
    from bench import machine, soak as bench

    with _clear_errors():
        families = family or list(bench.FAMILIES)
        for name in families:
            if name not in bench.FAMILIES:
                _fail(f"unknown family {name!r}: there are {', '.join(bench.FAMILIES)}")
        _check_writable(json)
        facts = machine.describe(None, "cpu")
        with _progress(kills) as progress, ExitStack() as stack:
            start = stack.enter_context(bench.forks()) if forks else bench.Whole
            done = lambda: progress("kill")  # noqa: E731
            run = bench.Soak(
                kills, families, start, startup=0.1 if forks else 1.5, seed=seed, after_kill=done
            )
            tallies = run.run()
        _show(machine.headline(facts), bench.table(tallies))
        if json is not None:
            machine.write(json, facts | bench.as_dict(tallies))
        if problems := bench.failed(tallies):
            _fail("; ".join(problems), code=1)


@app.command()
def mutate(
    files: Annotated[int, typer.Option(help="Damaged files in all.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Draws the damage.")] = 0,
    json: Json = None,
) -> None:
    """Read damaged files of every kind: each has to end in an error that names it. 2 minutes."""
    from bench import machine, mutate as bench

    with _clear_errors():
        _check_writable(json)
        facts = machine.describe(None, "cpu")
        with _progress(files) as progress:
            tallies = bench.run(files, seed=seed, after_file=lambda: progress("file"))
        _show(machine.headline(facts), bench.table(tallies))
        if json is not None:
            machine.write(json, facts | bench.as_dict(tallies))
        if problems := bench.failed(tallies):
            _fail("\n".join(problems), code=1)


@app.command()
def safety(
    seconds: Annotated[float, typer.Option(help="Time for each network.", min=0.5)] = 20.0,
    json: Json = None,
) -> None:
    """Time what checkpoints and health checks cost a training step."""
    from bench import machine, safety as bench

    with _clear_errors():
        _check_writable(json)
        facts = machine.describe(None, "cpu")
        results = [bench.run(name, seconds) for name in bench.NAMES]
        _show(machine.headline(facts), bench.table(results))
        if json is not None:
            machine.write(json, facts | bench.as_dict(results))


@app.command()
def summary(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; code 1 if README is out of date.")
    ] = False,
) -> None:
    """Write the newest figures of bench/results/ into README, and draw its picture."""
    from bench import summary as bench

    with _clear_errors():
        changed = bench.update(write=not check, ladder=bench.LADDER)
        if changed and check:
            are = "is" if len(changed) == 1 else "are"
            _fail(f"{' and '.join(changed)} {are} out of date: python -m bench summary", code=1)
        typer.echo(f"{' '.join(changed)}: written" if changed else "nothing to change")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A file of --json.")],
    after: Annotated[Path, typer.Argument(help="A later one of the same machine.")],
    threshold: Annotated[
        float, typer.Option(help="Times slower than which it is a regression.", min=1.0)
    ] = 1.1,
    force: Annotated[bool, typer.Option("--force", help="Even of different machines.")] = False,
) -> None:
    """What became faster or slower beyond the spread; code 1 if something became slower."""
    from bench import compare as bench, result_file

    with _clear_errors():
        old, new = result_file.read(before), result_file.read(after)
        found = bench.compare(old, new, threshold, force)
    others = [*(bench.differences(old, new) if force else ()), *bench.versions(old, new)]
    _show(f"{before} -> {after}", bench.table(found, threshold))
    typer.echo("\n".join([*bench.summary(found), *others]))
    if found.regressions:
        _fail(f"{len(found.regressions)} became worse: {'; '.join(found.regressions)}", code=1)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Files of --json, of any kind.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    png: Annotated[
        Path | None, typer.Option(help="Write the bars against torch as a picture too.")
    ] = None,
) -> None:
    """One HTML page of results that needs no network: bars, roofline, sizes, sortable tables."""
    from bench import report as bench, report_data, report_png

    with _clear_errors():
        machines = report_data.machines(results)
        if png is not None:
            report_png.draw(machines, png)
        out.write_text(bench.page(machines), encoding="utf-8")
    typer.echo(" ".join(map(str, [out, *([png] if png else [])])))


app.command()(ladder)


# Shared by the commands ---------------------------------------------------------------------------


def _device(name: str | None) -> Device:
    """The device named, or what the framework takes by itself (FRAMEWORK_DEVICE counts)."""
    from framework.backend.device import default_device, require_cuda

    if name is None:
        return "cuda" if default_device().kind == "cuda" else "cpu"
    if name == "cpu":
        return "cpu"
    if name != "cuda":
        _fail(f"--device {name}: expected cpu or cuda")
    require_cuda()
    return "cuda"


def _tasks(names: str, settings: Sequence[str]) -> dict[str, Any]:
    """The tasks named in "a,b", with the settings "key=value" in all of them."""
    from bench.training_tasks import TASKS

    chosen = {}
    for name in dict.fromkeys(name.strip() for name in names.split(",")):
        if name not in TASKS:
            _fail(f"unknown model {name!r}: there are {', '.join(TASKS)}")
        for setting in settings:
            if "=" not in setting:
                _fail(f"--set {setting}: expected a name and a value, like batch=64")
        pairs = (setting.split("=", 1) for setting in settings)
        chosen[name] = TASKS[name].with_settings({key.strip(): value for key, value in pairs})
    return chosen


def _check_dtype(dtype: str, device: Device) -> None:
    from bench.cases import DTYPES

    known = list(DTYPES) if device == "cuda" else ["float32"]
    if dtype not in known:
        _fail(f"--dtype {dtype}: on {device} there is {' or '.join(known)}")


def _sides(text: str, every: Mapping[Device, Sequence[str]], device: Device) -> list[str]:
    """The sides named in "a,b"; what is not installed is left out, with a word."""
    from bench import machine

    chosen = [] if text == "none" else [side.strip() for side in text.split(",") if side.strip()]
    known, elsewhere = every[device], set(every["cuda"])
    if "reference" in known:  # the array maths: on CUDA it is CuPy's
        elsewhere.add("cupy")
        if device == "cuda":
            chosen = ["reference" if side == "cupy" else side for side in chosen]
    for side in chosen:
        if side not in {*known, *elsewhere}:
            _fail(f"unknown peer {side!r} in --against: there are {', '.join(known)}, none")
    if left_out := [side for side in chosen if side not in known]:
        typer.echo(f"compared on cuda only, so not here: {', '.join(left_out)}", err=True)
        chosen = [side for side in chosen if side in known]
    for side, is_missing, words in (
        ("triton", not machine.has_triton(), machine.TRITON_IS_MISSING),
        ("torch", not machine.has_torch(), machine.TORCH_IS_MISSING),
        (
            "torch.compile",
            device == "cpu" and not machine.has_compiler(),
            machine.COMPILER_IS_MISSING,
        ),
    ):
        without = [s for s in chosen if s != side and not s.startswith(f"{side}.")]
        if is_missing and without != chosen:
            typer.echo(words, err=True)
            chosen = without
    return list(dict.fromkeys(chosen))


def _check_writable(json: Path | None, option: str = "--json") -> None:
    """Find out before minutes of measuring, not after."""
    if json is None:
        return
    existed = json.exists()
    try:
        json.open("a").close()
    except OSError as error:
        _fail(f"{option} {json}: cannot be written ({error.strerror})")
    if not existed:
        json.unlink()


def _warn_of_company(disturbed: int) -> None:
    if disturbed:
        rows = "1 row was" if disturbed == 1 else f"{disturbed} rows were"
        typer.echo(
            f"{rows} disturbed by other processes (median over 3 times the fastest): "
            "run again on a quiet machine, or with fewer --threads than cores",
            err=True,
        )


def _fail(message: str, code: int = 2) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(code)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """One line and exit code 2 for what the user can mend."""
    from bench.cases import UnknownCase
    from bench.peer import PeerError
    from bench.result_file import UnreadableResult
    from bench.training import ParametersDiffer
    from bench.training_tasks import BadSetting
    from framework.backend.device import DeviceError

    known = (UnknownCase, UnreadableResult, PeerError, DeviceError, BadSetting, ParametersDiffer)
    try:
        yield
    except (*known, OSError) as error:
        _fail(str(error))


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on standard error; what is yielded names the next item."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=total)

        def advance(name: str) -> None:
            progress.update(task, description=name, advance=1)

        yield advance


def _show(headline: str, *tables: Any) -> None:
    import shutil
    import sys

    from rich.console import Console

    # A file or a pipe has no width: wide enough that no cell is cut.
    width = None if sys.stdout.isatty() else max(shutil.get_terminal_size().columns, 250)
    console = Console(width=width)
    console.print(headline)
    for table in tables:
        console.print(table)


if __name__ == "__main__":
    app()
