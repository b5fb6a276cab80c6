"""`python -m bench compare`: what became faster or slower between two files, beyond the spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.measure import Spread
from bench.result_file import OURS, Entry, ResultFile, UnreadableResult

_CAPTION = """\
x: time after / time before, of medians; above 1 it became slower. fastest: the same of the fastest
iterations. x copy, x torch: the same with times counted in those of a plain copy, of torch in the
same run, so that a machine that is slower today cancels.
slower, faster: beyond {:g} times, p20-p80 apart, the fastest iteration moved along, and so did the
time counted in torch's. unclear: not all of that, or a run was disturbed by other processes."""


class DifferentMachines(UnreadableResult):
    """Two files whose times mean different things."""


@dataclass(frozen=True)
class Change:
    """A case in two runs: seconds before and after, and ratios of which 1 is "as before"."""

    entry: Entry
    side: str
    before: Spread
    after: Spread
    best: float | None
    to_copy: float | None
    to_torch: float | None
    verdict: str

    @property
    def ratio(self) -> float:
        """Above 1 it became slower."""
        return self.after.median / self.before.median

    def __str__(self) -> str:
        return str(self.entry) + ("" if self.side == "ours" else f" {self.side}")


@dataclass(frozen=True)
class Comparison:
    """All changes, the slowest first; cases in one file only; and what is no longer timed."""

    changes: list[Change]
    only_before: list[Entry] = field(default_factory=list)
    only_after: list[Entry] = field(default_factory=list)
    broken: list[Entry] = field(default_factory=list)

    @property
    def regressions(self) -> list[str]:
        """What a run should not have brought."""
        slower = [f"{c} {c.ratio:.2f}x" for c in self.changes if c.verdict == "slower"]
        return slower + [f"{entry} is not timed: {entry.problem}" for entry in self.broken]


def compare(
    before: ResultFile, after: ResultFile, threshold: float = 1.1, force: bool = False
) -> Comparison:
    """The cases of both; with `force` even of different machines. Raises UnreadableResult."""
    if before.kind != after.kind:
        raise UnreadableResult(
            f"{after.path}: kind {after.kind!r}, expected {before.kind!r} as in {before.path}"
        )
    if apart := differences(before, after):
        if not force:
            raise DifferentMachines(
                f"{before.path} and {after.path} are not of one machine: {'; '.join(apart)} "
                "(--force compares them all the same)"
            )
    old, new = ({e.key: e for e in file.entries} for file in (before, after))
    both = [(old[key], new[key]) for key in old if key in new]
    copies = before.copy_bandwidth, after.copy_bandwidth
    drift = copies[1] / copies[0] if copies[0] and copies[1] else None
    changes = [
        _change(a, b, side, threshold, drift)
        for a, b in both
        for side in OURS
        if side in a.seconds and side in b.seconds
    ]
    return Comparison(
        sorted(changes, key=lambda change: -change.ratio),
        [old[key] for key in old if key not in new],
        [new[key] for key in new if key not in old],
        [b for a, b in both if a.seconds and not b.seconds],
    )


def differences(before: ResultFile, after: ResultFile) -> list[str]:
    """What differs in the machines, the device and the threads."""
    a, b = before.machine, after.machine
    return [f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key]]


def versions(before: ResultFile, after: ResultFile) -> list[str]:
    """Packages of another version: their part in a change is not told apart from ours."""
    a, b = before.facts.get("versions", {}), after.facts.get("versions", {})
    names = sorted(name for name in a | b if a.get(name) != b.get(name))
    return [f"{name} {a.get(name, '-')} -> {b.get(name, '-')}" for name in names]


