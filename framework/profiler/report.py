"""A profile as rows and as tables."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.profiler.spans import Span

if TYPE_CHECKING:
    from framework.profiler.profile import Profile

#: The row of what belongs to no layer: the loss function, say.
OUTSIDE = "(outside layers)"


@dataclass
class LayerRow:
    """Seconds of a layer, without those of the layers inside it."""

    name: str
    kind: str = ""
    calls: int = 0
    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass
class KernelRow:
    """Calls and seconds of a kernel, without those of the kernels that it calls."""

    name: str
    calls: int = 0
    seconds: float = 0.0


@dataclass
class PhaseRow:
    """Seconds of a part of the work. On CUDA those of the device."""

    name: str
    calls: int = 0
    seconds: float = 0.0


def _own(profile: Profile, spans: list[Span]) -> dict[int, int]:
    """By id: the nanoseconds of each span without those of the others directly inside it."""
    found = {id(span): profile.nanoseconds(span) for span in spans}
    for span in spans:
        if span.parent is not None and id(span.parent) in found:
            found[id(span.parent)] -= profile.nanoseconds(span)
    return found


def _is_node(span: Span) -> bool:
    return span.category == "autograd" and span.detail == "node"


def layers(profile: Profile) -> list[LayerRow]:
    """See `Profile.layers`."""
    rows: dict[str, LayerRow] = {}
    timed = [span for span in profile.spans if span.category == "layer" or _is_node(span)]
    own = _own(profile, timed)
    for span in timed:
        name = span.layer or OUTSIDE
        row = rows.setdefault(name, LayerRow(name))
        if span.category == "layer":
            row.kind = span.detail
            row.calls += 1
            row.forward += own[id(span)] / 1e9
        else:
            row.backward += own[id(span)] / 1e9
    for span in profile.spans:
        # kernels that are called by the training step itself: those of the loss and of metrics
        if span.category == "kernel" and profile.is_outermost(span):
            row = rows.setdefault(OUTSIDE, LayerRow(OUTSIDE))
            row.forward += profile.nanoseconds(span) / 1e9
    return sorted(rows.values(), key=lambda row: -row.total)


def kernels(profile: Profile) -> list[KernelRow]:
    """See `Profile.kernels`."""
    rows: dict[str, KernelRow] = {}
    called = [span for span in profile.spans if span.category == "kernel"]
    own = _own(profile, called)
    for span in called:
        row = rows.setdefault(span.name, KernelRow(span.name))
        row.calls += 1
        row.seconds += own[id(span)] / 1e9
    return sorted(rows.values(), key=lambda row: -row.seconds)


def phases(profile: Profile) -> list[PhaseRow]:
    """See `Profile.phases`."""
    rows: dict[str, PhaseRow] = {}
    outermost = [span for span in profile.spans if profile.is_outermost(span)]
    own = _own(profile, outermost)
    for span in outermost:
        name = "rest of the steps" if profile.is_step(span) else _phase(span)
        row = rows.setdefault(name, PhaseRow(name))
        row.calls += 1
        row.seconds += own[id(span)] / 1e9
    return sorted(rows.values(), key=lambda row: -row.seconds)


def _phase(span: Span) -> str:
    if span.category == "step":
        return "optimizer"
    if span.category == "kernel":
        return "loss, metrics, others"
    return {"layer": "forward", "autograd": "backward", "data": "data"}[span.category]


# Tables -------------------------------------------------------------------------------------------


def tables(profile: Profile, limit: int | None = None) -> list[Any]:
    """Layers, kernels, phases, and a line about time and memory."""
    rows, called, parts = layers(profile), kernels(profile), phases(profile)
    return [
        _table(
            ("layer", "type", "calls", "forward ms", "backward ms", "share"),
            [(r.name, r.kind, f"{r.calls:,}", _ms(r.forward), _ms(r.backward)) for r in rows],
            [r.total for r in rows],
            limit,
            texts=2,
        ),
        _table(
            ("kernel", "calls", "total ms", "mean us", "share"),
            [
                (r.name, f"{r.calls:,}", _ms(r.seconds), f"{r.seconds / r.calls * 1e6:.1f}")
                for r in called
            ],
            [r.seconds for r in called],
            limit,
        ),
        _table(
            ("phase", "calls", "total ms", "share"),
            [(r.name, f"{r.calls:,}", _ms(r.seconds)) for r in parts],
            [r.seconds for r in parts],
            None,
        ),
        _facts(profile),
    ]


def _facts(profile: Profile) -> str:
    before, after, most = profile.memory
    whose = "live arrays" if profile.clock is not None else "the process"
    clock = f"times of {profile.device if profile.clock is not None else 'the host'}"
    return (
        f"{profile.seconds * 1e3:,.1f} ms recorded; {clock}, each without what is inside it; "
        f"shares of the rows above. Memory of {whose}: {_mib(before)} before, "
        f"{_mib(after)} after, {_mib(most)} at most."
    )


def _table(
    columns: tuple[str, ...],
    rows: list[tuple[str, ...]],
    seconds: list[float],
    limit: int | None,
    texts: int = 1,
) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    out = Table(box=box.SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False)
    for i, column in enumerate(columns):
        if i < texts:
            out.add_column(column, overflow="fold")
        else:
            out.add_column(column, justify="right", no_wrap=True)
    whole = sum(seconds) or 1.0
    shown = len(rows) if limit is None else limit
    for cells, part in list(zip(rows, seconds, strict=True))[:shown]:
        out.add_row(*map(escape, cells), f"{part / whole:.1%}")
    if len(rows) > shown:
        rest = sum(seconds[shown:])
        blank = [""] * (len(columns) - 2)
        out.add_row(f"[dim]{len(rows) - shown} more[/]", *blank, f"{rest / whole:.1%}")
    return out


def text(profile: Profile, width: int) -> str:
    """All tables as plain text, no line longer than `width`."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    for part in tables(profile):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
