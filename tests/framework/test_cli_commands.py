"""The commands as a user calls them, in processes of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment():
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "FRAMEWORK_DEVICE": "cpu"}


def command(*args):
    return [sys.executable, "-m", "framework", *map(str, args)]


def call(folder, *args, code=0):
    result = subprocess.run(
        command(*args), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == code, result.stderr + result.stdout
    return result


@pytest.fixture(autouse=True, scope="module")
def ctrl_c_is_not_ignored():
    """Under nohup and in background jobs of scripts SIGINT is ignored, and children inherit that;
    a handler is not inherited.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def trained(folder):
    """``train mlp`` without options: its output and its run folder."""
    return call(folder, "train", "mlp"), folder / "runs" / "mlp-digits-seed0"


def test_the_first_command_learns_to_read_digits(trained):
    result, run = trained
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("test accuracy 0.9")
    assert len(lines[-1].split()[-1]) == len("0.9xxx")
    assert float(lines[-1].split()[-1]) >= 0.975
    assert result.stderr == ""
    for shown in ("device", "cpu", "UCI handwritten digits", "blocks.0.linear", "epoch 40/40"):
        assert shown in result.stdout
    files = {file.name for file in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "model.safetensors"} <= files
    assert files - {"curves.png"} == {"config.json", "metrics.jsonl", "model.safetensors"}


def test_the_run_folder_tells_everything(trained):
    _, run = trained
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == "mlp"
    assert config["dataset"] == "digits"
    assert config["recipe"]["epochs"] == 40
    assert config["versions"]["numpy"] == np.__version__
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 41))
    assert {"loss", "accuracy", "test_loss", "test_accuracy", "lr"} <= set(records[0])
    assert records[-1]["loss"] < 0.1 * records[0]["loss"]


def test_evaluate_gives_the_same_number(trained, folder):
    result, run = trained
    shown = call(folder, "evaluate", run).stdout
    assert shown.splitlines()[-1] == result.stdout.splitlines()[-1]
    assert "precision" in shown


def test_predict(trained, folder):
    from framework.data import load

    _, run = trained
    images, labels = load("digits", 0).test[np.arange(40)]
    np.save(folder / "images.npy", images)
    shown = call(folder, "predict", run, "images.npy", "--out", "p.npy").stdout
    columns, *lines = shown.splitlines()
    assert columns.split("\t") == ["sample", "class", "probability", "next"]
    found = np.array([int(line.split("\t")[1]) for line in lines])
    assert (found == labels).mean() > 0.9
    probabilities = np.load(folder / "p.npy")
    assert probabilities.shape == (40, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), found)
    np.save(folder / "one.npy", images[3, 0] * 16)
    one = call(folder, "predict", run, "one.npy")
    assert one.stdout.count("\n") == 2
    assert "the model was trained on 0 to 1" in one.stderr


OPTIONS = ["train", "mlp", "--epochs", "4", "--seed", "7", "--quiet", "--set", "hidden=24"]


