"""python -m framework train | evaluate | predict | explain | generate | models | doctor

What a command needs is imported inside it: ``--help`` answers at once.
"""

from __future__ import annotations

import difflib
import functools
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from framework import output, waiting
from framework.planning import (
    UsageError,
    damage_of,
    expect,
    only_resume,
    place,
    plan_run,
    resumed_run,
    splits_of,
    whole_number,
)

if TYPE_CHECKING:
    from framework.trainer.run import RunConfig
    from models import Run as OpenedRun


class Commands(typer.core.TyperGroup):
    """The commands; a wrong one is answered in one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            print(
                f"error: there is no command {name!r}{hint}; there are: {', '.join(known)}",
                file=sys.stderr,
            )
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


class WithSettings(typer.core.TyperCommand):
    """``--set a=1 b=2`` is ``--set a=1 --set b=2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        for arg in args:
            if given[-2:-1] == ["--set"] and "=" in arg and not arg.startswith("-"):
                given.append("--set")
            given.append(arg)
        return super().parse_args(ctx, given)


app = typer.Typer(
    name="framework",
    cls=Commands,
    help="Train neural networks, and use what they have learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="FRAMEWORK_DEVICE, else auto"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Run = Annotated[Path, typer.Argument(help="A run folder, as train writes it.", show_default=False)]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Expected errors, and what the system refuses, end as one line on stderr and exit code 2,
    Ctrl-C with 130; others are bugs and show.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        from framework.startup import report_as_usual

        try:
            report_as_usual()
            expected = _expected_errors()
            with nullcontext() if options.get("quiet") else waiting.on_terminal(sys.stderr):
                command(*args, debug=debug, **options)
            sys.stdout.flush()
        except MemoryError as error:
            if debug:
                raise
            output.tell(f"error: not enough memory ({_joined(error)})")
            raise typer.Exit(2) from None
        except OSError as error:
            if debug:
                raise
            raise typer.Exit(_refused(error)) from None
        except Exception as error:
            if debug or not isinstance(error, expected):
                raise
            output.tell(f"error: {_joined(error)}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if debug:
                raise
            output.tell("interrupted")
            raise typer.Exit(130) from None

    return run


def _refused(error: OSError) -> int:
    """Say what the system refuses: a path that may not be looked at, a disk that is full; nothing
    where whoever read the output has read enough. Returns the exit code.
    """
    if isinstance(error, BrokenPipeError):
        return 1
    output.tell(f"error: {output.reason_of(error)}")
    return 2


def _joined(error: Exception) -> str:
    return "; ".join(str(error).splitlines())


def _expected_errors() -> tuple[type[Exception], ...]:
    from framework.backend import DeviceError
    from framework.data import DataError, LoaderError
    from framework.generation import LogitsError
    from framework.interop.atomic import FileError
    from framework.trainer import NonFiniteError

    numbers = LogitsError, NonFiniteError
    return UsageError, DataError, LoaderError, FileError, DeviceError, *numbers


# Commands -----------------------------------------------------------------------------------------


@app.command(cls=WithSettings)
@one_line_errors
def train(
    model: Annotated[
        str | None,
        typer.Argument(help="A family of the zoo, see [bold]models[/].", show_default="mlp"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits, mnist, ...; of text tinyshakespeare, wikitext-2, a file's path, ...",
            show_default="digits, or python-reference",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training data. With --resume: a larger number than before trains "
            "on, with the schedule of so many epochs.",
            show_default="by its size",
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|auto",
            help="Samples of a step; auto: the most that fit into memory.",
            show_default="by the model",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default="by the model")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, tf32, bf16-mixed or fp16-mixed.", show_default="float32"),
    ] = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides all that is random.", show_default="0")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The run folder.", show_default="runs/MODEL-DATASET-seedN"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted run; with more --epochs, with a complete one too.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE ...",
            help="Settings of model or recipe: --set hidden=512,256 dropout=0.2 shift=1 ...",
            show_default=False,
        ),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            help="Save the state after so many steps, or so much time: 500, 30s, 10m.",
            show_default="10s",
        ),
    ] = None,
    fast_dev_run: Annotated[
        bool,
        typer.Option(
            "--fast-dev-run", help="One batch through everything, and nothing written: does it fit?"
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Say where the time of some of the first steps goes; write a trace."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    debug: Debug = False,
) -> None:
    """Train a model; the last line is its score on the test data.

    Without options: a multilayer perceptron on the embedded handwritten digits.
    """
    from models import entry

    if model is not None:
        expect(lambda: entry(model))
    if out == "":  # which Path takes for the current folder
        raise UsageError("--out is empty, expected the path of a folder")
    if resume is None:
        size = None if batch_size in (None, "auto") else whole_number("--batch-size", batch_size)
        given = {"epochs": epochs, "batch_size": size, "lr": lr, "precision": precision}
        options = {name: value for name, value in given.items() if value is not None}
        folder = None if out is None else Path(out)
        plan = plan_run(model or "mlp", dataset, seed or 0, device, folder, options, settings or [])
    else:
        only_resume(dataset, batch_size, lr, precision, seed, out, settings)
        plan = resumed_run(resume, model, device, epochs)
    from framework.training import dry_run, run_training, with_fitting_batch

    if batch_size == "auto":
        plan = with_fitting_batch(plan, quiet)
    if fast_dev_run:
        dry_run(plan, checkpoint_every)
    else:
        run_training(plan, resume is not None, quiet, profile, checkpoint_every)


@app.command()
@one_line_errors
def evaluate(run: Run, device: Device = None, debug: Debug = False) -> None:
    """Score a trained model on the test data: overall, and for each class."""
    from framework import screen
    from framework.trainer import ConfusionMatrix
    from framework.trainer.run import load_data, make_trainer

    opened = _opened(run, device)
    config = opened.config
    splits = splits_of(config, run)
    with damage_of(run):
        fitted = opened.inputs, opened.targets
        data = load_data(splits, config.recipe, config.seed, config.device, *fitted)
    trainer = make_trainer(opened.model, config, data, [])
    if config.task == "classification" and config.classes:
        trainer.metrics.append(ConfusionMatrix(len(config.classes)))
    scores = trainer.evaluate(data.test)
    screen.show_evaluation(config, scores, config.samples[1])
    screen.print_score(splits, scores, run)


@app.command()
@one_line_errors
def predict(
    run: Run,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Inputs: .npy files (N, ...) and .png files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write probabilities (N, classes), or values, to a .npy file.", show_default=False
        ),
    ] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Say what a trained model makes of the inputs in files.

    Those of .npy files are on the scale of the data set that it was trained on (digits: 0 to 1);
    PNG is read from 0 to 1.
    """
    import numpy as np

    from framework import functional as F, screen
    from framework.explain import read_files
    from framework.interop.atomic import write_bytes
    from framework.trainer.run import invert, outputs_for

    if out is not None:
        _check_writable(out)
    opened = _opened(run, device)
    config = opened.config
    if opened.inputs is None or config.input_range is None:
        raise UsageError(f"{run} has learnt a language: it has generate, not predict")
    x = read_files(files, config.shape)
    _say_if_elsewhere(x, config.input_range)
    with damage_of(run):
        x = opened.inputs(x)
    output = outputs_for(opened.model, x, config.device, config.recipe.precision)
    if config.task == "classification":
        output = F.softmax(output, -1)
    _check_numbers(output.cpu().numpy(), run)
    values = invert(opened.targets, output.cpu().numpy())
    screen.show_predictions(config, values)
    if out is not None:
        content = io.BytesIO()
        np.save(content, values)
        write_bytes(out, content.getvalue())  # the very path, whatever its ending


@app.command()
@one_line_errors
def explain(
    run: Run,
    image: Annotated[
        str | None,
        typer.Argument(
            help="A .png or .npy file, or test:17, the image of this number in the test data.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Of a language model: a text.", show_default="the beginning of the test data"
        ),
    ] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Draw what a model makes of an image: which pixels decide, filters, feature maps, attention.

    Or what the attention of a language model looks at in a text. The pictures are written into the
    run folder.
    """
    from framework import explain as pictures, screen
    from framework.trainer.drawing import INSTALL, has_matplotlib
    from models import open_run

    if not has_matplotlib():
        raise UsageError(f"explain draws with matplotlib, which is not installed: {INSTALL}")
    opened = open_run(run, place(device))
    config = opened.config
    if config.task == "language":
        _explain_text(opened, run, image, text)
        return
    if config.task != "classification" or config.classes is None or len(config.shape) != 3:
        raise UsageError(
            f"{run} has learnt {config.task} of inputs {config.shape}: explain is for images and "
            "their classes"
        )
    if image is None or text is not None:
        raise UsageError(
            f"{run} has learnt images: name one to explain, a .png or .npy file or test:17"
        )
    assert opened.inputs is not None
    truth = None
    if image.startswith("test:"):
        pixels, truth = _test_image(config, run, image)
        name = image.replace(":", "-")
    else:
        pixels = pictures.read_image(Path(image), config.shape)
        name = Path(image).name.replace(".", "-")  # x.png and x.npy have a folder each
    subject = pictures.Subject(
        opened.model, pixels, opened.inputs, config.classes, config.device, truth
    )
    _check_numbers(subject.probabilities, run)
    files = pictures.explain(subject, run / "explain" / name)
    screen.show_explanation(subject, files)


