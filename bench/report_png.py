"""The bars against torch as a PNG, for README: the kernels that its table shows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Spread
from bench.report_data import Item, Machine, standing
from bench.result_file import UnreadableResult
from bench.sizes import CPU_KERNELS

#: Bars of kernels at most.
MOST = 28

#: Where in a PNG its key stands.
_NOTE = "Figures"

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_COLOURS = {"faster": "#0b66c3", "slower": "#c2570c", "even": "#868e98"}


def draw(machines: Sequence[Machine], path: Path) -> None:
    """Write the PNG. Raises UnreadableResult where there is no peer, or no matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UnreadableResult("--png needs matplotlib: pip install matplotlib") from None
    shown = [(m, chosen(m)) for m in machines if "torch" in m.peers]
    if not shown:
        raise UnreadableResult("--png: torch was timed in none of these files")
    heights = [0.24 * len(ratios) + 0.9 for _, ratios in shown]
    figure = Figure(figsize=(8, sum(heights)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(shown), squeeze=False, height_ratios=heights)
    for (machine, ratios), (axes,) in zip(shown, all_axes, strict=True):
        labels = [_label(item) for item, _ in ratios]
        for row, (_, ratio) in enumerate(ratios):
            colour = _COLOURS[standing(ratio)]
            axes.barh(row, ratio.median - 1, left=1, height=0.62, color=colour)
            axes.plot([ratio.p20, ratio.p80], [row, row], color="#1d2126", linewidth=1)
            axes.text(1.01, row, f"{ratio.median:.2f}", va="center", fontsize=7.5,
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_xscale("log")
        values = [1.0, *(v for _, r in ratios for v in (r.p20, r.p80))]
        low, high = min(values) / 1.25, max(values) * 1.15
        ticks = [t for t in _TICKS if low <= t <= high]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=8)
        axes.set_xlim(low, high)
        axes.minorticks_off()
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(axis="x", color="#e8eaed")
        axes.set_axisbelow(True)
        axes.axvline(1, color="#5b6470", linewidth=1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        axes.set_title(machine.name, fontsize=9, loc="left")
        axes.set_xlabel("time of torch / ours (p20-p80): right of 1 ours is faster", fontsize=8)
    figure.savefig(path, format="png", metadata={_NOTE: key(machines)})


def key(machines: Sequence[Machine]) -> str:
    """A short text that changes with any figure in the picture."""
    drawn = [
        (m.name, [(_label(item), ratio) for item, ratio in chosen(m)])
        for m in machines
        if "torch" in m.peers
    ]
    return hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]


def key_of(path: Path) -> str | None:
    """The key of the figures that a picture was drawn from; None of another file, or of none."""
    if not path.is_file():
        return None
    found = re.search(rb"tEXt%s\0([0-9a-f]{16})" % _NOTE.encode(), path.read_bytes())
    return found and found[1].decode()


def _label(item: Item) -> str:
    """A network is named by its size."""
    entry = item.entry
    return f"step of {entry.size}" if entry.training else f"{entry.name} {entry.size}"


def chosen(machine: Machine) -> list[tuple[Item, Spread]]:
    """Training steps, and each kernel of README's table (every kernel, if none of it is there) at
    its largest size and in its first variant. Not by their ratios, good or bad.
    """
    training = [pair for pair in machine.ratios("torch") if pair[0].entry.training]
    timed = [item for item in machine.kernels if item.ratio("torch") is not None]
    names = [name for name in CPU_KERNELS if any(_kernel(item) == name for item in timed)]
    kernels = []
    for name in names or sorted({_kernel(item) for item in timed})[:MOST]:
        items = [item for item in timed if _kernel(item) == name]
        plain = [item for item in items if item.entry.name == items[0].entry.name]
        item = max(plain, key=lambda item: item.entry.bytes or 0)
        ratio = item.ratio("torch")
        assert ratio is not None
        kernels.append((item, ratio))
    return sorted([*training, *kernels], key=lambda pair: -pair[1].median)


def _kernel(item: Item) -> str:
    return item.entry.name.partition("-")[0]