@pytest.fixture(scope="module")
def short(folder):
    """A run of four epochs."""
    result = call(folder, *OPTIONS, "--out", "short")
    assert result.stdout.startswith("test accuracy")
    assert result.stdout.count("\n") == 1
    return folder / "short"


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "samples_per_second")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def test_one_seed_one_result_whatever_the_threads(short, folder, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    call(folder, *OPTIONS, "--out", "again")
    again = folder / "again"
    assert (short / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert records(short) == records(again)


INTERRUPT = """
import signal, sys, os
from framework.trainer.callbacks import JSONLLog
write = JSONLLog.on_epoch_complete
def interrupt(self, trainer):
    write(self, trainer)
    if trainer.epoch == 3:
        os.kill(os.getpid(), signal.SIGINT)
JSONLLog.on_epoch_complete = interrupt
sys.argv = ["framework", *sys.argv[1:]]
from framework.cli import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is POSIX")
def test_interrupted_and_resumed_is_the_same_run(short, folder):
    """Ctrl-C in the third epoch's end."""
    arguments = [*OPTIONS, "--out", "parts"]
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPT, *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert stopped.returncode == 130
    assert "Traceback" not in stopped.stderr
    assert "stopped after step 69, saved in parts/checkpoints" in stopped.stderr
    assert "python -m framework train mlp --resume parts" in stopped.stderr
    done = call(folder, "train", "mlp", "--resume", "parts")
    assert "going on after epoch 3" in done.stdout
    parts = folder / "parts"
    assert (short / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert records(short) == records(parts)
    assert not (parts / "checkpoints").exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is POSIX")
def test_a_complete_run_is_trained_on(folder):
    """And, where that is interrupted, goes on as if it had not been."""
    call(folder, *OPTIONS, "--epochs", "2", "--out", "two")
    shutil.copytree(folder / "two", folder / "whole five")
    more = ["train", "--resume", "two", "--epochs", "5"]
    shown = call(folder, "train", "--resume", "whole five", "--epochs", "5").stdout
    assert (
        "going on after epoch 2; the learning rate follows the schedule of 5 epochs now, not of 2, "
        "and AdamW starts anew\n"
    ) in shown
    whole, parts = folder / "whole five", folder / "two"
    assert json.loads((whole / "config.json").read_text())["recipe"]["epochs"] == 5
    found = records(whole)
    assert [record["epoch"] for record in found] == [1, 2, 3, 4, 5]
    assert found[:2] == records(parts)
    assert found[2]["lr"] > found[1]["lr"]
    assert found[4]["step"] * 2 == found[1]["step"] * 5
    assert found[4]["loss"] < found[1]["loss"]
    assert not (whole / "checkpoints").exists()
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPT.replace("== 3", "== 4"), *more],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped after step 92, saved in two/checkpoints" in stopped.stderr
    shutil.copytree(parts, folder / "six")
    shown = call(folder, "train", "--resume", "six", "--epochs", "6").stdout
    assert "of 6 epochs now, not of 5\n" in shown  # its AdamW goes on
    assert len(records(folder / "six")) == 6
    call(folder, "train", "--resume", "two")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert records(whole) == records(parts)


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is POSIX")
@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
def test_mixed_precision_is_kept_and_gone_on_with(folder, precision):
    options = ["train", "mlp", "--precision", precision, "--epochs", "4", "--set", "hidden=32"]
    whole, parts = folder / f"whole {precision}", folder / f"parts {precision}"
    shown = call(folder, *options, "--out", whole).stdout
    assert f"seed 0 · {precision}" in shown
    assert float(shown.split()[-1]) > 0.9
    assert json.loads((whole / "config.json").read_text())["recipe"]["precision"] == precision
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPT, *options, "--out", str(parts)],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert stopped.returncode == 130, stopped.stderr
    call(folder, "train", "--resume", parts)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert records(whole) == records(parts)
    assert call(folder, "evaluate", parts).stdout.split()[-1] == shown.split()[-1]
    from framework.data import load

    digits = load("digits", seed=0).test.batch(np.arange(20))[0]
    np.save(folder / "digits.npy", digits)
    call(folder, "predict", parts, "digits.npy", "--out", "probabilities.npy")
    assert np.load(folder / "probabilities.npy").dtype == np.float32


END = """
import sys
from framework.trainer.callbacks import CurvePlot
def interrupt(self, trainer):
    raise KeyboardInterrupt
CurvePlot.on_fit_end = interrupt
sys.argv = ["framework", *sys.argv[1:]]
from framework.cli import main
main()
"""


@pytest.mark.parametrize(
    "more", [[], ["--epochs", "60", "--set", "patience=2"]], ids=["epochs", "patience"]
)
def test_killed_after_the_last_epoch_and_resumed(folder, more):
    """The best epoch's weights all the same, and no epoch more."""
    options = ["train", "mlp", "--dataset", "moons", "--lr", "0.3", "--quiet"]
    options += ["--set", "validation=0.2", "--set", "hidden=8", *more]
    name = f"end {len(more)}"
    call(folder, *options, "--out", f"{name} whole")
    stopped = subprocess.run(
        [sys.executable, "-c", END, *options, "--out", f"{name} parts"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert stopped.returncode == 130
    assert f"--resume '{name} parts'" in stopped.stderr
    call(folder, "train", "--resume", f"{name} parts")
    whole, parts = folder / f"{name} whole", folder / f"{name} parts"
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert records(whole) == records(parts)
    assert not (parts / "checkpoints").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_at_any_moment(folder, name):
    """Also where the screen is gone before, as it is when a terminal closes."""
    number = getattr(signal, name)
    process = subprocess.Popen(
        command("train", "mlp", "--epochs", "2000", "--out", f"long{number}"),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if name == "SIGHUP":
        process.stdout.close()
        process.stdout = None
    log = folder / f"long{number}" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"--resume long{number}" in errors
    assert f"saved in long{number}/checkpoints" in errors
    gone = "cannot print any more: Broken pipe; training goes on\n"
    assert errors.count(gone) == (name == "SIGHUP")
    assert list((folder / f"long{number}" / "checkpoints").glob("checkpoint-*"))


def into(folder, stdout, *args):
    """Exit code and stderr of a command, the output of which `stdout` takes."""
    result = subprocess.run(
        command(*args), cwd=folder, env=environment(), stdout=stdout, stderr=subprocess.PIPE,
        text=True, timeout=300,
    )  # fmt: skip
    return result.returncode, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a /dev/full")
def test_output_on_a_full_disk(folder):
    """A result that cannot be printed is an error; what training shows on its way is not."""
    train = ["train", "mlp", "--epochs", 1, "--set", "hidden=8", "--device", "cpu"]
    full = "No space left on device"
    with open("/dev/full", "w") as stdout:
        assert into(folder, stdout, *train, "--quiet", "--out", "full") == (
            2, f"error: standard output: {full}\n",
        )  # fmt: skip
        for args in (["evaluate", "full"], ["models"], ["--help"]):
            assert into(folder, stdout, *args) == (2, f"error: standard output: {full}\n"), args
        assert into(folder, stdout, *train, "--out", "full2") == (
            0, f"cannot print any more: {full}; training goes on\n",
        )  # fmt: skip
        # stderr is full too: the exit code says it
        for args, code in ((["evaluate", "nowhere"], 2), (["evaluate", "full"], 2)):
            result = subprocess.run(
                command(*args), cwd=folder, env=environment(), stdout=stdout, stderr=stdout
            )
            assert result.returncode == code
    for name in ("full", "full2"):
        assert call(folder, "evaluate", name).stdout.splitlines()[-1].startswith("test accuracy")


@pytest.mark.skipif(os.name == "nt", reason="pipes are POSIX")
def test_a_reader_that_has_read_enough(folder, trained):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert into(folder, writing, "models") == (1, "")
        assert into(folder, writing, "evaluate", trained[1]) == (1, "")
        assert into(
            folder, writing, "train", "--epochs", 1, "--set", "hidden=8", "--out", "head"
        ) == (0, "cannot print any more: Broken pipe; training goes on\n")
    finally:
        os.close(writing)
    assert (folder / "head" / "model.safetensors").is_file()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_during_the_imports(folder):
    """The signal comes as soon as numpy is being imported."""
    (folder / "early").mkdir()
    (folder / "early" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'numpy':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    paths = os.pathsep.join([str(folder / "early"), environment()["PYTHONPATH"]])
    result = subprocess.run(
        command("models"),
        cwd=folder, env=environment() | {"PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_what_the_imports_refuse_is_one_line(folder):
    (folder / "shadow" / "models").mkdir(parents=True)
    (folder / "shadow" / "models" / "__init__.py").write_text("")
    paths = os.pathsep.join([str(folder / "shadow"), environment()["PYTHONPATH"]])
    for setting, message in (
        ({"FRAMEWORK_KERNELS": "foo"}, "FRAMEWORK_KERNELS='foo': expected"),
        ({"PYTHONPATH": paths}, "the package 'models' in"),
    ):
        result = subprocess.run(
            command("models"),
            cwd=folder, env=environment() | setting, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: ")
        assert message in result.stderr


def test_output_that_is_not_unicode(folder):
    result = subprocess.run(
        command("train", "mlp", "--epochs", "1", "--out", "ascii"),
        cwd=folder, env=environment() | {"PYTHONIOENCODING": "ascii"}, capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert b"test accuracy" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_run_without_a_screen(folder):
    """Both streams closed, as some schedulers start processes; nothing of it goes into a file."""
    line = shlex.join(command("train", "mlp", "--epochs", "1", "--out", "dark")) + " >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=folder, env=environment()).returncode == 0
    assert json.loads((folder / "dark" / "config.json").read_text())["model"] == "mlp"
    assert (folder / "dark" / "model.safetensors").is_file()


def test_regression_and_validation(folder):
    result = call(
        folder, "train", "mlp", "--dataset", "regression", "--epochs", "30", "--out", "r",
        "--set", "validation=0.2", "--set", "patience=3", "--set", "norm=none",
        "--set", "dropout=0",
    )  # fmt: skip
    last = result.stdout.splitlines()[-1]
    assert last.startswith("test r2 0.")
    assert float(last.split()[-1]) > 0.8
    assert call(folder, "evaluate", "r").stdout.splitlines()[-1] == last
    assert "validation_loss" in records(folder / "r")[0]
    from framework.data import load

    data = load("regression", 0).test
    x, t = data[np.arange(len(data))]
    np.save(folder / "x.npy", x)
    columns, *lines = call(folder, "predict", "r", "x.npy").stdout.splitlines()
    assert columns == "sample\tvalue"
    values = np.array([float(line.split("\t")[1]) for line in lines])
    assert np.corrcoef(values, t[:, 0])[0, 1] > 0.9
    assert abs(values.mean() - t.mean()) < 1  # on the scale of the data


def test_models_and_doctor(folder):
    shown = call(folder, "models").stdout
    for word in ("mlp", "hidden", "128,128", "label_smoothing", "fashion-mnist"):
        assert word in shown
    shown = call(folder, "doctor").stdout
    for word in ("python", "numpy", "cpu features", "kernel cache", "softmax", "numba", "compiled"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_doctor_says_how_to_get_what_is_missing(monkeypatch, capsys):
    from framework import doctor, screen

    screen.console.cache_clear()
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "matplotlib" else "1.0")
    screen.console().print(doctor.libraries())
    assert "pip install matplotlib" in capsys.readouterr().out
    screen.console.cache_clear()


def test_every_kernel_is_in_the_doctors_table():
    from framework import doctor
    from kernels.registry import all_kernels

    table = doctor.kernel_table()
    text = " ".join(str(cell) for cell in table.columns[3].cells)
    for name in all_kernels():
        assert name in text
    assert doctor.on_cpu(all_kernels()["permutation"]) == "numba"
    assert doctor.on_cuda(all_kernels()["permutation"]) == "compiled"
    kinds = {doctor.on_cpu(k) for k in all_kernels().values()}
    assert kinds <= {"numba", "reference"}
    assert {doctor.on_cuda(k) for k in all_kernels().values()} <= {
        "compiled", "generated", "reference", "cuBLASLt", "CuPy",
    }  # fmt: skip
    assert doctor.on_cuda(all_kernels()["relu"]) == "generated"


@pytest.mark.parametrize("installed", [True, False])
def test_doctor_knows_what_multiplies(installed, monkeypatch, capsys):
    from framework import doctor, screen
    from kernels.cuda import cublaslt
    from kernels.registry import all_kernels

    found = "no cuBLASLt library"
    if installed:
        found = SimpleNamespace(cublasLtGetVersion=lambda: 131000)
    monkeypatch.setattr(cublaslt, "_found", lambda: found)
    for name in ("matmul", "linear_gelu"):
        assert doctor.on_cuda(all_kernels()[name]) == ("cuBLASLt" if installed else "CuPy")
    screen.console.cache_clear()
    screen.console().print(doctor.libraries())
    shown = capsys.readouterr().out
    screen.console.cache_clear()
    assert "cuBLASLt" in shown
    assert ("13.10.0" in shown) == installed
    assert ("pip install nvidia-cublas" in " ".join(shown.split())) != installed


def test_help_is_there_at_once(folder):
    start = time.perf_counter()
    shown = call(folder, "--help").stdout
    seconds = time.perf_counter() - start
    for name in ("train", "evaluate", "predict", "models", "doctor"):
        assert name in shown
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, framework.cli; print(*sys.modules)"],
        env=environment(), capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert not {"numba", "matplotlib", "cupy", "models"} & set(loaded)
    assert seconds < 20  # what it imports says more than a clock on a busy machine
