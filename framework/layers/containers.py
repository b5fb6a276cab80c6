"""Modules that hold other modules: Sequential, ModuleList, ModuleDict."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from framework.layers.module import Module

_L = TypeVar("_L", bound="_Numbered")


def _checked(owner: str, module: Any) -> Module:
    if not isinstance(module, Module):
        hint = "; give an instance, not the class" if isinstance(module, type) else ""
        raise TypeError(f"{owner} holds modules, got {module!r}{hint}")
    return module


class _Numbered(Module):
    """Submodules in order, indexed and sliced like a list."""

    def _names(self) -> list[str]:
        return [name for name, kind in self._kinds.items() if kind == "module"]

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def _name_at(self, index: Any) -> str:
        names = self._names()
        try:
            return names[operator.index(index)]
        except IndexError:
            raise IndexError(
                f"index {index} into {type(self).__name__} of {len(names)} modules"
            ) from None

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self: _L, index: slice) -> _L: ...
    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return getattr(self, self._name_at(index))
        part = type(self)()
        for name in self._names()[index]:
            setattr(part, str(len(part)) if name.isdigit() else name, getattr(self, name))
        part.training = self.training
        return part

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._name_at(index), _checked(type(self).__name__, module))

    def append(self: _L, module: Module) -> _L:
        """Add a module at the end."""
        names = self._names()
        name = str(len(names))
        if name in names:  # after names of one's own
            raise ValueError(f"append: there is a module named {name!r} already")
        setattr(self, name, _checked(type(self).__name__, module))
        return self

    def extend(self: _L, modules: Iterable[Module]) -> _L:
        """Add modules at the end."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Numbered):
    """Modules one after the other: each is called with the output of the one before.

    ``Sequential(a, b, c)``, or ``Sequential({"first": a, "second": b})`` for names of one's own.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                setattr(self, name, _checked("Sequential", module))
        else:
            for given in modules:
                self.append(_checked("Sequential", given))

    def forward(self, x: Any) -> Any:
        """x through all modules."""
        for module in self.children():
            x = module(x)
        return x


class ModuleList(_Numbered):
    """A list of modules, which a model calls as it likes."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)


class ModuleDict(Module):
    """Modules by name, in the order they were added."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add or replace modules."""
        pairs = modules.items() if isinstance(modules, Mapping) else modules
        for name, module in pairs:
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(name, str):
            raise TypeError(f"ModuleDict: name {name!r} is a {type(name).__name__}, expected str")
        setattr(self, name, _checked("ModuleDict", module))

    def __getitem__(self, name: str) -> Module:
        if name not in self:
            raise KeyError(
                f"no module named {name!r}; there are: {', '.join(self.keys()) or 'none'}"
            )
        module: Module = getattr(self, name)
        return module

    def __delitem__(self, name: str) -> None:
        self[name]  # the error for a name that is not there
        delattr(self, name)

    def __contains__(self, name: object) -> bool:
        return self._kinds.get(str(name)) == "module"

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self.named_children()]

    def values(self) -> list[Module]:
        """The modules."""
        return list(self.children())

    def items(self) -> list[tuple[str, Module]]:
        """Names and modules."""
        return list(self.named_children())
