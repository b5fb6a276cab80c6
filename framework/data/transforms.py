"""Transforms of batches: the base class, `Compose`, one-hot labels, and scalings fitted on the
training data.

A transform is a function ``t(x, u) -> x`` of a batch x (N, ...). A random one takes its decisions
from u, uniform draws (N, t.draws) which the loader makes from (seed, epoch, sample); a fixed one
has ``draws = 0`` and needs no u. So every transform is a pure function, and can be tested and
repeated. Image transforms are in `framework.data.augmentation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from inspect import isabstract
from typing import Any, Literal, Self

import numpy as np

from framework.data.dataset import Dataset, check_labels

#: Class name -> transform, filled as classes are defined; `from_state` reads it.
TRANSFORMS: dict[str, type[Transform]] = {}

#: Over what statistics are taken: each position of a sample alone, each channel (axis 1), or
#: everything together.
Per = Literal["feature", "channel", "all"]

CHUNK = 4096  # rows that are widened to float64 at once: 26 MB of MNIST


class Transform(ABC):
    """A function of a batch x (N, ...) and, if ``draws > 0``, of u (N, draws), uniform draws."""

    draws: int = 0

    def __init_subclass__(cls) -> None:
        TRANSFORMS[cls.__name__] = cls

    def __call__(self, x: np.ndarray, u: np.ndarray | None = None) -> np.ndarray:
        if self.draws and (u is None or u.shape != (len(x), self.draws)):
            got = "none" if u is None else str(u.shape)
            raise ValueError(
                f"{type(self).__name__} needs draws u {(len(x), self.draws)}, got {got}: "
                "make them with augmentation_draws, or let a DataLoader do it"
            )
        return self.apply(x, u)

    @abstractmethod
    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        """The transformed batch. Never changes `x`."""

    def config(self) -> dict[str, Any]:
        """What JSON can hold: the class's name and its settings."""
        settings = [f.name for f in fields(self) if f.init]  # type: ignore[arg-type]
        return {"type": type(self).__name__, **{name: getattr(self, name) for name in settings}}

    def state_dict(self) -> dict[str, np.ndarray]:
        """The fitted arrays, by name; empty for a transform that is not fitted."""
        return {}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no fitted arrays, got {', '.join(sorted(state))}"
            )


