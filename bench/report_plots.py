"""The plots of `python -m bench report`: SVG as text, coloured by classes of report.css.

A plot is drawn on 360 x 260 units, the width of a phone, and scales from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 360, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40

#: Marks differ by shape too, for eyes and printers without colours.
MARKS = {
    "circle": "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0",
    "diamond": "M0,-4.6L4.6,0L0,4.6L-4.6,0Z",
    "square": "M-3.2,-3.2H3.2V3.2H-3.2Z",
}
SHAPES = {"ours": "circle", "captured": "square", "torch": "diamond"}


@dataclass(frozen=True)
class Point:
    """A mark, and what is shown when it is pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Series:
    """Points of one side; `joined` by a line."""

    side: str
    points: Sequence[Point]
    joined: bool = False


@dataclass(frozen=True)
class Roof:
    """A limit through points of the plane."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Logarithmic, from `low` to `high`; numbers are shown in `unit`."""

    title: str
    low: float
    high: float
    ticks: Sequence[float] = field(default_factory=tuple)

    @classmethod
    def of(cls, title: str, values: Sequence[float], most: int = 5) -> Axis:
        """Around positive values, with some room."""
        low, high = min(values), max(values)
        room = max((high / low) ** 0.06, 1.25)
        low, high = low / room, high * room
        return cls(title, low, high, ticks(low, high, most))

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`, no further."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(max(share, 0.0), 1.0)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers between, evenly or nearly so on a log axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    choices = [(1, 2, 5), (1, 3), (1,)]
    found: list[float] = []
    for digits in choices:
        found = [d * 10.0**e for e in range(first, last + 1) for d in digits]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def short(value: float, space: str = "") -> str:
    """1500 as 1.5k, 2e-6 as 2u; `space` stands before the letter."""
    steps = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))
    for size, letter in steps:
        if value >= size * 0.9995:
            return f"{value / size:.3g}{space}{letter}"
    return f"{value * 1e9:.3g}{space}n"


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series], roofs: Sequence[Roof] = ()) -> str:
    """An SVG element."""
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(value: float) -> float:
        return round(LEFT + across * x.at(value), 1)

    def py(value: float) -> float:
        return round(TOP + down * (1 - y.at(value)), 1)

    base = TOP + down
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in x.ticks:
        at = px(tick)
        parts.append(f'<path class="grid" d="M{at},{TOP}V{base}"/>')
        parts.append(f'<text x="{at}" y="{base + 14}" text-anchor="middle">{short(tick)}</text>')
    for tick in y.ticks:
        at = py(tick)
        parts.append(f'<path class="grid" d="M{LEFT},{at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 3.5}" text-anchor="end">{short(tick)}</text>')
    parts.append(f'<path class="frame" d="M{LEFT},{TOP}V{base}H{WIDTH - RIGHT}"/>')
    middle = LEFT + across / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.title)}</text>'
    )
    half = TOP + down / 2
    parts.append(
        f'<text transform="translate(10,{half})rotate(-90)" text-anchor="middle">'
        f"{escape(y.title)}</text>"
    )
    for roof in roofs:
        line = "L".join(f"{px(a)},{py(b)}" for a, b in roof.points)
        parts.append(f'<path class="roof" d="M{line}"/>')
    # ours above its peers
    for one in sorted(series, key=lambda s: s.side == "ours"):
        if one.joined and len(one.points) > 1:
            line = "L".join(f"{px(p.x)},{py(p.y)}" for p in one.points)
            parts.append(f'<path class="line {side_class(one.side)}" d="M{line}"/>')
        mark = MARKS[SHAPES.get(one.side, "square")]
        parts += [
            f'<path class="mark {side_class(one.side)}" d="{mark}" '
            f'transform="translate({px(p.x)},{py(p.y)})"><title>{escape(p.text)}</title></path>'
            for p in one.points
        ]
    for roof in roofs:  # above the marks
        a, b = roof.points[-1]
        parts.append(
            f'<text class="roof-label" x="{px(a) - 2}" y="{py(b) - 5}" text-anchor="end">'
            f"{escape(roof.label)}</text>"
        )
    return "".join([*parts, "</svg>"])


def side_class(side: str) -> str:
    """The class of a side's colour."""
    known = ("ours", "captured", "torch", "compile", "graph", "channels_last", "reference", "copy")
    name = side.removeprefix("torch.")
    return f"side-{name}" if name in known else "side-other"


def legend(sides: Sequence[str], titles: dict[str, str]) -> str:
    """The marks with their names."""
    items = [
        f'<li><svg viewBox="-6 -6 12 12" aria-hidden="true"><path class="mark {side_class(side)}" '
        f'd="{MARKS[SHAPES.get(side, "square")]}"/></svg>{escape(titles.get(side, side))}</li>'
        for side in sides
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'
