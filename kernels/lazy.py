"""Modules that are imported when they are first used: the engine of the CPU loops takes 0.3 s to
load, and a program that runs on CUDA never needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for the module `name`; what was asked for once costs an attribute from then on (an
    import statement within a function takes 0.4 us each time).
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self.__name__), attribute)
        setattr(self, attribute, value)
        return value
