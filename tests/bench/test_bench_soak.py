"""The soak and the mutator in small: what their drivers find, and that they can find something."""

from __future__ import annotations

import os
import random

import pytest
from typer.testing import CliRunner

from bench import mutate, soak
from bench.__main__ import app
from bench.families import FAMILIES
from bench.mutator import DAMAGES, damaged
from framework.interop.atomic import FileError

linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")


@linux
def test_twenty_kills_change_nothing():
    with soak.forks() as start:
        tallies = soak.Soak(20, start=start, epochs=20, startup=0.1).run()
    assert {tally.family for tally in tallies if tally.kills} == set(FAMILIES)
    assert sum(tally.kills for tally in tallies) == 20
    assert sum(tally.mid_write for tally in tallies) >= 1
    assert sum(tally.resumes for tally in tallies) >= 10
    assert soak.failed(tallies) == []


@linux
def test_the_soak_finds_a_difference(tmp_path, monkeypatch):
    """A state that is not saved: the loss scale's and all else that `generator` stands for."""
    differences = soak._differences
    monkeypatch.setattr(
        soak, "_differences", lambda a, b: differences(a | {"generator": {"counter": -1}}, b)
    )
    with soak.forks() as start:
        tallies = soak.Soak(1, start=start, epochs=2, startup=0.1).run()
    assert soak.failed(tallies)
    assert all(what.endswith(": generator") for what in soak.failed(tallies))


@linux
def test_a_thousand_damaged_files():
    tallies = mutate.run(1000, seed=1)
    assert sum(tally.files for tally in tallies) == 1000
    assert mutate.failed(tallies) == []
    assert all(tally.errors for tally in tallies if tally.name != "manifest.json")


@linux
def test_the_mutator_finds_what_is_wrong(tmp_path):
    def read(path):
        data = path.read_bytes()
        if len(data) > 1000:
            return bytearray(2**29)
        if len(data) > 100:
            raise KeyError("not the framework's own")
        if len(data) < 100:
            raise FileError("somewhere")
        return data

    def write(folder):
        (folder / "file").write_bytes(bytes(range(100)))
        return folder / "file"

    (tally,) = mutate.run(200, [mutate.Target("f", write, read, checked=True)])
    found = "\n".join(mutate.failed([tally]))
    for problem in ("KeyError", "MemoryError", "does not name the file", "checksum does not show"):
        assert problem in found


def test_every_damage_is_one():
    chance = random.Random(0)
    data = b'{"size": 12, "name": "a"}' * 20
    for damage in DAMAGES:
        assert any(damage(data, chance) != data for _ in range(5)), damage
        damage(b"", chance)
    assert damaged(data, random.Random(3)) == damaged(data, random.Random(3)) != data


def test_unknown_families_are_refused():
    result = CliRunner().invoke(app, ["soak", "--family", "mpl"])
    assert result.exit_code != 0
    assert "unknown family 'mpl'" in result.output
