"""The state of a run: everything that decides how it goes on, as nested dicts of arrays and plain
values.

Weights and buffers, optimizer, plateau schedule (others are functions of the step), EMA, loss
scale, Philox seed and counter, position in the epoch and the loader's order, what running loss,
metrics and callbacks have gathered, history; and to be compared: configuration, fingerprint of the
data (in the loader's part), versions of the libraries. Whole between steps: a callback may take it
in `on_step_end`, `on_epoch_complete` and `on_fit_end`.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framework.autograd import Tensor
from framework.backend.device import Device, to_device
from framework.backend.random import default_generator
from framework.layers.carry import carries
from framework.optimizers import ReduceOnPlateau
from framework.trainer.position import Position
from framework.trainer.versions import versions
from kernels.arrays import is_array

if TYPE_CHECKING:
    from framework.trainer.callbacks import Callback
    from framework.trainer.trainer import Trainer

log = logging.getLogger("framework")

#: Of a configuration, what makes another run; the device may change, and of the recipe what more
#: epochs change.
SAME = ("model", "model_config", "dataset", "seed", "recipe")
MAY_GROW = ("epochs", "steps")


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The state of `trainer`; arrays are its own, not copies. On CUDA it waits for the steps so far
    to be known as good: no checkpoint holds a bad one.
    """
    trainer.settle()
    schedule, ema = trainer.schedule, trainer.ema
    return {
        "model": _arrays(trainer.model.state_dict()),
        "carried": [carry.kept() for carry in carries(trainer.model)],
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": schedule.state_dict() if isinstance(schedule, ReduceOnPlateau) else None,
        "ema": None if ema is None else ema.state_dict(),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "skipped": trainer.skipped,
        "precision": trainer.precision.state_dict(),
        "should_stop": trainer.should_stop,
        "generator": default_generator.state(),
        "position": trainer.position.state_dict(),
        "validation": {name: at.state_dict() for name, at in trainer.validation.items()},
        "gathered": _gathered(trainer) if trainer.position.batches else None,
        "history": copy.deepcopy(trainer.history),
        "callbacks": [[type(c).__name__, c.state_dict()] for c in _stateful(trainer)],
        "config": trainer.config,
        "versions": versions(),
    }


def load_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Make `trainer` go on from `state`; ValueError where it is of another make, and then nothing
    has changed.
    """
    _check(trainer, state)
    before = copied_state(trainer)
    try:
        _apply(trainer, state)
    except BaseException:
        put_back(trainer, before)
        raise
    _tell_of_other_versions(state.get("versions"))


def copied_state(trainer: Trainer) -> dict[str, Any]:
    """The state of `trainer`, which stays as it is now."""
    state: dict[str, Any] = _copied(state_of(trainer))
    return state


def put_back(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Take over an earlier state of the same trainer."""
    _apply(trainer, state)


def _check(trainer: Trainer, state: Mapping[str, Any]) -> None:
    had = [name for name, _ in state["callbacks"]]
    here = [type(callback).__name__ for callback in _stateful(trainer)]
    if had != here:
        raise ValueError(f"the saved run has callbacks {had}, this one {here}")
    for name, used in (
        ("ema", trainer.ema is not None),
        ("schedule", isinstance(trainer.schedule, ReduceOnPlateau)),
    ):
        if used != (state[name] is not None):
            has, other = ("one", "none") if used else ("none", "one")
            raise ValueError(f"this run has {has} for {name!r}, the saved one {other}")
    then, now = state.get("config") or {}, trainer.config or {}
    for name in SAME if then and now else ():
        saved, mine = _plain(then.get(name)), _plain(now.get(name))
        if name == "recipe" and saved and mine:  # settings that came later have no saved value
            mine = saved | {k: v for k, v in mine.items() if k in saved and k not in MAY_GROW}
        for what, theirs, ours in _differences(name, saved, mine):
            raise ValueError(f"the saved run has {what} {theirs!r}, this one {ours!r}")


