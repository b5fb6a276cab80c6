"""What a report shows: results files by machine, each case from the newest file that has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Spread
from bench.result_file import OURS, Entry, ResultFile, UnreadableResult, read

#: The sides in the order of columns and plots.
SIDES = (
    *("ours", "captured", "torch", "torch.channels_last", "torch.compile", "torch.graph"),
    *("triton", "own", "reference"),
)
TITLES = {
    "captured": "ours, captured",
    "torch.channels_last": "torch, channels-last",
    "torch.graph": "torch, CUDA graph",
    "own": "ours, without cuDNN",
    "reference": "array maths",
}


@dataclass(frozen=True)
class Item:
    """An entry and the file it comes from."""

    entry: Entry
    file: ResultFile

    @property
    def roof_share(self) -> float | None:
        """Of what the machine allows, in the same run: for what is bound by bandwidth that of a
        plain copy.
        """
        copy, mine = self.file.copy_bandwidth, self.entry.bandwidth
        return self.entry.roof or (mine / copy if copy and mine else None)

    def ratio(self, side: str) -> Spread | None:
        """Time of `side` over ours: turn by turn, else that of medians."""
        seconds = self.entry.seconds
        if side in OURS or side not in seconds or "ours" not in seconds:
            return None
        ours, theirs = seconds["ours"], seconds[side]
        return self.entry.speedup.get(side) or Spread(
            theirs.median / ours.median, theirs.p20 / ours.p80, theirs.p80 / ours.p20
        )


@dataclass(frozen=True)
class Machine:
    """All files of a machine, the newest first."""

    files: list[ResultFile]
    items: list[Item]

    @property
    def name(self) -> str:
        """GPU or processor, and threads."""
        known = self.files[0].machine
        if known["gpu"]:
            return str(known["gpu"])
        many = known["threads"] or "?"
        return f"{known['cpu']}, {many} thread{'' if many == 1 else 's'}"

    @property
    def copy_bandwidth(self) -> float | None:
        """Of the newest file that has one."""
        return next((f.copy_bandwidth for f in self.files if f.copy_bandwidth), None)

    @property
    def kernels(self) -> list[Item]:
        """Without training."""
        return [item for item in self.items if not item.entry.training]

    @property
    def training(self) -> list[Item]:
        """The parts of training steps."""
        return [item for item in self.items if item.entry.training]

    @property
    def sides(self) -> list[str]:
        """Every side that was timed."""
        timed = {side for item in self.items for side in item.entry.seconds}
        return [s for s in SIDES if s in timed] + sorted(timed - set(SIDES))

    @property
    def peers(self) -> list[str]:
        """The others among them."""
        return [side for side in self.sides if side not in OURS]

    def ratios(self, side: str) -> list[tuple[Item, Spread]]:
        """The items that `side` was timed in, the fastest of ours first; of training, the step."""
        found = [
            (item, ratio)
            for item in self.items
            if (ratio := item.ratio(side)) is not None
            and (not item.entry.training or item.entry.name.endswith(" step"))
        ]
        return sorted(found, key=lambda pair: -pair[1].median)

    def by_size(self) -> dict[str, list[Item]]:
        """Kernels timed at three sizes or more, smallest first, by name (and type)."""
        groups: dict[str, dict[int, Item]] = {}
        for item in self.kernels:
            entry = item.entry
            if "ours" in entry.seconds and entry.bytes:
                name = entry.name + ("" if entry.dtype == "float32" else f" {entry.dtype}")
                groups.setdefault(name, {})[entry.bytes] = item
        return {
            name: [items[size] for size in sorted(items)]
            for name, items in sorted(groups.items())
            if len(items) >= 3
        }


def machines(paths: Sequence[Path]) -> list[Machine]:
    """The files, by machine. Raises UnreadableResult."""
    groups: dict[tuple[str, ...], list[ResultFile]] = {}
    for path in dict.fromkeys(paths):
        file = read(path)
        if not file.entries:
            raise UnreadableResult(f"{path}: nothing was measured in it")
        groups.setdefault(tuple(map(str, file.machine.values())), []).append(file)
    return [_machine(files) for files in groups.values()]


def _machine(files: Iterable[ResultFile]) -> Machine:
    newest = sorted(files, key=lambda file: str(file.facts["date"]), reverse=True)
    items: dict[tuple[str, str, str], Item] = {}
    for file in newest:
        for entry in file.entries:
            items.setdefault(entry.key, Item(entry, file))
    return Machine(newest, list(items.values()))


def standing(ratio: Spread) -> str:
    """Is ours "faster" or "slower" than the peer, or, with 1 within p20-p80, "even"?"""
    return "faster" if ratio.p20 > 1 else "slower" if ratio.p80 < 1 else "even"


def geometric_mean(ratios: Sequence[Spread]) -> float:
    """Of the medians."""
    return math.exp(sum(math.log(r.median) for r in ratios) / len(ratios))
