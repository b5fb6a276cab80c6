"""Mixing the samples of a batch with each other."""

from __future__ import annotations

import numpy as np

from framework.data.transforms import OneHot


class MixUp:
    """Samples and their labels mixed with the next one's of the batch: ``s x + (1 - s) next``, s
    drawn for each sample from Beta(alpha, alpha) (Zhang et al. 2018).

    ``MixUp(classes)(x, labels, u)`` gives x of its dtype and the labels as probabilities (N,
    classes), for `cross_entropy`. u (N, 1) are uniform draws; a DataLoader gives them (``mix=``).
    """

    draws = 1

    def __init__(self, classes: int, alpha: float = 0.2) -> None:
        if not isinstance(alpha, (int, float)) or not 0 < alpha < float("inf"):
            raise ValueError(f"alpha is {alpha!r}, expected a number above 0")
        self.one_hot, self.alpha = OneHot(classes), alpha
        self._quantiles = _beta_quantiles(alpha)

    def __call__(
        self, x: np.ndarray, labels: np.ndarray, u: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if x.dtype.kind != "f":
            raise TypeError(f"x is {x.dtype}, expected floating-point inputs: mix after scaling")
        share = self.shares(u[:, 0]).astype(x.dtype)
        return _mixed(x, share), _mixed(self.one_hot(labels), share.astype(np.float32))

    def shares(self, u: np.ndarray) -> np.ndarray:
        """The quantiles of Beta(alpha, alpha) at `u`, float64."""
        low = np.minimum(u, 1 - u)  # it is symmetric
        quantile = np.interp(low, *self._quantiles)
        return np.where(u < 0.5, quantile, 1 - quantile)


def _mixed(x: np.ndarray, share: np.ndarray) -> np.ndarray:
    share = share.reshape(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * np.roll(x, -1, axis=0)


def _beta_quantiles(alpha: float, points: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities from 0 to 1/2 and the quantiles of Beta(alpha, alpha) there.

    The density t^(alpha-1) (1-t)^(alpha-1) has a pole at 0 for alpha < 1; over v = t^alpha it is
    (1-t)^(alpha-1), without one.
    """
    v = np.linspace(0, 0.5**alpha, points)
    t = v ** (1 / alpha)
    density = (1 - t) ** (alpha - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return 0.5 * below / below[-1], t
