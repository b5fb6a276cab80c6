"""What a Trainer is given, looked at before anything is moved: each error names the argument, shows
its value and says what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from framework.autograd import Tensor
from framework.data import Dataset
from framework.layers import Module
from framework.optimizers import EMA, Optimizer, ReduceOnPlateau
from framework.trainer.callbacks.callback import Callback
from framework.trainer.inputs import holds_numbers
from framework.trainer.metrics import Metric
from kernels.arrays import is_array


def check_arguments(
    model: Any,
    loss: Any,
    optimizer: Any,
    schedule: Any,
    metrics: Any,
    callbacks: Any,
    accumulate: Any,
    clip_norm: Any,
    clip_value: Any,
    ema: Any,
    batch_size: Any,
) -> None:
    """TypeError or ValueError for what a Trainer cannot work with."""
    if isinstance(loss, Optimizer) and not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"loss is {_shown(loss)}, optimizer is {_shown(optimizer)}: they seem swapped, "
            "expected Trainer(model, loss, optimizer)"
        )
    _expect("model", model, isinstance(model, Module), "a Module")
    _expect("loss", loss, _is_function(loss), "a function loss(output, target) or a ModelLoss")
    steps = hasattr(optimizer, "param_groups") and not isinstance(optimizer, type)
    _expect("optimizer", optimizer, steps, "an Optimizer")  # or one that is made like it
    plateau = isinstance(schedule, ReduceOnPlateau)
    _expect(
        "schedule",
        schedule,
        schedule is None or plateau or _is_function(schedule),
        "a function schedule(step), as framework.optimizers.schedules has, a ReduceOnPlateau or "
        "None",
    )
    _expect("ema", ema, ema is None or isinstance(ema, EMA), "an EMA or None: EMA(model, 0.99)")
    _check_list("metrics", metrics, Metric, "[Accuracy()]")
    _check_list("callbacks", callbacks, Callback, "[Progress()]")
    if not _is_count(accumulate):
        raise ValueError(f"accumulate is {accumulate!r}, expected an integer of at least 1")
    for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        number = isinstance(limit, Real) and not isinstance(limit, bool)
        _expect(name, limit, limit is None or number, "a positive number or None")
        if number and not limit > 0:
            raise ValueError(f"{name} is {limit!r}, expected a positive number or None")
    if batch_size not in (None, "auto") and not _is_count(batch_size):
        raise ValueError(
            f"batch_size is {batch_size!r}, expected an integer of at least 1, 'auto' or None"
        )
    names = [metric.name for metric in metrics]
    if len({"loss", *names}) <= len(names):
        raise ValueError(f"metrics are named {', '.join(names)}; names differ, and from 'loss'")
    if isinstance(optimizer, Optimizer):
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        _check_owner("optimizer", optimizer, moved, model, "AdamW(model.parameters())")
    if ema is not None:
        _check_owner("ema", ema, ema.model.parameters(), model, "EMA(model)")


def check_loader(name: str, loader: Any) -> None:
    """TypeError for what gives no batches: a data set, arrays, a single value."""
    first = loader[0] if isinstance(loader, (list, tuple)) and loader else None
    wrapped = "ArrayDataset(x, y)"
    if _is_data(loader):
        shown = _shown(loader)
    elif _is_data(first) or holds_numbers(loader):
        shown = f"{'arrays' if _is_data(first) else 'numbers'} in a {type(loader).__name__}"
    elif isinstance(loader, (Dataset, str, bytes, Mapping)) or not isinstance(loader, Iterable):
        shown, wrapped = _shown(loader), "data"
    else:
        return
    raise TypeError(
        f"{name} is {shown}, expected a DataLoader or batches; "
        f"wrap it: DataLoader({wrapped}, batch_size=64)"
    )


def _check_owner(
    name: str, value: Any, parameters: Iterable[Tensor], model: Module, expected: str
) -> None:
    """ValueError where none of `parameters` is the model's: nothing would be trained. Those of the
    model that are not among them are frozen.
    """
    own = {id(p) for p in model.parameters()}
    if own and not any(id(p) in own for p in parameters):
        raise ValueError(
            f"{name} ({type(value).__name__}) has another model's parameters: none of them is in "
            f"model ({type(model).__name__}), expected {expected}"
        )


def _expect(name: str, value: Any, good: bool, expected: str) -> None:
    if good:
        return
    call = f": call it, {value.__name__}(...)" if isinstance(value, type) else ""
    raise TypeError(f"{name} is {_shown(value)}, expected {expected}{call}")


def _check_list(name: str, values: Any, kind: type, example: str) -> None:
    """A list of objects of `kind`, not of names or classes."""
    plural = f"a list of {kind.__name__} objects, such as {example}"
    _expect(name, values, isinstance(values, (list, tuple)), plural)
    for i, value in enumerate(values):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        expected = f"{article} {kind.__name__}, such as {example[1:-1]}"
        _expect(f"{name}[{i}]", value, isinstance(value, kind), expected)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, (type, Optimizer, Metric))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) or is_array(value)


def _shown(value: Any) -> str:
    """The value where it is short, else its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if _is_data(value):
        return f"an array of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (str, bytes, Real)):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
