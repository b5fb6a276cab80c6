"""The table that `Module.summary` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from framework.autograd import Tensor, no_grad
from framework.backend.device import default_device
from framework.layers.module import Module

HEAD = ("layer", "type", "output", "parameters", "multiply-adds")


@dataclass
class Row:
    """One layer: its path, class, output shape (of its last call), own parameters and multiply-adds
    of all calls.

    Of a layer that its parent computes in a kernel of its own, such as a sum and its norm, `output`
    is empty.
    """

    name: str
    kind: str
    output: str = ""
    parameters: int = 0
    multiply_adds: int = 0

    def cells(self) -> tuple[str, ...]:
        """As a table shows it; what computes nothing, or elsewhere, has no number for it."""
        work = f"{self.multiply_adds:,}" if self.multiply_adds else ""
        return self.name, self.kind, self.output, f"{self.parameters:,}", work


@dataclass
class Summary:
    """Layers in the order of the module tree, and totals. ``str()`` gives a plain-text table."""

    title: str
    rows: list[Row] = field(default_factory=list)
    parameters: int = 0
    trainable: int = 0
    #: Multiply-add pairs of one forward pass of the given input, batch and all.
    multiply_adds: int = 0
    #: Bytes of all parameters and buffers.
    size: int = 0

    def __str__(self) -> str:
        head, body = HEAD, [row.cells() for row in self.rows]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = [self.title, _line(head, widths), "-" * (sum(widths) + 2 * (len(widths) - 1))]
        lines += [_line(cells, widths) for cells in body]
        lines.append(lines[2])
        frozen = f" ({self.trainable:,} trainable)" if self.trainable != self.parameters else ""
        lines.append(
            f"{self.parameters:,} parameters{frozen}, {_bytes(self.size)}, "
            f"{self.multiply_adds:,} multiply-adds"
        )
        return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Names to the left, numbers to the right."""
    padded = [
        c.ljust(w) if i < 3 else c.rjust(w)
        for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _bytes(n: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n} B"


def summarize(module: Module, inputs: Any) -> Summary:
    """See `Module.summary`."""
    args = _arguments(module, inputs)
    shapes = ", ".join(str(a.shape) for a in args)
    summary = Summary(f"{type(module).__name__} for input {shapes}")
    rows: dict[int, Row] = {}
    counted: set[int] = set()
    for path, m in module.named_modules():
        own = [p for _, p in m._own("parameter") if id(p) not in counted]
        counted.update(id(p) for p in own)
        row = rows[id(m)] = Row(
            path or "(root)", type(m).__name__, parameters=sum(p.size for p in own)
        )
        if own or not any(True for _ in m.children()):  # containers have no row of their own
            summary.rows.append(row)

    def note(m: Module, args: tuple[Any, ...], output: Any) -> None:
        row = rows[id(m)]
        row.output = _shapes(output)
        row.multiply_adds += m.multiply_adds(args, output)

    _run(module, args, note)
    parameters = list(module.parameters())
    summary.parameters = sum(p.size for p in parameters)
    summary.trainable = sum(p.size for p in parameters if p.requires_grad)
    summary.multiply_adds = sum(row.multiply_adds for row in rows.values())
    summary.size = sum(x.data.nbytes for x in [*parameters, *module.buffers()])
    return summary


def _run(module: Module, args: list[Tensor], note: Any) -> None:
    """One forward pass in evaluation mode with `note` as a hook on every module; modes are
    restored.
    """
    modes = [(m, m.training) for m in module.modules()]
    removers = [m.register_forward_hook(note) for m, _ in modes]
    try:
        with no_grad():
            module.eval()(*args)
    finally:
        for remove in removers:
            remove()
        for m, mode in modes:
            m.training = mode


def _arguments(module: Module, inputs: Any) -> list[Tensor]:
    if isinstance(inputs, list):
        if not inputs:
            raise ValueError(
                "summary: inputs=[], expected a shape or tensor for every argument of forward"
            )
        return [a for x in inputs for a in _arguments(module, x)]
    if isinstance(inputs, Tensor):
        return [inputs]
    if not isinstance(inputs, tuple) or not all(isinstance(n, int) and n >= 0 for n in inputs):
        raise TypeError(
            f"summary: inputs={inputs!r}, expected a shape with the batch axis such as (1, 784), "
            "a tensor, or a list of these"
        )
    first = next(module.parameters(), None)
    device = default_device() if first is None else first.device
    with device.context():
        dtype = np.dtype("float32") if first is None else first.dtype
        return [Tensor(device.module.zeros(inputs, dtype))]


def _shapes(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(output.shape)
    if isinstance(output, (tuple, list)):
        return ", ".join(_shapes(o) for o in output)
    return type(output).__name__
