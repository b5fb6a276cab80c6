"""What an installation carries: every package, its data, its licence, its type marks."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SHIPPED = ("framework", "kernels", "models")


def test_every_package_is_shipped():
    inits = [p for top in SHIPPED for p in (ROOT / top).rglob("__init__.py")]
    there = {".".join(p.parent.relative_to(ROOT).parts) for p in inits}
    assert set(SETUPTOOLS["packages"]) == there


def test_package_data_is_there():
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / Path(*package.split("."))).glob(pattern)), (package, pattern)
    assert all("py.typed" in SETUPTOOLS["package-data"][top] for top in SHIPPED)


def test_the_licence_is_named_and_shipped():
    assert PROJECT["project"]["license"] == "MIT"
    first, second, *_ = PROJECT["project"]["license-files"]
    assert (ROOT / first).read_text(encoding="utf-8").startswith("MIT License\n")
    assert "CC BY 4.0" in (ROOT / second).read_text(encoding="utf-8")


def test_text_files_are_read_as_utf8_on_every_system():
    for path in (p for top in SHIPPED for p in (ROOT / top).rglob("*.py")):
        assert ".read_text()" not in path.read_text(encoding="utf-8"), path


def test_the_readme_has_the_commands_for_windows():
    assert ".venv\\Scripts\\python" in (ROOT / "README.md").read_text(encoding="utf-8")
