"""`python -m bench report`: results files as one HTML page that needs no network.

Style and script are the files beside this one, put inline; plots are SVG (report_plots.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from bench import summary
from bench.kernel_table import size_of
from bench.measure import Spread
from bench.report_data import TITLES, Item, Machine, geometric_mean, standing
from bench.report_plots import Axis, Point, Roof, Series, legend, plot, short

_HERE = Path(__file__).parent

#: A page that could not fetch anything if it wanted to.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(machines: Sequence[Machine]) -> str:
    """The whole page."""
    style, script = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Benchmarks</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
<h1>Benchmarks</h1>
<p class="note">Times are medians over turns, in which all sides ran one after another, with the
20th and 80th percentile around them. A kernel is timed after its result has been checked against
float64.</p>
{"".join(_section(machine) for machine in machines)}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _section(machine: Machine) -> str:
    parts = [f"<section><h2>{escape(machine.name)}</h2>", _facts(machine), _tiles(machine)]
    for i, side in enumerate(machine.peers):
        if ratios := machine.ratios(side):
            parts.append(_bars(ratios, side, i == 0))
    parts += [_roofline(machine), _sizes(machine), _training(machine), _table(machine)]
    return "".join([*parts, "</section>"])


# Summary ------------------------------------------------------------------------------------------


def _facts(machine: Machine) -> str:
    lines = []
    for file in machine.files:
        versions = summary.of_machine(file.facts)[0].partition("; ")[2].rstrip(":")
        lines.append((file.kind, f"{file.path.name}; {versions}"))
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in lines)
    return f'<dl class="facts">{rows}</dl>'


def _tiles(machine: Machine) -> str:
    timed = [item for item in machine.kernels if "ours" in item.entry.seconds]
    tiles = [(f"{len(timed)}", "cases of kernels timed")] if timed else []
    if machine.copy_bandwidth:
        tiles.append(
            (f"{machine.copy_bandwidth / 1e9:,.1f} GB/s", "a plain copy, read and written")
        )
    for side in machine.peers:
        if ratios := [ratio for _, ratio in machine.ratios(side)]:
            name = TITLES.get(side, side)
            won = sum(standing(r) == "faster" for r in ratios)
            lost = sum(standing(r) == "slower" for r in ratios)
            words = f"{name} / ours, geometric mean of {len(ratios)}: {won} faster, {lost} slower"
            tiles.append((f"{geometric_mean(ratios):.2f}x", f"{words} beyond the spread"))
    disturbed = sum(item.entry.disturbed for item in machine.items)
    if disturbed:
        tiles.append((f"{disturbed}", "cases disturbed by other processes"))
    items = "".join(f"<li><b>{escape(a)}</b>{escape(b)}</li>" for a, b in tiles)
    return f'<ul class="tiles">{items}</ul>'


# Bars ---------------------------------------------------------------------------------------------


def _bars(ratios: Sequence[tuple[Item, Spread]], side: str, first: bool) -> str:
    """A bar from 1 to each ratio on a log axis; HTML, so that text keeps its size on a phone."""
    values = [v for _, r in ratios for v in (r.p20, r.p80)]
    axis = Axis.of("", [*values, 0.5, 2.0], 7)
    ticks = sorted({*axis.ticks, 1.0})
    lines = "".join(
        f'<span class="tick{" one" if t == 1 else ""}" style="left:{_percent(axis.at(t))}"></span>'
        for t in ticks
    )
    numbers = "".join(
        f'<span class="tick" style="left:{_percent(axis.at(t))}">{t:g}</span>' for t in ticks
    )
    rows = [f'<li class="axis" aria-hidden="true"><span class="name"></span>'
            f'<div class="track">{numbers}</div></li>']  # fmt: skip
    one = axis.at(1.0)
    for item, ratio in ratios:
        at, low, high = (axis.at(v) for v in (ratio.median, ratio.p20, ratio.p80))
        start, end = min(one, at), max(one, at)
        whole = f"left:{_percent(low)};width:{_percent(high - low)}"
        rows.append(
            f'<li><span class="name" title="{escape(str(item.entry))}">'
            f"{escape(item.entry.name)} <i>{escape(_size(item))}</i></span>"
            f'<div class="track" title="{ratio.median:.3g} ({ratio.p20:.3g}-{ratio.p80:.3g})">'
            f'{lines}<span class="bar {standing(ratio)}" '
            f'style="left:{_percent(start)};width:{_percent(end - start)}"></span>'
            f'<span class="spread" style="{whole}"></span>'
            f'</div><span class="value">{_ratio(ratio.median)}</span></li>'
        )
    name = escape(TITLES.get(side, side))
    return (
        f"<details{' open' if first else ''}><summary>Against {name}</summary>"
        f'<p class="note">Time of {name} over ours, on a log axis; right of 1 ours is faster. The '
        "thin line is p20-p80.</p>"
        '<ul class="legend"><li><span class="key faster"></span>faster</li><li><span class="key '
        'slower"></span>slower</li><li><span class="key even"></span>within the spread</li></ul>'
        f'<ul class="bars">{"".join(rows)}</ul></details>'
    )


def _percent(share: float) -> str:
    return f"{share * 100:.2f}%"


def _ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 100 else f"{value:.2f}x"


def _size(item: Item) -> str:
    dtype = item.entry.dtype
    return item.entry.size + ("" if dtype == "float32" else f" {dtype}")


# Plots --------------------------------------------------------------------------------------------


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _plotted(machine: Machine) -> list[str]:
    """The reference is left out of clouds of points: it is no rival."""
    return [
        side
        for side in machine.sides
        if side in ("ours", "torch", "torch.channels_last", "torch.compile")
    ]


def _roofline(machine: Machine) -> str:
    items = [item for item in machine.kernels if "ours" in item.entry.seconds and item.entry.bytes]
    copy = machine.copy_bandwidth
    if not items or not copy:
        return ""
    figures = []
    if streams := [item for item in items if not item.entry.flops]:
        figures.append(_figure("Bandwidth against traffic", _bandwidth(machine, streams, copy)))
    if products := [item for item in items if item.entry.flops]:
        figures.append(_figure("Roofline of matrix products", _products(machine, products, copy)))
    return (
        '<h3>Roofline</h3><p class="note">Traffic is the least there could be: each argument read '
        "once, each result written once. Above the copy's line the arrays stay in caches. The "
        "roof's flat part is what bare multiply-adds reach, in older files the fastest product."
        "</p>"
        f'{legend(_plotted(machine), TITLES)}<div class="plots large">{"".join(figures)}</div>'
    )


def _cloud(
    machine: Machine, items: Sequence[Item], at: Callable[[Item, float], tuple[float, float, str]]
) -> list[Series]:
    """A series of each side; `at` tells x, y and a text of an item for the seconds of a side."""
    result = []
    for side in _plotted(machine):
        points = []
        for item in items:
            if side in item.entry.seconds:
                x, y, text = at(item, item.entry.seconds[side].median)
                points.append(Point(x, y, f"{item.entry}, {TITLES.get(side, side)}: {text}"))
        result.append(Series(side, points))
    return result


def _bandwidth(machine: Machine, items: Sequence[Item], copy: float) -> str:
    def at(item: Item, seconds: float) -> tuple[float, float, str]:
        count = item.entry.bytes or 1
        return count, count / seconds, f"{count / seconds / 1e9:.3g} GB/s"

    series = _cloud(machine, items, at)
    x = Axis.of("bytes read and written", [p.x for s in series for p in s.points])
    y = Axis.of("bytes a second", [copy, *(p.y for s in series for p in s.points)])
    roof = Roof(f"copy, {copy / 1e9:,.1f} GB/s", [(x.low, copy), (x.high, copy)])
    return plot("Bandwidth of each case against its traffic", x, y, series, [roof])


def _products(machine: Machine, items: Sequence[Item], copy: float) -> str:
    def at(item: Item, seconds: float) -> tuple[float, float, str]:
        count = (item.entry.flops or 0.0) * item.entry.seconds["ours"].median
        rate = count / seconds
        return count / (item.entry.bytes or 1), rate, f"{short(rate, ' ')}FLOP/s"

    series = _cloud(machine, items, at)
    rates = [p.y for s in series for p in s.points]
    peak = max([i.entry.peak_flops for i in items if i.entry.peak_flops] or rates)
    ridge = peak / copy
    x = Axis.of("FLOP a byte", [ridge / 4, *(p.x for s in series for p in s.points)])
    y = Axis.of("FLOP a second", [*rates, peak, min(x.low * copy, peak)])
    roof = [(x.low, x.low * copy), (ridge, peak), (max(x.high, ridge), peak)]
    label = f"{short(peak, ' ')}FLOP/s"
    return plot("FLOP a second against FLOP a byte", x, y, series, [Roof(label, roof)])


def _sizes(machine: Machine) -> str:
    """Small plots, one for each kernel that has several sizes."""
    groups = machine.by_size()
    if not groups:
        return ""
    figures, shown = [], set()
    for name, items in groups.items():
        series = []
        for side in machine.sides:
            points = [
                Point(
                    item.entry.bytes or 1,
                    item.entry.seconds[side].median,
                    f"{item.entry}, {TITLES.get(side, side)}: "
                    f"{short(item.entry.seconds[side].median)}s",
                )
                for item in items
                if side in item.entry.seconds
            ]
            if points:
                series.append(Series(side, points, joined=True))
                shown.add(side)
        x = Axis.of("bytes read and written", [p.x for s in series for p in s.points], 4)
        y = Axis.of("seconds", [p.y for s in series for p in s.points], 5)
        figures.append(_figure(name, plot(f"Time of {name} against size", x, y, series)))
    sides = [side for side in machine.sides if side in shown]
    return (
        '<h3>Time against size</h3><p class="note">Both axes are logarithmic. Where time grows as '
        "the size does it is bandwidth; where it is flat, the cost of a call.</p>"
        f'{legend(sides, TITLES)}<div class="plots">{"".join(figures)}</div>'
    )


# Tables -------------------------------------------------------------------------------------------


def _sortable(label: str, heads: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    """`heads` are titles and kinds, "number" or "text"."""
    cells = "".join(
        f'<th scope="col" data-kind="{kind}" aria-sort="none">'
        f'<button type="button"{" class=text" if kind == "text" else ""}>{escape(title)}</button>'
        "</th>"
        for title, kind in heads
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f'<table class="sortable"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: float | None, text: str, colour: str = "") -> str:
    if value is None:
        return '<td data-v="">-</td>'
    colour = f' class="{colour}"' if colour else ""
    return f'<td{colour} data-v="{value:.6g}">{escape(text)}</td>'


def _text(text: str, tag: str = "td", attributes: str = 'class="text"') -> str:
    return f'<{tag} {attributes} data-v="{escape(text)}">{escape(text)}</{tag}>'


def _case(item: Item) -> list[str]:
    """Name and size; on a phone the size below the name is what is shown."""
    name, size = escape(item.entry.name), escape(_size(item))
    head = f'<th scope="row" data-v="{name}">{name}<small>{size}</small></th>'
    return [head, _text(_size(item))]


def _peer(text: str) -> str:
    return _text(text, "td", f'class="text long" title="{escape(text)}"')


def _spread(spread: Spread | None, unit: float, disturbed: bool = False) -> str:
    if spread is None:
        return _number(None, "")
    median, p20, p80 = (f"{v * unit:,.{0 if v * unit >= 100 else 2}f}" for v in (
        spread.median, spread.p20, spread.p80))  # fmt: skip
    mark = "*" if disturbed else ""
    return _number(spread.median, f"{median} ({p20}-{p80}){mark}")


def _ratio_cell(ratio: Spread | None) -> str:
    if ratio is None:
        return _number(None, "")
    colour = {"faster": "more", "slower": "less", "even": ""}[standing(ratio)]
    return _number(ratio.median, f"{ratio.median:.2f}", colour)


def _table(machine: Machine) -> str:
    items = machine.kernels
    if not items:
        return ""
    peers = [s for s in machine.peers if any(item.ratio(s) for item in items)]
    products = any(item.entry.flops for item in items)
    heads = [("case", "text"), ("size", "text"), ("us (p20-p80)", "number")]
    heads += [(f"x {TITLES.get(side, side)}", "number") for side in peers]
    heads += [("GB/s", "number"), ("of roof", "number")]
    heads += [("GFLOP/s", "number")] if products else []
    extra = [side for side in ("ours", "torch") if any(side in i.entry.extra for i in items)]
    heads += [("extra" if s == "ours" else f"extra, {s}", "number") for s in extra]
    heads += [("error", "number"), ("torch is", "text")]
    rows = []
    for item in items:
        entry = item.entry
        cells = _case(item)
        if not entry.seconds:
            problem = entry.problem or "not timed"
            cells.append(f'<td class="problem text" data-v="" colspan="{len(heads) - 2}">'
                         f"{escape(problem)}</td>")  # fmt: skip
        else:
            share, rate, flops = item.roof_share, entry.bandwidth, entry.flops
            cells.append(_spread(entry.seconds.get("ours"), 1e6, entry.disturbed))
            cells += [_ratio_cell(item.ratio(side)) for side in peers]
            cells.append(_number(rate, f"{(rate or 0) / 1e9:,.1f}"))
            cells.append(_number(share, f"{share or 0:.0%}"))
            cells += [_number(flops, f"{(flops or 0) / 1e9:,.1f}")] if products else []
            cells += [_number(n := entry.extra.get(side), size_of(n)) for side in extra]
            cells.append(_number(entry.error, f"{entry.error or 0:.0e}" if entry.error else "0"))
            cells.append(_peer(entry.problem or entry.peer or "-"))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<h3>Every kernel</h3><p class="note">x: the time of the other side over ours. A button in '
        "the head sorts. of roof: of what a plain copy and, of products, bare arithmetic allow, "
        "the lower of the two. extra: memory at the peak of a call beyond inputs and results. "
        "error: against float64, relative to the largest element or 1. *: disturbed by other "
        "processes.</p>" + _sortable("Every kernel", heads, rows)
    )


def _training(machine: Machine) -> str:
    items = machine.training
    if not items:
        return ""
    sides = [s for s in machine.sides if any(s in item.entry.seconds for item in items)]
    heads = [("part of a step", "text"), ("network", "text")]
    heads += [(f"{TITLES.get(side, side)}, ms", "number") for side in sides]
    peers = [side for side in sides if any(item.ratio(side) for item in items)]
    heads += [(f"x {TITLES.get(side, side)}", "number") for side in peers]
    rows = []
    for item in items:
        cells = _case(item)
        cells += [_spread(item.entry.seconds.get(side), 1e3) for side in sides]
        cells += [_ratio_cell(item.ratio(side)) for side in peers]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return "<h3>Training steps</h3>" + _sortable("Training steps", heads, rows)
