"""`python -m bench report`: a page that holds every case and fetches nothing."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import report, report_data, report_plots
from bench.__main__ import app
from bench.measure import Spread
from tests.bench.results import KERNELS, TRAINING, kernel_row

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Tags with their attributes, in order; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def run(tmp_path):
    """Write results and report them: the command's result and the page."""

    def call(*results, options=()):
        paths = []
        for i, result in enumerate(results):
            paths.append(tmp_path / f"{i}.json")
            paths[-1].write_text(result if isinstance(result, str) else json.dumps(result))
        out = tmp_path / "report.html"
        args = ["report", *map(str, paths), "-o", str(out), *map(str, options)]
        found = CliRunner().invoke(app, args)
        return found, out.read_text(encoding="utf-8") if out.exists() else ""

    return call


def sizes_of_softmax():
    shapes = [(16, 64), (64, 256), (1024, 1024)]
    return [kernel_row("softmax", s, 1e-6 * (i + 1)) for i, s in enumerate(shapes)]


def test_the_page_has_every_case_and_is_well_formed(run):
    found, text = run(KERNELS | {"rows": [*KERNELS["rows"], *sizes_of_softmax()]}, TRAINING)
    assert found.exit_code == 0, found.output
    page = Page(text)
    cells = [attrs.get("data-v") for name, attrs in page.tags if name in ("th", "td")]
    for word in ("softmax", "gelu", "matmul", "768x65", "4096x1024", "128x256x64", "mlp step"):
        assert word in cells
    assert "Time of softmax against size" in text
    assert "Roofline of matrix products" in text
    assert "Some CPU, 2 threads" in text


def test_nothing_is_fetched(run):
    _, text = run(KERNELS, TRAINING)
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|@font-face", text.replace("// ", ""))
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "a", "image", "use")
        assert "src" not in attrs
        assert attrs.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attrs)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_tables_sort_with_buttons_by_values(run):
    _, text = run(KERNELS)
    page = Page(text)
    heads = [attrs for attrs in page.all("th") if attrs.get("scope") == "col"]
    assert heads
    assert all(h["aria-sort"] == "none" and h["data-kind"] in ("text", "number") for h in heads)
    assert len(page.all("button")) == len(heads)
    assert all(attrs["type"] == "button" for attrs in page.all("button"))
    values = [a["data-v"] for a in page.all("td") if "data-v" in a]
    assert {"0.0001", "0.001"} <= set(values)
    scroll = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scroll)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_sorts_numbers_and_leaves_gaps_at_the_end():
    """On a table of three rows, as much of a document as the script asks for."""
    script = Path(report.__file__).with_name("report.js").read_text(encoding="utf-8")
    harness = """
const cell = (v) => ({ dataset: { v } });
const rows = ["2", "", "10"].map((v) => ({ cells: [cell(v)] }));
let click; const attributes = {};
const head = { dataset: { kind: "number" },
  querySelector: () => ({ addEventListener: (_, f) => { click = f; } }),
  getAttribute: (k) => attributes[k], setAttribute: (k, v) => { attributes[k] = v; } };
const body = { rows, append: (...r) => { body.rows = r; } };
const table = { tHead: { rows: [{ cells: [head] }] }, tBodies: [body] };
globalThis.document = { querySelectorAll: () => [table] };
"""
    show = "click(); const s = () => body.rows.map((r) => r.cells[0].dataset.v).join();"
    show += "console.log(s(), attributes['aria-sort']); click(); console.log(s());"
    run = subprocess.run(["node", "-e", harness + script + show], capture_output=True, text=True)
    assert run.stdout.split() == ["10,2,", "descending", "2,10,"], run.stderr


def test_text_is_escaped(run):
    bad = "<script>alert(1)</script>\"'&"
    rows = [kernel_row("softmax", (768, 65)), kernel_row(bad, (8, 8), problem=bad)]
    rows.append({k: v for k, v in rows[1].items() if k != "seconds"} | {"shape": [4, 4]})
    found, text = run(KERNELS | {"rows": rows, "cpu": bad, "versions": {"numpy": bad}})
    assert found.exit_code == 0, found.output
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text
    Page(text)


def test_a_case_that_was_not_timed_says_why(run):
    row = kernel_row("gelu", (4, 4)) | {"problem": "WRONG: off by 0.5"}
    del row["seconds"]
    _, text = run(KERNELS | {"rows": [*KERNELS["rows"], row]})
    assert "WRONG: off by 0.5" in text


