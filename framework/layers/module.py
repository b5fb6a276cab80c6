"""Module: the base of every layer and model. It finds its parameters, buffers and submodules by
assignment.

    class Residual(Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner                     # a submodule
            self.scale = Parameter(np.ones(1, "float32"))

        def forward(self, x):
            return x + self.scale * self.inner(x)

Attributes live in the instance as usual, so that reading one costs nothing extra; a Module only
keeps the names of those that are parameters, buffers and submodules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from framework.autograd import Parameter, Tensor, changes
from framework.autograd.casting import forget_copies
from framework.autograd.tensor import as_dtype
from framework.backend.device import Device, choose_device, device_of, to_device
from framework.layers.errors import note_place
from framework.layers.names import OWN, check_replacement, owner_of
from framework.layers.storage import as_array, forget_grad, moved
from kernels.arrays import is_floating

if TYPE_CHECKING:
    from framework.layers.summary import Summary

#: ``hook(module, args) -> new args or None`` and ``hook(module, args, output) -> new output or
#: None``
Hook = Callable[..., Any]
_M = TypeVar("_M", bound="Module")


class LoadResult(NamedTuple):
    """What `Module.load_state_dict` did not find, and what it had no place for."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """A layer or model: parameters, buffers and submodules, and a `forward` that uses them.

    Subclasses define ``__init__`` (which calls ``super().__init__()`` first) and ``forward``. They
    may define `extra_repr` and `multiply_adds`.
    """

    def __init__(self) -> None:
        self.training = True
        self._kinds: dict[str, str] = {}  # name -> "parameter", "buffer" or "module"
        self._transient: set[str] = set()  # buffers that are not part of the state
        self._hooks: dict[int, Hook] = {}
        self._pre_hooks: dict[int, Hook] = {}

    # Registration --------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self._register(name, "parameter")
        elif isinstance(value, Module):
            self._register(name, "module")
        elif (kinds := self.__dict__.get("_kinds")) and name in kinds:
            check_replacement(kinds[name], name, value)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._kinds.pop(name, None)
        self._transient.discard(name)

    def __getattr__(self, name: str) -> Any:
        # Only reached where there is no such attribute.
        kind = type(self).__name__
        if name in OWN:
            raise AttributeError(
                f"{kind}.__init__ must call super().__init__() before anything else"
            )
        if name.startswith("__"):
            raise AttributeError(name)
        from difflib import get_close_matches

        names = [n for n in dir(self) if not n.startswith("_")]
        close = get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise AttributeError(f"{kind} has no attribute {name!r}{hint}")

    def _register(self, name: str, kind: str) -> None:
        kinds = self.__dict__.get("_kinds")
        if kinds is None:
            raise AttributeError(
                f"cannot assign {kind} {name!r} yet: {type(self).__name__}.__init__ must call "
                "super().__init__() first"
            )
        if not name or "." in name:
            raise ValueError(f"{kind} name {name!r}: expected a name without dots")
        if name not in kinds and (owner := owner_of(name, type(self), Module)) is not None:
            raise ValueError(f"{kind} name {name!r} is taken by {owner}.{name}; choose another")
        kinds[name] = kind
        self._transient.discard(name)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a parameter under `name`; None keeps the name for a parameter that this module goes
        without.
        """
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(
                f"parameter {name!r} is a {type(parameter).__name__}, expected Parameter or None"
            )
        self._register(name, "parameter")
        object.__setattr__(self, name, parameter)

    def register_buffer(self, name: str, buffer: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves with the module and is not learned; `persistent` ones are in the
        state.
        """
        if buffer is not None and not isinstance(buffer, Tensor):
            raise TypeError(
                f"buffer {name!r} is a {type(buffer).__name__}, expected Tensor or None"
            )
        self._register(name, "buffer")
        if not persistent:
            self._transient.add(name)
        object.__setattr__(self, name, buffer)

    # Walking -------------------------------------------------------------------------------------

    def _own(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Registered attributes of one kind, without those that are None."""
        for name, k in self._kinds.items():
            if k == kind and (value := self.__dict__[name]) is not None:
                yield name, value

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct submodules with their names."""
        return self._own("module")

    def children(self) -> Iterator[Module]:
        """Direct submodules."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (its path is `prefix`) and all below it, each once, with dotted paths."""
        seen: set[int] = set()
        pending = [(prefix, self)]
        while pending:
            path, module = pending.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(f"{path}.{name}" if path else name, m) for name, m in module.named_children()]
            pending.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def _named(self, kind: str) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in module._own(kind):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters, each once, with dotted paths."""
        return self._named("parameter")

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers, each once, with dotted paths."""
        return self._named("buffer")

    def buffers(self) -> Iterator[Tensor]:
        """All buffers, each once."""
        return (buffer for _, buffer in self.named_buffers())

    # State ---------------------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted path, sharing memory with the module.

        A parameter used in two places is listed under both names, as in PyTorch. Copy what must not
        change with further training. An optimizer made later, and `to`, move the values to other
        memory: take the state after them.
        """
        state: dict[str, Tensor] = {}
        for kind in ("parameter", "buffer"):
            for name, value in self._own(kind):
                if name not in self._transient:
                    state[prefix + name] = value.detach()
        for name, module in self.named_children():
            state.update(module.state_dict(f"{prefix}{name}."))
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy `state` (tensors, NumPy or CuPy arrays, or anything with DLPack) into this module's
        own arrays.

        Devices and dtypes may differ; values are converted. With ``strict=False`` names may be
        missing or unexpected. ValueError lists every missing and unexpected name and every wrong
        shape, and then nothing has been loaded.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state is a {type(state).__name__}, expected a dict of names to arrays"
            )
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        values = {name: as_array(name, state[name]) for name in own if name in state}
        problems = [
            f"{name}: shape {tuple(value.shape)} in the state, {own[name].shape} in the module"
            for name, value in values.items()
            if tuple(value.shape) != own[name].shape
        ]
        if strict:
            problems += [f"{name}: missing in the state" for name in missing]
            problems += [f"{name}: unexpected, the module has no such name" for name in unexpected]
        if problems:
            raise ValueError(
                f"the state does not fit {type(self).__name__}, nothing was loaded:\n  "
                + "\n  ".join(problems)
            )
        forget_copies()
        for name, value in values.items():
            target = own[name].data
            target[...] = to_device(value, device_of(target)).astype(target.dtype, copy=False)
            changes.note(target, "load_state_dict()")
        return LoadResult(missing, unexpected)

    # Mode, place, gradients ----------------------------------------------------------------------

    def train(self: _M, mode: bool = True) -> _M:
        """Training mode (dropout drops, batch norm uses the batch); with False, evaluation."""
        if not isinstance(mode, bool):
            raise TypeError(f"mode={mode!r}, expected True or False")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: _M) -> _M:
        """Evaluation mode."""
        return self.train(False)

    def to(self: _M, target: Any = None, *, device: Any = None, dtype: Any = None) -> _M:
        """Move all parameters and buffers to a device, or change the dtype of the floating ones; in
        place.

        ``to("cuda")``, ``to("float64")``, ``to(device="cuda", dtype="float32")``. Returns the
        module. Gradients are moved too. Optimizers take up moved parameters at their next step.
        """
        if target is not None:
            text = str(target).split(":")[0]
            if isinstance(target, Device) or text in ("cpu", "cuda", "auto"):
                device = target
            else:
                dtype = target
        place = None if device is None else choose_device(device)
        kind = None if dtype is None else as_dtype(dtype)
        if kind is not None and not is_floating(kind):
            raise TypeError(f"dtype={dtype!r}: a module's dtype is a floating-point one")
        for x in [*self.parameters(), *self.buffers()]:
            array = moved(x.data, place, kind)
            if array is x.data:
                continue
            x.data, x.slot = array, None  # the slot is of the old place
            if x.grad is not None:
                x.grad = Tensor(moved(x.grad.data, place, kind))
        return self

    def cpu(self: _M) -> _M:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self: _M) -> _M:
        """Move to the first CUDA device."""
        return self.to("cuda")

    def apply(self: _M, function: Callable[[Module], Any]) -> _M:
        """Call ``function(module)`` for every module below, then for this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients (they are None then), or with ``set_to_none=False`` make them 0."""
        for parameter in self.parameters():
            forget_grad(parameter, set_to_none)

    def requires_grad_(self: _M, requires_grad: bool = True) -> _M:
        """Learn all parameters, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    # Calling -------------------------------------------------------------------------------------

    def forward(self, *args: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            if self._hooks or self._pre_hooks:
                return self._forward_with_hooks(args, options)
            return self.forward(*args, **options)
        except Exception as error:
            note_place(error, self, args)
            raise

    def _forward_with_hooks(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        for hook in list(self._pre_hooks.values()):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        output = self.forward(*args, **options)
        for hook in list(self._hooks.values()):
            changed = hook(self, args, output)
            output = output if changed is None else changed
        return output

    @property
    def has_hooks(self) -> bool:
        """Does a hook run in its forward pass?"""
        return bool(self._hooks or self._pre_hooks)

    def register_forward_hook(self, hook: Hook) -> Callable[[], None]:
        """Call ``hook(module, args, output)`` after forward; what it returns (not None) replaces
        the output.

        Returns a function that removes the hook.
        """
        return _add(self._hooks, hook)

    def register_forward_pre_hook(self, hook: Hook) -> Callable[[], None]:
        """Call ``hook(module, args)`` before forward; what it returns (not None) replaces the
        arguments.

        Returns a function that removes the hook.
        """
        return _add(self._pre_hooks, hook)

    # Text ----------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses of the repr: the arguments, say."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = [
            f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self.named_children()
        ]
        if not lines:
            return f"{type(self).__name__}({extra})"
        if extra:
            lines.insert(0, extra)
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """How many multiply-add pairs one forward call takes, submodules not counted; 0 unless a
        layer says so.
        """
        return 0

    def summary(self, inputs: Any) -> Summary:
        """A table of the layers: output shapes, parameters, multiply-adds. `print` it.

        `inputs` is a shape with the batch axis, ``(1, 784)``, a Tensor (token ids, say), or a list
        of these for several arguments. A forward pass of zeros in evaluation mode finds the shapes;
        modes and buffers are left as they were.
        """
        from framework.layers.summary import summarize

        return summarize(self, inputs)


def _add(hooks: dict[int, Hook], hook: Hook) -> Callable[[], None]:
    if not callable(hook):
        raise TypeError(f"hook={hook!r} cannot be called")
    key = max(hooks, default=-1) + 1
    hooks[key] = hook

    def remove() -> None:
        hooks.pop(key, None)

    return remove
