"""The part of README between two markers, made of the newest files in bench/results/.

The newest file of a kind (kernels, gpu) and a device counts, of training that of each network; the
date inside decides.
So numbers are never typed: they come from a run, by `python -m bench summary`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import machine, report_data, report_png
from bench.cases import Case, size_text
from bench.kernel_table import size_of
from bench.result_file import KINDS, UnreadableResult, facts_of
from bench.sizes import CPU_KERNELS

README = Path(__file__).resolve().parent.parent / "README.md"
LADDER = Path(__file__).resolve().parent / "ladder" / "README.md"
BEGIN = "<!-- figures: python -m bench summary -->"
END = "<!-- end of figures -->"

#: Bars of README's kernels against torch, in the folder of results.
PICTURE = "kernels.png"

NO_RESULTS = "No results are committed yet."
NO_GPU = "Nothing has been measured on a GPU yet."


def results(folder: Path) -> list[dict[str, Any]]:
    """All of them, the newest first."""
    found = [facts_of(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda facts: str(facts["date"]), reverse=True)


def _trained(
    files: Sequence[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The files about training on the CPU, each with what no newer one has."""
    seen: set[tuple[str, int]] = set()
    for facts in files:
        if (facts["kind"], facts["device"]) == ("training", "cpu"):
            new = [r for r in facts["results"] if (r["title"], r["batch"]) not in seen]
            seen |= {(r["title"], r["batch"]) for r in new}
            if new:
                yield facts, new


def text(folder: Path) -> str:
    """What stands between the markers."""
    files = results(folder)
    newest = {(facts["kind"], facts["device"]): facts for facts in reversed(files)}
    lines = []
    if kernels := newest.get(("kernels", "cpu")):
        lines += [*of_machine(kernels), ""]
        chosen = [row for row in kernels["rows"] if row["kernel"] in CPU_KERNELS]
        lines += [*table(chosen), ""]
    for facts, trained in _trained(files):
        lines += [*of_machine(facts), "", *of_training(trained), ""]
    if gpu := newest.get(("gpu", "cuda")):
        lines += of_gpu(gpu)
    elif lines:
        lines.append(NO_GPU)
    else:
        lines.append(f"{NO_RESULTS} {NO_GPU}")
    return "\n".join(lines).strip()


def of_machine(facts: dict[str, Any]) -> list[str]:
    """Where the figures come from, in a line."""
    versions = facts["versions"]
    parts = [f"{k} {versions[k]}" for k in ("numpy", "numba", "torch", "triton") if k in versions]
    parts += [f"{k} {v}" for k, v in versions.items() if k.startswith("cupy")]
    if "gpu" in facts:
        gpu = facts["gpu"]
        name = f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda_runtime']}"
    else:
        name = f"{facts['cpu']}, {facts['threads']} threads"
    commit = str(facts["commit"] or "unknown")
    commit = commit[:10] + ("+" if commit.endswith("+") else "")
    return [f"{name}; {', '.join(parts)}; {facts['date'][:10]}, commit {commit}:"]


def of_gpu(facts: dict[str, Any]) -> list[str]:
    """Everything about a GPU: tests, kernels, training."""
    from bench.gpu import MAIN

    lines = [*of_machine(facts), ""]
    if said := [*_of_tests(facts), *_of_sanitizer(facts)]:
        lines += [" ".join(said), ""]
    rows = facts.get("kernels", {}).get("rows", [])
    chosen = [row for row in rows if row["kernel"] in MAIN]
    if chosen:
        lines += [*table(chosen), ""]
    if trained := facts.get("training", {}).get("results"):
        lines += [*of_training(trained), ""]
    return lines[:-1]


def _of_tests(facts: dict[str, Any]) -> list[str]:
    tests = facts.get("tests", {})
    if "passed" not in tests:
        return []
    rest = f", {tests['not_reached']} not reached" if tests["not_reached"] else ""
    return [f"Tests on the GPU: {tests['passed']} passed, {tests['failed']} failed{rest}."]