def test_machines_are_apart_and_the_newest_file_counts(run):
    newer = copy.deepcopy(KERNELS) | {"date": "2026-02-01T00:00:00+00:00"}
    newer["rows"] = [kernel_row("softmax", (768, 65), 5e-5)]
    other = KERNELS | {"cpu": "Other CPU"}
    found, text = run(KERNELS, newer, other)
    assert found.exit_code == 0, found.output
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Some CPU, 2 threads", "Other CPU, 2 threads"]
    first, second = text.split("<h2>Other CPU")
    assert first.count('data-v="5e-05"') == 1
    assert 'data-v="5e-05"' not in second


def test_a_run_on_a_gpu_has_kernels_and_captured_steps(run):
    result = copy.deepcopy(TRAINING["results"][0])
    result["seconds"] = {side: {"step": laps["step"]} for side, laps in result["seconds"].items()}
    result["seconds"]["captured"] = result["seconds"]["ours"]
    part = {"rows": KERNELS["rows"], "copy_bandwidth": 1e12}
    card = {"name": "Some GPU", "driver": "580", "cuda_runtime": "13.0"}
    facts = KERNELS | {
        "kind": "gpu",
        "device": "cuda",
        "gpu": card,
        "training": {"results": [result]},
    }
    found, text = run({k: v for k, v in facts.items() if k != "rows"} | {"kernels": part})
    assert found.exit_code == 0, found.output
    for words in ("<h2>Some GPU", "ours, captured, ms", "copy, 1,000.0 GB/s", "gelu"):
        assert words in text


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "no result of python -m bench"),
        (KERNELS | {"format": 99}, "format 99, expected 1"),
        (KERNELS | {"kind": "recipe"}, "kind 'recipe', expected kernels, training, gpu"),
        (KERNELS | {"rows": []}, "nothing was measured"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(run, broken, message):
    found, text = run(KERNELS, broken)
    assert found.exit_code == 2
    assert re.search(rf"1\.json: {message}", found.output), found.output
    assert len(found.output.strip().splitlines()) == 1
    assert not text


# The picture --------------------------------------------------------------------------------------


def test_the_picture_has_the_largest_size_of_each_kernel(run, tmp_path):
    pytest.importorskip("matplotlib")
    from bench import report_png

    png = tmp_path / "bars.png"
    found, _ = run(KERNELS, TRAINING, options=["--png", png])
    assert found.exit_code == 0, found.output
    assert png.read_bytes().startswith(b"\x89PNG")
    (machine,) = report_data.machines([tmp_path / "0.json", tmp_path / "1.json"])
    assert report_png.key_of(png) == report_png.key([machine])
    assert report_png.key_of(tmp_path / "0.json") is None
    labels = [str(item.entry) for item, _ in report_png.chosen(machine)]
    assert labels == [
        *("softmax[4096x1024]", "mlp step[MLP 784-10, batch 128]"),
        *("matmul[128x256x64]", "gelu[4096x1024]"),
    ]


def test_a_picture_without_torch_is_an_error(run, tmp_path):
    pytest.importorskip("matplotlib")
    rows = copy.deepcopy(KERNELS["rows"])
    for row in rows:
        del row["seconds"]["torch"]
    found, text = run(KERNELS | {"rows": rows}, options=["--png", tmp_path / "bars.png"])
    assert found.exit_code == 2
    assert "torch was timed in none" in found.output
    assert not text


# Numbers ------------------------------------------------------------------------------------------


def test_ticks_are_round_and_few():
    assert report_plots.ticks(0.4, 25, 7) == [0.5, 1, 2, 5, 10, 20]
    assert report_plots.ticks(1, 1e12, 5) == pytest.approx([1, 1e3, 1e6, 1e9, 1e12])


def test_short_numbers():
    shown = [report_plots.short(v) for v in (1500, 2e-6, 1, 999.9e6, 3e-9, 2.5e13)]
    assert shown == ["1.5k", "2u", "1", "1G", "3n", "25T"]


def test_standing_needs_the_whole_spread():
    assert report_data.standing(Spread(2.0, 1.1, 3.0)) == "faster"
    assert report_data.standing(Spread(0.5, 0.4, 0.9)) == "slower"
    assert report_data.standing(Spread(1.5, 0.9, 2.0)) == "even"
