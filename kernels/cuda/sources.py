"""Every CUDA program there is: the text of each family and of the generated elementwise kernels,
and all instantiations that are launched of it.

For those who compile everything (tests, the compiler's report). A process that computes compiles
what it uses, through compiler.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache

import kernels
from kernels.cuda import compiler
from kernels.elementwise import Elementwise
from kernels.registry import all_kernels


@dataclass(frozen=True)
class Program:
    """One text to compile, and the template instantiations to make of it."""

    name: str
    text: str
    expressions: tuple[str, ...]


@cache
def families() -> dict[str, tuple[str, ...]]:
    """The instantiations of every kernels/cuda/<family>.cu.

    Its Python module lists the templates in CUDA_KERNELS. They are over the element type, one of
    three, but for those whose types CUDA_TYPES states.
    """
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(kernels.__path__)):
        module = importlib.import_module(f"kernels.{name}")
        types = getattr(module, "CUDA_TYPES", {})
        if hasattr(module, "CUDA_KERNELS"):
            found[name] = tuple(
                f"{template}<{kind}>"
                for template in module.CUDA_KERNELS
                for kind in types.get(template, compiler.TYPES.values())
            )
    return found


@cache
def elementwise_kernels() -> tuple[Elementwise, ...]:
    """The kernels whose CUDA text kernels/elementwise.py makes from a formula."""
    families()  # imports them all
    return tuple(
        k for k in all_kernels().values() if isinstance(k, Elementwise) and k.version("cuda")
    )


@cache
def programs() -> tuple[Program, ...]:
    """All families, and one program that holds every elementwise kernel."""
    operations = elementwise_kernels()
    text = compiler.common() + "".join(k.cuda_source() for k in operations)
    kinds = compiler.TYPES.values()
    expressions = tuple(f"{k.name}_kernel<{kind}>" for k in operations for kind in kinds)
    return (
        *(Program(name, compiler.source(name), found) for name, found in families().items()),
        Program("elementwise", text, expressions),
    )
