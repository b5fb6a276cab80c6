"""Nothing that the framework reads can run code: its source has no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Modules that run what they read, or a shell.
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "pty",
    "code", "codeop", "runpy", "yaml",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "input"}
METHODS = {
    "system",
    "popen",
    "execv",
    "execve",
    "spawnv",
    "extractall",
    "extract",
    "unpack_archive",
}

#: What may be there all the same, and why.
ALLOWED = {
    ("kernels/cpu/engine.py", "exec"): "loops made of the formulas in our own source",
    ("kernels/cpu/engine.py", "compile"): "the same",
    ("framework/doctor.py", "platform.system"): "the system's name",
}


def offences(path: Path, name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        what = ""
        if isinstance(node, ast.Import):
            what = next((a.name for a in node.names if a.name.split(".")[0] in MODULES), "")
        elif isinstance(node, ast.ImportFrom):
            what = node.module if (node.module or "").split(".")[0] in MODULES else ""
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS:
                what = function.id
            elif isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else ""
                if function.attr in METHODS:
                    what = f"{owner}.{function.attr}"
                pickles = owner in ("np", "numpy") and function.attr == "load"
                options = {k.arg: k.value for k in node.keywords}
                safe = options.get("allow_pickle")
                if pickles and not (isinstance(safe, ast.Constant) and safe.value is False):
                    what = "np.load without allow_pickle=False"
            if any(keyword.arg == "shell" for keyword in node.keywords):
                what = "shell="
        if what and (name, what) not in ALLOWED:
            found.append(f"{name}:{node.lineno}: {what}")
    return found


def test_no_pickle_no_eval_no_shell():
    sources = [p for top in ("kernels", "framework", "models") for p in (ROOT / top).rglob("*.py")]
    assert len(sources) > 100
    bad = [o for p in sources for o in offences(p, p.relative_to(ROOT).as_posix())]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import loads", "eval('1')", "exec(x)", "import os; os.system('x')",
     "np.load(f)", "np.load(f, allow_pickle=True)", "run(x, shell=True)", "tar.extractall('x')"],
)  # fmt: skip
def test_the_check_finds_each(tmp_path, code):
    (tmp_path / "a.py").write_text(code)
    assert offences(tmp_path / "a.py", "a.py")