def _explain_text(opened: OpenedRun, run: Path, image: str | None, text: str | None) -> None:
    """Attention in `text`; without one, in what was held out."""
    from framework import explain as pictures, screen

    assert opened.tokenizer is not None
    if image is not None:
        raise UsageError(f"{run} has learnt a language: explain it by --text, not on {image}")
    if not pictures.has_attention(opened.model):
        raise UsageError(
            f"{run} is a {opened.config.model}, which has no attention to look at: explain is for "
            "transformers, such as gpt, and for classifiers of images"
        )
    ids = splits_of(opened.config, run).test.ids if text is None else opened.tokenizer.encode(text)
    if not len(ids):
        raise UsageError(f"--text {text!r} has no tokens, expected at least one")
    subject = pictures.TextSubject(opened.model, ids, opened.tokenizer, opened.config.device)
    files = pictures.explain(subject, run / "explain" / ("text" if text else "test"))
    screen.show_files_written(files)


def _test_image(config: RunConfig, run: Path, image: str) -> tuple[Any, int]:
    """The image that test:N names, and its class."""
    test = splits_of(config, run).test
    number = image.removeprefix("test:")
    if not number.isdecimal() or int(number) >= len(test):
        raise UsageError(f"{image}: expected test:0 to test:{len(test) - 1}")
    pixels, labels = test.batch([int(number)])
    return pixels[0], int(labels[0])


