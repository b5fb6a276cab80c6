"""Data sets made from a seed: moons, circles, spirals, and Friedman's regression problem."""

from __future__ import annotations

import numpy as np

from framework.data.dataset import ArrayDataset
from framework.data.draws import normal, uniform


def moons(samples: int = 1000, noise: float = 0.1, seed: int = 0) -> ArrayDataset:
    """Two interleaved half circles of radius 1: float32 points (samples, 2), labels (samples,).

    `noise` is the standard deviation of the normal displacement of each coordinate.
    """
    check_positive(samples=samples)
    labels = np.arange(samples) % 2
    angle = np.pi * uniform((samples, 1), seed, "moons")[:, 0]
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 0, upper, lower)
    return _classes(points, noise, labels, ("upper", "lower"), seed, "moons noise")


def circles(
    samples: int = 1000, noise: float = 0.05, factor: float = 0.5, seed: int = 0
) -> ArrayDataset:
    """Circles of radius 1 and `factor`: float32 points (samples, 2), labels (samples,)."""
    check_positive(samples=samples)
    if not 0 < factor < 1:
        raise ValueError(f"factor is {factor}, expected between 0 and 1")
    labels = np.arange(samples) % 2
    angle = 2 * np.pi * uniform((samples, 1), seed, "circles")[:, 0]
    radius = np.where(labels == 0, 1.0, factor)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return _classes(points, noise, labels, ("outer", "inner"), seed, "circles noise")


def spirals(
    samples: int = 1500, arms: int = 3, turns: float = 1.0, noise: float = 0.03, seed: int = 0
) -> ArrayDataset:
    """Arms which wind `turns` times around the origin, out to radius 1.

    float32 points (samples, 2), labels (samples,).
    """
    check_positive(samples=samples, arms=arms, turns=turns)
    labels = np.arange(samples) % arms
    radius = uniform((samples, 1), seed, "spirals")[:, 0]
    angle = 2 * np.pi * (turns * radius + labels / arms)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return _classes(
        points, noise, labels, tuple(f"arm {i}" for i in range(arms)), seed, "spirals noise"
    )


def regression(
    samples: int = 1000, features: int = 10, noise: float = 1.0, seed: int = 0
) -> ArrayDataset:
    """Friedman's problem 1: x uniform in [0, 1), float32 (samples, features), and targets, float32
    (samples, 1),

        y = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4 + N(0, noise^2).

    Features after the fifth say nothing. J. Friedman, "Multivariate Adaptive Regression Splines",
    1991, section 4.3. The targets' standard deviation without noise is 4.9.
    """
    check_positive(samples=samples)
    if features < 5:
        raise ValueError(f"features is {features}, expected at least 5")
    if noise < 0:
        raise ValueError(f"noise is {noise}, expected 0 or more")
    x = uniform((samples, features), seed, "regression")
    y = (
        10 * np.sin(np.pi * x[:, 0] * x[:, 1])
        + 20 * (x[:, 2] - 0.5) ** 2
        + 10 * x[:, 3]
        + 5 * x[:, 4]
    )
    y += noise * normal((samples, 1), seed, "regression noise")[:, 0]
    return ArrayDataset(x, y[:, None].astype(np.float32), task="regression")


def _classes(
    points: np.ndarray,
    noise: float,
    labels: np.ndarray,
    classes: tuple[str, ...],
    seed: int,
    purpose: str,
) -> ArrayDataset:
    if noise < 0:
        raise ValueError(f"noise is {noise}, expected 0 or more")
    points = points + noise * normal(points.shape, seed, purpose)
    return ArrayDataset(points.astype(np.float32), labels.astype(np.int64), classes=classes)


def check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} is {value}, expected more than 0")
