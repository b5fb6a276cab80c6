"""The table of `python -m bench kernels`."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.cases import size_text
from bench.kernel_bench import Row
from bench.measure import Spread

_CAPTION = """\
us: median time of an iteration, with p20-p80 over the turns.
x side: its time / ours, turn by turn: median (p20-p80); above 1 ours is faster. best: the ratio of
the fastest iterations, for a machine that is busy.
GB/s: the least traffic, each argument read once and each result written once. copy: its share of
{:.1f} GB/s, which a plain copy reached in this run; above 100% the arrays stay in
caches. TFLOP/s: of products and attention; roof: their share of what the machine's arithmetic or
its copy allows, whichever is less. error: against float64, relative to the largest element or 1.
extra: memory at the peak of a call beyond its inputs and results; in brackets torch's.
r: there is no tuned version, the reference is what runs."""


def table(rows: Sequence[Row], copy_bandwidth: float, against: Sequence[str]) -> Table:
    """Times in microseconds, ratios as "median (p20-p80)"."""
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        title_justify="left",
        caption_justify="left",
        caption=_CAPTION.format(copy_bandwidth / 1e9),
    )
    result.add_column("kernel", no_wrap=True)
    result.add_column("size", no_wrap=True)
    ratios = [name for side in against for name in (f"x {side}", "best")]
    products = any(row.turns is not None and row.flops for row in rows)
    arithmetic = ["TFLOP/s", "roof"] if products else []
    for name in ("us", "p20-p80", *ratios, "GB/s", "copy", *arithmetic, "extra", "error"):
        result.add_column(name, justify="right", no_wrap=True)
    if "torch" in against:
        result.add_column("torch is", overflow="fold", style="dim", ratio=1)
    for row in rows:
        _add(result, row, copy_bandwidth, against, products)
    return result


def _add(
    result: Table, row: Row, copy_bandwidth: float, against: Sequence[str], products: bool
) -> None:
    name, size = row.case.label, size_text(row.case.shape)
    if row.case.dtype != "float32":
        size += f" {row.case.dtype}"
    if row.turns is None:
        result.add_row(name, size, f"[red]{row.problem}")
        return
    ours, t = row.facts["ours"], row.seconds
    cells = [
        name + (" [dim]r[/]" if ours["version"] == "reference" else ""),
        size,
        microseconds(t.median),
        f"{microseconds(t.p20)}-{microseconds(t.p80)}",
        *(cell for side in against for cell in _ratios(row, side)),
        f"{row.bandwidth / 1e9:.1f}",
        f"{row.bandwidth / copy_bandwidth:.0%}",
        *(_arithmetic(row, copy_bandwidth) if products else ()),
        _extra(row),
        f"{ours['error']:.0e}" if ours["error"] else "0",
    ]
    if "torch" in against:
        peer = row.facts.get("torch", {}).get("peer") or "-"
        cells.append(f"[red]{row.problem}" if row.problem else peer)
    result.add_row(*cells)


def _ratios(row: Row, side: str) -> tuple[str, str]:
    """Turn by turn, and of the fastest iterations."""
    spread = row.speedup(side)
    if spread is None or row.turns is None:
        return "-", ""
    return ratio(spread), f"{row.turns.best_speedup(side):.3g}"


def _arithmetic(row: Row, copy_bandwidth: float) -> tuple[str, str]:
    if not row.flops:
        return "", ""
    return f"{row.flops / 1e12:.3g}", f"{row.share_of_roof(copy_bandwidth):.0%}"


def _extra(row: Row) -> str:
    mine, theirs = (row.facts.get(s, {}).get("extra_memory") for s in ("ours", "torch"))
    return size_of(mine) + ("" if theirs is None else f" [dim]({size_of(theirs)})[/]")


def size_of(count: int | None) -> str:
    """Bytes in a unit that fits: 0 below 4 KiB, which is what Python's own objects take."""
    if count is None:
        return "-"
    if count < 1 << 12:
        return "0"
    return f"{count / 2**10:.0f} KiB" if count < 1 << 20 else f"{count / 2**20:.1f} MiB"


def microseconds(seconds: float) -> str:
    """Three significant digits or all before the point."""
    us = seconds * 1e6
    return f"{us:.0f}" if us >= 100 else f"{us:.3g}"


def ratio(spread: Spread) -> str:
    """Median (p20-p80); green where all of it is above 1, red where all is below."""
    median, p20, p80 = (
        f"{v:.0f}" if v >= 100 else f"{v:.2f}" for v in (spread.median, spread.p20, spread.p80)
    )
    colour = "green" if spread.p20 > 1 else "red" if spread.p80 < 1 else "yellow"
    return f"[{colour}]{median}[/] [dim]({p20}-{p80})[/]"
