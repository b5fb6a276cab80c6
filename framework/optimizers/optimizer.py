"""Optimizer: parameter groups, flat buffers, state that can be saved; subclasses state the rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from framework.autograd import Tensor, changes
from framework.autograd.casting import forget_copies
from framework.backend.device import device_of, to_device
from framework.backend.live import CaptureError, Recording, recording
from framework.layers.module import Module
from framework.layers.storage import forget_grad
from framework.optimizers.flat import FlatParameters, check_dtype, place_of
from kernels.arrays import Array
from kernels.finite import mark_nonfinite_

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer(ABC):
    """Moves parameters along their gradients, by a rule that a subclass states.

    `parameters` are tensors, or groups: dicts with "params" and options of their own ("lr", ...);
    what a group does not say comes from the arguments. The arrays of a group become views of one
    flat buffer; a ``model.state_dict()`` from before goes stale, take it afterwards. Gradients are
    views too. `zero_grad` gives one that somebody holds (``g = p.grad``) memory of its own; an
    array (``p.grad.data``) is overwritten by the next backward pass: copy it to keep it.

    A parameter without a gradient (None) is skipped, as in PyTorch.
    """

    def __init__(self, parameters: Parameters, defaults: dict[str, Any]) -> None:
        if isinstance(parameters, Tensor):
            raise TypeError("parameters is one tensor, expected a list of them: [parameter]")
        if isinstance(parameters, Module):
            name = type(parameters).__name__
            raise TypeError(
                f"parameters is a model ({name}), expected parameters: net.parameters()"
            )
        if not isinstance(parameters, Iterable):
            raise TypeError(
                f"parameters is {parameters!r}, expected tensors or groups: net.parameters()"
            )
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self._flat: list[list[FlatParameters]] = []
        given: list[Any] = list(parameters)
        if not given:
            raise ValueError("the optimizer got no parameters")
        groups = given if any(isinstance(x, Mapping) for x in given) else [{"params": given}]
        for group in groups:
            if not isinstance(group, Mapping):
                raise TypeError("parameters mixes groups and tensors, expected all of one kind")
            self.add_param_group(group)

    # What a rule defines -------------------------------------------------------------------------

    @abstractmethod
    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options out of range."""

    @abstractmethod
    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        """State buffers that the rule needs with the group's options, and their initial values."""

    def phase(self, steps: int) -> Any:
        """Parameters whose step counts differ share a kernel call if this is the same for them."""
        return 0

    @abstractmethod
    def update(
        self,
        group: dict[str, Any],
        p: Array,
        g: Array,
        state: dict[str, Array],
        step: int,
        scale: Any,
        live: Array | None = None,
    ) -> None:
        """Step number `step` (from 1) for flat slices, in place; the gradient is scale * g.

        `live`, while a step is captured: what `numbers` gives, on the device.
        """

    def numbers(self, group: dict[str, Any], step: int) -> list[np.float32]:
        """The numbers of step number `step` as the rule's kernel takes them (`live` of
        kernels/optimizers.py); without them a step cannot be captured.
        """
        raise CaptureError(f"{type(self).__name__} has no numbers(): its steps are not captured")

    # Groups --------------------------------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own: ``{"params": [...], "lr": 0.01}``."""
        if "params" not in group:
            raise ValueError(f"a parameter group has the keys {sorted(group)}, expected 'params'")
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        options = {name: value for name, value in group.items() if name != "params"}
        unknown = sorted(set(options) - set(self.defaults) - {"initial_lr"})
        if unknown:
            known = ", ".join(sorted(self.defaults))
            raise ValueError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; there are: {known}"
            )
        new = {"params": params, **self.defaults, **options}
        new.setdefault("initial_lr", new["lr"])
        self._check_params(params)
        self._check_options(new)
        places: dict[Any, list[Tensor]] = {}
        for p in params:
            places.setdefault(place_of(p), []).append(p)
        self._flat.append([FlatParameters(ps, self.buffers(new)) for ps in places.values()])
        self.param_groups.append(new)

    def _check_options(self, group: dict[str, Any]) -> None:
        """ValueError for options out of range; NumPy's numbers become Python's."""
        for name, value in group.items():
            if isinstance(value, np.generic):
                group[name] = value.item()
            elif isinstance(value, (tuple, list)) and name != "params":
                group[name] = tuple(v.item() if isinstance(v, np.generic) else v for v in value)
        not_negative("lr", group["lr"])
        not_negative("initial_lr", group["initial_lr"])
        self.check(group)

    def _check_params(self, params: list[Any]) -> None:
        if not params:
            raise ValueError("a parameter group has no parameters")
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"parameter {i} is a {type(p).__name__}, expected a tensor")
            if p.node is not None:
                raise ValueError(f"parameter {i} is the result of an operation, expected a leaf")
            if id(p) in known:
                raise ValueError(f"parameter {i} (shape {p.shape}) is in the optimizer already")
            known.add(id(p))
            check_dtype(p)

    @property
    def lr(self) -> float:
        """The learning rate of the first group. Assigning sets all groups; see `scale_lr`."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        not_negative("lr", value)
        for group in self.param_groups:
            group["lr"] = float(value)

    def scale_lr(self, multiplier: float) -> None:
        """Set every group's learning rate to its initial one times `multiplier`: what a schedule
        gives.
        """
        not_negative("multiplier", multiplier)
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * multiplier

    # Steps ---------------------------------------------------------------------------------------

    def step(self, scale: float | Tensor = 1.0) -> None:
        """Update all parameters that have a gradient.

        The gradients count `scale` times (and are not changed): a number, or a tensor of one
        element, which on CUDA nothing waits for. `clip_factor` gives one. ValueError for options
        that were set out of range, and then nothing is changed.
        """
        for group in self.param_groups:
            self._check_options(group)
        forget_copies()
        if isinstance(scale, Tensor):
            scale = scale.data
        captured = recording()
        if captured is not None:
            self._record(captured, scale)
            return
        for group, flats in zip(self.param_groups, self._flat, strict=True):
            wanted = self.buffers(group)
            for flat in flats:
                flat.gather()
                flat.provide(wanted)
                with flat.device.context():
                    for part, step in flat.runs(self.phase):
                        state = {name: buffer[part] for name, buffer in flat.state.items()}
                        self.update(group, flat.data[part], flat.grad[part], state, step, scale)
                        changes.note(flat.data[part], "an optimizer's step")

    def _record(self, captured: Recording, scale: Any) -> None:
        """The step while it is captured: nothing moves now, and the numbers come at every replay.

        What an ordinary step makes when it first needs it has to be there: it would be made again
        in every replay.
        """
        for group, flats in zip(self.param_groups, self._flat, strict=True):
            for flat in flats:
                if flat.device != captured.device:  # which has a stream of its own
                    raise CaptureError(f"parameters are on {flat.device}, not {captured.device}")
                if not flat.is_settled() or not self.buffers(group).keys() <= flat.state.keys():
                    raise CaptureError(
                        "the optimizer's buffers are not made yet: take a step first"
                    )
                for run in flat.stretches(self.phase):
                    part = flat.part(run)
                    state = {name: buffer[part] for name, buffer in flat.state.items()}
                    live = self._live(captured, group, flat, run)
                    step = flat.steps[run.start]
                    self.update(group, flat.data[part], flat.grad[part], state, step, scale, live)

    def _live(
        self, captured: Recording, group: dict[str, Any], flat: FlatParameters, run: range
    ) -> Array:
        """The numbers of a run of parameters: made by each replay, which is a step of theirs."""

        def make() -> list[np.float32]:
            self._check_options(group)
            made = self.numbers(group, flat.steps[run.start] + 1)
            flat.count(run, 1)
            return made

        def shape() -> tuple[Any, ...]:
            """What decides which kernels run, and over what."""
            switches = [value for value in group.values() if isinstance(value, bool)]
            wanted = [p.requires_grad for p in flat.parameters]
            # where the backward pass is part of what is captured, it decides itself
            there = None if captured.leaves else [p.grad is None for p in flat.parameters]
            phases = {self.phase(flat.steps[i]) for i in run}
            return switches, sorted(self.buffers(group)), wanted, there, len(phases)

        data, before = flat.data, shape()

        def fits() -> bool:
            flat.gather()  # what was assigned since; in other buffers it fits no longer
            return flat.data is data and shape() == before

        return captured.numbers("float32", make, lambda: flat.count(run, -1), fits)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients (they are None then), or with ``set_to_none=False`` make them 0."""
        for group in self.param_groups:
            for p in group["params"]:
                forget_grad(p, set_to_none)

    def flat_gradients(self) -> list[Array]:
        """All gradients, as few flat arrays; changing these changes the gradients."""
        return [array for flats in self._flat for flat in flats for array in flat.gradients()]

    def gradient_buffers(self) -> list[Array]:
        """The flat buffers that all gradients are in, whole. What else is in them, in the gaps of
        alignment and where a parameter has no gradient now, means nothing.
        """
        flats = [flat for flats in self._flat for flat in flats]
        for flat in flats:
            flat.gather()
        return [flat.grad for flat in flats]

    def mark_nonfinite_gradients(self, found: Array) -> None:
        """found[0] = 1 where one of `gradient_buffers` holds a NaN or an infinity: int32 (1,)."""
        for flats in self._flat:
            for flat in flats:
                flat.gather()
                mark_nonfinite_(flat.grad, found)

    def counted(self) -> list[Any]:
        """What the host counts and sets from step to step: step counts and learning rates."""
        steps = [list(flat.steps) for flats in self._flat for flat in flats]
        return [steps, [group["lr"] for group in self.param_groups]]

    def count_from(self, counted: list[Any]) -> None:
        """Go back to what `counted` gave: the steps since then have changed nothing."""
        steps, rates = counted
        flats = [flat for flats in self._flat for flat in flats]
        for flat, count in zip(flats, steps, strict=True):
            flat.steps[:] = count
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    def memory_held(self) -> dict[str, int]:
        """Bytes of its buffers: "gradients" and "optimizer state"."""
        flats = [flat for flats in self._flat for flat in flats]
        return {
            "gradients": sum(flat.grad.nbytes for flat in flats),
            "optimizer state": sum(a.nbytes for flat in flats for a in flat.state.values()),
        }

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: {"name", "groups", "steps", "arrays"}.

        "groups" are the options of each group as plain values, with the number of its parameters;
        "steps" counts the steps of each parameter; "arrays" are tensors under
        "state_name.parameter_number". Parameters are numbered in the order they were given. The
        tensors share memory with the optimizer.
        """
        groups = [
            {name: _plain(value) for name, value in group.items() if name != "params"}
            | {"parameters": len(group["params"])}
            for group in self.param_groups
        ]
        arrays: dict[str, Tensor] = {}
        steps = []
        for i, (flat, j) in enumerate(self._numbered()):
            steps.append(flat.steps[j])
            for name, buffer in flat.state.items():
                arrays[f"{name}.{i}"] = Tensor(flat.view(buffer, j))
        return {"name": type(self).__name__, "groups": groups, "steps": steps, "arrays": arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of an optimizer of the same class for parameters of the same
        shapes.

        The groups take over the saved options, and with them come the buffers that the rule needs.
        ValueError says what does not fit, and then nothing has been loaded.
        """
        groups = self._check_state(state)
        for group, taken, flats in zip(self.param_groups, groups, self._flat, strict=True):
            group.update(taken)
            for flat in flats:
                flat.provide(self.buffers(group))
        for i, (flat, j) in enumerate(self._numbered()):
            flat.steps[j] = int(state["steps"][i])
            for name, buffer in list(flat.state.items()):
                if f"{name}.{i}" not in state["arrays"]:
                    del flat.state[name]  # a buffer of options that the saved run did not have
                    continue
                view = flat.view(buffer, j)
                view[...] = to_device(_data(state["arrays"][f"{name}.{i}"]), device_of(view))

    def _check_state(self, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The groups with the options of `state`, if everything in it fits."""
        if not isinstance(state, Mapping) or not {"name", "groups", "steps", "arrays"} <= set(
            state
        ):
            raise ValueError(
                "state is not an optimizer's state_dict: expected name, groups, steps, arrays"
            )
        if state["name"] != type(self).__name__:
            raise ValueError(
                f"the state is of {state['name']}, the optimizer is {type(self).__name__}"
            )
        sizes = [group["parameters"] for group in state["groups"]]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own or len(state["steps"]) != sum(own):
            raise ValueError(f"the state has groups of {sizes} parameters, the optimizer of {own}")
        groups = [
            group | {name: _frozen(value) for name, value in saved.items() if name in group}
            for group, saved in zip(self.param_groups, state["groups"], strict=True)
        ]
        for group in groups:
            self._check_options(group)
        needed, arrays = self._arrays_of(groups)
        problems = [f"{name}: missing" for name in needed if name not in state["arrays"]]
        problems += [f"{name}: unexpected" for name in state["arrays"] if name not in arrays]
        for name, mine in arrays.items():
            if name in state["arrays"] and tuple(state["arrays"][name].shape) != mine:
                shape = tuple(state["arrays"][name].shape)
                problems.append(f"{name}: shape {shape} in the state, {mine} here")
        if problems:
            raise ValueError(
                "the state does not fit the optimizer, nothing was loaded:\n  "
                + "\n  ".join(problems)
            )
        return groups

    def _arrays_of(
        self, groups: list[dict[str, Any]]
    ) -> tuple[list[str], dict[str, tuple[int, ...]]]:
        """The arrays that a state with these options has to have, and the shapes of all that it may
        have: what was needed once may be there still.
        """
        needed: list[str] = []
        shapes: dict[str, tuple[int, ...]] = {}
        wanted = [self.buffers(group) for group in groups for _ in group["params"]]
        for i, ((flat, j), names) in enumerate(zip(self._numbered(), wanted, strict=True)):
            needed += [f"{name}.{i}" for name in names]
            shapes |= {f"{name}.{i}": flat.parameters[j].shape for name in flat.state | names}
        return needed, shapes

    def _numbered(self) -> list[tuple[FlatParameters, int]]:
        """For each parameter in the order given: its buffers, and its place in them."""
        places = {
            id(p): (flat, j)
            for flats in self._flat
            for flat in flats
            for j, p in enumerate(flat.parameters)
        }
        return [places[id(p)] for group in self.param_groups for p in group["params"]]

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.param_groups):
            options = ", ".join(
                f"{k}={v}" for k, v in group.items() if k not in ("params", "initial_lr")
            )
            lines.append(f"  group {i}: {len(group['params'])} parameters, {options}")
        return f"{type(self).__name__}(\n" + "\n".join(lines) + "\n)"


# Checks that several rules share -----------------------------------------------------------------


def not_negative(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number of at least 0."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}, expected a finite number of at least 0")


def fraction(name: str, value: Any) -> None:
    """ValueError unless 0 <= value < 1."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}, expected a number from 0 to below 1")


def finite(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}, expected a finite number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _data(x: Any) -> Array:
    return x.data if isinstance(x, Tensor) else x
