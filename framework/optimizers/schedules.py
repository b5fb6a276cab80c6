"""Schedules of the learning rate: functions of the step that give its multiplier.

    schedule = linear_warmup(500, then=cosine(10_000))
    optimizer.scale_lr(schedule(step))          # lr = initial lr * schedule(step), for every group

A schedule knows nothing but the step (0 for the first), so there is nothing to save and it may be
asked for any step. Only `ReduceOnPlateau` remembers: the metric it was told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Schedule = Callable[[int], float]


def constant(factor: float = 1.0) -> Schedule:
    """`factor`, always."""
    _at_least("constant", "factor", factor, 0)
    return lambda step: factor


def step(step_size: int, gamma: float = 0.1) -> Schedule:
    """gamma^k after k times `step_size` steps (PyTorch: StepLR)."""
    _whole("step", "step_size", step_size, 1)
    _at_least("step", "gamma", gamma, 0)
    return lambda step: gamma ** (_checked(step) // step_size)


def multistep(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """gamma^k once k of the `milestones` have been reached (PyTorch: MultiStepLR)."""
    stones = list(milestones)
    for i, stone in enumerate(stones):
        _whole("multistep", f"milestones[{i}]", stone, 0)
    if stones != sorted(stones):
        raise ValueError(f"multistep: milestones={stones}, expected steps in rising order")
    _at_least("multistep", "gamma", gamma, 0)
    return lambda step: gamma ** sum(_checked(step) >= m for m in stones)


def exponential(gamma: float) -> Schedule:
    """gamma^step (PyTorch: ExponentialLR)."""
    _at_least("exponential", "gamma", gamma, 0)
    return lambda step: gamma ** _checked(step)


def polynomial(total_steps: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """From 1 to `end` over `total_steps` along (1 - step / total_steps)^power, then `end`."""
    _whole("polynomial", "total_steps", total_steps, 1)
    _at_least("polynomial", "power", power, 0)
    _at_least("polynomial", "end", end, 0)
    return lambda step: end + (1 - end) * (1 - min(_checked(step) / total_steps, 1)) ** power


def cosine(total_steps: int, end: float = 0.0) -> Schedule:
    """From 1 to `end` over `total_steps` along half a cosine wave, then `end` (Loshchilov & Hutter
    2017).
    """
    _whole("cosine", "total_steps", total_steps, 1)
    _at_least("cosine", "end", end, 0)
    return lambda step: _half_wave(min(_checked(step) / total_steps, 1), 1.0, end)


def cosine_restarts(period: int, period_factor: float = 1.0, end: float = 0.0) -> Schedule:
    """Cosine from 1 to just above `end` over and over: the first time in `period` steps, each time
    `period_factor` times as many (warm restarts, Loshchilov & Hutter 2017).
    """
    _whole("cosine_restarts", "period", period, 1)
    _at_least("cosine_restarts", "period_factor", period_factor, 1)
    _at_least("cosine_restarts", "end", end, 0)

    def schedule(step: int) -> float:
        at: float = _checked(step)
        if period_factor == 1:
            return _half_wave(at % period / period, 1.0, end)
        length: float = period
        while at >= length:
            at, length = at - length, length * period_factor
        return _half_wave(at / length, 1.0, end)

    return schedule


def linear_warmup(steps: int, then: Schedule | None = None, start: float = 0.0) -> Schedule:
    """From `start` times then(0) up to then(0) over `steps` steps, then ``then(step - steps)``.

    `then` is constant at 1 unless given. Step 0 has the multiplier `start`.
    """
    _whole("linear_warmup", "steps", steps, 0)
    _at_least("linear_warmup", "start", start, 0)
    after = constant() if then is None else then

    def schedule(step: int) -> float:
        if _checked(step) >= steps:
            return after(step - steps)
        return after(0) * (start + (1 - start) * step / steps)

    return schedule


def one_cycle(
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: str = "cos",
) -> Schedule:
    """Up from 1 / div_factor to 1 in the first `pct_start` of the steps, then down to
    1 / (div_factor final_div_factor) (Smith & Topin 2018; numbers as PyTorch's OneCycleLR).

    The learning rate it multiplies is the largest one. `anneal`: "cos" or "linear".
    """
    _whole("one_cycle", "total_steps", total_steps, 2)
    _at_least("one_cycle", "div_factor", div_factor, 1)
    _at_least("one_cycle", "final_div_factor", final_div_factor, 1)
    if not _is_number(pct_start) or not 0 < pct_start < 1:
        raise ValueError(f"one_cycle: pct_start={pct_start!r}, expected a number between 0 and 1")
    if anneal not in ("cos", "linear"):
        raise ValueError(f"one_cycle: anneal={anneal!r}, expected 'cos' or 'linear'")
    between = _half_wave if anneal == "cos" else _line
    low = 1 / div_factor
    peak = pct_start * total_steps - 1  # PyTorch's turning point, not rounded
    last = total_steps - 1

    def schedule(step: int) -> float:
        at = min(_checked(step), last)
        if at <= peak:
            return between(at / peak if peak > 0 else 1.0, low, 1.0)
        return between((at - peak) / (last - peak), 1.0, low / final_div_factor)

    return schedule


def _half_wave(part: float, start: float, end: float) -> float:
    """From `start` (part 0) to `end` (part 1) along half a cosine wave."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def _line(part: float, start: float, end: float) -> float:
    return start + (end - start) * part


def _checked(step: int) -> int:
    if not _is_number(step) or not 0 <= step < math.inf or step % 1:
        raise ValueError(f"step={step!r}, expected a whole number of at least 0")
    return step


def _at_least(schedule: str, name: str, value: float, low: float) -> None:
    if not _is_number(value) or not value >= low:
        raise ValueError(f"{schedule}: {name}={value!r}, expected a number of at least {low}")


def _whole(schedule: str, name: str, value: float, low: int) -> None:
    if not _is_number(value) or not low <= value < math.inf or value % 1:
        raise ValueError(f"{schedule}: {name}={value!r}, expected a whole number of at least {low}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


class ReduceOnPlateau:
    """A schedule whose multiplier shrinks when a metric has stopped improving (PyTorch:
    ReduceLROnPlateau).

    Tell it the metric once an epoch: ``schedule.step(loss)``. After more than `patience` epochs
    without an improvement by `threshold` the multiplier is multiplied by `factor`, down to
    `min_factor`; for `cooldown` epochs after that nothing is counted. `mode`: "min" (a loss) or
    "max" (an accuracy). `threshold_mode`: the improvement is relative to the best ("rel") or a
    difference ("abs"). NaN is no improvement.
    """

    def __init__(
        self,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_factor: float = 0.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceOnPlateau: mode={mode!r}, expected 'min' or 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"ReduceOnPlateau: threshold_mode={threshold_mode!r}, expected 'rel' or 'abs'"
            )
        if not _is_number(factor) or not 0 <= factor < 1:
            raise ValueError(
                f"ReduceOnPlateau: factor={factor!r}, expected a number from 0 to below 1"
            )
        for name, value in (
            ("patience", patience),
            ("threshold", threshold),
            ("cooldown", cooldown),
            ("min_factor", min_factor),
        ):
            _at_least("ReduceOnPlateau", name, value, 0)
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.min_factor = cooldown, min_factor
        self.multiplier = 1.0
        self.best = math.inf if mode == "min" else -math.inf
        self._bad = 0
        self._resting = 0

    def __call__(self, step: int) -> float:
        """The multiplier now, whatever the step."""
        return self.multiplier

    def step(self, metric: float) -> None:
        """Take note of one epoch's metric."""
        value = float(metric)
        if self._improves(value):
            self.best, self._bad = value, 0
        else:
            self._bad += 1
        if self._resting > 0:
            self._resting -= 1
            self._bad = 0
        if self._bad > self.patience:
            self.multiplier = max(self.multiplier * self.factor, self.min_factor)
            self._bad, self._resting = 0, self.cooldown

    def _improves(self, value: float) -> bool:
        if math.isinf(self.best):
            return not math.isnan(value) and value != self.best
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            return sign * (value - self.best) > self.threshold
        return sign * value > sign * self.best * (1 + sign * self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "multiplier": self.multiplier,
            "best": self.best,
            "bad": self._bad,
            "resting": self._resting,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        missing = sorted({"multiplier", "best", "bad", "resting"} - set(state))
        if missing:
            raise ValueError(f"the state of ReduceOnPlateau lacks {', '.join(missing)}")
        self.multiplier, self.best = float(state["multiplier"]), float(state["best"])
        self._bad, self._resting = int(state["bad"]), int(state["resting"])
