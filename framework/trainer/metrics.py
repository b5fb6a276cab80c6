"""Metrics: what to report of a model's outputs, gathered batch by batch.

    accuracy = Accuracy()
    for x, target in loader:
        accuracy.update(model(x), target)
    accuracy.compute()

Sums stay on the device of the outputs until `compute`, so that a CUDA device is not waited for in
every step. Outputs are logits: (N, C) or (N, C, ...) for C classes, with targets (N, ...) of class
indices. Positions whose target is `ignore_index` do not count: -100, as in the losses; None: all
do. Other targets outside of the classes raise ValueError: on the CPU in `update`, on CUDA, where
that would mean to wait for the device, in `compute` (or in `update`, within `fw.check_indices`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from framework.autograd import Tensor
from framework.backend.live import recording
from framework.trainer.mean import Highest, Mean as Mean
from kernels.arrays import Array, array_module, is_array, is_floating, to_numpy
from kernels.checking import looked_at
from kernels.losses import IGNORE_INDEX

Average = Literal["macro", "micro", "none"]


class Metric(ABC):
    """Gathers batches by `update`, gives the result by `compute`, starts anew by `reset`.

    `name` is its key in the history. `compute` before any `update` raises ValueError.
    """

    name: str

    @abstractmethod
    def update(self, output: Any, target: Any) -> None:
        """Take in a batch: a Tensor or array of outputs and one of targets."""

    @abstractmethod
    def compute(self) -> Any:
        """The result over everything since the last `reset`. Waits for the device."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches."""

    def is_replayable(self, output: Any, target: Any) -> bool:
        """May `update` be captured: does it only add to `sums`? Else it is called each replay."""
        return False

    def sums(self) -> list[Mean | Highest]:
        """What a replayable `update` adds to."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What it has gathered, for a checkpoint inside an epoch: the attributes that are arrays,
        numbers, texts, means or metrics. One that gathers in something else overrides this; it is
        also what a bad step is taken back by on CUDA (`kept`).
        """
        held = self._gathered().items()
        return {k: v.state_dict() if isinstance(v, _parts()) else v for k, v in held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; arrays are where the outputs will be."""
        for name, value in state.items():
            mine = getattr(self, name)
            if isinstance(mine, _parts()):
                mine.load_state_dict(value)
            else:
                setattr(self, name, value)

    def kept(self) -> dict[str, Any]:
        """What `restore` goes back to: copies, for which nobody waits unless `state_dict` is the
        metric's own.
        """
        if type(self).state_dict is not Metric.state_dict:
            return copy.deepcopy(self.state_dict())
        held = self._gathered().items()
        return {
            k: v.kept() if isinstance(v, _parts()) else v.copy() if is_array(v) else v
            for k, v in held
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go back to what `kept` gave."""
        if type(self).state_dict is not Metric.state_dict:
            self.load_state_dict(kept)
            return
        for name, value in kept.items():
            mine = getattr(self, name)
            if isinstance(mine, _parts()):
                mine.restore(value)
            else:
                setattr(self, name, value)

    def _gathered(self) -> dict[str, Any]:
        kinds = (*_parts(), bool, int, float, str, np.generic)
        return {k: v for k, v in vars(self).items() if isinstance(v, kinds) or is_array(v)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _none(self) -> ValueError:
        return ValueError(f"{self.name}: nothing to compute, update() was not called yet")


def _parts() -> tuple[Any, ...]:
    """What has a state of its own."""
    return Mean, Highest, Metric


class Loss(Metric):
    """The mean of ``loss(output, target)``, batches weighted by their samples."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], name: str = "loss") -> None:
        self.loss, self.name, self.mean = loss, name, Mean()

    def update(self, output: Any, target: Any) -> None:
        self.mean.update(self.loss(_tensor(output), _tensor(target)), len(output))

    def compute(self) -> float:
        if not self.mean.weight:
            raise self._none()
        return self.mean.compute()

    def reset(self) -> None:
        self.mean.reset()


class _Share(Metric):
    """The share of positions that are right; NaN where all that came were ignored."""

    def __init__(self, ignore_index: int | None) -> None:
        self.ignore_index = _checked(ignore_index)
        self.mean, self.updated = Mean(), False
        self.ignored = Mean()  # how many positions of those of `mean`
        self.outside, self.classes = Highest(), 0

    def _add(self, right: Array, counts: Array | None) -> None:
        """Take in which positions are right, of those that `counts` (None: all)."""
        captured, before = recording(), self.updated
        self.updated = True
        if captured is not None:
            captured.each_time(lambda: self._mark(True), lambda: self._mark(before))
        if counts is not None:
            right = right & counts
            self.ignored.add((~counts).sum().astype("float64"), 0)
        self.mean.add(right.sum().astype("float64"), right.size)

    def _mark(self, updated: bool) -> None:
        self.updated = updated

    def sums(self) -> list[Mean | Highest]:
        return [self.mean, self.ignored, self.outside]

    def compute(self) -> float:
        if not self.updated:
            raise self._none()
        _check_outside(self.name, self.outside, self.classes)
        count = self.mean.weight - float(self.ignored.total)
        return float(self.mean.total) / count if count else float("nan")

    def reset(self) -> None:
        self.mean.reset()
        self.ignored.reset()
        self.outside.reset()
        self.updated = False


class Accuracy(_Share):
    """The share of positions whose highest logit is the target's.

    What targets of the output's own shape are is decided by dtype and shape alone, never by their
    values. Floats (N, C, ...) with C > 1 are one-hot or probabilities, as in `cross_entropy`: the
    class of their highest counts. Others (booleans, integers, (N,), (N, 1)), and (N,) for an output
    (N, 1), are one answer per position: a logit above zero means yes, and so does a target above
    0.5. `multilabel` makes answers of floats (N, C, ...) too, as `binary_cross_entropy_with_logits`
    takes them.

    Logits that are NaN, and classes of which one is NaN, are never right.
    """

    name = "accuracy"

    def __init__(self, ignore_index: int | None = IGNORE_INDEX, multilabel: bool = False) -> None:
        super().__init__(ignore_index)
        if not isinstance(multilabel, bool):
            raise ValueError(f"multilabel is {multilabel!r}, expected True or False")
        self.multilabel = multilabel

    def update(self, output: Any, target: Any) -> None:
        output, target = _arrays(self.name, output, target)
        if output.ndim == target.ndim + 1 and output.shape[1] == 1:
            output = output[:, 0]
        if output.shape == target.shape:
            if target.dtype.kind not in "biu" and not is_floating(target.dtype):
                raise _wrong_target(self.name, target)
            counts = _counting(self.ignore_index, target)
            if not self.multilabel and _are_distributions(target):
                counts = None  # there is no index to ignore
                right = _is_highest(output, target.argmax(axis=1))
            else:
                right = ((output > 0) == (target > 0.5)) & (output == output)
        else:
            target, counts = _classes(self, output, target)
            self.classes = output.shape[1]
            right = _is_highest(output, target)
        self._add(right, counts)

    def is_replayable(self, output: Any, target: Any) -> bool:
        return type(self).update is Accuracy.update


class TopK(_Share):
    """The share of positions whose target is among the `k` highest logits; of equal ones the first
    count.
    """

    def __init__(self, k: int = 5, ignore_index: int | None = IGNORE_INDEX) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k is {k!r}, expected an integer of at least 1")
        super().__init__(ignore_index)
        self.k, self.name = k, f"top{k}"

    def update(self, output: Any, target: Any) -> None:
        output, target = _arrays(self.name, output, target)
        target, counts = _classes(self, output, target)
        self.classes = output.shape[1]
        if self.classes < self.k:
            raise ValueError(f"{self.name}: there are only {output.shape[1]} classes")
        xp = array_module(output)
        # On CUDA one may be outside, see _classes.
        inside = xp.clip(target.astype("int64", copy=False), 0, self.classes - 1)
        index = xp.expand_dims(inside, 1)
        mine = xp.take_along_axis(output, index, axis=1)
        classes = xp.arange(output.shape[1]).reshape(1, -1, *[1] * (output.ndim - 2))
        ahead = (output > mine) | ((output == mine) & (classes < index)) | xp.isnan(output)
        right = (ahead.sum(axis=1) < self.k) & ~xp.isnan(mine[:, 0])
        self._add(right, counts)

    def is_replayable(self, output: Any, target: Any) -> bool:
        return type(self).update is TopK.update


class ConfusionMatrix(Metric):
    """Counts, int64 (classes, classes): row i, column j is how often class i was taken for j."""

    name = "confusion"

    def __init__(self, classes: int, ignore_index: int | None = IGNORE_INDEX) -> None:
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 2:
            raise ValueError(f"classes is {classes!r}, expected an integer of at least 2")
        self.classes, self.ignore_index = classes, _checked(ignore_index)
        self.counts: Any = 0
        self.outside = Highest()

    def update(self, output: Any, target: Any) -> None:
        output, target = _arrays(self.name, output, target)
        target, counts = _classes(self, output, target)
        if output.shape[1] != self.classes:
            raise ValueError(
                f"{self.name}: output has {output.shape[1]} classes, expected {self.classes}"
            )
        xp = array_module(output)
        # Targets out of range on CUDA, where _classes does not look, go to the last bin but one,
        # ignored ones to the last.
        inside = (target >= 0) & (target < self.classes)
        cells = target.astype("int64") * self.classes + output.argmax(axis=1)
        cells = xp.where(inside, cells, self.classes**2)
        if counts is not None:
            cells = xp.where(counts, cells, self.classes**2 + 1)
        self.counts = self.counts + xp.bincount(cells.reshape(-1), minlength=self.classes**2 + 2)

    def compute(self) -> np.ndarray[Any, Any]:
        if not is_array(self.counts):
            raise self._none()
        _check_outside(self.name, self.outside, self.classes)
        counts = to_numpy(self.counts)
        return counts[:-2].reshape(self.classes, self.classes).astype(np.int64)

    def reset(self) -> None:
        self.counts = 0
        self.outside.reset()


class _PerClass(Metric):
    """A number for each class out of the confusion matrix, or their average."""

    def __init__(
        self, classes: int, average: Average = "macro", ignore_index: int | None = IGNORE_INDEX
    ) -> None:
        if average not in ("macro", "micro", "none"):
            raise ValueError(f"average is {average!r}, expected 'macro', 'micro' or 'none'")
        self.matrix, self.average = ConfusionMatrix(classes, ignore_index), average

    def update(self, output: Any, target: Any) -> None:
        self.matrix.update(output, target)

    def reset(self) -> None:
        self.matrix.reset()

    def compute(self) -> Any:
        """A float, or float64 (classes,) with ``average="none"``. 0 / 0 counts as 0."""
        if not is_array(self.matrix.counts):
            raise self._none()
        counts = self.matrix.compute()
        hit, found, there = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
        if self.average == "micro":
            return float(self.ratio(hit.sum(), found.sum(), there.sum()))
        each = self.ratio(hit, found, there)
        return each if self.average == "none" else float(each.mean())

    @staticmethod
    @abstractmethod
    def ratio(hit: Any, found: Any, there: Any) -> Any:
        """From what was rightly found, what was found, and what is there."""


class Precision(_PerClass):
    """Of what was taken for a class, the share that is of it.

    "macro" averages the classes, "micro" counts all positions together, "none" gives every class.
    """

    name = "precision"

    @staticmethod
    def ratio(hit: Any, found: Any, there: Any) -> Any:
        return hit / np.maximum(found, 1)


class Recall(_PerClass):
    """Of what is of a class, the share that was taken for it; averages as in `Precision`."""

    name = "recall"

    @staticmethod
    def ratio(hit: Any, found: Any, there: Any) -> Any:
        return hit / np.maximum(there, 1)


class F1(_PerClass):
    """The harmonic mean of precision and recall of each class; averages as in `Precision`."""

    name = "f1"

    @staticmethod
    def ratio(hit: Any, found: Any, there: Any) -> Any:
        return 2 * hit / np.maximum(found + there, 1)


class R2(Metric):
    """The coefficient of determination, 1 - squared error / variance of the targets.

    1 is perfect, 0 as good as always saying the mean; NaN where all targets are equal, so that
    there is no variance. Outputs and targets have one shape; with several columns all elements are
    taken together.
    """

    name = "r2"

    def __init__(self) -> None:
        self.error: Any = 0.0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.count = 0

    def update(self, output: Any, target: Any) -> None:
        output, target = _arrays(self.name, output, target)
        if output.shape != target.shape:
            raise ValueError(
                f"{self.name}: output has shape {output.shape}, target {target.shape}; "
                "they must be equal"
            )
        t = target.astype("float64")
        error = ((output.astype("float64") - t) ** 2).sum()
        # Chan's update of mean and sum of squares: E[t^2] - E[t]^2 would cancel.
        mean, squares = t.mean(), ((t - t.mean()) ** 2).sum()
        both = self.count + t.size
        shift = mean - self.mean
        self.squares = self.squares + squares + shift**2 * (self.count * t.size / both)
        self.mean = self.mean + shift * (t.size / both)
        self.error, self.count = self.error + error, both

    def compute(self) -> float:
        if not self.count:
            raise self._none()
        squares = float(self.squares)
        if squares == 0:
            return float("nan")
        return 1.0 - float(self.error) / squares

    def reset(self) -> None:
        self.error = self.mean = self.squares = 0.0
        self.count = 0


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x))


def _arrays(name: str, output: Any, target: Any) -> tuple[Array, Array]:
    """The arrays of a batch, after the checks that all metrics share."""
    output = output.data if isinstance(output, Tensor) else output
    target = target.data if isinstance(target, Tensor) else target
    output = output if is_array(output) else np.asarray(output)
    target = target if is_array(target) else np.asarray(target)
    if not is_floating(output.dtype):
        raise TypeError(
            f"{name}: output is {output.dtype}, expected floating-point logits or values"
        )
    if output.ndim == 0 or target.ndim == 0 or len(output) != len(target):
        raise ValueError(
            f"{name}: output has shape {output.shape}, target {target.shape}; "
            "the first axis, samples, must be equal"
        )
    if output.size == 0:
        raise ValueError(f"{name}: the batch is empty (output has shape {output.shape})")
    return output, target


def _classes(metric: Any, output: Array, target: Array) -> tuple[Array, Array | None]:
    """Targets with class 0 in place of the metric's `ignore_index`, and which of them count (None:
    all). ValueError for one that is no class; on CUDA it goes to `metric.outside`.
    """
    name, ignored = metric.name, metric.ignore_index
    if output.ndim < 2 or target.shape != (output.shape[0], *output.shape[2:]):
        raise ValueError(
            f"{name}: output has shape {output.shape}, target {target.shape}; "
            "expected (N, C, ...) and (N, ...)"
        )
    if target.dtype.kind not in "iu":
        raise _wrong_target(name, target)
    classes = output.shape[1]
    seen = looked_at(target)
    if seen is not None:
        no_class = (seen < 0) | (seen >= classes)
        if not no_class.any() and (ignored is None or not 0 <= ignored < classes):
            return target, None
        wrong = seen[no_class if ignored is None else no_class & (seen != ignored)]
        if wrong.size:
            raise _is_outside(name, wrong.flat[0], classes)
    counts = _counting(ignored, target)
    target = target if counts is None else target * counts
    if seen is None:
        # As unsigned numbers the negative ones are the highest.
        metric.outside.add(target.astype("int64", copy=False).view("uint64").max())
    return target, counts


def _check_outside(name: str, outside: Highest, classes: int) -> None:
    """Waits for the device."""
    if (value := int(outside.value)) >= classes > 0:
        raise _is_outside(name, value - 2**64 if value >= 2**63 else value, classes)


def _is_outside(name: str, target: int, classes: int) -> ValueError:
    return ValueError(f"{name}: target {target} is outside 0..{classes - 1}")


def _checked(ignore_index: int | None) -> int | None:
    wrong = isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, type(None)))
    if wrong:
        raise ValueError(f"ignore_index is {ignore_index!r}, expected an integer or None")
    return ignore_index


def _counting(ignore_index: int | None, target: Array) -> Array | None:
    """Which targets are not `ignore_index`; None: all, for sure."""
    if ignore_index is None or (ignore_index < 0 and target.dtype.kind in "bu"):
        return None
    return target != ignore_index


def _are_distributions(target: Array) -> bool:
    """Are these floats (N, C, ...), C > 1?"""
    return target.ndim > 1 and target.shape[1] > 1 and is_floating(target.dtype)


def _is_highest(output: Array, target: Array) -> Array:
    """Where class `target` has the highest of the logits (axis 1); nowhere among NaN."""
    return (output.argmax(axis=1) == target) & (output == output).all(axis=1)


def _wrong_target(name: str, target: Array) -> TypeError:
    return TypeError(f"{name}: target is {target.dtype}, expected class indices (integers)")
