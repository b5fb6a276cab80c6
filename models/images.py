"""What the families for images share: the configuration that the data decides, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class ImageConfig:
    """The images and classes that a model is for. A family adds its own settings; ValueError names
    one that cannot be.

    Args:
        shape: of an image, (channels, height, width).
        classes: number of them.
    """

    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10

    of_data: ClassVar[tuple[str, ...]] = ("shape", "classes")

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Sequence) or len(self.shape) != 3:
            raise ValueError(f"shape is {self.shape!r}, expected (channels, height, width)")
        object.__setattr__(self, "shape", tuple(self.shape))  # JSON has lists
        for size in self.shape:
            check_count("shape", size)
        check_count("classes", self.classes)

    @classmethod
    def for_data(
        cls, shape: tuple[int, ...], classes: int | None, task: str, **settings: Any
    ) -> Self:
        """The configuration for inputs of `shape`, which have to be images."""
        if len(shape) != 3:
            sizes = ", ".join(map(str, shape))
            raise ValueError(
                f"inputs have shape ({sizes}): expected images, (channels, height, width)"
            )
        return cls(**{"shape": shape, "classes": classes or 1, **settings})


def check_count(name: str, value: Any) -> None:
    """ValueError unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")


def check_counts(name: str, values: Any, length: int | None = None) -> tuple[int, ...]:
    """The integers as a tuple; ValueError unless there are `length` of them, each at least 1."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{name} is {values!r}, expected integers")
    for value in values:
        check_count(name, value)
    if length is not None and len(values) != length:
        raise ValueError(f"{name} is {tuple(values)}, expected {length} integers")
    return tuple(values)


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """ValueError unless `value` is one of `known`."""
    if value not in known:
        listed = ", ".join("none" if choice is None else str(choice) for choice in known)
        raise ValueError(f"{name} is {value!r}, expected one of {listed}")


def check_share(name: str, value: Any) -> None:
    """ValueError unless `value` is a probability from 0 to below 1."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}, expected a probability from 0 to below 1")


def check_switch(name: str, value: Any) -> None:
    """ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected True or False")