def from_state(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Transform:
    """The transform that gave this `config` (its ``config()``) and `state` (its ``state_dict()``).

    >>> scaling = Standardise().fit(np.arange(6.0).reshape(3, 2))
    >>> same = from_state(scaling.config(), scaling.state_dict())
    >>> bool((same(np.ones((1, 2))) == scaling(np.ones((1, 2)))).all())
    True
    """
    settings = dict(config)
    name = settings.pop("type", None)
    known = sorted(kind for kind, transform in TRANSFORMS.items() if not isabstract(transform))
    if name not in known:
        raise ValueError(f"unknown transform {name!r}; there are: {', '.join(known)}")
    if name == "Compose":
        transform: Transform = Compose(*(from_state(part, {}) for part in settings["transforms"]))
    else:
        transform = TRANSFORMS[name](
            **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        )
    transform.load_state_dict(state)
    return transform


class Compose(Transform):
    """Transforms one after the other. Each random one has columns of u for itself.

    A plain function of a batch may be among them, but `config` cannot describe it, and raises.
    """

    def __init__(self, *transforms: Callable[..., np.ndarray]) -> None:
        self.transforms: list[Callable[..., np.ndarray]] = []
        for transform in transforms:
            nested = isinstance(transform, Compose)
            self.transforms += transform.transforms if nested else [transform]
        self.draws = sum(getattr(transform, "draws", 0) for transform in self.transforms)

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        for _, step in self.steps(u):
            x = step(x)
        return x

    def steps(
        self, u: np.ndarray | None
    ) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Each transform's name, and the transform with its columns of `u` (N, draws) filled in."""
        start = 0
        for transform in self.transforms:
            if isinstance(transform, Transform):
                columns = None if u is None else u[:, start : start + transform.draws]
                start += transform.draws
                yield type(transform).__name__, partial(transform, u=columns)
            else:
                yield getattr(transform, "__name__", type(transform).__name__), transform

    def config(self) -> dict[str, Any]:
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise TypeError(
                    f"{transform!r} is no Transform, so that it cannot be saved with a model"
                )
        return {
            "type": "Compose",
            "transforms": [t.config() for t in self.transforms if isinstance(t, Transform)],
        }

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parts' arrays, as ``"<position>.<name>"``."""
        parts = [(i, t) for i, t in enumerate(self.transforms) if isinstance(t, Transform)]
        return {f"{i}.{name}": array for i, t in parts for name, array in t.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        shares: dict[str, dict[str, np.ndarray]] = {}
        for key, array in state.items():
            position, _, name = key.partition(".")
            shares.setdefault(position, {})[name] = array
        for i, transform in enumerate(self.transforms):
            if share := shares.pop(str(i), None):
                if not isinstance(transform, Transform):
                    raise ValueError(
                        f"transform {i} is no Transform, but has saved arrays {', '.join(share)}"
                    )
                transform.load_state_dict(share)
        if shares:
            raise ValueError(
                f"no transform at positions {', '.join(sorted(shares))} of {len(self.transforms)}"
            )


@dataclass
class OneHot(Transform):
    """Labels 0..classes-1, integers (N,), to float32 (N, classes) with a single 1 per row."""

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}, expected at least 1")

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        if x.ndim != 1:
            raise ValueError(f"labels have shape {x.shape}, expected (N,)")
        check_labels(x, self.classes)
        out = np.zeros((len(x), self.classes), np.float32)
        out[np.arange(len(x)), x] = 1
        return out


@dataclass
class Scaling(Transform):
    """x -> (x - shift) / scale, elementwise, with `shift` and `scale` learnt by `fit`.

    Where the training data is constant, `scale` is 1, so that the feature is shifted only. float64
    stays float64; everything else becomes float32.
    """

    per: Per = "feature"
    shift: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    scale: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.per not in ("feature", "channel", "all"):
            raise ValueError(f"per is {self.per!r}, expected 'feature', 'channel' or 'all'")

    def fit(self, data: np.ndarray | Dataset) -> Self:
        """Learn from the training split alone: an array (N, ...), or a data set's first array.

        Raises:
            ValueError: no samples, or values that are not finite.
        """
        first = next(chunks(data), None)
        if first is None:
            raise ValueError(f"{type(self).__name__} cannot be fitted on no samples")
        if self.per == "channel" and first.ndim < 3:
            raise ValueError(f"per='channel' needs samples (C, ...), got samples {first.shape[1:]}")
        axes = {
            "feature": (0,),
            "channel": (0, *range(2, first.ndim)),
            "all": tuple(range(first.ndim)),
        }[self.per]
        if not all(np.isfinite(part).all() for part in chunks(data)):
            raise ValueError(f"{type(self).__name__} cannot be fitted on NaN or infinite values")
        shift, scale = self.statistics(data, axes)
        self.shift, self.scale = shift[0], np.where(scale > 0, scale, 1.0)[0]
        return self

    @abstractmethod
    def statistics(
        self, data: np.ndarray | Dataset, axes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """float64 shift and scale over `axes`, which are kept as 1."""

    def apply(self, x: np.ndarray, u: Any) -> np.ndarray:
        if self.shift is None or self.scale is None:
            raise RuntimeError(
                f"{type(self).__name__} is not fitted: call fit(training data) first"
            )
        shape = self.shift.shape
        if len(shape) != x.ndim - 1 or any(
            s not in (1, n) for s, n in zip(shape, x.shape[1:], strict=True)
        ):
            raise ValueError(
                f"x has samples {x.shape[1:]}, {type(self).__name__} was fitted for {shape}"
            )
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        # The subtraction is done in the target dtype: uint8 - float64 would make a float64 copy of
        # the batch.
        return np.divide(
            np.subtract(x, self.shift.astype(dtype), dtype=dtype), self.scale.astype(dtype)
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        if self.shift is None or self.scale is None:
            return {}
        return {"shift": self.shift.copy(), "scale": self.scale.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        if not state:
            self.shift = self.scale = None
            return
        if set(state) != {"shift", "scale"} or state["shift"].shape != state["scale"].shape:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in sorted(state.items()))
            raise ValueError(
                f"{type(self).__name__} needs shift and scale of one shape, got {shapes}"
            )
        self.shift, self.scale = (
            state["shift"].astype(np.float64),
            state["scale"].astype(np.float64),
        )


@dataclass
class MinMax(Scaling):
    """The training data's smallest value to 0 and its largest to 1; constant features to 0."""

    def statistics(
        self, data: np.ndarray | Dataset, axes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        low = np.minimum.reduce([part.min(axes, keepdims=True) for part in chunks(data)])
        high = np.maximum.reduce([part.max(axes, keepdims=True) for part in chunks(data)])
        return low, high - low


@dataclass
class Standardise(Scaling):
    """The training data to mean 0 and (population) standard deviation 1; constant features to 0."""

    def statistics(
        self, data: np.ndarray | Dataset, axes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        # Two passes: E[x^2] - E[x]^2 cancels.
        sums, count = zip(
            *((part.sum(axes, keepdims=True), part.size) for part in chunks(data)), strict=True
        )
        values = sum(count) / sums[0].size
        mean = np.add.reduce(sums) / values
        squares = np.add.reduce(
            [np.square(part - mean).sum(axes, keepdims=True) for part in chunks(data)]
        )
        deviation = np.sqrt(squares / values)
        # A constant 0.1 has a rounding error for its deviation: below 1e-12 of the mean it is
        # constant.
        return mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 0.0)


def chunks(data: np.ndarray | Dataset) -> Iterator[np.ndarray]:
    """The array, or the data set's first array, as float64 pieces of up to 4,096 rows."""
    if not isinstance(data, Dataset):
        data = np.asarray(data)
        if data.ndim == 0 or data.dtype.kind not in "biuf":
            raise TypeError(f"data is {data.dtype} {data.shape}, expected numbers (N, ...)")
    for start in range(0, len(data), CHUNK):
        stop = min(start + CHUNK, len(data))
        part = (
            data.batch(np.arange(start, stop))[0] if isinstance(data, Dataset) else data[start:stop]
        )
        yield part.astype(np.float64)
