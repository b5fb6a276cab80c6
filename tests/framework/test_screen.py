"""What the commands show, on screens of several widths."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

import framework as fw
from framework import screen
from framework.trainer.run import Recipe
from models import GPT, ZOO, GPTConfig


@pytest.fixture
def of_width(monkeypatch):
    """Called with a width: the console has it."""

    def make(width, terminal=False):
        console = Console(width=width, force_terminal=terminal, highlight=False)
        monkeypatch.setattr(screen, "console", lambda: console)

    return make


@pytest.mark.parametrize(
    ("width", "columns"),
    [(120, "layer type output parameters multiply-adds"), (80, "layer output parameters"
     " multiply-adds"), (60, "layer output parameters"), (40, "layer output parameters")],
)  # fmt: skip
def test_every_layer_is_a_line(of_width, capsys, width, columns):
    of_width(width)
    model = GPT(GPTConfig(vocabulary=103, block=64, depth=2, heads=4, width=128))
    ids = fw.tensor(np.zeros((1, 64), np.int64))
    screen.show_summary(model, ids)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].split() == columns.split()
    rows = lines[2:-1]
    assert len(rows) == sum(1 for row in model.summary(ids).rows if row.parameters)
    assert max(map(len, lines)) <= width
    assert "blocks.each.0.attention.qkv" in rows[3] if width > 40 else "…n.qkv" in rows[3]
    norm2 = next(row for row in rows if "norm2" in row)  # within the sum before it
    assert norm2.split()[-1] == "128"


def test_the_middle_of_a_long_name_goes():
    assert screen.shortened("blocks.each.0.attention", 23) == "blocks.each.0.attention"
    assert screen.shortened("blocks.each.0.attention", 10) == "bloc…ntion"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\nThe cat sat on the ma", "The cat sat on the …"),
        ("a line\nand anoth", "a line\nand …"),
        ("unbroken", "unbroken …"),
        ("to the end\n", "to the …"),
    ],
)
def test_a_sample_ends_with_a_whole_word(of_width, capsys, text, shown):
    of_width(80)
    screen.show_sample(3, text)
    assert capsys.readouterr().out == f"after epoch 3 it writes\n{shown}\n\n"


def test_models_shows_what_each_setting_can_be(of_width, capsys):
    of_width(200)
    screen.show_models(ZOO, Recipe, {})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "activation gelu, gelu_tanh, relu, swiglu gelu_tanh" in lines
    assert any(line.startswith("activation relu, leaky_relu, gelu, silu") for line in lines)
    assert "precision float32, tf32, bf16-mixed, fp16-mixed float32" in lines
    kinds = {"name", "number", "integer", "integers", "true", "none"}
    settings = [line.split() for line in lines if line.split()[:1] == ["activation"]]
    assert settings
    assert not any(kinds & set(words) for words in settings)
