"""Imports point only down the house: kernels -> framework (leftwards along its arrow) -> models ->
cli.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Lowest first. A file may import from its own layer and from the ones before it.
LAYERS = [
    "kernels",
    "framework.guard",
    "framework.startup",
    "framework.output",
    "framework.waiting",
    "framework.backend",
    "framework.autograd",
    "framework.functional",
    "framework.layers",
    "framework.optimizers",
    "framework.data",
    "framework.interop",
    "framework.generation",
    "framework.profiler",
    "framework.trainer",
    "framework.explain",
    "models",
    "framework.planning",
    "framework.screen",
    "framework.doctor",
    "framework.training",
    "framework.cli",
    "framework.__main__",
]
OURS = ("kernels", "framework", "models", "bench", "tests")
#: framework/__init__.py is the front door: it re-exports and may name every layer of framework/.
FRONT_DOOR = "framework"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int | None:
    matching = [i for i, name in enumerate(LAYERS) if (module + ".").startswith(name + ".")]
    return matching[0] if matching else None


def imports(path: Path) -> list[str]:
    """Every module that a file imports, also inside functions; ``from a import b`` counts as a.b if
    that is a module.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layers"
            for alias in node.names:
                inner = ROOT / Path(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.append(f"{node.module}.{alias.name}" if is_module else node.module)
    return [name for name in found if name.partition(".")[0] in OURS]


def sources() -> list[Path]:
    return sorted(
        p for top in ("kernels", "framework", "models") for p in (ROOT / top).rglob("*.py")
    )


def offences(path: Path, importer: str) -> list[str]:
    here = layer_of(importer)
    bad = []
    for name in imports(path):
        there = layer_of(name)
        if name == FRONT_DOOR and here is not None and here >= LAYERS.index("models"):
            continue  # models and the CLI use framework's public API
        if here is None or there is None or there > here:
            bad.append(f"{importer} imports {name}")
    return bad


def test_no_import_points_up():
    bad = [o for p in sources() if (m := module_name(p)) != FRONT_DOOR for o in offences(p, m)]
    assert not bad, "\n".join(bad)


def test_every_file_has_a_layer():
    lost = [m for p in sources() if layer_of(m := module_name(p)) is None and m != FRONT_DOOR]
    assert not lost, f"not in LAYERS: {lost}"


def test_nothing_imports_bench_tests_or_the_cli():
    for path in sources():
        for name in imports(path):
            assert not name.startswith(("bench", "tests")), f"{path} imports {name}"
            if not module_name(path).startswith(("framework.cli", "framework.__main__")):
                assert not name.startswith("framework.cli"), f"{path} imports {name}"


def test_the_check_finds_an_upward_import(tmp_path):
    file = tmp_path / "planted.py"
    file.write_text("def f():\n    from framework.trainer import trainer\n")
    assert offences(file, "framework.layers.planted") == [
        "framework.layers.planted imports framework.trainer.trainer"
    ]


def test_import_opens_nothing_and_loads_no_engine():
    code = (
        "import sys, framework\n"
        "heavy = ('numba', 'cupy', 'matplotlib', 'rich', 'typer', 'torch')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["kernels", "models"])
def test_a_foreign_package_is_refused_by_name(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import framework"
    out = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert out.returncode == 1
    last = out.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: the package '{name}' in {tmp_path / name}")
    assert "virtual environment" in last


@pytest.mark.parametrize("name", ["kernels", "models"])
@pytest.mark.parametrize("impostor", ["{name}.py", "{name}/__init__.py"])
def test_a_foreign_package_inside_the_root_is_refused_too(tmp_path, monkeypatch, name, impostor):
    from types import SimpleNamespace

    from framework import guard

    root = tmp_path.resolve()
    monkeypatch.setattr(guard, "__file__", str(root / "framework" / "guard.py"))
    monkeypatch.setattr(guard, "NEIGHBOURS", (name,))
    place = root / name / "__init__.py"
    finder = SimpleNamespace(find_spec=lambda _: SimpleNamespace(origin=str(place)))
    monkeypatch.setattr(guard, "importlib", SimpleNamespace(util=finder))
    guard.refuse_shadowed_packages()
    place = root / "sub" / impostor.format(name=name)
    monkeypatch.setattr(guard, "_owner", lambda _: "")
    with pytest.raises(ImportError, match=f"the package '{name}' in .*sub.* shadows"):
        guard.refuse_shadowed_packages()