def _differences(name: str, saved: Any, mine: Any) -> list[tuple[str, Any, Any]]:
    """Name and both values of what differs; of two dicts, of the entries that do."""
    if isinstance(saved, dict) and isinstance(mine, dict):
        keys = sorted(saved.keys() | mine.keys())
        both = [(key, saved.get(key), mine.get(key)) for key in keys]
    else:
        both = [(name, saved, mine)]
    return [entry for entry in both if entry[1] != entry[2]]


def _apply(trainer: Trainer, state: Mapping[str, Any]) -> None:
    trainer.precision.load_state_dict(state["precision"])
    trainer.model.load_state_dict(state["model"])
    for carry, kept in zip(carries(trainer.model), state["carried"], strict=True):
        carry.restore(kept)
    trainer.optimizer.load_state_dict(state["optimizer"])
    if isinstance(trainer.schedule, ReduceOnPlateau):
        trainer.schedule.load_state_dict(state["schedule"])
    if trainer.ema is not None:
        trainer.ema.load_state_dict(state["ema"])
    trainer.epoch, trainer.step = int(state["epoch"]), int(state["step"])
    trainer.skipped = int(state["skipped"])
    trainer.should_stop, trainer._resumed = bool(state["should_stop"]), True
    default_generator.load_state(state["generator"])
    trainer.position.load_state_dict(state["position"])
    trainer.validation = {}
    for name, where in state["validation"].items():
        trainer.validation[name] = Position()
        trainer.validation[name].load_state_dict(where)
    if state["gathered"] is not None:
        _give_back(trainer, state["gathered"])
    trainer.history = [dict(record) for record in state["history"]]
    for callback, (_, mine) in zip(_stateful(trainer), state["callbacks"], strict=True):
        callback.load_state_dict(mine)


def _stateful(trainer: Trainer) -> list[Callback]:
    """The callbacks that have something to save; others may differ after a resume."""
    return [callback for callback in trainer.callbacks if callback.state_dict()]


# What an epoch has gathered so far ----------------------------------------------------------------


def _gathered(trainer: Trainer) -> dict[str, Any]:
    return {
        "loss": trainer.running.state_dict(),
        "metrics": [[metric.name, metric.state_dict()] for metric in trainer.metrics],
        "samples": trainer.samples,
        "skipped_before": trainer._skipped_before,
        "seconds": time.perf_counter() - trainer._began,
    }


def _give_back(trainer: Trainer, state: Mapping[str, Any]) -> None:
    saved, here = [name for name, _ in state["metrics"]], [m.name for m in trainer.metrics]
    if saved != here:
        raise ValueError(f"the saved run has metrics {saved}, this one {here}")
    trainer.running.load_state_dict(state["loss"])
    for metric, (_, mine) in zip(trainer.metrics, state["metrics"], strict=True):
        metric.load_state_dict(_moved(mine, trainer.device))
    trainer.samples = int(state["samples"])
    trainer._skipped_before = int(state["skipped_before"])
    trainer._began = time.perf_counter() - float(state["seconds"])


# Values -------------------------------------------------------------------------------------------


def _arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.data if isinstance(x, Tensor) else x for name, x in state.items()}


def _moved(value: Any, device: Device) -> Any:
    """`value` with its arrays on `device`."""
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return to_device(value, device) if is_array(value) else value


def _copied(value: Any) -> Any:
    """`value` with copies of its arrays."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    value = value.data if isinstance(value, Tensor) else value
    return value.copy() if is_array(value) else value


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tell_of_other_versions(then: Mapping[str, str] | None) -> None:
    now = versions()
    changed = [
        f"{name} {then.get(name, 'none')} (now {now.get(name, 'none')})"
        for name in sorted(set(then) | set(now))
        if then.get(name) != now.get(name)
    ] if then else []  # fmt: skip
    if changed:
        log.warning(
            "the checkpoint was written with %s: the run goes on, but its last digits may differ",
            ", ".join(changed),
        )
