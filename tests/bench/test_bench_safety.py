"""What guarding a run costs: both sides are timed, and all of it is in the file."""

import json

import pytest
from rich.console import Console

from bench import safety


def test_both_sides_are_timed(monkeypatch):
    monkeypatch.setattr(safety, "STEPS", 32)
    monkeypatch.setattr(safety, "LOOKS", 8)
    rounds = []
    result = safety.run("mlp", 0.0, lambda: rounds.append(1))
    assert len(result.without) == len(result.guarded) == len(rounds) == 3
    assert min(*result.without, *result.guarded, result.save) > 0
    assert -0.9 < result.undisturbed < 9
    (task,) = json.loads(json.dumps(safety.as_dict([result])))["tasks"]
    assert (task["model"], task["saving"]) == ("mlp", result.save / result.interval)
    assert task["overhead"]["median"] == result.overhead.median
    console = Console(width=250)
    with console.capture() as shown:
        console.print(safety.table([result]))
    assert result.task.title in shown.get()


def test_a_look_counts_as_often_as_it_is_taken():
    result = safety.Result("mlp", safety.TASKS["mlp"], [1.0] * 3, [1.01] * 3, 2.0, 1.0, 100.0)
    assert result.undisturbed == pytest.approx(0.01 + 2.0 / safety.LOOKS)
    assert result.overhead.median == pytest.approx(result.undisturbed)
