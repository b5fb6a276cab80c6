"""Schedules against the formulas written out, and reduce-on-plateau."""

import json
import math

import numpy as np
import pytest

from framework.optimizers import ReduceOnPlateau
from framework.optimizers.schedules import (
    constant,
    cosine,
    cosine_restarts,
    exponential,
    linear_warmup,
    multistep,
    one_cycle,
    polynomial,
    step,
)


def values(schedule, steps):
    return [schedule(s) for s in steps]


def half(part):
    return (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(), {0: 1, 999: 1}),
        (constant(0.5), {0: 0.5, 7: 0.5}),
        (step(10, 0.5), {0: 1, 9: 1, 10: 0.5, 25: 0.25}),
        (multistep([3, 7], 0.1), {0: 1, 2: 1, 3: 0.1, 6: 0.1, 7: 0.01, 100: 0.01}),
        (multistep([]), {50: 1}),
        (exponential(0.9), {0: 1, 1: 0.9, 5: 0.9**5}),
        (polynomial(10), {0: 1, 5: 0.5, 10: 0, 20: 0}),
        (polynomial(10, power=2, end=0.2), {0: 1, 5: 0.2 + 0.8 * 0.25, 10: 0.2, 99: 0.2}),
        (cosine(10), {0: 1, 5: 0.5, 10: 0, 11: 0}),
        (cosine(8, end=0.1), {2: 0.1 + 0.9 * half(0.25), 8: 0.1}),
        (cosine_restarts(4), {0: 1, 2: 0.5, 3: half(0.75), 4: 1, 6: 0.5, 4_000_002: 0.5}),
        (
            cosine_restarts(2, 2.0, end=0.2),
            {0: 1, 1: 0.6, 2: 1, 4: 0.6, 6: 1, 8: 0.2 + 0.8 * half(0.25), 14: 1},
        ),
        (linear_warmup(4), {0: 0, 1: 0.25, 4: 1, 50: 1}),
        (linear_warmup(4, cosine(10), start=0.2), {0: 0.2, 2: 0.6, 4: 1, 9: 0.5, 14: 0}),
        (linear_warmup(2, constant(0.5)), {1: 0.25, 2: 0.5}),
        (linear_warmup(0, constant(0.5)), {0: 0.5}),
    ],
)
def test_values(schedule, expected):
    assert values(schedule, expected) == pytest.approx(list(expected.values()), abs=1e-12)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle(anneal):
    schedule = one_cycle(101, 0.3, div_factor=10, final_div_factor=100, anneal=anneal)
    peak = 0.3 * 101 - 1
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(100) == schedule(500) == pytest.approx(0.001)
    rising, falling = schedule(12), schedule(70)
    if anneal == "linear":
        assert rising == pytest.approx(0.1 + 0.9 * 12 / peak)
        assert falling == pytest.approx(1 - 0.999 * (70 - peak) / (100 - peak))
    else:
        assert rising == pytest.approx(1 - 0.9 * half(12 / peak))
        assert falling == pytest.approx(0.001 + 0.999 * half((70 - peak) / (100 - peak)))
    everything = values(schedule, range(101))
    assert max(everything) == pytest.approx(1, abs=0.01)
    assert everything.index(max(everything)) in (29, 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-1), "constant: factor=-1, expected a number of at least 0"),
        (lambda: step(0), "step: step_size=0"),
        (lambda: multistep([5, 3]), r"milestones=\[5, 3\], expected steps in rising order"),
        (lambda: exponential(float("nan")), "exponential: gamma=nan"),
        (lambda: polynomial(0), "polynomial: total_steps=0"),
        (lambda: cosine(10, end=-0.1), "cosine: end=-0.1"),
        (lambda: cosine_restarts(10, 0.5), "period_factor=0.5"),
        (lambda: linear_warmup(-1), "linear_warmup: steps=-1"),
        (lambda: one_cycle(10, pct_start=1.0), "pct_start=1.0, expected a number between 0 and 1"),
        (lambda: one_cycle(10, anneal="exp"), "anneal='exp'"),
        (lambda: one_cycle(1), "total_steps=1"),
        (lambda: cosine(3)(-1), "step=-1, expected a whole number"),
        (lambda: ReduceOnPlateau("lowest"), "mode='lowest'"),
        (lambda: ReduceOnPlateau(factor=1.0), "factor=1.0"),
        (lambda: ReduceOnPlateau(patience=-1), "patience=-1"),
        (lambda: ReduceOnPlateau(threshold_mode="x"), "threshold_mode='x'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Reduce on plateau ------------------------------------------------------------------------------


def feed(plateau, metrics):
    out = []
    for metric in metrics:
        plateau.step(metric)
        out.append(plateau(0))
    return out


def test_plateau_reduces_after_patience_and_rests():
    plateau = ReduceOnPlateau(factor=0.5, patience=1, cooldown=2, min_factor=0.2)
    # best 1.0; two bad epochs reduce; two of rest; two bad ones reduce again; and a floor
    got = feed(plateau, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert got == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.2]


def test_plateau_thresholds():
    relative = ReduceOnPlateau(factor=0.5, patience=0, threshold=0.1)
    assert feed(relative, [1.0, 0.89, 0.81, 0.7]) == [1, 1, 0.5, 0.5]
    absolute = ReduceOnPlateau("max", 0.5, 0, threshold=0.1, threshold_mode="abs")
    assert feed(absolute, [1.0, 1.2, 1.25, 1.4]) == [1, 1, 0.5, 0.5]
    rising = ReduceOnPlateau("max", 0.5, 0, threshold=0.1)
    assert feed(rising, [1.0, 1.2, 1.3, 1.4]) == [1, 1, 0.5, 0.5]


def test_nan_is_no_improvement():
    nan = float("nan")
    assert feed(ReduceOnPlateau(factor=0.5, patience=1), [nan, nan, 1.0, nan]) == [1, 0.5, 0.5, 0.5]


def test_plateau_state_round_trip():
    metrics = [1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9]
    whole = feed(ReduceOnPlateau(factor=0.5, patience=1, cooldown=1), metrics)
    first, second = (ReduceOnPlateau(factor=0.5, patience=1, cooldown=1) for _ in range(2))
    part = feed(first, metrics[:4])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert part + feed(second, metrics[4:]) == whole
    with pytest.raises(ValueError, match="lacks bad, best, multiplier, resting"):
        second.load_state_dict({})


@pytest.mark.parametrize("number", [1.5, math.inf, math.nan, -1, "a", None, True])
@pytest.mark.parametrize(
    "schedule",
    [
        step(3), multistep([2]), exponential(0.5), polynomial(9), cosine(9), cosine_restarts(3),
        linear_warmup(3), one_cycle(9),
    ],
)  # fmt: skip
def test_steps_are_whole_numbers(schedule, number):
    with pytest.raises(ValueError, match=f"step={number!r}, expected a whole number of at least 0"):
        schedule(number)


@pytest.mark.parametrize("number", [2.5, math.inf, math.nan, -1, "a"])
def test_numbers_of_steps_are_whole(number):
    makers = {
        step: "step_size", polynomial: "total_steps", cosine: "total_steps",
        cosine_restarts: "period", linear_warmup: "steps", one_cycle: "total_steps",
    }  # fmt: skip
    for make, name in makers.items():
        with pytest.raises(ValueError, match=f"{make.__name__}: {name}={number!r}, expected a who"):
            make(number)
    with pytest.raises(ValueError, match=r"multistep: milestones\[1\]="):
        multistep([1, number])
    with pytest.raises(ValueError, match="exponential: gamma='a', expected a number"):
        exponential("a")
    assert cosine(1e4)(np.int64(10)) == cosine(10_000)(10)