def _change(a: Entry, b: Entry, side: str, threshold: float, drift: float | None) -> Change:
    before, after = a.seconds[side], b.seconds[side]
    best = b.best[side] / a.best[side] if side in a.best and side in b.best else None
    ratio = after.median / before.median
    to_torch = None
    if "torch" in a.seconds and "torch" in b.seconds:
        if side == "ours" and "torch" in a.speedup and "torch" in b.speedup:  # turn by turn
            to_torch = a.speedup["torch"].median / b.speedup["torch"].median
        else:
            to_torch = ratio * a.seconds["torch"].median / b.seconds["torch"].median
    verdict = judge(before, after, best, threshold, to_torch)
    if verdict != "same" and (a.disturbed or b.disturbed):
        verdict = "unclear"
    to_copy = None if drift is None else ratio * drift
    return Change(b, side, before, after, best, to_copy, to_torch, verdict)


def judge(
    before: Spread,
    after: Spread,
    best: float | None,
    threshold: float,
    to_torch: float | None = None,
) -> str:
    """slower, faster, unclear or same.

    Whatever made work longer made its fastest iteration longer too, by half of the threshold at
    least; where only medians moved, something else ran. And it did not make torch's work longer in
    the same turns: where that moved along, the machine did.
    """
    if after.p20 > before.p80 and after.median > threshold * before.median:
        moved, word = all(r is None or r > (1 + threshold) / 2 for r in (best, to_torch)), "slower"
    elif after.p80 < before.p20 and before.median > threshold * after.median:
        ratios = [None if r is None else 1 / r for r in (best, to_torch)]
        moved, word = all(r is None or r > (1 + threshold) / 2 for r in ratios), "faster"
    else:
        return "same"
    return word if moved else "unclear"


# The table ----------------------------------------------------------------------------------------

_COLOURS = {"slower": "red", "faster": "green", "unclear": "yellow", "same": "dim"}


def table(comparison: Comparison, threshold: float) -> Table:
    """A row for each change."""
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        caption=_CAPTION.format(threshold),
        caption_justify="left",
    )
    changes = comparison.changes
    optional: dict[str, Callable[[Change], float | None]] = {
        "fastest": lambda c: c.best,
        "x copy": lambda c: c.to_copy,
        "x torch": lambda c: c.to_torch,
    }
    shown = {name: of for name, of in optional.items() if any(of(c) is not None for c in changes)}
    for name in ("case", "size"):
        result.add_column(name, no_wrap=True)
    for name in ("us before", "us after", "x", *shown):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("")
    for change in changes:
        colour = _COLOURS[change.verdict]
        entry = change.entry
        name = entry.name + ("" if change.side == "ours" else f" {change.side}")
        size = entry.size + ("" if entry.dtype == "float32" else f" {entry.dtype}")
        result.add_row(
            *(escape(name), escape(size), microseconds(change.before), microseconds(change.after)),
            f"[{colour}]{change.ratio:.3f}[/]",
            *("" if (v := of(change)) is None else f"{v:.3f}" for of in shown.values()),
            f"[{colour}]{change.verdict}[/]",
        )
    return result


def microseconds(spread: Spread) -> str:
    """Median (p20-p80), in three significant digits or all before the point."""
    median, p20, p80 = (
        f"{v * 1e6:.0f}" if v >= 1e-4 else f"{v * 1e6:.3g}"
        for v in (spread.median, spread.p20, spread.p80)
    )
    return f"{median} ({p20}-{p80})"


def summary(comparison: Comparison) -> list[str]:
    """What the table does not have: cases in one file only, then the count of each verdict."""
    lines = []
    for where, entries in (("before", comparison.only_before), ("after", comparison.only_after)):
        if entries:
            lines.append(f"only in the file {where}: {names(entries)}")
    words = [change.verdict for change in comparison.changes]
    counts = [f"{words.count(word)} {word}" for word in _COLOURS if word in words]
    return [*lines, ", ".join(counts) or "no case is timed in both files"]


def names(entries: Sequence[Entry]) -> str:
    """The first ten."""
    rest = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
    return ", ".join(map(str, entries[:10])) + rest