@app.command()
@one_line_errors
def generate(
    run: Run,
    prompt: Annotated[
        str | None, typer.Option(help="What the text begins with.", show_default="a new line")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 500,
    temperature: Annotated[
        float, typer.Option(help="Below 1 safer, above 1 wilder; 0: always the most probable.")
    ] = 0.8,
    top_k: Annotated[
        int | None,
        typer.Option(help="Only so many of the most probable tokens.", show_default="all"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Only the most probable ones of this probability.", show_default="all"),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: what was written already becomes less probable.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Another one, another text.")] = 0,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Write text with a trained language model, as it comes."""
    from framework import screen
    from framework.generation import generate_text
    from framework.trainer.run import opening

    opened = _opened(run, device)
    if opened.tokenizer is None:
        raise UsageError(f"{run} has learnt {opened.config.task}, no language: it has predict")
    if prompt is None:
        prompt = opening(opened.tokenizer)
    pieces = expect(
        lambda: generate_text(
            opened.model,
            opened.tokenizer,
            prompt,
            tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
    )
    screen.write_text(prompt, pieces)


@app.command(name="models")
@one_line_errors
def list_models(debug: Debug = False) -> None:
    """List the families of the zoo and their settings, the recipe's settings, and the data sets."""
    from framework import screen
    from framework.data import CATALOG, CORPORA
    from framework.trainer.run import Recipe
    from models import ZOO

    known = {**CATALOG, **CORPORA}
    screen.show_models(ZOO, Recipe, {name: entry.summary for name, entry in known.items()})


@app.command()
@one_line_errors
def doctor(debug: Debug = False) -> None:
    """Say what this machine has: versions, devices, libraries, and which version of each kernel
    runs.
    """
    from framework import doctor as examination

    examination.report()


# Using a run --------------------------------------------------------------------------------------


def _opened(folder: Path, device: str | None) -> OpenedRun:
    """A trained model and what belongs to it, on the device that was asked for."""
    import framework as fw
    from models import open_run

    on = place(device)
    fw.set_default_device(on)
    return open_run(folder, on)


def _check_numbers(values: Any, run: Path) -> None:
    """NonFiniteError where a model's outputs are none."""
    import numpy as np

    from framework.trainer import NonFiniteError

    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"the model of {run} makes NaN or infinity of this: it has not learnt, or broke"
        )


def _say_if_elsewhere(x: Any, trained_on: tuple[float, float]) -> None:
    """A note where inputs are not on the scale that the model was trained on."""
    low, high = trained_on
    slack = 0.1 * (high - low)
    if x.min() < low - slack or x.max() > high + slack:
        print(
            f"note: inputs from {x.min():g} to {x.max():g}; "
            f"the model was trained on {low:g} to {high:g}",
            file=sys.stderr,
        )


def _check_writable(file: Path) -> None:
    """FileError where `file` cannot be written, before there is anything to write."""
    from framework.interop.atomic import FileError

    if file.exists() and not file.is_file():
        raise FileError(f"cannot write {file}: it is no file")
    if not file.parent.is_dir():
        raise FileError(f"cannot write {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise FileError(f"cannot write {file}: the folder {file.parent} is not writable")


def main() -> None:
    """The entry point of ``python -m framework`` and of the ``framework`` script."""
    for closed in ("stdout", "stderr"):
        if getattr(sys, closed) is None:  # by whoever started the process: >&-
            setattr(sys, closed, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where the encoding lacks a character
    if threading.current_thread() is threading.main_thread():
        for signal_name in ("SIGTERM", "SIGHUP"):  # the latter not on Windows
            number = getattr(signal, signal_name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)  # ends as Ctrl-C does
    name = "python -m framework" if Path(sys.argv[0]).name == "__main__.py" else None
    sys.stdout = output.Named(sys.stdout, "standard output")
    try:
        app(prog_name=name)
    except OSError as error:  # --help, which is no command's
        if "--debug" in sys.argv:
            raise
        sys.exit(_refused(error))
    finally:
        for stream in (sys.stdout, sys.stderr):
            output.leave_out_the_rest(stream)


if __name__ == "__main__":
    main()