def _of_sanitizer(facts: dict[str, Any]) -> list[str]:
    found = facts.get("sanitizer", {})
    tools = [found[tool] for tool in ("memcheck", "racecheck") if "errors" in found.get(tool, {})]
    return [
        f"{tool['tool']}: {tool['errors']} errors in {tool['kernels']} calls of kernels"
        + ("." if tool["complete"] else ", not complete.")
        for tool in tools
    ]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table: time, times of the peers over ours, share of the bandwidth of a copy."""
    sides = [
        s for s in ("torch", "torch.compile", "reference") if any(_speedup(r, s) for r in rows)
    ]
    titles = {"reference": "x array maths"}
    products = any(row.get("flops") for row in rows)
    head = ["kernel", "size", "us", *(titles.get(s, f"x {s}") for s in sides), "of roof"]
    head += ["TFLOP/s"] if products else []
    head += ["extra"] if (counted := any("extra_memory" in _ours(row) for row in rows)) else []
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in rows:
        case = Case(row["kernel"], row["variant"], tuple(row["shape"]), row.get("dtype", "float32"))
        size = size_text(case.shape) + (" bf16" if case.dtype == "bfloat16" else "")
        if "seconds" not in row:
            lines.append(_line([case.label, size, "not timed", *[""] * (len(head) - 3)]))
            continue
        cells = [case.label, size, _number(row["seconds"]["ours"]["median"] * 1e6)]
        cells += [_ratio(_speedup(row, side)) for side in sides]
        cells.append(f"{row.get('share_of_roof', row['share_of_copy']):.0%}")
        if products:
            cells.append(_number(row["flops"] / 1e12) if row.get("flops") else "")
        if counted:
            cells.append(size_of(_ours(row).get("extra_memory")))
        lines.append(_line(cells))
    caption = (
        "x: the time of the other side over ours, the median of turns and p20-p80; above 1 ours is "
        "faster. of roof: of what a plain copy (least traffic over time) and, of products, bare "
        "multiply-adds reached in the same run, the lower bound; above 100% the arrays stay in "
        "caches." + " extra: memory at the peak beyond inputs and results." * counted
    )
    return [*lines, "", caption]


def _ours(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = row.get("sides", {}).get("ours", {})
    return found


def _speedup(row: dict[str, Any], side: str) -> dict[str, float] | None:
    found: dict[str, float] | None = row.get("speedup", {}).get(side)
    return found


def _ratio(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    median, p20, p80 = (_number(spread[k]) for k in ("median", "p20", "p80"))
    return f"{median} ({p20}-{p80})"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def of_training(trained: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table: whole steps of each network on each side."""
    head = ["training", "", "steps/s", "units/s", "x", "peak memory", "loss"]
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for result in trained:
        for side, rate in result["steps_per_second"].items():
            first = side == "ours"
            units = f"{_number(result['units_per_second'][side]['median'])} {result['unit']}"
            memory = result["memory"].get(side, {})
            used = memory.get("peak", memory.get("device"))
            lines.append(
                _line(
                    [
                        f"{result['title']}, batch {result['batch']}" if first else "",
                        _SIDES.get(side, side),
                        _ratio(rate),
                        units,
                        _ratio(_speedup(result, side)),
                        f"{used / 2**20:,.0f} MiB" if used else "",
                        f"{result['losses'][side][-1]:.4f}",
                    ]
                )
            )
    steps = {len(result["losses"]["ours"]) for result in trained}
    caption = (
        "A step: batch from memory, forward, backward, optimizer, in float32. x: as above. peak "
        "memory: of the process, on CUDA of the card. loss: after "
        f"{' or '.join(map(str, sorted(steps)))} steps from equal weights."
    )
    return [*lines, "", caption]


_SIDES = {
    "captured": "ours, captured",
    "torch": "torch eager",
    "torch.channels_last": "torch eager, channels-last",
    "torch.graph": "torch, CUDA graph",
}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# README -------------------------------------------------------------------------------------------


def inserted(readme: str, figures: str, page: str = "README.md") -> str:
    """`readme` with `figures` between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UnreadableResult(f"{page} has no part between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def of_ladders(folder: Path) -> str:
    """What stands between the markers of the ladder's page: each step with its measured gain."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for facts in results(folder):
        if facts["kind"] == "ladder":
            newest.setdefault((facts["device"], facts["result"]["operation"]), facts)
    lines = []
    for (_, operation), facts in sorted(newest.items()):
        result = facts["result"]
        lines += [f"{operation}, {size_text(tuple(result['shape']))}; {of_machine(facts)[0]}", ""]
        lines += [
            _line(["step", "idea", "ms", "gain", "of copy"]),
            "| --- | --- | ---: | ---: | ---: |",
        ]
        for step in result["steps"]:
            link = f"[{step['file']}]({operation}/{step['file']})"
            if step["seconds"] is None:
                lines.append(_line([link, step["idea"], "not timed", "", ""]))
                continue
            gain = f"{_number(step['gain'])}x" if step["gain"] else ""
            share = (
                f"{step['share_of_copy']:.2%}"
                if step["share_of_copy"] < 0.1
                else (f"{step['share_of_copy']:.0%}")
            )
            lines.append(_line([link, step["idea"], _number(step["seconds"] * 1e3), gain, share]))
        lines.append("")
    caption = "gain: over the step before. of copy: one read and one write of each element, as a "
    caption += "share of a plain copy's bandwidth beyond all caches, in the same run."
    return "\n".join([*lines, caption]) if lines else NO_RESULTS


def update(
    readme: Path = README,
    folder: Path = machine.RESULTS,
    write: bool = True,
    ladder: Path | None = None,
) -> list[str]:
    """Rewrite the parts and the picture, if `write`; the names of what there was to change.

    `ladder` is the page of the ladder, where that is to be kept in step too.
    """
    changed = []
    pages = {readme: text(folder)} | ({ladder: of_ladders(folder)} if ladder else {})
    for page, figures in pages.items():
        old = page.read_text(encoding="utf-8")
        new = inserted(old, figures, _name(page))
        if new != old:
            changed.append(_name(page))
            if write:
                page.write_text(new, encoding="utf-8")
    picture, drawn = folder / PICTURE, _machines(folder)
    with_torch = any("torch" in machine.peers for machine in drawn)
    if with_torch and report_png.key_of(picture) != report_png.key(drawn):
        changed.append(_name(picture))
        if write:
            report_png.draw(drawn, picture)
    return changed


def _name(path: Path) -> str:
    root = README.parent
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _machines(folder: Path) -> list[report_data.Machine]:
    """All results but the ladder's, as a report has them."""
    paths = sorted(folder.glob("*.json"))
    return report_data.machines([p for p in paths if facts_of(p)["kind"] in KINDS])
