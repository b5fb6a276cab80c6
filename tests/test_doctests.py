"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Examples (lines with a prompt) when this test was written; a fall means that some are not found.
AT_LEAST = 17


def modules() -> list[str]:
    """Every module with an example in its text."""
    found = []
    for path in sorted(
        p for t in ("framework", "kernels", "models") for p in (ROOT / t).rglob("*")
    ):
        if path.suffix == ".py" and ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def examples(module: str) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [t for t in finder.find(importlib.import_module(module)) if t.examples]


@pytest.mark.parametrize("module", modules())
def test_the_examples_are_true(module, capsys):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    tests = examples(module)
    assert tests, f"{module} holds >>> and no docstring with an example"
    for test in tests:
        runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out


def test_none_was_overlooked():
    assert sum(len(t.examples) for module in modules() for t in examples(module)) >= AT_LEAST


def test_a_wrong_example_would_be_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "planted", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, out=lambda _: None)
    assert runner.failures == 1
