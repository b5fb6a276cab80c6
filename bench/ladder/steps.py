"""What there is: operations with their arguments and their truth, and the steps of each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kernels.registry import Draw

FOLDER = Path(__file__).parent
DEVICES = ("cpu", "cuda")

#: Rows x columns. On the CPU 16 MB an array, beyond the caches of a core; on CUDA 64 MB, of which
#: several are used in turn, because an L2 holds 50.
SIZES = {"cpu": (4096, 1024), "cuda": (16_384, 1024)}

#: What layer norm adds to the variance; the steps have it in their text.
EPS = 1e-5


@dataclass(frozen=True)
class Operation:
    """A function of x (rows, columns), float32."""

    name: str
    #: (draw, rows, columns) -> float64 arguments, x first
    draw: Callable[[Draw, int, int], tuple[np.ndarray, ...]]
    #: The definition, in float64.
    truth: Callable[..., np.ndarray]

    def arguments(self, rows: int, columns: int) -> tuple[np.ndarray, ...]:
        """The same float32 arrays in every process."""
        return tuple(a.astype(np.float32) for a in self.draw(Draw(4), rows, columns))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt(x.var(axis=1, keepdims=True) + EPS) * weight + bias


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("softmax", lambda draw, r, c: (draw.normal(r, c, scale=3.0),), _softmax),
        Operation(
            "layer_norm",
            lambda draw, r, c: (draw.normal(r, c) + 1.5, draw.normal(c), draw.normal(c)),
            _layer_norm,
        ),
        Operation("transpose", lambda draw, r, c: (draw.normal(r, c),), lambda x: x.T),
    )
}


@dataclass(frozen=True)
class Step:
    """A file of the ladder."""

    operation: str
    device: str
    number: int
    path: Path

    def __str__(self) -> str:
        return f"step {self.number}"

    @cached_property
    def source(self) -> str:
        """The whole text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def header(self) -> str:
        """The comment at the top."""
        if self.path.suffix == ".py":
            return ast.get_docstring(ast.parse(self.source)) or ""
        lines = self.source.splitlines()
        end = next(i for i, line in enumerate(lines) if not line.startswith("//"))
        return "\n".join(line.removeprefix("//").removeprefix(" ") for line in lines[:end])

    @property
    def idea(self) -> str:
        """A few words: what follows the colon in the header's first line."""
        return self.header.partition("\n")[0].partition(": ")[2].removesuffix(".")

    @property
    def module(self) -> str:
        """The import name of a step in Python."""
        return f"bench.ladder.{self.operation}.{self.path.stem}"


def steps(operation: str, device: str) -> list[Step]:
    """The steps of an operation in their order."""
    found = []
    for path in (FOLDER / operation).iterdir():
        if match := re.fullmatch(rf"{device}_(\d+)_\w+\.(py|cu)", path.name):
            found.append(Step(operation, device, int(match[1]), path))
    return sorted(found, key=lambda step: step.number)
